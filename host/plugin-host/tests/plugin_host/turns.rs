//! Hostile plugins share what the server does not need: counted, not timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harmonia_core::ports::{PluginStore, PluginStoreError, Plugins, PortFuture, StoredValue, WriteCondition};
use harmonia_core::reporter::ReportError;
use harmonia_plugin_host::PluginSpec;

use crate::support::{World, notification, reporter, reporter_with};

/// Asks the store again and again, for ever.
fn asks_forever() -> Vec<u8> {
    let more = r#"(import "harmonia:plugin/kv@0.1.0" "get" (func $get (param i32 i32 i32)))
        (data (i32.const 2048) "key")"#;
    let body = "(loop (call $get (i32.const 2048) (i32.const 3) (i32.const 3000)) (br 0))";
    reporter_with("import harmonia:plugin/kv@0.1.0;", more, body)
}

/// An empty store that notes how many guests are in it at once: each asks on the thread that runs it.
#[derive(Default)]
struct Counting {
    counts: AtomicBool,
    inside: AtomicUsize,
    most: AtomicUsize,
    asked: AtomicUsize,
}

impl PluginStore for Counting {
    fn get(&self, _: String, _: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        Box::pin(async move {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            if self.counts.load(Ordering::SeqCst) {
                self.most.fetch_max(inside, Ordering::SeqCst);
                self.asked.fetch_add(1, Ordering::SeqCst);
            }
            // So long that others come in, if they may.
            (0..3).for_each(|_| std::thread::yield_now());
            self.inside.fetch_sub(1, Ordering::SeqCst);
            Ok(None)
        })
    }

    fn set(
        &self,
        _: String,
        _: String,
        _: Vec<u8>,
        _: Option<Duration>,
        _: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        Box::pin(async { Ok(1) })
    }

    fn delete(&self, _: String, _: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        Box::pin(async { Ok(()) })
    }
}

fn call(world: &World, name: &str) -> tokio::task::JoinHandle<Result<(), ReportError>> {
    let plugin = world.host.reporter(name).expect("loaded");
    tokio::spawn(async move { plugin.report(notification("k")).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hostile_plugins_never_compute_on_more_threads_than_the_server_can_spare() {
    let store = Arc::new(Counting::default());
    let world = World::with_store(store.clone());
    let hostile: Vec<PluginSpec> = (0..8)
        .map(|number| {
            let mut spec = world.spec(&format!("hostile-{number}"), &asks_forever());
            spec.limits.call.cpu_ms_max = Some(40);
            spec.limits.capabilities.kv_operations_per_call = u32::MAX;
            spec
        })
        .collect();
    let names: Vec<String> = hostile.iter().map(|spec| spec.name.clone()).collect();
    let report = world.host.reload(hostile).await;
    assert!(report.refused.is_empty(), "{report:?}");
    // The first call of each begins like anybody's. From then on they are known.
    for name in &names {
        call(&world, name).await.expect("no panic").expect_err("stopped");
    }
    store.counts.store(true, Ordering::SeqCst);
    let calls: Vec<_> = names.iter().map(|name| call(&world, name)).collect();
    for call in calls {
        let error = call.await.expect("no panic").expect_err("stopped");
        assert!(matches!(&error, ReportError::Plugin(text) if text.contains("processor time")), "{error:?}");
    }
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = store.most.load(Ordering::SeqCst);
    assert!((1..=processors.saturating_sub(1).max(1)).contains(&most), "{most} at once on {processors} processors");
    assert!(store.asked.load(Ordering::SeqCst) > 16, "they did get their turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_call_ends_while_every_hostile_one_goes_on() {
    let world = World::new();
    let mut specs: Vec<PluginSpec> = (0..8)
        .map(|number| {
            let mut spec = world.spec(&format!("spins-{number}"), &reporter("", "(loop (br 0))"));
            spec.limits.call.cpu_ms_max = Some(3_600_000);
            spec.limits.call.wall_ms_max = Some(3_600_000);
            spec
        })
        .collect();
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    specs.push(world.spec("quick", &reporter("", "")));
    let report = world.host.reload(specs).await;
    assert!(report.refused.is_empty(), "{report:?}");
    let hostile: Vec<_> = names.iter().map(|name| call(&world, name)).collect();
    for _ in 0..100 {
        call(&world, "quick").await.expect("no panic").expect("it does nothing");
        // The server's own tasks, too: a timer and a task on another thread.
        tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await.expect_err("it ends");
        tokio::spawn(async {}).await.expect("it runs");
    }
    assert!(hostile.iter().all(|call| !call.is_finished()), "each of them still runs or waits for its turn");
    for call in hostile {
        call.abort();
        assert!(call.await.expect_err("stopped by us").is_cancelled());
    }
    call(&world, "quick").await.expect("no panic").expect("nothing is left behind");
}

#[tokio::test]
async fn waiting_for_a_turn_is_no_processor_time_but_the_clock_on_the_wall_goes_on() {
    let world = World::new();
    let spec = |name: &str, cpu_ms_max, wall_ms_max| {
        let mut spec = world.spec(name, &reporter("", "(loop (br 0))"));
        spec.limits.call.cpu_ms_max = Some(cpu_ms_max);
        spec.limits.call.wall_ms_max = Some(wall_ms_max);
        spec
    };
    // Eight that want far more than there is in the time of the last.
    let mut specs: Vec<PluginSpec> =
        (0..8).map(|number| spec(&format!("spins-{number}"), 3_600_000, 3_600_000)).collect();
    specs.push(spec("patient", 50, 3_600_000));
    specs.push(spec("hurried", 3_600_000, 200));
    let names: Vec<String> = specs.iter().take(8).map(|spec| spec.name.clone()).collect();
    let report = world.host.reload(specs).await;
    assert!(report.refused.is_empty(), "{report:?}");
    let hostile: Vec<_> = names.iter().map(|name| call(&world, name)).collect();
    let (patient, hurried) = tokio::join!(call(&world, "patient"), call(&world, "hurried"));
    let failed = |result: Result<Result<(), ReportError>, _>| match result.expect("no panic") {
        Err(ReportError::Plugin(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(failed(patient).contains("more than 50 ms of processor time"));
    assert!(failed(hurried).contains("more than 200 ms ("));
    for call in hostile {
        call.abort();
    }
}
