//! Another file or configuration takes the place of the old one without a restart.

use harmonia_core::ports::Plugins;
use harmonia_core::reporter::ReportError;

use crate::support::{World, notification, reporter};

const OK: &str = "";
/// `err(denied(""))`.
const DENIED: &str = "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1028) (i32.const 1))";

#[tokio::test]
async fn a_changed_file_is_loaded_and_a_bad_one_is_not() {
    let world = World::new();
    let spec = world.spec("chat", &reporter("", OK));
    world.load(spec.clone()).await;
    let chat = world.host.reporter("chat").expect("loaded");
    assert_eq!(chat.report(notification("k")).await, Ok(()));
    assert_eq!(world.host.reload(vec![spec.clone()]).await.unchanged, ["chat"]);
    assert_eq!(world.host.reload_changed_files().await.unchanged, ["chat"]);

    world.write("chat", &reporter("", DENIED));
    assert_eq!(world.host.reload_changed_files().await.loaded, ["chat"]);
    assert_eq!(chat.report(notification("k")).await, Err(ReportError::Denied(String::new())), "the same handle");

    world.write("chat", b"half a comp");
    let report = world.host.reload_changed_files().await;
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert_eq!(chat.report(notification("k")).await, Err(ReportError::Denied(String::new())), "the old one stays");
    let status = world.host.statuses().remove(0);
    assert!(status.last_error.is_some_and(|text| text.contains("not a usable")) && !status.sha256.is_empty());
    assert_eq!(world.host.reload_changed_files().await.unchanged, ["chat"], "tried once");

    world.write("chat", &reporter("", OK));
    assert_eq!(world.host.reload_changed_files().await.loaded, ["chat"]);
    assert_eq!(chat.report(notification("k")).await, Ok(()));
    let metrics = &world.host.metrics()[0];
    assert_eq!((metrics.loads, metrics.refused_loads), (3, 1));

    let report = world.host.reload(Vec::new()).await;
    assert_eq!(report.removed, ["chat"]);
    assert!(world.host.reporter("chat").is_none());
    let error = chat.report(notification("k")).await.expect_err("gone");
    assert!(error.to_string().contains("not configured any more"), "{error}");
}

#[tokio::test]
async fn a_file_that_appears_later_is_loaded_then() {
    let world = World::new();
    let spec = world.spec("chat", &reporter("", OK));
    std::fs::remove_file(&spec.path).expect("ours");
    assert!(world.refusal(spec).await.contains("cannot read the component"));
    assert!(world.host.reporter("chat").is_none());
    world.write("chat", &reporter("", OK));
    assert_eq!(world.host.reload_changed_files().await.loaded, ["chat"]);
    assert!(world.host.reporter("chat").is_some());
}

#[tokio::test]
async fn calls_in_flight_end_on_the_component_they_began_on() {
    let world = World::new();
    // Spins for its whole processor time, so that the reload happens meanwhile.
    let mut spec = world.spec("chat", &reporter("", "(loop (br 0))"));
    spec.limits.call.cpu_ms_max = Some(1_500);
    world.load(spec.clone()).await;
    let chat = world.host.reporter("chat").expect("loaded");
    let old = tokio::spawn(async move { chat.report(notification("k")).await });
    // Its first turn: from then on it is in the guest.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    world.write("chat", &reporter("", OK));
    assert_eq!(world.host.reload_changed_files().await.loaded, ["chat"]);
    let new = world.host.reporter("chat").expect("loaded");
    assert_eq!(new.report(notification("k")).await, Ok(()));
    assert!(!old.is_finished(), "the old call goes on");
    let ended = old.await.expect("no panic");
    assert!(ended.is_err_and(|error| error.to_string().contains("processor time")));
    let status = world.host.statuses().remove(0);
    assert_eq!(status.broken_for_s, None);
}

#[tokio::test]
async fn a_better_component_is_let_in_while_the_old_ones_circuit_is_broken() {
    let world = World::new();
    world.load(world.spec("chat", &reporter("", "unreachable"))).await;
    let chat = world.host.reporter("chat").expect("loaded");
    for _ in 0..5 {
        chat.report(notification("k")).await.expect_err("traps");
    }
    assert!(world.host.statuses()[0].broken_for_s.is_some());
    world.write("chat", &reporter("(func $s unreachable) (start $s)", OK));
    assert_eq!(world.host.reload_changed_files().await.refused.len(), 1);
    let status = world.host.statuses().remove(0);
    assert!(status.broken_for_s.is_some() && status.failures == 5, "a refused one changes nothing: {status:?}");
    world.write("chat", &reporter("", OK));
    assert_eq!(world.host.reload_changed_files().await.loaded, ["chat"]);
    assert_eq!(chat.report(notification("k")).await, Ok(()));
}
