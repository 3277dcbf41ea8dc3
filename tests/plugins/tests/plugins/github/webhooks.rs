//! Deliveries become events, and only those that GitHub signed.

use harmonia_core::forge::{
    Comment, CommentAction, Event, ForgeError, MergeGroup, PullRequestAction as Action, Push, Reference, RepositoryRef,
    Rerun,
};
use harmonia_core::plugin::UnusableSecret;
use harmonia_fake_forges::{
    CommentAction as CommentDone, Event as Happened, InstallationAction, Label, PullRequestAction, RepositoryAction,
};

use super::setup::Github;
use crate::watch::Watch;

const NOTHING: &str = "0000000000000000000000000000000000000000";

#[tokio::test]
async fn only_what_github_signed_is_taken() {
    let github = Github::start().await;
    let (_, _, head) = github.add("acme/site");
    let event = Happened::Push {
        repository: "acme/site",
        reference: "refs/heads/main",
        before: NOTHING,
        after: &head,
        pusher: "alice",
    };
    let good = github.fake.delivery(event);
    let taken = github.webhook(&good).await.expect("it is signed");
    assert_eq!(Some(taken.id.as_str()), good.header("x-github-delivery"));
    assert_eq!(github.webhook(&good).await.expect("it is signed"), taken, "a redelivery is the same");

    let mut unsigned = good.clone();
    unsigned.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("x-hub-signature-256"));
    let mut tampered = good.clone();
    let at = tampered.body.len() / 2;
    tampered.body[at] ^= 1;
    let mut longer = good.clone();
    longer.body.push(b' ');
    let signature = good.header("x-hub-signature-256").expect("it is signed").to_owned();
    let digits = signature.strip_prefix("sha256=").expect("GitHub names the algorithm");
    for (what, bad) in [
        ("no signature", unsigned),
        ("another secret", github.fake.delivery_signed_with("another secret", event)),
        ("a flipped bit", tampered),
        ("a byte more", longer),
        ("a shorter signature", good.clone().with_header("x-hub-signature-256", &signature[..signature.len() - 2])),
        ("no algorithm", good.clone().with_header("x-hub-signature-256", digits)),
        ("another algorithm", good.clone().with_header("x-hub-signature-256", &format!("sha1={digits}"))),
        ("an empty signature", good.clone().with_header("x-hub-signature-256", "")),
    ] {
        let answer = github.webhook(&bad).await;
        assert!(matches!(answer, Err(ForgeError::Denied(_))), "{what}: {answer:?}");
    }
    // Signed, and yet nothing that GitHub says.
    let garbage = github.webhook(&github.fake.delivery_of("push", b"{}".to_vec())).await;
    assert!(matches!(garbage, Err(ForgeError::Invalid(_))), "{garbage:?}");
    let strange = github.fake.delivery_of("star", b"{\"action\": \"created\"}".to_vec());
    assert_eq!(github.events(&strange).await, Vec::new());
    assert_eq!(github.fake.requests().len(), 0, "nothing is asked while the forge waits");
    github.finish();
}

/// What the operator has to mend is no fault of the sender: GitHub is to deliver again, and the operator is told.
#[tokio::test]
async fn a_secret_that_cannot_be_read_is_no_wrong_signature() {
    let github = Github::start_with(|harness| harness.secret_file("webhook", "/no/such/hook-secret")).await;
    let status = github.status();
    let problem = status.last_error.expect("it cannot work, and says so before anything is delivered");
    assert!(problem.contains("`webhook`") && problem.contains("/no/such/hook-secret"), "{problem}");
    assert_eq!(status.unusable_secrets, [UnusableSecret { name: "webhook".to_owned(), required: true }]);
    let log = Watch::logged();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("cannot work until this is mended")).collect();
    assert!(said.len() == 1 && said[0].contains("/no/such/hook-secret") && said[0].contains("ERROR"), "{said:?}");

    github.add("acme/site");
    let answer = github.webhook(&github.fake.delivery(Happened::Ping { repository: "acme/site" })).await;
    assert!(matches!(&answer, Err(ForgeError::Unavailable(why)) if why.contains("/no/such/hook-secret")), "{answer:?}");
    let failure = github.status().last_failure.expect("noted");
    assert!(failure.contains("secret") && !failure.contains("/no/such"), "for everybody: {failure}");
    github.finish();
}

