//! Everybody else's calls while hostile ones run. How long they take is measured (`./dev bench plugins`); here they succeed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use harmonia_core::forge::ForgeError;
use harmonia_hostile_tests::{World, ask};
use harmonia_plugin_host::PluginSpec;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_hostile_calls_at_once_fail_and_no_other_does() {
    let world = World::new();
    let hostile: Vec<PluginSpec> = ["spins", "allocates", "recurses"]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
        .map(|(place, guest)| PluginSpec { name: format!("{guest}-{place}"), ..world.guest(guest) })
        .collect();
    let names: Vec<String> = hostile.iter().map(|spec| spec.name.clone()).collect();
    world.load([hostile, vec![world.guest("empty"), world.guest("echoes")]].concat()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::new(AtomicU32::new(0));
    let attacks: Vec<_> = names
        .iter()
        .map(|name| {
            let (forge, clock) = (world.forge(name), world.clock.clone());
            let (stop, ended) = (stop.clone(), ended.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // Past every break of the circuit: they are to run, not to be kept out.
                    clock.advance(600);
                    match ask(&*forge, "").await {
                        Err(ForgeError::Plugin(text)) => assert!(text.contains("was stopped in"), "{text}"),
                        other => panic!("{other:?}"),
                    }
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut calls = 0;
    // Until each of them had several turns.
    while ended.load(Ordering::Relaxed) < 40 || calls < 200 {
        assert_eq!(world.answer("empty", "").await, "");
        assert_eq!(world.answer("echoes", "are you there?").await, "are you there?");
        calls += 1;
        assert!(attacks.iter().all(|attack| !attack.is_finished()), "they go on");
    }
    stop.store(true, Ordering::Relaxed);
    for attack in attacks {
        attack.await.expect("every hostile call failed as it should");
    }
    for plugin in ["empty", "echoes"] {
        let status = world.status(plugin);
        assert_eq!((status.failures, status.calls), (0, calls), "{plugin}");
    }
    for name in names {
        assert!(world.metrics(&name).limits > 0, "{name}");
    }
}
