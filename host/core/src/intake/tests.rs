use super::*;
use crate::branches::MERGE_BRANCHES;
use crate::forge::RepositoryRef;
use crate::trust::{NOT_ENABLED, WAITS_AS_DRAFT, WAITS_FOR_APPROVAL};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn repository() -> RepositoryRef {
    RepositoryRef { id: "1".to_owned(), full_name: "o/r".to_owned() }
}

fn rules() -> ProjectRules {
    ProjectRules {
        branches: BranchRules {
            default_branch: "main".to_owned(),
            patterns: vec!["release/*".to_owned()],
            merge_branches: MERGE_BRANCHES.iter().map(|p| (*p).to_owned()).collect(),
        },
        build_tags: false,
        build_drafts: false,
        pr_enabled: true,
        pr_trust: PullRequestTrust::Collaborators,
    }
}

fn pushed(reference: Reference, commit: &str, deleted: bool) -> Push {
    Push {
        repository: repository(),
        reference,
        commit: commit.to_owned(),
        deleted,
        author: "pusher".to_owned(),
        message: "Fix it\n\nAt last.".to_owned(),
    }
}

fn branch(name: &str, commit: &str, deleted: bool) -> Push {
    pushed(Reference::Branch(name.to_owned()), commit, deleted)
}

fn at(commit: &str) -> Head {
    Head::At(BranchHead { commit: commit.to_owned(), author: "author".to_owned(), message: "\nNow\n".to_owned() })
}

fn open_pull_request() -> PullRequest {
    PullRequest {
        number: 7,
        title: "Add a thing".to_owned(),
        author: "stranger".to_owned(),
        is_open: true,
        is_draft: false,
        labels: Vec::new(),
        head_commit: A.to_owned(),
        head_branch: "thing".to_owned(),
        head_repository: None,
        base_branch: "main".to_owned(),
        base_commit: B.to_owned(),
        head_ref: "refs/pull/7/head".to_owned(),
    }
}

/// What a decision comes to, in a word.
fn word(decision: &Decision) -> String {
    match &decision.action {
        None => "nothing".to_owned(),
        Some(Action::Evaluate(wanted)) => {
            let alone = if wanted.supersede { "" } else { " beside others" };
            format!("evaluate {} {}{alone}", wanted.branch, &wanted.commit[..1])
        }
        Some(Action::CloseBranch { branch, is_tag }) => format!("close {branch}{}", if *is_tag { " tag" } else { "" }),
        Some(Action::ClosePullRequest) => "close pull request".to_owned(),
    }
}

#[test]
fn which_pushes_evaluate() {
    let tag = |name: &str, deleted| pushed(Reference::Tag(name.to_owned()), A, deleted);
    let with_tags = ProjectRules { build_tags: true, ..rules() };
    let cases = [
        (branch("main", A, false), rules(), PushInterest::Branch(BranchClass::Default)),
        (branch("release/1", A, false), rules(), PushInterest::Branch(BranchClass::Pattern)),
        (branch("gh-readonly-queue/main/pr-1", A, false), rules(), PushInterest::Branch(BranchClass::MergeQueue)),
        (branch("main", A, true), rules(), PushInterest::Branch(BranchClass::Default)),
        (branch("topic", A, true), rules(), PushInterest::Leftovers),
        (tag("v1", false), with_tags, PushInterest::Tag),
        (tag("v1", true), rules(), PushInterest::Tag),
    ];
    for (push, rules, interest) in cases {
        assert_eq!(push_interest(&push, &rules), interest, "{push:?}");
    }
    for (push, why) in [(branch("topic", A, false), "neither the default branch"), (tag("v1", false), "no")] {
        let interest = push_interest(&push, &rules());
        let PushInterest::Nothing(reason) = &interest else { panic!("{interest:?}") };
        assert!(reason.contains(why), "the reason is visible: {reason}");
    }
}

#[test]
fn a_late_delivery_never_cancels_what_is_newer() {
    use BranchClass::{Default, MergeQueue, Pattern};
    let cases = [
        // class, deleted, the branch now, what comes of a push of A
        (Default, false, at(A), "evaluate x A"),
        (Default, false, at(B), "evaluate x B"),
        (Default, false, Head::Unknown, "evaluate x A"),
        (Default, false, Head::Gone, "close x"),
        (Default, true, Head::Gone, "close x"),
        (Default, true, at(B), "nothing"),
        (Default, true, Head::Unknown, "close x"),
        (Pattern, false, at(B), "evaluate x B"),
        // Unique merge states are evaluated each for itself.
        (MergeQueue, false, at(A), "evaluate x A beside others"),
        (MergeQueue, false, at(B), "evaluate x A beside others"),
        (MergeQueue, false, Head::Gone, "close x"),
        (MergeQueue, true, Head::Gone, "close x"),
    ];
    for (class, deleted, head, expected) in cases {
        let decision = push(&branch("x", A, deleted), "x", class, &head);
        assert_eq!(word(&decision), expected.replace('A', "a").replace('B', "b"), "{class:?} {deleted} {head:?}");
        assert!(!decision.reason.is_empty());
    }
}