#[tokio::test]
async fn pushes_of_branches_and_tags() {
    let github = Github::start().await;
    let (site, _, first) = github.add("acme/site");
    let second = github.fake.world().push("acme/site", "release/1.0", "Second\n\nwith a body");
    let delivery = |reference: &'static str, before: &str, after: &str| {
        github.fake.delivery(Happened::Push { repository: "acme/site", reference, before, after, pusher: "alice" })
    };
    let push = |reference, commit: &str, message: &str| Push {
        repository: site.clone(),
        reference,
        commit: commit.to_owned(),
        deleted: false,
        author: "alice".to_owned(),
        message: message.to_owned(),
    };
    let release = || Reference::Branch("release/1.0".to_owned());
    let message = "Second\n\nwith a body";
    assert_eq!(
        github.event(&delivery("refs/heads/release/1.0", &first, &second)).await,
        Event::Push(push(release(), &second, message))
    );
    // Forced back.
    assert_eq!(
        github.event(&delivery("refs/heads/release/1.0", &second, &first)).await,
        Event::Push(push(release(), &first, "Initial commit"))
    );
    assert_eq!(
        github.event(&delivery("refs/heads/release/1.0", &second, NOTHING)).await,
        Event::Push(Push { deleted: true, ..push(release(), &second, "") })
    );
    assert_eq!(
        github.event(&delivery("refs/tags/v1", NOTHING, &second)).await,
        Event::Push(push(Reference::Tag("v1".to_owned()), &second, message))
    );
    // Both come beside a push, which says it all.
    for event in [
        Happened::Create { repository: "acme/site", reference: "refs/heads/release/1.0" },
        Happened::Delete { repository: "acme/site", reference: "refs/heads/release/1.0" },
    ] {
        assert_eq!(github.events(&github.fake.delivery(event)).await, Vec::new());
    }
    let ping = github.fake.delivery(Happened::Ping { repository: "acme/site" });
    assert_eq!(github.event(&ping).await, Event::Ping);
    github.finish();
}

