//! Deliveries: signed as the forges sign, and of the shape that they publish.

use std::cell::RefCell;

use harmonia_fake_forges::{
    CommentAction, Delivery, Event, FakeGithub, InstallationAction, Label, PullRequestAction, RepositoryAction,
};

use crate::client::hmac_sha256;

const NOTHING: &str = "0000000000000000000000000000000000000000";

/// What a test has found out so far.
#[derive(Default)]
struct Findings {
    objections: RefCell<Vec<String>>,
    deliveries: RefCell<Vec<Delivery>>,
}

fn check(forge: &FakeGithub, findings: &Findings, event: Event<'_>, name: &str) -> Delivery {
    let delivery = forge.delivery(event);
    let objections = forge.check_payload(name, &delivery.json());
    findings.objections.borrow_mut().extend(objections.into_iter().map(|objection| format!("{name}: {objection}")));
    findings.deliveries.borrow_mut().push(delivery.clone());
    delivery
}

#[tokio::test]
async fn every_delivery_is_signed_and_of_the_published_shape() {
    let forge = FakeGithub::start().await;
    let (installation, number, comment, first, second) = {
        let mut world = forge.world();
        world.add_organization("acme").members.insert("alice".to_owned());
        world.add_user("alice");
        world.add_repository("acme/site");
        let first = world.repository("acme/site").head("main").to_owned();
        let second = world.push("acme/site", "main", "Second");
        let installation = world.install("acme", None);
        let number = world.open_pull_request("acme/site", "mallory/site", "patch-1", "mallory");
        world
            .repository_mut("acme/site")
            .pull_request_mut(number)
            .labels
            .push(Label { id: 9, name: "safe".to_owned() });
        let comment = world.add_comment("acme/site", number, "alice", "/ci run");
        (installation, number, comment, first, second)
    };
    let findings = Findings::default();
    let repository = "acme/site";
    let push = |before, after| Event::Push { repository, reference: "refs/heads/main", before, after, pusher: "alice" };
    let moved = check(&forge, &findings, push(&first, &second), "push").json();
    assert_eq!((moved["forced"].as_bool(), moved["commits"].as_array().map(Vec::len)), (Some(false), Some(1)));
    assert_eq!(moved["repository"]["full_name"], "acme/site");
    assert_eq!(moved["installation"]["id"], installation);
    assert_eq!(moved["head_commit"]["message"], "Second");
    assert_eq!(check(&forge, &findings, push(&second, &first), "push").json()["forced"], true);
    assert_eq!(check(&forge, &findings, push(NOTHING, &second), "push").json()["created"], true);
    let gone = check(&forge, &findings, push(&second, NOTHING), "push").json();
    assert_eq!((gone["deleted"].as_bool(), gone["head_commit"].is_null()), (Some(true), true));
    let reference = "refs/heads/topic";
    assert_eq!(check(&forge, &findings, Event::Create { repository, reference }, "create").json()["ref"], "topic");
    check(&forge, &findings, Event::Delete { repository, reference: "refs/tags/v1" }, "delete");

    for (action, name) in [
        (PullRequestAction::Opened, "opened"),
        (PullRequestAction::Synchronize { before: &first }, "synchronize"),
        (PullRequestAction::Reopened, "reopened"),
        (PullRequestAction::Closed, "closed"),
        (PullRequestAction::ReadyForReview, "ready-for-review"),
        (PullRequestAction::ConvertedToDraft, "converted-to-draft"),
        (PullRequestAction::TitleEdited { from: "Old" }, "edited"),
        (PullRequestAction::BaseEdited { from: "old" }, "edited"),
        (PullRequestAction::Labeled, "labeled"),
        (PullRequestAction::Assigned, "assigned"),
    ] {
        let event = Event::PullRequest { repository, number, action };
        let value = check(&forge, &findings, event, &format!("pull-request-{name}")).json();
        assert_eq!(value["pull_request"]["head"]["repo"]["full_name"], "mallory/site", "{name}");
        assert_eq!(value["number"], number, "{name}");
    }
    let group = |destroyed| Event::MergeGroup {
        repository,
        branch: "gh-readonly-queue/main/pr-1",
        commit: &second,
        base_branch: "main",
        base_commit: &first,
        destroyed,
    };
    check(&forge, &findings, group(None), "merge-group-checks-requested");
    check(&forge, &findings, group(Some("dequeued")), "merge-group-destroyed");
    for (action, name) in [
        (CommentAction::Created, "created"),
        (CommentAction::Edited { from: "hm" }, "edited"),
        (CommentAction::Deleted, "deleted"),
    ] {
        let event = Event::Comment { repository, id: comment, action };
        let value = check(&forge, &findings, event, &format!("issue-comment-{name}")).json();
        assert!(value["issue"]["pull_request"].is_object());
        assert_eq!(value["comment"]["body"], "/ci run");
    }
    for (action, name) in [
        (InstallationAction::Created, "created"),
        (InstallationAction::Deleted, "deleted"),
        (InstallationAction::Suspend, "suspend"),
        (InstallationAction::Unsuspend, "unsuspend"),
        (InstallationAction::NewPermissionsAccepted, "new-permissions-accepted"),
    ] {
        forge.world().installations.get_mut(&installation).expect("it is there").suspended = name == "suspend";
        check(&forge, &findings, Event::Installation { id: installation, action }, &format!("installation-{name}"));
    }
    let changed = |added, removed| Event::InstallationRepositories { id: installation, added, removed };
    check(&forge, &findings, changed(&["acme/site"], &[]), "installation-repositories-added");
    check(&forge, &findings, changed(&[], &[("acme/gone", 7)]), "installation-repositories-removed");
    for (action, name) in [
        (RepositoryAction::Created, "created"),
        (RepositoryAction::Deleted, "deleted"),
        (RepositoryAction::Renamed { from: "page" }, "renamed"),
        (RepositoryAction::Transferred { from: "alice" }, "transferred"),
        (RepositoryAction::Archived, "archived"),
        (RepositoryAction::Unarchived, "unarchived"),
        (RepositoryAction::Privatized, "privatized"),
        (RepositoryAction::Publicized, "publicized"),
        (RepositoryAction::DefaultBranchEdited { from: "master" }, "edited"),
        (RepositoryAction::TopicsEdited, "edited"),
    ] {
        forge.world().repository_mut("acme/site").archived = name == "archived";
        forge.world().repository_mut("acme/site").private = name == "privatized";
        check(&forge, &findings, Event::Repository { repository, action }, &format!("repository-{name}"));
    }
    for action in ["added", "edited", "removed"] {
        check(&forge, &findings, Event::Member { repository, user: "alice", action }, &format!("member-{action}"));
    }
    for action in ["added", "removed"] {
        check(
            &forge,
            &findings,
            Event::Membership { organization: "acme", user: "alice", action },
            &format!("membership-{action}"),
        );
    }
    for (action, name) in [("member_added", "member-added"), ("member_removed", "member-removed")] {
        check(
            &forge,
            &findings,
            Event::Organization { organization: "acme", user: "alice", action },
            &format!("organization-{name}"),
        );
    }
    check(
        &forge,
        &findings,
        Event::CheckSuiteRerequested { repository, commit: &second, user: "alice" },
        "check-suite-rerequested",
    );
    let run = forge.world().add_check_run(repository, &second, "harmonia-ci/nix-build");
    let event = Event::CheckRunRerequested { repository, id: run, user: "alice" };
    assert_eq!(
        check(&forge, &findings, event, "check-run-rerequested").json()["check_run"]["name"],
        "harmonia-ci/nix-build"
    );
    check(&forge, &findings, Event::Ping { repository }, "ping");
    assert_eq!(findings.objections.take(), Vec::<String>::new());
    let deliveries = findings.deliveries.take();
    let bodies: Vec<Vec<u8>> = deliveries.iter().map(|delivery| delivery.body.clone()).collect();
    let signatures = hmac_sha256(forge.webhook_secret(), &bodies);
    for (delivery, signature) in deliveries.iter().zip(&signatures) {
        assert_eq!(delivery.header("x-hub-signature-256"), Some(format!("sha256={signature}").as_str()));
    }
    assert!(signatures.len() > 40);
    let ids: std::collections::BTreeSet<_> =
        deliveries.iter().map(|delivery| delivery.header("x-github-delivery").expect("an id")).collect();
    assert_eq!(ids.len(), deliveries.len());
    let other = forge.delivery_signed_with("another", Event::Ping { repository });
    let ours = hmac_sha256(forge.webhook_secret(), std::slice::from_ref(&other.body));
    assert_ne!(other.header("x-hub-signature-256"), Some(format!("sha256={}", ours[0]).as_str()));
}