#[test]
fn the_commit_that_is_evaluated_is_described() {
    let evaluated = |head: &Head| match push(&branch("main", A, false), "main", BranchClass::Default, head).action {
        Some(Action::Evaluate(wanted)) => (wanted.title, wanted.author),
        other => panic!("{other:?}"),
    };
    assert_eq!(evaluated(&at(A)), (Some("Fix it".to_owned()), Some("pusher".to_owned())));
    assert_eq!(evaluated(&at(B)), (Some("Now".to_owned()), Some("author".to_owned())));
    assert_eq!(title(&"x".repeat(1_000)).map(|t| t.len()), Some(TITLE_CHARS_MAX));
    assert_eq!((title(""), title("\n\n"), author("")), (None, None, None));
}

#[test]
fn tags_evaluate_and_go() {
    let tag = |deleted| super::tag(&pushed(Reference::Tag("v1".to_owned()), A, deleted), "v1");
    assert_eq!(word(&tag(false)), "evaluate v1 a");
    assert_eq!(word(&tag(true)), "close v1 tag");
}

#[test]
fn merge_groups_evaluate_their_head_as_a_branch() {
    let cases = [
        (false, at(A), "evaluate queue/1 a beside others"),
        (false, at(B), "evaluate queue/1 a beside others"),
        (false, Head::Unknown, "evaluate queue/1 a beside others"),
        (false, Head::Gone, "close queue/1"),
        (true, at(A), "close queue/1"),
    ];
    for (destroyed, head, expected) in cases {
        let group = MergeGroup {
            repository: repository(),
            branch: "queue/1".to_owned(),
            commit: A.to_owned(),
            base_branch: "main".to_owned(),
            base_commit: B.to_owned(),
            destroyed,
        };
        assert_eq!(word(&merge_group(&group, &head)), expected, "{destroyed} {head:?}");
    }
}

#[test]
fn a_pull_request_that_is_not_evaluated_says_why() {
    let draft = PullRequest { is_draft: true, ..open_pull_request() };
    let closed = PullRequest { is_open: false, ..open_pull_request() };
    let off = ProjectRules { pr_enabled: false, ..rules() };
    let write = Some(Permission::Write);
    let cases = [
        (open_pull_request(), rules(), write, false, "evaluate pull/7 a", None),
        (open_pull_request(), rules(), Some(Permission::Read), false, "nothing", Some(WAITS_FOR_APPROVAL)),
        (open_pull_request(), rules(), None, true, "evaluate pull/7 a", None),
        (draft.clone(), rules(), write, true, "nothing", Some(WAITS_AS_DRAFT)),
        (draft, ProjectRules { build_drafts: true, ..rules() }, write, false, "evaluate pull/7 a", None),
        (open_pull_request(), off.clone(), write, false, "nothing", Some(NOT_ENABLED)),
        (closed.clone(), rules(), write, false, "close pull request", None),
        // What is closed is closed whatever the project builds now.
        (closed, off, None, false, "close pull request", None),
    ];
    for (now, rules, permission, approved, expected, waiting) in cases {
        let decision = pull_request(&now, &rules, permission, approved);
        assert_eq!((word(&decision).as_str(), decision.waiting), (expected, waiting), "{now:?} {permission:?}");
    }
}

#[test]
fn permissions_are_asked_only_when_something_depends_on_them() {
    let base = RepositoryRef { id: "1".to_owned(), full_name: "acme/site".to_owned() };
    let fork = |owner: &str| RepositoryRef { id: "2".to_owned(), full_name: format!("{owner}/site") };
    let both: &[&str] = &["stranger", "other"];
    let cases = [
        (PullRequestTrust::Collaborators, false, false, Some(fork("other")), both),
        (PullRequestTrust::Collaborators, false, false, Some(fork("stranger")), &both[..1]),
        (PullRequestTrust::Collaborators, false, false, Some(base.clone()), &both[..1]),
        // Nobody knows who could push to it: it waits, whoever opened it.
        (PullRequestTrust::Collaborators, false, false, None, &[]),
        (PullRequestTrust::Collaborators, true, false, Some(fork("other")), &[]),
        (PullRequestTrust::Collaborators, false, true, Some(fork("other")), &[]),
        (PullRequestTrust::All, false, false, Some(fork("other")), &[]),
        (PullRequestTrust::None, false, false, Some(fork("other")), &[]),
    ];
    for (pr_trust, approved, is_draft, head_repository, asked) in cases {
        let now = PullRequest { is_draft, head_repository, ..open_pull_request() };
        let rules = ProjectRules { pr_trust, ..rules() };
        assert_eq!(whom_to_ask(&now, &base, &rules, approved), asked, "{pr_trust:?} {approved} {now:?}");
    }
}

#[test]
fn head_and_base_of_a_pull_request_are_recorded() {
    let wanted = wanted_of(&open_pull_request());
    assert_eq!((wanted.branch.as_str(), wanted.commit.as_str(), wanted.supersede), ("pull/7", A, true));
    let commits = wanted.pull_request.expect("of a pull request");
    assert_eq!((commits.number, commits.head.as_str(), commits.base_commit.as_str()), (7, A, B));
    assert_eq!((commits.head_ref.as_str(), commits.base_branch.as_str()), ("refs/pull/7/head", "main"));
}