#[tokio::test]
async fn pull_requests_comments_and_merge_groups() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    let (number, before, after) = {
        let mut world = github.fake.world();
        let number = world.open_pull_request("acme/site", "mallory/site", "patch-1", "mallory");
        let before = world.repository("acme/site").pull_requests[&number].head_commit.clone();
        let after = world.push_to_pull_request("acme/site", number, "More");
        let pull = world.repository_mut("acme/site").pull_request_mut(number);
        pull.labels.push(Label { id: 9, name: "safe".to_owned() });
        (number, before, after)
    };
    let fork = {
        let world = github.fake.world();
        RepositoryRef { id: world.repository("mallory/site").id.to_string(), full_name: "mallory/site".to_owned() }
    };
    for (happened, action) in [
        (PullRequestAction::Opened, Action::Opened),
        (PullRequestAction::Synchronize { before: &before }, Action::Pushed),
        (PullRequestAction::Reopened, Action::Reopened),
        (PullRequestAction::ReadyForReview, Action::Ready),
        (PullRequestAction::ConvertedToDraft, Action::Edited),
        (PullRequestAction::TitleEdited { from: "old" }, Action::Edited),
        (PullRequestAction::BaseEdited { from: "old" }, Action::Edited),
        (PullRequestAction::Labeled, Action::Edited),
        (PullRequestAction::Assigned, Action::Other),
        (PullRequestAction::Closed, Action::Closed),
    ] {
        {
            let mut world = github.fake.world();
            let pull = world.repository_mut("acme/site").pull_request_mut(number);
            pull.draft = happened == PullRequestAction::ConvertedToDraft;
            pull.open = happened != PullRequestAction::Closed;
        }
        let delivery =
            github.fake.delivery(Happened::PullRequest { repository: "acme/site", number, action: happened });
        let Event::PullRequest(event) = github.event(&delivery).await else { panic!("{happened:?}") };
        assert_eq!((event.action, &event.repository), (action, &site), "{happened:?}");
        let pull = event.pull_request;
        assert_eq!(pull.is_draft, happened == PullRequestAction::ConvertedToDraft);
        assert_eq!(pull.is_open, happened != PullRequestAction::Closed);
        assert_eq!((pull.number, pull.author.as_str()), (number, "mallory"));
        assert_eq!((pull.head_commit.as_str(), pull.head_branch.as_str()), (after.as_str(), "patch-1"));
        assert_eq!((pull.base_commit.as_str(), pull.base_branch.as_str()), (head.as_str(), "main"));
        assert_eq!(pull.head_repository.as_ref(), Some(&fork));
        assert_eq!(pull.head_ref, format!("refs/pull/{number}/head"));
        assert_eq!(pull.labels, ["safe"]);
    }
    let id = github.fake.world().add_comment("acme/site", number, "alice", "/ci run");
    for (happened, action) in [
        (CommentDone::Created, CommentAction::Created),
        (CommentDone::Edited { from: "hello" }, CommentAction::Edited),
        (CommentDone::Deleted, CommentAction::Deleted),
    ] {
        let delivery = github.fake.delivery(Happened::Comment { repository: "acme/site", id, action: happened });
        let expected = Comment {
            repository: site.clone(),
            number,
            id: id.to_string(),
            action,
            author: "alice".to_owned(),
            body: "/ci run".to_owned(),
        };
        assert_eq!(github.event(&delivery).await, Event::Comment(expected));
    }
    let commit = github.fake.world().push("acme/site", "gh-readonly-queue/main/pr-1", "Merge");
    for destroyed in [None, Some("merged")] {
        let delivery = github.fake.delivery(Happened::MergeGroup {
            repository: "acme/site",
            branch: "gh-readonly-queue/main/pr-1",
            commit: &commit,
            base_branch: "main",
            base_commit: &head,
            destroyed,
        });
        let expected = MergeGroup {
            repository: site.clone(),
            branch: "gh-readonly-queue/main/pr-1".to_owned(),
            commit: commit.clone(),
            base_branch: "main".to_owned(),
            base_commit: head.clone(),
            destroyed: destroyed.is_some(),
        };
        assert_eq!(github.event(&delivery).await, Event::MergeGroup(expected));
    }
    github.finish();
}

#[tokio::test]
async fn reruns_and_permissions() {
    let github = Github::start().await;
    github.fake.world().add_organization("acme").members.insert("alice".to_owned());
    let (site, _, head) = github.add("acme/site");
    github.fake.world().add_user("alice");
    let id = github.fake.world().add_check_run("acme/site", &head, "harmonia-ci/nix-build");
    let rerun = |context: Option<&str>| {
        Event::Rerun(Rerun {
            repository: site.clone(),
            commit: head.clone(),
            context: context.map(str::to_owned),
            user: "alice".to_owned(),
        })
    };
    let one = github.fake.delivery(Happened::CheckRunRerequested { repository: "acme/site", id, user: "alice" });
    assert_eq!(github.event(&one).await, rerun(Some("harmonia-ci/nix-build")));
    let all = Happened::CheckSuiteRerequested { repository: "acme/site", commit: &head, user: "alice" };
    assert_eq!(github.event(&github.fake.delivery(all)).await, rerun(None));
    for action in ["added", "edited", "removed"] {
        let member = github.fake.delivery(Happened::Member { repository: "acme/site", user: "alice", action });
        assert_eq!(github.event(&member).await, Event::PermissionsChanged(Some(site.clone())), "{action}");
    }
    for event in [
        Happened::Membership { organization: "acme", user: "alice", action: "added" },
        Happened::Membership { organization: "acme", user: "alice", action: "removed" },
        Happened::Organization { organization: "acme", user: "alice", action: "member_added" },
        Happened::Organization { organization: "acme", user: "alice", action: "member_removed" },
    ] {
        assert_eq!(github.event(&github.fake.delivery(event)).await, Event::PermissionsChanged(None), "{event:?}");
    }
    github.finish();
}

