use super::Command::{Run, Unclear};
use super::*;
use crate::forge::Permission::{Admin, None as Nothing, Read, Write};
use crate::forge::PullRequestTrust::{All, Collaborators, None as Nobody};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

const QUESTION: Question = Question {
    pr_enabled: true,
    trust: Collaborators,
    build_drafts: false,
    is_draft: false,
    movers_permission: None,
    is_approved: false,
};

#[test]
fn collaborators_run_and_others_wait_for_an_approval() {
    let run = TrustDecision::Run;
    let wait = TrustDecision::Wait(WAITS_FOR_APPROVAL);
    let cases = [
        (Collaborators, Some(Admin), false, run),
        (Collaborators, Some(Write), false, run),
        (Collaborators, Some(Read), false, wait),
        (Collaborators, Some(Nothing), false, wait),
        (Collaborators, None, false, wait),
        (Collaborators, Some(Read), true, run),
        (Collaborators, None, true, run),
        (All, Some(Nothing), false, run),
        (All, None, false, run),
        (Nobody, Some(Admin), false, wait),
        (Nobody, Some(Admin), true, run),
    ];
    for (trust, movers_permission, is_approved, expected) in cases {
        let question = Question { trust, movers_permission, is_approved, ..QUESTION };
        assert_eq!(decide(&question), expected, "{question:?}");
    }
}

#[test]
fn drafts_wait_until_ready_unless_configured() {
    for (is_draft, build_drafts, waits) in
        [(true, false, true), (true, true, false), (false, false, false), (false, true, false)]
    {
        // Even approved, and of somebody trusted.
        let question = Question { is_draft, build_drafts, trust: All, is_approved: true, ..QUESTION };
        let expected = if waits { TrustDecision::Wait(WAITS_AS_DRAFT) } else { TrustDecision::Run };
        assert_eq!(decide(&question), expected, "{question:?}");
    }
    // A stranger's draft that may run still needs an approval.
    let question = Question { is_draft: true, build_drafts: true, ..QUESTION };
    assert_eq!(decide(&question), TrustDecision::Wait(WAITS_FOR_APPROVAL));
}

#[test]
fn a_project_that_builds_no_pull_requests_builds_none() {
    for (trust, is_approved) in [(All, false), (Collaborators, true), (Nobody, true)] {
        let question = Question { pr_enabled: false, trust, is_approved, movers_permission: Some(Admin), ..QUESTION };
        assert_eq!(decide(&question), TrustDecision::Ignore(NOT_ENABLED));
    }
}

#[test]
fn an_approval_counts_for_exactly_one_head() {
    let counts = |head: &str| Approval::Counts(head.to_owned());
    let changed = Approval::Reply(ApprovalReply::HeadChanged);
    let new = Approval::Reply(ApprovalReply::HeadNew);
    let known = |commit, seconds| Some(RecordedHead { commit, known_for: Duration::from_secs(seconds) });
    let cases = [
        // named, recorded before the comment, current, expected
        (None, known(A, 3_600), A, counts(A)),
        (None, known(A, 60), A, counts(A)),
        (None, known(A, 59), A, new.clone()), // pushed while somebody wrote "/ci run" about what was there before
        (None, known(A, 0), A, new),
        (None, known(A, 60), B, changed.clone()), // pushed in between, whether its delivery came or not
        (None, known(A, 0), B, changed.clone()),
        (None, None, A, Approval::Reply(ApprovalReply::HeadUnknown)),
        // Who names it has seen it.
        (Some(A), None, A, counts(A)),
        (Some(A), known(A, 0), A, counts(A)),
        (Some(A), known(B, 3_600), A, counts(A)),
        (Some(A), known(A, 3_600), B, changed.clone()),
        (Some(A), known(B, 3_600), B, changed),
    ];
    for (named, recorded, current, expected) in cases {
        let question = ApprovalQuestion {
            commenter: "maintainer",
            author: "stranger",
            commenter_permission: Some(Write),
            named,
            recorded,
            current,
        };
        assert_eq!(approval(&question), expected, "{question:?}");
    }
}

