//! Calls that go well, and answers of guests.

use harmonia_core::forge::{Delivery, ForgeError, ForgeFeature};
use harmonia_core::plugin::PluginKind;
use harmonia_core::ports::Plugins;
use harmonia_core::reporter::ReportError;

use crate::support::{World, delivery, notification, reporter, reporter_with, webhooks};

#[tokio::test]
async fn a_reporter_is_called_through_the_port() {
    let world = World::new();
    world.load(world.spec("chat", &reporter("", ""))).await;
    assert_eq!(world.host.reporters(), ["chat"]);
    assert!(world.host.forges().is_empty());
    let chat = world.host.reporter("chat").expect("loaded");
    assert_eq!(chat.report(notification("k")).await, Ok(()));
    let status = &world.host.statuses()[0];
    assert_eq!(status.kind, Some(PluginKind::Reporter));
    assert_eq!(status.exports, ["reporter"]);
    assert_eq!(status.failures, 0);
    let metrics = &world.host.metrics()[0];
    assert_eq!((metrics.failures, metrics.refused, metrics.loads), (0, 0, 1));
    assert_eq!((metrics.calls, status.calls, metrics.latency.iter().sum()), (1, 1, 1));
}

#[tokio::test]
async fn a_guests_own_errors_are_answers_and_no_faults() {
    let world = World::new();
    // result::err(retry-after(7)): discriminants and payload of the contract's types.
    let body = "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1028) (i32.const 2))
                (i32.store (i32.const 1032) (i32.const 7))";
    world.load(world.spec("chat", &reporter("", body))).await;
    let chat = world.host.reporter("chat").expect("loaded");
    for _ in 0..10 {
        assert_eq!(chat.report(notification("k")).await, Err(ReportError::RetryAfter(7)));
    }
    let status = &world.host.statuses()[0];
    assert_eq!((status.failures, status.broken_for_s), (0, None));
}

#[tokio::test]
async fn an_instance_is_fresh_for_every_call() {
    let world = World::new();
    // Traps when it is called twice in one instance.
    let body = "(if (global.get $called) (then unreachable)) (global.set $called (i32.const 1))";
    world.load(world.spec("chat", &reporter("(global $called (mut i32) (i32.const 0))", body))).await;
    let chat = world.host.reporter("chat").expect("loaded");
    for _ in 0..3 {
        assert_eq!(chat.report(notification("k")).await, Ok(()));
    }
}

#[tokio::test]
async fn a_forge_has_the_features_that_it_exports() {
    let world = World::new();
    world.load(world.spec("hub", &webhooks("", "", ""))).await;
    let hub = world.host.forge("hub").expect("loaded");
    assert!(hub.has(ForgeFeature::Webhooks) && !hub.has(ForgeFeature::Login));
    assert_eq!(hub.webhook(delivery(b"x")).await, Ok(Delivery { id: String::new(), events: Vec::new() }));
    let error = hub.repositories(None).await.expect_err("not exported");
    assert_eq!(error, ForgeError::Unsupported("discovery.repositories"));
    assert_eq!(world.host.statuses()[0].failures, 0);
}

#[tokio::test]
async fn settings_reach_the_guest() {
    let world = World::new();
    // `get` answers none: trap.
    let more = r#"(import "harmonia:plugin/settings@0.1.0" "get" (func $get (param i32 i32 i32)))
        (data (i32.const 2048) "room")"#;
    let body = "(call $get (i32.const 2048) (i32.const 4) (i32.const 3000))
        (if (i32.eqz (i32.load8_u (i32.const 3000))) (then unreachable))";
    let guest = reporter_with("import harmonia:plugin/settings@0.1.0;", more, body);
    let mut spec = world.spec("chat", &guest);
    world.load(spec.clone()).await;
    let error = world.host.reporter("chat").expect("loaded").report(notification("k")).await;
    assert!(matches!(error, Err(ReportError::Plugin(_))), "no such setting: {error:?}");
    spec.settings.insert("room".into(), "lobby".into());
    world.load(spec).await;
    assert_eq!(world.host.reporter("chat").expect("loaded").report(notification("k")).await, Ok(()));
}

#[tokio::test]
async fn webhooks_have_no_network() {
    let world = World::new();
    // An empty request; the answer must be the error `denied`: discriminants 1 and 0.
    let imported = r#"(import "harmonia:plugin/http@0.1.0" "send"
        (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))"#;
    let body = "(call $send (i32.const 0) (i32.const 2048) (i32.const 0) (i32.const 2048) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 0) (i32.const 2048) (i32.const 0) (i32.const 3000))
        (if (i32.ne (i32.load8_u (i32.const 3000)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load8_u (i32.const 3004)) (i32.const 0)) (then unreachable))";
    world.load(world.spec("hub", &webhooks("import harmonia:plugin/http@0.1.0;", imported, body))).await;
    let hub = world.host.forge("hub").expect("loaded");
    assert!(hub.webhook(delivery(b"x")).await.is_ok());
}