#[tokio::test]
async fn repositories_and_installations_come_and_go() {
    let github = Github::start().await;
    let (site, installation, _) = github.add("acme/site");
    for (action, expected) in [
        (RepositoryAction::Created, "changed"),
        (RepositoryAction::Renamed { from: "page" }, "changed"),
        (RepositoryAction::Transferred { from: "bob" }, "changed"),
        (RepositoryAction::Archived, "changed"),
        (RepositoryAction::Unarchived, "changed"),
        (RepositoryAction::Privatized, "changed"),
        (RepositoryAction::Publicized, "changed"),
        (RepositoryAction::DefaultBranchEdited { from: "master" }, "changed"),
        (RepositoryAction::TopicsEdited, "changed"),
        (RepositoryAction::Deleted, "removed"),
    ] {
        {
            let mut world = github.fake.world();
            world.add_user("bob");
            let repository = world.repository_mut("acme/site");
            repository.archived = action == RepositoryAction::Archived;
            repository.private = action == RepositoryAction::Privatized;
            repository.topics = vec!["nix".to_owned()];
        }
        let delivery = github.fake.delivery(Happened::Repository { repository: "acme/site", action });
        let events = github.events(&delivery).await;
        match (expected, &events[0]) {
            ("changed", Event::RepositoriesChanged(found)) => {
                assert_eq!(found.len(), 1);
                let found = &found[0];
                assert_eq!((&found.id, &found.full_name), (&site.id, &site.full_name));
                assert_eq!((found.owner.as_str(), found.name.as_str()), ("acme", "site"));
                assert_eq!(found.is_archived, action == RepositoryAction::Archived, "{action:?}");
                assert_eq!(found.is_private, action == RepositoryAction::Privatized, "{action:?}");
                assert_eq!((found.default_branch.as_str(), found.topics.as_slice()), ("main", &["nix".to_owned()][..]));
            }
            ("removed", Event::RepositoriesRemoved(gone)) => assert_eq!(gone, std::slice::from_ref(&site)),
            (_, other) => panic!("{action:?}: {other:?}"),
        }
        let moved = matches!(action, RepositoryAction::Transferred { .. });
        assert_eq!(events.get(1), moved.then_some(&Event::Discover), "{action:?}");
    }
    for action in [
        InstallationAction::Created,
        InstallationAction::Unsuspend,
        InstallationAction::NewPermissionsAccepted,
        InstallationAction::Suspend,
        InstallationAction::Deleted,
    ] {
        let events = github.events(&github.fake.delivery(Happened::Installation { id: installation, action })).await;
        assert!(events.contains(&Event::Discover), "{action:?}: {events:?}");
        let gone = matches!(action, InstallationAction::Suspend | InstallationAction::Deleted);
        assert_eq!(events.contains(&Event::PermissionsChanged(None)), gone, "{action:?}: {events:?}");
    }
    let added = Happened::InstallationRepositories { id: installation, added: &["acme/site"], removed: &[] };
    assert_eq!(github.events(&github.fake.delivery(added)).await, [Event::Discover]);
    let removed = Happened::InstallationRepositories { id: installation, added: &[], removed: &[("acme/old", 77)] };
    let old = RepositoryRef { id: "77".to_owned(), full_name: "acme/old".to_owned() };
    assert_eq!(github.events(&github.fake.delivery(removed)).await, [Event::RepositoriesRemoved(vec![old])]);
    github.finish();
}