/// A pull request is trusted for those who can change what it brings, not for whoever opened it alone.
#[test]
fn who_can_move_a_head() {
    // Author, the head's repository, and who can move the head.
    type Case = (&'static str, Option<RepositoryRef>, Option<&'static [&'static str]>);
    let repository = |id: &str, full_name: &str| RepositoryRef { id: id.to_owned(), full_name: full_name.to_owned() };
    let base = repository("1", "acme/site");
    let cases: [Case; 8] = [
        ("ada", Some(repository("1", "acme/site")), Some(&["ada"])), // a branch of the base
        ("eve", Some(repository("1", "acme/site")), Some(&["eve"])),
        ("ada", Some(repository("1", "acme/renamed")), Some(&["ada"])),
        ("ada", Some(repository("2", "ada/site")), Some(&["ada"])),
        ("Ada", Some(repository("2", "ada/site")), Some(&["Ada"])),
        ("ada", Some(repository("2", "eve/site")), Some(&["ada", "eve"])), // a stranger's branch
        ("ada", Some(repository("2", "group/sub/site")), Some(&["ada", "group/sub"])),
        ("ada", None, None), // a stranger pushes and deletes the fork
    ];
    for (author, head_repository, expected) in cases {
        let pull = PullRequest { author: author.to_owned(), head_repository, ..pull_request() };
        assert_eq!(head_movers(&pull, &base).as_deref(), expected, "{author} {:?}", pull.head_repository);
    }
    // A name without an owner is nobody's, whom no forge knows.
    let pull =
        PullRequest { author: "ada".to_owned(), head_repository: Some(repository("2", "site")), ..pull_request() };
    assert_eq!(head_movers(&pull, &base).as_deref(), Some(&["ada", ""][..]));
}

fn pull_request() -> PullRequest {
    PullRequest {
        number: 7,
        title: "Add a thing".to_owned(),
        author: String::new(),
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

#[test]
fn only_somebody_else_who_may_push_approves() {
    let cases = [
        ("maintainer", Some(Write), true),
        ("maintainer", Some(Admin), true),
        ("maintainer", Some(Read), false),
        ("maintainer", Some(Nothing), false),
        ("maintainer", None, false),
        ("author", Some(Admin), false),
        ("AUTHOR", Some(Admin), false),
    ];
    for (commenter, commenter_permission, counts) in cases {
        let question = ApprovalQuestion {
            commenter,
            author: "author",
            commenter_permission,
            named: Some(A),
            recorded: None,
            current: A,
        };
        let got = approval(&question);
        assert_eq!(matches!(got, Approval::Counts(_)), counts, "{question:?}");
        // Nobody makes us comment who could not approve either.
        assert!(!matches!(got, Approval::Reply(_)));
    }
}

const ALL_REPLIES: [ApprovalReply; 4] =
    [ApprovalReply::HeadChanged, ApprovalReply::HeadUnknown, ApprovalReply::HeadNew, ApprovalReply::Unclear];

#[test]
fn replies_say_what_to_comment() {
    assert!(ApprovalReply::HeadNew.text(B).contains("less than a minute before this comment"));
    assert!(ApprovalReply::HeadChanged.text(B).starts_with("The head changed, comment again"));
    for reply in ALL_REPLIES {
        let text = reply.text(B);
        assert!(text.contains(&["/ci run ", B].concat()), "{text}");
    }
    // What we say is never itself a command.
    for reply in ALL_REPLIES {
        assert_eq!(parse_command(&reply.text(B)), None);
    }
}

#[test]
fn a_command_is_a_line_of_its_own() {
    let run = || Some(Run { commit: None });
    let of = |hash: &str| Some(Run { commit: Some(hash.to_owned()) });
    let upper = ["/ci run ", &A.to_uppercase()].concat();
    let long = ["/ci run ", A, &A[..24]].concat();
    let with_hash = ["Looks good.\r\n\r\n/ci run ", A, "\r\n"].concat();
    let twice = ["/ci run ", A, "\n/ci run ", B].concat();
    let same_twice = ["/ci run ", A, "\nand again\n/ci run ", A].concat();
    let too_long = ["/ci run ", A, "0"].concat();
    let cases: Vec<(&str, Option<Command>)> = vec![
        ("/ci run", run()),
        ("  /ci   run  ", run()),
        ("thanks!\n/ci run\n-- me", run()),
        (&with_hash, of(A)),
        (&upper, of(A)),
        (&long, of(&long[8..])),
        ("please /ci run", None),
        ("`/ci run`", None),
        ("/CI run", None),
        ("/cirun", None),
        ("//ci run", None),
        ("", None),
        // Not understood.
        ("/ci run aaaaaaa", Some(Unclear)),
        (&too_long, Some(Unclear)),
        ("/ci run please", Some(Unclear)),
        ("/ci run this, please", Some(Unclear)),
        ("/ci", None),
        ("/ci is a folder", None),
        (&twice, Some(Unclear)),
        (&same_twice, of(A)),
    ];
    for (body, expected) in cases {
        assert_eq!(parse_command(body), expected, "{body:?}");
    }
}

#[test]
fn what_is_quoted_shown_as_code_or_hidden_is_no_command() {
    let cases = [
        ("> /ci run", false),
        (">/ci run", false),
        ("  > /ci run", false),
        (">> /ci run\n\nno", false),
        ("> do\n> /ci run\n\n/ci run", true),
        ("```\n/ci run\n```", false),
        ("```sh\n/ci run\n```\n", false),
        ("```\n/ci run", false),
        ("````\n```\n/ci run\n````", false),
        ("~~~\n/ci run\n~~~", false),
        ("~~~\n```\n/ci run\n~~~\n/ci run", true),
        ("```\nx\n```\n/ci run", true),
        ("```\nx\n``` no end\n/ci run", false),
        ("``` `inline` ```\n/ci run", true),
        ("    /ci run", false),
        ("\t/ci run", false),
        ("<!-- /ci run -->", false),
        ("<!--\n/ci run\n-->", false),
        ("<!--\nx\n-->\n/ci run", true),
        ("<!-- x -->\n/ci run", true),
    ];
    for (body, is_command) in cases {
        assert_eq!(parse_command(body).is_some(), is_command, "{body:?}");
    }
}

#[test]
fn a_huge_comment_is_read_up_to_a_bound() {
    let far = ["ü".repeat(BODY_BYTES_MAX).as_str(), "\n/ci run"].concat();
    assert_eq!(parse_command(&far), None);
    let near = ["/ci run\n", &"ü".repeat(BODY_BYTES_MAX)].concat();
    assert_eq!(parse_command(&near), Some(Run { commit: None }));
}
