//! A forge that asks to wait, and one that is down.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, StatusState};
use harmonia_fake_forges::{Effect, When};

use super::setup::Gitea;
use crate::bench::status;

#[tokio::test]
async fn who_is_asked_to_wait_waits() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    gitea.fake.faults().add(When::always().times(1), Effect::TooManyRequests { retry_after: 30 });
    assert_eq!(gitea.head(&site, "main").await.err(), Some(ForgeError::RetryAfter(30)));
    gitea.clock.advance(Duration::from_secs(20));
    let early = gitea.report(&status(&site, &head, StatusState::Success)).await;
    assert_eq!(early.err(), Some(ForgeError::RetryAfter(10)));
    assert_eq!(gitea.install(&site).await.err(), Some(ForgeError::RetryAfter(10)));
    assert_eq!(gitea.page(None).await.err(), Some(ForgeError::RetryAfter(10)));
    assert_eq!(gitea.fake.requests().len(), 1, "nothing is sent meanwhile");
    gitea.clock.advance(Duration::from_secs(10));
    assert_eq!(gitea.head(&site, "main").await.expect("a head").commit, head);
    gitea.finish();
}

#[tokio::test]
async fn a_forge_that_is_down_is_unavailable() {
    let gitea = Gitea::start().await;
    let (site, head) = gitea.add("acme/site");
    for effect in [
        Effect::Status(500),
        Effect::Status(502),
        Effect::Status(503),
        Effect::DropBefore,
        Effect::DropAfter,
        Effect::CutOff,
    ] {
        gitea.fake.faults().add(When::always(), effect.clone());
        let answers = [
            gitea.head(&site, "main").await.err(),
            gitea.report(&status(&site, &head, StatusState::Failure)).await.err(),
            gitea.permission(&site, "acme").await.err(),
            gitea.page(None).await.err(),
            gitea.install(&site).await.err(),
        ];
        for answer in answers {
            assert!(matches!(answer, Some(ForgeError::Unavailable(_))), "{effect:?}: {answer:?}");
        }
        gitea.fake.faults().clear();
    }
    gitea.fake.faults().add(When::always(), Effect::Gibberish);
    let odd = gitea.head(&site, "main").await;
    assert!(matches!(odd, Err(ForgeError::Invalid(_) | ForgeError::Unavailable(_))), "{odd:?}");
    gitea.fake.faults().clear();
    assert_eq!(gitea.head(&site, "main").await.expect("a head").commit, head);
    assert_eq!(gitea.count("GET", "/branches/"), 8);
    gitea.finish();
}
