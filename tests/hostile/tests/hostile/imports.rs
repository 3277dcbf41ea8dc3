//! Components that want what no plugin gets, pins, and components that are none.

use harmonia_hostile_tests::World;
use harmonia_plugin_host::WasiGrant;

#[tokio::test]
async fn what_nobody_offers_is_refused_by_name() {
    let world = World::new();
    let text = world.refusal(world.guest("imports_unknown")).await;
    assert!(text.contains("imports evil:system/shell@1.0.0: no such interface"), "{text}");
    let mut generous = world.guest("imports_unknown");
    generous.wasi = WasiGrant::Scratch;
    assert!(world.refusal(generous).await.contains("evil:system/shell"), "no grant is one for this");
    assert!(world.status("imports_unknown").last_error.is_some_and(|text| text.contains("evil:system/shell@1.0.0")));
}

#[tokio::test]
async fn a_wasi_needs_a_grant_and_has_nothing_in_it() {
    let world = World::new();
    let text = world.refusal(world.guest("imports_wasi")).await;
    assert!(text.contains("imports wasi:cli/environment@0.2.0"), "{text}");
    assert!(
        text.contains("`wasi = \"empty\"`") && text.contains("of the plugin `imports_wasi`"),
        "the grant that is missing: {text}"
    );
    assert!(std::env::vars().count() > 0, "there is something to see");
    for wasi in [WasiGrant::Empty, WasiGrant::Scratch] {
        let mut spec = world.guest("imports_wasi");
        spec.wasi = wasi;
        world.load(vec![spec]).await;
        assert_eq!(world.answer("imports_wasi", "").await, "[]", "{wasi:?}");
    }
}

#[tokio::test]
async fn a_pin_lets_in_one_file_and_no_other() {
    let world = World::new();
    let mut spec = world.guest("empty");
    spec.sha256 = Some("0".repeat(64));
    let text = world.refusal(spec.clone()).await;
    assert!(text.contains("empty.wasm has SHA-256") && text.contains("but sha256 pins 0000"), "{text}");
    let actual = text.split("has SHA-256 ").nth(1).and_then(|rest| rest.get(..64)).expect("the message has the digest");
    spec.sha256 = Some(actual.to_owned());
    world.load(vec![spec.clone()]).await;
    assert_eq!(world.status("empty").sha256, actual);
    // Somebody exchanges the file: what runs goes on, what lies there is not run.
    let file = world.path("pinned.wasm");
    std::fs::copy(&spec.path, &file).expect("copied");
    spec.path.clone_from(&file);
    world.load(vec![spec]).await;
    std::fs::copy(world.guest("echoes").path, &file).expect("copied");
    let report = world.host.reload_changed_files().await;
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert_eq!(world.answer("empty", "is it you?").await, "", "still the pinned one");
    assert!(world.status("empty").last_error.is_some_and(|text| text.contains("sha256 pins")));
}