#[test]
fn rerunning_does_again_what_failed_for_those_who_may_push() {
    use EvalStatus::{Cancelled, Failed, Queued, Running, Skipped, Succeeded};
    let write = Some(Permission::Write);
    let not_ended = Rerun::Nothing("it has not ended yet");
    let cases = [
        (None, write, Failed, Rerun::Evaluate),
        (None, write, Cancelled, Rerun::Evaluate),
        (None, write, Succeeded, Rerun::Rebuild),
        (Some("harmonia-ci/nix-eval"), write, Succeeded, Rerun::Evaluate),
        (Some("buildbot/nix-eval"), write, Skipped, Rerun::Evaluate),
        (Some("harmonia-ci/nix-build"), write, Succeeded, Rerun::Rebuild),
        (Some("harmonia-ci/nix-build"), write, Failed, Rerun::Evaluate),
        (Some("harmonia-ci/checks.x86_64-linux.a"), write, Skipped, Rerun::Rebuild),
        (None, write, Queued, not_ended),
        (Some("harmonia-ci/nix-eval"), write, Running, not_ended),
    ];
    for (context, permission, status, expected) in cases {
        assert_eq!(rerun(context, permission, status), expected, "{context:?} {status:?}");
    }
    for permission in [None, Some(Permission::None), Some(Permission::Read)] {
        assert!(matches!(rerun(None, permission, Failed), Rerun::Nothing(_)), "{permission:?}");
    }
}

#[test]
fn what_a_forge_says_of_commits_and_refs_is_looked_at_before_git_sees_it() {
    type Change = fn(&mut PullRequest);
    let cases: [(Change, bool); 9] = [
        (|_| {}, true),
        (|pull| pull.head_commit = A.repeat(2)[..64].to_owned(), true),
        (|pull| pull.head_commit = "--upload-pack=x".to_owned(), false),
        (|pull| pull.head_commit = A[..39].to_owned(), false),
        (|pull| pull.base_commit = String::new(), false),
        (|pull| pull.base_branch = "-x".to_owned(), false),
        (|pull| pull.base_branch = "a\nb".to_owned(), false),
        (|pull| pull.head_ref = String::new(), false),
        (|pull| pull.head_ref = "x".repeat(crate::git::REF_NAME_BYTES_MAX + 1), false),
    ];
    for (change, is_fine) in cases {
        let mut pull = open_pull_request();
        change(&mut pull);
        assert_eq!(wanted_of(&pull).flaw().is_none(), is_fine, "{pull:?}");
    }
}

/// Titles and authors are whatever anybody on the internet wrote; they are shown in terminals, on pages and by forges.
#[test]
fn titles_and_authors_turn_nothing_around_and_have_bounds() {
    let (odd, shown) = ("\n\u{1b}]0;x\u{7}Fix \u{202e}gnp.exe\u{2066}\u{0}\r\n\nmore", "]0;xFix gnp.exe");
    let texts = |decision: Decision| match decision.action {
        Some(Action::Evaluate(wanted)) => (wanted.title.unwrap_or_default(), wanted.author.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let wanted_texts = |wanted: Wanted| (wanted.title.unwrap_or_default(), wanted.author.unwrap_or_default());
    let told = Push { author: odd.to_owned(), message: odd.to_owned(), ..branch("main", A, false) };
    let now = BranchHead { commit: A.to_owned(), author: odd.to_owned(), message: odd.to_owned() };
    let pull = PullRequest { title: odd.to_owned(), author: odd.to_owned(), ..open_pull_request() };
    let group = MergeGroup {
        repository: repository(),
        branch: "queue/1".to_owned(),
        commit: A.to_owned(),
        base_branch: "main".to_owned(),
        base_commit: B.to_owned(),
        destroyed: false,
    };
    let expected = (shown.to_owned(), shown.to_owned());
    assert_eq!(texts(push(&told, "main", BranchClass::Default, &Head::Unknown)), expected);
    assert_eq!(texts(push(&branch("main", B, false), "main", BranchClass::Default, &Head::At(now.clone()))), expected);
    assert_eq!(texts(tag(&told, "v1")), expected);
    assert_eq!(texts(merge_group(&group, &Head::At(now))), expected);
    assert_eq!(wanted_texts(wanted_of(&pull)), expected);

    let huge = "\u{202e}long".repeat(70_000);
    let (title, author) = texts(push(
        &Push { author: huge.clone(), message: huge, ..told },
        "main",
        BranchClass::Default,
        &Head::Unknown,
    ));
    assert_eq!((title.chars().count(), author.chars().count()), (TITLE_CHARS_MAX, AUTHOR_CHARS_MAX));
    let nothing = Push { author: "\u{200f}".to_owned(), message: "\u{7}".to_owned(), ..branch("main", A, false) };
    assert_eq!(texts(push(&nothing, "main", BranchClass::Default, &Head::Unknown)), (String::new(), String::new()));
}
