//! Other files and configurations take the place of old ones while calls are in flight.

use harmonia_hostile_tests::{Answer, Held, ScriptedServer, World, ask};
use harmonia_plugin_host::PluginSpec;

#[tokio::test]
async fn a_call_in_flight_ends_on_the_component_it_began_on() {
    let world = World::new();
    let mut held = Held::start().await;
    let mut spec = world.guest("fetches");
    let file = world.path("plugin.wasm");
    std::fs::copy(&spec.path, &file).expect("copied");
    spec.path.clone_from(&file);
    spec.allow_hosts = vec![held.url().parse().expect("a host")];
    world.load(vec![spec]).await;
    let (forge, url) = (world.forge("fetches"), held.url().to_owned());
    let old = tokio::spawn(async move { ask(&*forge, &url).await });
    held.arrived().await;

    std::fs::copy(world.guest("echoes").path, &file).expect("copied");
    assert_eq!(world.host.reload_changed_files().await.loaded, ["fetches"]);
    assert_eq!(world.answer("fetches", "a new one").await, "a new one", "the next call is the new component's");
    assert!(!old.is_finished(), "the old call goes on");

    // What cannot run does not take the place of what does.
    for broken in [&b"half a comp"[..], b"", b"\0asm\x0d\0\x01\0"] {
        std::fs::write(&file, broken).expect("written");
        let report = world.host.reload_changed_files().await;
        assert_eq!(report.refused.len(), 1, "{report:?}");
        assert_eq!(world.answer("fetches", "still").await, "still");
        assert!(world.status("fetches").last_error.is_some(), "an operator is told");
    }
    std::fs::copy(world.guest("imports_unknown").path, &file).expect("copied");
    let report = world.host.reload_changed_files().await;
    assert!(report.refused.iter().any(|(_, error)| error.to_string().contains("evil:system/shell")), "{report:?}");
    assert_eq!(world.answer("fetches", "still").await, "still");
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(world.host.reload_changed_files().await.refused.len(), 1);
    assert_eq!(world.answer("fetches", "still").await, "still");

    assert!(!old.is_finished());
    held.release();
    assert_eq!(old.await.expect("no panic"), Ok("200 held".to_owned()), "on the component it began on");
}

#[tokio::test]
async fn a_plugin_that_is_taken_away_ends_its_calls_first() {
    let world = World::new();
    let mut held = Held::start().await;
    let mut spec = world.guest("fetches");
    spec.allow_hosts = vec![held.url().parse().expect("a host")];
    world.load(vec![spec]).await;
    let (forge, url) = (world.forge("fetches"), held.url().to_owned());
    let old = tokio::spawn({
        let forge = forge.clone();
        async move { ask(&*forge, &url).await }
    });
    held.arrived().await;
    assert_eq!(world.host.reload(Vec::new()).await.removed, ["fetches"]);
    let error = ask(&*forge, "").await.expect_err("gone").to_string();
    assert!(error.contains("plugin fetches is not loaded: it is not configured any more"), "{error}");
    held.release();
    assert_eq!(old.await.expect("no panic"), Ok("200 held".to_owned()));
}

#[tokio::test]
async fn two_instances_of_one_component_have_their_own_grants_limits_and_records() {
    let world = World::new();
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    for (server, text) in [(&first, "the first"), (&second, "the second")] {
        server.answer_everything(Answer::text(200, text));
    }
    let instance = |name: &str, server: &ScriptedServer| PluginSpec {
        name: name.to_owned(),
        allow_hosts: vec![server.url().parse().expect("a host")],
        ..world.guest("fetches")
    };
    let mut narrow = instance("two", &second);
    narrow.limits.capabilities.response_body_bytes = 12;
    world.load(vec![instance("one", &first), narrow]).await;
    assert_eq!(world.status("one").sha256, world.status("two").sha256);
    assert_eq!(world.answer("one", first.url()).await, "200 the first");
    assert!(world.answer("one", second.url()).await.contains("`allow_hosts` of the plugin `one`"));
    assert_eq!(world.answer("two", second.url()).await, "200 the second");
    assert!(world.answer("two", first.url()).await.contains("`allow_hosts` of the plugin `two`"));
    second.answer("GET", "/", Answer::text(200, "more than twelve bytes"));
    assert!(world.answer("two", second.url()).await.contains("`limits.response_body_bytes` of the plugin `two`"));

    // One breaks; the other, of the same component, does not.
    let name = |spec: PluginSpec, name: &str| PluginSpec { name: name.to_owned(), ..spec };
    world.load(vec![name(world.guest("panics"), "one"), name(world.guest("panics"), "two")]).await;
    for _ in 0..5 {
        world.fault("one", "").await;
    }
    assert!(world.status("one").broken_for_s.is_some());
    world.good_call("two").await;
}
