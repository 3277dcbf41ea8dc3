//! Deliveries become events, and only those that were signed with our secret.

use harmonia_core::forge::{
    Comment, CommentAction, Event, ForgeError, PullRequestAction as Action, Push, Reference, RepositoryRef,
};
use harmonia_core::plugin::UnusableSecret;
use harmonia_fake_forges::{
    CommentAction as CommentDone, Event as Happened, Label, PullRequestAction, RepositoryAction,
};

use super::setup::{Gitea, HOOK_SECRET};
use crate::bench::HOOK_URL;
use crate::watch::Watch;

const NOTHING: &str = "0000000000000000000000000000000000000000";

async fn only_what_was_signed_is_taken(gitea: Gitea, header: &str) {
    let (_, head) = gitea.add("acme/site");
    let reference = "refs/heads/main";
    let event = Happened::Push { repository: "acme/site", reference, before: NOTHING, after: &head, pusher: "alice" };
    let good = gitea.fake.delivery_signed_with(HOOK_SECRET, event);
    let taken = gitea.webhook(&good).await.expect("it is signed");
    assert_eq!(Some(taken.id.as_str()), good.header("x-gitea-delivery"));
    assert_eq!(gitea.webhook(&good).await.expect("it is signed"), taken, "a redelivery is the same");
    let mut unsigned = good.clone();
    unsigned.headers.retain(|(name, _)| !name.to_lowercase().ends_with("-signature"));
    let mut tampered = good.clone();
    let at = tampered.body.len() / 2;
    tampered.body[at] ^= 1;
    let mut longer = good.clone();
    longer.body.push(b' ');
    let signature = good.header(header).expect("it is signed").to_owned();
    for (what, bad) in [
        ("no signature", unsigned),
        ("another secret", gitea.fake.delivery_signed_with("another secret", event)),
        ("a flipped bit", tampered),
        ("a byte more", longer),
        ("a shorter signature", good.clone().with_header(header, &signature[..signature.len() - 2])),
        ("another form", good.clone().with_header(header, &format!("sha256={signature}"))),
        ("an empty signature", good.clone().with_header(header, "")),
    ] {
        let answer = gitea.webhook(&bad).await;
        assert!(matches!(answer, Err(ForgeError::Denied(_))), "{what}: {answer:?}");
    }
    assert_eq!(gitea.fake.requests().len(), 0, "nothing is asked while the forge waits");
    gitea.finish();
}

/// What the operator has to mend is no fault of the sender: the forge is to deliver again, and the operator is told.
#[tokio::test]
async fn a_secret_that_cannot_be_read_is_no_wrong_signature() {
    let gitea = Gitea::start_with_secret_missing("webhook").await;
    let status = gitea.status();
    let problem = status.last_error.expect("it cannot work, and says so before anything is delivered");
    assert!(problem.contains("`webhook`") && problem.contains("/no/such/hook-secret"), "{problem}");
    assert_eq!(status.unusable_secrets, [UnusableSecret { name: "webhook".to_owned(), required: true }]);
    let log = Watch::logged();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("cannot work until this is mended")).collect();
    assert!(said.len() == 1 && said[0].contains("/no/such/hook-secret") && said[0].contains("ERROR"), "{said:?}");
    let (_, head) = gitea.add("acme/site");
    let reference = "refs/heads/main";
    let event = Happened::Push { repository: "acme/site", reference, before: NOTHING, after: &head, pusher: "alice" };
    let answer = gitea.webhook(&gitea.fake.delivery_signed_with(HOOK_SECRET, event)).await;
    assert!(matches!(&answer, Err(ForgeError::Unavailable(why)) if why.contains("/no/such/hook-secret")), "{answer:?}");
    let failure = gitea.status().last_failure.expect("noted");
    assert!(failure.contains("secret") && !failure.contains("/no/such"), "for everybody: {failure}");
    gitea.finish();
}

/// Login needs it, deliveries do not.
#[tokio::test]
async fn without_a_secret_that_is_not_required_the_rest_works() {
    let gitea = Gitea::start_with_secret_missing("client_secret").await;
    assert_eq!(gitea.status().unusable_secrets, [UnusableSecret { name: "client_secret".to_owned(), required: false }]);
    let log = Watch::logged();
    assert!(log.contains("can work in part only") && !log.contains("cannot work until"), "{log}");
    gitea.add("acme/site");
    let ping = gitea.fake.delivery_signed_with(HOOK_SECRET, Happened::Ping { repository: "acme/site" });
    gitea.webhook(&ping).await.expect("it is signed");
    gitea.finish();
}

#[tokio::test]
async fn only_what_gitea_signed_is_taken() {
    only_what_was_signed_is_taken(Gitea::start().await, "x-gitea-signature").await;
}

#[tokio::test]
async fn only_what_forgejo_signed_is_taken() {
    only_what_was_signed_is_taken(Gitea::start_forgejo().await, "x-forgejo-signature").await;
}

