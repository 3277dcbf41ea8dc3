//! A forge that asks to wait, and one that is down.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, StatusState};
use harmonia_fake_forges::{Effect, When};
use harmonia_plugin_harness::{Answer, Harness, component};
use serde_json::json;

use super::setup::Github;
use crate::bench::status;

#[tokio::test]
async fn who_is_asked_to_wait_waits() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    github.head(&site, "main").await.expect("a head");
    for (effect, seconds) in [
        (Effect::TooManyRequests { retry_after: 30 }, 30),
        (Effect::RateLimitUsedUp { reset_after: 1800 }, 1800),
        (Effect::SecondaryRateLimit { retry_after: 90 }, 90),
    ] {
        github.fake.faults().add(When::always().times(1), effect.clone());
        let asked = github.head(&site, "main").await;
        assert_eq!(asked.err(), Some(ForgeError::RetryAfter(seconds)), "{effect:?}");
        let sent = github.fake.requests().len();
        github.clock.advance(Duration::from_secs(u64::from(seconds) - 10));
        let early = github.report(&status(&site, &head, StatusState::Success)).await;
        assert_eq!(early.err(), Some(ForgeError::RetryAfter(10)), "{effect:?}");
        assert_eq!(github.credential(&site).await.err(), Some(ForgeError::RetryAfter(10)), "{effect:?}");
        assert_eq!(github.page(None).await.err(), Some(ForgeError::RetryAfter(10)), "{effect:?}");
        assert_eq!(github.fake.requests().len(), sent, "nothing is sent meanwhile: {effect:?}");
        github.clock.advance(Duration::from_secs(10));
        assert_eq!(github.head(&site, "main").await.expect("a head").commit, head, "{effect:?}");
    }
    // A webhook asks nothing of anybody, so it is taken all the same.
    github.fake.faults().add(When::always().times(1), Effect::TooManyRequests { retry_after: 30 });
    assert_eq!(github.head(&site, "main").await.err(), Some(ForgeError::RetryAfter(30)));
    let ping = github.fake.delivery(harmonia_fake_forges::Event::Ping { repository: "acme/site" });
    github.events(&ping).await;
    github.finish();
}

#[tokio::test]
async fn a_limit_that_is_only_worded_is_no_refusal() {
    let github = Github::start().await;
    let running = Harness::new(component("github"))
        .setting("app_id", "29310")
        .server_setting("api_url", "")
        .secret("webhook", "hook-secret-0123456789")
        .secret("key", github.fake.private_key())
        .clock(github.clock.clone())
        .start()
        .await;
    let page = || async { github.watch.said(running.forge().repositories(None).await).err() };
    let worded = json!({ "message": "You have exceeded a secondary rate limit. Please wait a few minutes." });
    running.server().answer("GET", "/app/installations", Answer::json(403, &worded));
    assert_eq!(page().await, Some(ForgeError::RetryAfter(60)));
    let forbidden = json!({ "message": "Resource not accessible by integration" });
    running.server().answer("GET", "/app/installations", Answer::json(403, &forbidden));
    assert!(matches!(page().await, Some(ForgeError::Denied(_))));
    github.finish();
}

#[tokio::test]
async fn a_forge_that_is_down_is_unavailable_and_nothing_is_forgotten() {
    let github = Github::start().await;
    let (site, _, head) = github.add("acme/site");
    github.head(&site, "main").await.expect("a head");
    for effect in [
        Effect::Status(500),
        Effect::Status(502),
        Effect::Status(503),
        Effect::DropBefore,
        Effect::DropAfter,
        Effect::CutOff,
    ] {
        github.fake.faults().add(When::always(), effect.clone());
        let answers = [
            github.head(&site, "main").await.err(),
            github.report(&status(&site, &head, StatusState::Failure)).await.err(),
            github.permission(&site, "acme").await.err(),
            github.page(None).await.err(),
            github.pull_request(&site, 1).await.err(),
        ];
        for answer in answers {
            assert!(matches!(answer, Some(ForgeError::Unavailable(_))), "{effect:?}: {answer:?}");
        }
        github.fake.faults().clear();
    }
    github.fake.faults().add(When::always(), Effect::Gibberish);
    let odd = github.head(&site, "main").await;
    assert!(matches!(odd, Err(ForgeError::Invalid(_) | ForgeError::Unavailable(_))), "{odd:?}");
    github.fake.faults().clear();
    assert_eq!(github.head(&site, "main").await.expect("a head").commit, head);
    assert_eq!(github.minted(), 1, "what was kept is still there");
    github.report(&status(&site, &head, StatusState::Success)).await.expect("a status");
    assert_eq!(github.fake.world().repository("acme/site").check_runs.len(), 1);
    github.finish();
}
