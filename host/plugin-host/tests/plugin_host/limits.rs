//! Guests that ask for too much: each is stopped with an error that names the bound, and nothing else suffers.

use std::time::{Duration, Instant};

use harmonia_core::ports::Plugins;
use harmonia_core::reporter::ReportError;
use harmonia_plugin_host::PluginSpec;

use crate::support::{World, delivery, notification, reporter, reporter_with, webhooks};

/// What the call of a reporter ends with.
async fn failure(world: &World, spec: PluginSpec) -> String {
    let name = spec.name.clone();
    world.load(spec).await;
    match world.host.reporter(&name).expect("loaded").report(notification("k")).await {
        Err(ReportError::Plugin(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn guests_that_ask_for_too_much_are_stopped_by_name() {
    let world = World::new();
    let grow = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))";
    let recurse = "(func $down (param i64 i64 i64 i64) (result i64)
        (i64.add (call $down (local.get 3) (local.get 0) (local.get 1) (local.get 2)) (local.get 0)))";
    let table = "(table $t 1 funcref)";
    let grow_table = "(loop (br_if 0
        (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))";
    let deep = "(drop (call $down (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)))";
    let cases = [
        ("spins", "", "(loop (br 0))", "more than 50 ms of processor time", "cpu_ms_max"),
        ("grows", "", grow, "more than 67108864 bytes of memory", "memory_bytes_max"),
        ("recurses", recurse, deep, "bytes of stack", ""),
        ("tables", table, grow_table, "elements in a table", "table_elements_max"),
        ("traps", "", "unreachable", "trapped in reporter.report: wasm trap: wasm `unreachable`", ""),
        ("nonsense", "", "(return (i32.const -4))", "answered nonsense in reporter.report", ""),
    ];
    for (name, more, body, expected, key) in cases {
        let mut spec = world.spec(name, &reporter(more, body));
        spec.limits.call.cpu_ms_max = Some(50);
        let text = failure(&world, spec).await;
        assert!(text.contains(expected) && text.contains(key) && text.contains(name), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_list_that_lies_about_its_size_costs_the_host_nothing() {
    let world = World::new();
    // An error text of 60 MB, which is there in memory: more than may be handed over.
    let body = "(drop (memory.grow (i32.const 950)))
        (i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1028) (i32.const 0))
        (i32.store (i32.const 1032) (i32.const 0)) (i32.store (i32.const 1036) (i32.const 60000000))";
    let text = failure(&world, world.spec("big", &reporter("", body))).await;
    assert!(text.contains("more than 8388608 bytes handed to the host") && text.contains("output_bytes_max"), "{text}");
}

#[tokio::test]
async fn a_spinning_guest_does_not_hold_up_others() {
    let world = World::new();
    let mut slow = world.spec("slow", &reporter("", "(loop (br 0))"));
    slow.limits.call.cpu_ms_max = Some(2_000);
    let report = world.host.reload(vec![slow, world.spec("quick", &reporter("", ""))]).await;
    assert!(report.refused.is_empty(), "{report:?}");
    let slow = world.host.reporter("slow").expect("loaded");
    let quick = world.host.reporter("quick").expect("loaded");
    // One thread for both: only because the first gives way does the second get its turn.
    let mut spinning = Box::pin(slow.report(notification("k")));
    let mut answered = 0;
    loop {
        tokio::select! {
            biased;
            ended = &mut spinning => {
                assert!(matches!(ended, Err(ReportError::Plugin(_))), "{ended:?}");
                break;
            }
            ended = quick.report(notification("k")) => {
                assert_eq!(ended, Ok(()));
                answered += 1;
            }
        }
    }
    assert!(answered > 20, "the other was called {answered} times meanwhile");
}

#[tokio::test]
async fn many_spinning_guests_of_one_plugin_take_turns() {
    let world = World::new();
    let mut spec = world.spec("slow", &reporter("", "(loop (br 0))"));
    spec.limits.call.cpu_ms_max = Some(100);
    world.load(spec).await;
    let spinning: Vec<_> = (0..8)
        .map(|_| {
            let slow = world.host.reporter("slow").expect("loaded");
            tokio::spawn(async move { slow.report(notification("k")).await })
        })
        .collect();
    // The thread is free for others most of the time, although eight want all of it.
    let mut turns = 0;
    while spinning.iter().any(|call| !call.is_finished()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
    }
    assert!(turns > 40, "{turns}");
    for call in spinning {
        assert!(call.await.expect("no panic").is_err());
    }
}

#[tokio::test]
async fn the_whole_call_has_an_end_also_while_the_host_works() {
    let world = World::new();
    // Waits for the network by asking a host that never answers: a listener that accepts nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let more = format!(
        r#"(import "harmonia:plugin/http@0.1.0" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
        (data (i32.const 2048) "{url}")"#
    );
    let body = format!(
        "(call $send (i32.const 0) (i32.const 2048) (i32.const {}) (i32.const 8) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 8) (i32.const 0) (i32.const 3000))",
        url.len()
    );
    let mut spec = world.spec("waits", &reporter_with("import harmonia:plugin/http@0.1.0;", &more, &body));
    spec.allow_hosts = vec![url.trim_end_matches('/').parse().expect("a grant")];
    spec.limits.call.wall_ms_max = Some(300);
    let started = Instant::now();
    let text = failure(&world, spec).await;
    assert!(text.contains("more than 300 ms") && text.contains("wall_ms_max"), "{text}");
    assert!(started.elapsed() < Duration::from_mins(1), "it ended by its own limit, not by that of HTTP");
}

#[tokio::test]
async fn a_plugin_that_keeps_failing_is_not_called_for_a_while() {
    let world = World::new();
    // Traps unless the body has two bytes.
    let guest = webhooks("", "", "(if (i32.ne (local.get 3) (i32.const 2)) (then unreachable))");
    world.load(world.spec("hub", &guest)).await;
    let hub = world.host.forge("hub").expect("loaded");
    for _ in 0..5 {
        hub.webhook(delivery(b"bad")).await.expect_err("traps");
    }
    let calls = world.host.metrics()[0].calls;
    let error = hub.webhook(delivery(b"ok")).await.expect_err("not called").to_string();
    assert!(error.contains("failed too often") && error.contains("10 s"), "{error}");
    let status = world.host.statuses().remove(0);
    assert_eq!((status.calls, status.failures, status.broken_for_s), (calls, 5, Some(10)));
    assert!(status.last_error.expect("told").contains("unreachable"));

    world.clock.advance(10);
    hub.webhook(delivery(b"ok")).await.expect("the probe goes through");
    assert_eq!(world.host.statuses()[0].broken_for_s, None);
    hub.webhook(delivery(b"ok")).await.expect("and so do others");
    let metrics = &world.host.metrics()[0];
    assert_eq!((metrics.traps, metrics.breaks, metrics.refused), (5, 1, 1));
}