#[tokio::test]
async fn pushes_of_branches_and_tags_reach_the_installed_hook() {
    let gitea = Gitea::start().await;
    let (site, first) = gitea.add("acme/site");
    gitea.install(&site).await.expect("a hook");
    let second = gitea.fake.world().push("acme/site", "release/1.0", "Second");
    let delivery = |reference: &'static str, before: &str, after: &str| {
        let push = Happened::Push { repository: "acme/site", reference, before, after, pusher: "acme" };
        let delivery = gitea.fake.delivery(push);
        assert_eq!(delivery.url.as_deref(), Some(HOOK_URL));
        delivery
    };
    let push = |reference, commit: &str, message: &str| Push {
        repository: site.clone(),
        reference,
        commit: commit.to_owned(),
        deleted: false,
        author: "acme".to_owned(),
        message: message.to_owned(),
    };
    let release = || Reference::Branch("release/1.0".to_owned());
    let branch = "refs/heads/release/1.0";
    assert_eq!(gitea.event(&delivery(branch, &first, &second)).await, Event::Push(push(release(), &second, "Second")));
    assert_eq!(
        gitea.event(&delivery(branch, &second, &first)).await,
        Event::Push(push(release(), &first, "Initial commit"))
    );
    assert_eq!(
        gitea.event(&delivery(branch, &second, NOTHING)).await,
        Event::Push(Push { deleted: true, ..push(release(), &second, "") })
    );
    assert_eq!(
        gitea.event(&delivery("refs/tags/v1", NOTHING, &second)).await,
        Event::Push(push(Reference::Tag("v1".to_owned()), &second, "Second"))
    );
    let gone = gitea.fake.delivery(Happened::Delete { repository: "acme/site", reference: branch });
    assert_eq!(gitea.event(&gone).await, Event::Push(Push { deleted: true, ..push(release(), NOTHING, "") }));
    let made = Happened::Create { repository: "acme/site", reference: branch };
    assert_eq!(gitea.fake.deliveries(made).len(), 0, "nobody asked for it");
    let made = gitea.fake.delivery_signed_with(HOOK_SECRET, made);
    assert_eq!(gitea.events(&made).await, Vec::new());
    // The test delivery is a push that is there.
    let ping = gitea.fake.delivery(Happened::Ping { repository: "acme/site" });
    let Event::Push(found) = gitea.event(&ping).await else { panic!("a push") };
    assert_eq!((found.reference, found.commit), (Reference::Branch("main".to_owned()), first));
    gitea.finish();
}

#[tokio::test]
async fn pull_requests_and_comments_reach_the_installed_hook() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    gitea.install(&site).await.expect("a hook");
    let (number, after) = {
        let mut world = gitea.fake.world();
        let number = world.open_pull_request("acme/site", "mallory/site", "patch-1", "mallory");
        let after = world.push_to_pull_request("acme/site", number, "More");
        let pull = world.repository_mut("acme/site").pull_request_mut(number);
        pull.labels.push(Label { id: 9, name: "safe".to_owned() });
        (number, after)
    };
    let fork = {
        let world = gitea.fake.world();
        RepositoryRef { id: world.repository("mallory/site").id.to_string(), full_name: "mallory/site".to_owned() }
    };
    for (happened, action) in [
        (PullRequestAction::Opened, Action::Opened),
        (PullRequestAction::Synchronize { before: &head }, Action::Pushed),
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
            let mut world = gitea.fake.world();
            let pull = world.repository_mut("acme/site").pull_request_mut(number);
            pull.draft = happened == PullRequestAction::ConvertedToDraft;
            pull.open = happened != PullRequestAction::Closed;
        }
        let delivery = gitea.fake.delivery(Happened::PullRequest { repository: "acme/site", number, action: happened });
        let Event::PullRequest(event) = gitea.event(&delivery).await else { panic!("{happened:?}") };
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
    let id = gitea.fake.world().add_comment("acme/site", number, "alice", "/ci run");
    for (happened, action) in [
        (CommentDone::Created, CommentAction::Created),
        (CommentDone::Edited { from: "hello" }, CommentAction::Edited),
        (CommentDone::Deleted, CommentAction::Deleted),
    ] {
        let delivery = gitea.fake.delivery(Happened::Comment { repository: "acme/site", id, action: happened });
        let expected = Comment {
            repository: site.clone(),
            number,
            id: id.to_string(),
            action,
            author: "alice".to_owned(),
            body: "/ci run".to_owned(),
        };
        assert_eq!(gitea.event(&delivery).await, Event::Comment(expected));
    }
    gitea.finish();
}

#[tokio::test]
async fn repositories_come_and_go() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    gitea.install(&site).await.expect("a hook");
    let delivery = |action| gitea.fake.delivery(Happened::Repository { repository: "acme/site", action });
    let Event::RepositoriesChanged(found) = gitea.event(&delivery(RepositoryAction::Created)).await else {
        panic!("it exists")
    };
    assert_eq!((found.len(), &found[0].id, &found[0].full_name), (1, &site.id, &site.full_name));
    assert_eq!((found[0].owner.as_str(), found[0].default_branch.as_str()), ("acme", "main"));
    assert_eq!(gitea.event(&delivery(RepositoryAction::Deleted)).await, Event::RepositoriesRemoved(vec![site.clone()]));
    gitea.finish();
}
