//! Guests that keep state, and reporters that answer all that a reporter may.

use harmonia_core::Timestamp;
use harmonia_core::forge::WebhookRequest;
use harmonia_core::ports::Plugins as _;
use harmonia_core::reporter::{Notification, NotificationKind, ReportError};
use harmonia_hostile_tests::{Answer, ScriptedServer, World, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_call() {
    let world = World::new();
    world.load(vec![world.guest("keeps_state")]).await;
    for _ in 0..10 {
        assert_eq!(world.answer("keeps_state", "").await, "1");
    }
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let forge = world.forge("keeps_state");
            tokio::spawn(async move { ask(&*forge, "").await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.expect("no panic"), Ok("1".to_owned()));
    }
    assert_eq!(world.metrics("keeps_state").calls, 74);
}

#[tokio::test]
async fn a_call_that_failed_leaves_nothing_either() {
    let world = World::new();
    world.load(vec![world.guest("allocates"), world.guest("keeps_state")]).await;
    for _ in 0..3 {
        world.fault("allocates", "").await;
        assert_eq!(world.answer("keeps_state", "").await, "1", "its memory is its own, wherever it lies");
    }
}

#[tokio::test]
async fn a_webhook_has_no_network_even_where_a_host_is_granted() {
    let world = World::new();
    let server = ScriptedServer::start().await;
    server.answer_everything(Answer::text(200, "hello"));
    let mut spec = world.guest("webhook_calls_out");
    spec.allow_hosts = vec![server.url().parse().expect("a host")];
    world.load(vec![spec]).await;
    let request = WebhookRequest { headers: Vec::new(), body: server.url().as_bytes().to_vec() };
    let delivery = world.forge("webhook_calls_out").webhook(request).await.expect("it is told, and goes on");
    assert!(delivery.id.contains("Denied") && delivery.id.contains("this call has no network"), "{}", delivery.id);
    assert!(server.requests().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn what_a_reporter_says_reaches_whoever_asked() {
    let world = World::new();
    world.load(vec![world.guest("reports")]).await;
    let reporter = world.host.reporter("reports").expect("a reporter");
    let cases = [
        ("fine", Ok(())),
        ("denied by whom", Err(ReportError::Denied("by whom".to_owned()))),
        ("invalid as it is", Err(ReportError::Invalid("as it is".to_owned()))),
        ("unavailable today", Err(ReportError::Unavailable("today".to_owned()))),
        ("wait 90", Err(ReportError::RetryAfter(90))),
    ];
    for (title, expected) in cases {
        assert_eq!(reporter.report(notification(title)).await, expected, "{title}");
    }
    assert_eq!(world.status("reports").failures, 0, "answers are no faults");
}

fn notification(title: &str) -> Notification {
    Notification {
        key: "1/builds".to_owned(),
        kind: NotificationKind::BuildsFailed,
        project: "engine".to_owned(),
        branch: "main".to_owned(),
        pull_request: None,
        commit: String::new(),
        title: title.to_owned(),
        author: String::new(),
        url: "https://ci.example/1".to_owned(),
        succeeded: 0,
        failed: 1,
        failures: Vec::new(),
        failed_before: None,
        at: Timestamp::UNIX_EPOCH,
    }
}
