//! Commit statuses and comments.

use harmonia_core::forge::{CommitStatus, ForgeError, StatusState};
use harmonia_fake_forges::{Effect, When};

use super::setup::Gitea;
use crate::bench::status;

const NAME: &str = "harmonia-ci/nix-build";

#[tokio::test]
async fn the_newest_status_is_the_one_that_was_meant() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    for state in [StatusState::Pending, StatusState::Success, StatusState::Failure, StatusState::Error] {
        gitea.report(&status(&site, &head, state)).await.expect("a status");
        let shown = gitea.fake.statuses("acme/site", &head);
        assert_eq!((shown.len(), shown[NAME].state.as_str()), (1, state.as_str()));
        assert_eq!(shown[NAME].description, format!("it is {}", state.as_str()));
        assert_eq!(shown[NAME].target_url, "https://ci.example.org/evaluations/7");
    }
    let bare =
        CommitStatus { target_url: None, description: String::new(), ..status(&site, &head, StatusState::Success) };
    for effect in [Effect::DropAfter, Effect::DropBefore, Effect::CutOff] {
        gitea.fake.faults().add(When::request("POST", "/statuses").times(1), effect.clone());
        let lost = gitea.report(&bare).await;
        assert!(matches!(lost, Err(ForgeError::Unavailable(_))), "{effect:?}: {lost:?}");
        gitea.report(&bare).await.expect("a status");
        assert_eq!(gitea.fake.statuses("acme/site", &head)[NAME].state, "success", "{effect:?}");
    }
    let other = CommitStatus { context: "harmonia-ci/nix-eval".to_owned(), ..bare };
    gitea.report(&other).await.expect("a status");
    assert_eq!(gitea.fake.statuses("acme/site", &head).len(), 2);
    let gone = CommitStatus { commit: "0".repeat(40), ..other };
    assert_eq!(gitea.report(&gone).await.err(), Some(ForgeError::NotFound));
    gitea.finish();
}

#[tokio::test]
async fn a_comment_is_written_once_for_its_key() {
    let gitea = Gitea::start().await;
    let (site, _) = gitea.add("acme/site");
    let number = gitea.fake.world().open_pull_request("acme/site", "mallory/site", "patch", "mallory");
    let comments = || {
        let world = gitea.fake.world();
        world.repository("acme/site").comments.iter().map(|comment| comment.body.clone()).collect::<Vec<_>>()
    };
    gitea.comment(&site, number, "head-changed/abc", "The head changed.").await.expect("a comment");
    gitea.comment(&site, number, "head-changed/abc", "The head changed.").await.expect("it is there");
    assert_eq!(comments().len(), 1);
    assert!(comments()[0].starts_with("The head changed."), "{:?}", comments());
    gitea.fake.faults().add(When::request("POST", "/comments").times(1), Effect::DropAfter);
    let lost = gitea.comment(&site, number, "head-changed/abcd", "The head changed.").await;
    assert!(matches!(lost, Err(ForgeError::Unavailable(_))), "{lost:?}");
    gitea.comment(&site, number, "head-changed/abcd", "The head changed.").await.expect("it is there");
    assert_eq!(comments().len(), 2, "a longer key is another one");
    assert_eq!(gitea.comment(&site, 4711, "key", "body").await.err(), Some(ForgeError::NotFound));
    gitea.finish();
}
