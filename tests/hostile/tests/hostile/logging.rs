//! A guest that floods the log.

use harmonia_hostile_tests::{Log, World};
use harmonia_plugin_host::PluginSpec;
use tracing::Level;

/// With time for what it does: redacting and cutting is slow in a debug build.
fn flood(world: &World) -> PluginSpec {
    let mut spec = world.guest("floods_log");
    spec.limits.call.cpu_ms_max = Some(20_000);
    spec
}

#[tokio::test]
async fn a_flood_is_cut_escaped_and_counted() {
    let world = World::new();
    let log = Log::capture();
    world.load(vec![flood(&world)]).await;
    world.answer("floods_log", "1000").await;
    let lines = log.written_by("floods_log");
    assert_eq!(lines.len(), 200, "as many as one call may write");
    for line in &lines {
        assert_eq!(line.level, Level::ERROR);
        assert!(line.message.len() <= 4096, "{} bytes", line.message.len());
        assert!(line.message.starts_with("\\u{1b}[31mfake\\nline xxx"), "{}", &line.message[..40]);
        assert!(line.message.ends_with("… [cut]"));
        assert!(!line.message.contains(char::is_control), "it is one line, and moves no cursor");
    }
    let told: Vec<_> = log.lines().into_iter().filter(|line| line.dropped > 0).collect();
    let [told] = told.as_slice() else { panic!("told once: {told:?}") };
    assert_eq!((told.dropped, told.plugin.as_str(), told.level), (800, "floods_log", Level::WARN));
    assert!(told.message.contains("`limits.log_lines_per_call` of the plugin `floods_log`"), "{}", told.message);
}

#[tokio::test]
async fn many_calls_together_write_no_more_than_their_minute_allows() {
    let world = World::new();
    let log = Log::capture();
    let mut spec = flood(&world);
    spec.limits.capabilities.log_lines_per_minute = 300;
    world.load(vec![spec]).await;
    for _ in 0..3 {
        world.answer("floods_log", "200").await;
    }
    assert_eq!(log.written_by("floods_log").len(), 300);
    world.clock.advance(60);
    world.answer("floods_log", "1").await;
    assert_eq!(log.written_by("floods_log").len(), 301, "another minute");
    let told = log.lines().into_iter().find(|line| line.dropped > 0).expect("told");
    assert_eq!(told.dropped, 300);
    assert!(told.message.contains("`limits.log_lines_per_minute` of the plugin `floods_log`"), "{}", told.message);
}

#[tokio::test]
async fn a_flood_of_one_plugin_leaves_the_lines_of_another() {
    let world = World::new();
    let log = Log::capture();
    let mut spec = flood(&world);
    spec.limits.capabilities.log_lines_per_minute = 10;
    world.load(vec![spec, world.guest("panics")]).await;
    world.answer("floods_log", "50").await;
    world.fault("panics", "hear me").await;
    assert!(log.written_by("panics").iter().any(|line| line.message.contains("hear me")), "{}", log.text());
}
