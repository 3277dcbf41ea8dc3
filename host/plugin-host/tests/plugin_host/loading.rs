//! What is let in, and what is refused with which words.

use std::sync::Arc;

use harmonia_core::ports::Plugins;

use crate::support::{World, component, notification, policy, reporter, reporter_with};

#[tokio::test]
async fn components_are_refused_by_name_with_what_to_do() {
    let world = World::new();
    let odd = r#"(import "test:guest/odd" "f" (func $f))"#;
    let clock = r#"(import "harmonia:plugin/clock@0.1.0" "now-ms" (func $now (result i64)))"#;
    let pure = format!(
        r#"(module {clock} (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "harmonia:plugin/description@0.1.0#describe") (result i32) (i32.const 1024))
            (func (export "harmonia:scheduler/policy@0.1.0#rank")
                (param i32 i32 i32 f64 i32 i32 i32 i32) (result i32) (drop (call $now)) (i32.const 1024))
            (func (export "harmonia:scheduler/policy@0.1.0#charge") (param i64 i32 f64 i32 f64) (result f64) (f64.const 0))
            (func (export "harmonia:scheduler/policy@0.1.0#decay") (param f64 f64) (result f64) (f64.const 0)))"#
    );
    let exports = "export harmonia:plugin/description@0.1.0; export harmonia:scheduler/policy@0.1.0;";
    let cases: [(&str, Vec<u8>, &[&str]); 5] = [
        ("unknown", reporter_with("import odd;", odd, "(call $f)"), &["test:guest/odd", "no such interface"]),
        (
            "impure",
            component(&format!("import harmonia:plugin/clock@0.1.0; {exports}"), &pure),
            &["harmonia:plugin/clock@0.1.0", "log and settings only"],
        ),
        ("empty", wat::parse_str("(component)").expect("valid"), &["exports nothing", "harmonia:forge@0.1"]),
        ("module", wat::parse_str("(module)").expect("valid"), &["is not a usable WebAssembly component"]),
        ("text", b"#!/bin/sh\n".to_vec(), &["is not a usable WebAssembly component"]),
    ];
    for (name, bytes, expected) in cases {
        let error = world.refusal(world.spec(name, &bytes)).await;
        for text in expected {
            assert!(error.contains(text), "{name}: {error}");
        }
    }
    let mut crowded = world.spec("crowded", &reporter("", ""));
    crowded.limits.call.instances_max = Some(0);
    let error = world.refusal(crowded).await;
    assert!(error.contains("more than 0 core instances") && error.contains("instances_max"), "{error}");
    let mut pinned = world.spec("pinned", &reporter("", ""));
    pinned.sha256 = Some("00".repeat(32));
    assert!(world.refusal(pinned).await.contains("but sha256 pins 0000"));
    let mut bad = world.spec("bad", &[]);
    bad.name = "Bad/Name".into();
    assert!(world.refusal(bad).await.contains("no name for a plugin"));
}

#[tokio::test]
async fn a_component_with_other_types_is_refused() {
    let world = World::new();
    // The right names, but `decay` of two texts.
    let text = r#"(component
        (core module $m
            (memory (export "m") 1)
            (func (export "r") (param i32 i32 i32 i32) (result i32) i32.const 0)
            (func (export "f") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $f (result u32) (canon lift (core func $i "f")))
        (instance $d (export "describe" (func $f)))
        (instance $p (export "report" (func $f)))
        (export "harmonia:plugin/description@0.1.0" (instance $d))
        (export "harmonia:reporter/reporter@0.1.0" (instance $p)))"#;
    let error = world.refusal(world.spec("odd", &wat::parse_str(text).expect("valid"))).await;
    assert!(error.contains("describe"), "{error}");
}

#[tokio::test]
async fn a_guest_that_fails_to_start_is_refused() {
    let world = World::new();
    let guest = reporter("(func $start unreachable) (start $start)", "");
    let error = world.refusal(world.spec("stillborn", &guest)).await;
    assert!(error.contains("cannot be asked what it is") && error.contains("unreachable"), "{error}");
    assert!(world.host.reporter("stillborn").is_none());
    let status = &world.host.statuses()[0];
    assert!(status.kind.is_none() && status.last_error.as_ref().is_some_and(|text| text.contains("unreachable")));
}

#[tokio::test]
async fn guests_too_big_for_the_pool_run_beside_it() {
    let world = World::new();
    let guest = reporter("(table 250000 250000 funcref)", "");
    let refused = world.refusal(world.spec("big", &guest)).await;
    assert!(refused.contains("elements in a table") && refused.contains("table_elements_max"), "{refused}");
    let mut spec = world.spec("big", &guest);
    spec.limits.call.table_elements_max = Some(300_000);
    world.load(spec.clone()).await;
    assert_eq!(world.host.reporter("big").expect("loaded").report(notification("k")).await, Ok(()));
    world.write("big", &reporter("(table 250000 250000 funcref)", "(loop (br 0))"));
    spec.limits.call.cpu_ms_max = Some(50);
    world.load(spec).await;
    let error = world.host.reporter("big").expect("loaded").report(notification("k")).await.expect_err("stopped");
    assert!(error.to_string().contains("processor time"), "{error}");
}

#[tokio::test]
async fn instances_of_one_component_are_several_plugins() {
    let world = World::new();
    let component = reporter("", "");
    let (one, two) = (world.spec("one", &component), world.spec("two", &component));
    let report = world.host.reload(vec![one.clone(), two, one]).await;
    assert_eq!(report.refused.len(), 1, "a name twice: {report:?}");
    let loaded = world.host.clone();
    let plugins: Arc<dyn Plugins> = Arc::new(loaded);
    assert_eq!(plugins.reporters(), ["one", "two"]);
    let compiled = std::fs::read_dir(world.folder.path().join("cache")).expect("there").count();
    assert_eq!(compiled, 1, "compiled once");
}

#[tokio::test]
async fn a_policy_is_no_reporter() {
    let world = World::new();
    world.load(world.spec("fair", &policy("", "(f64.const 0)", "(f64.const 0)"))).await;
    assert!(world.host.reporter("fair").is_none() && world.host.forge("fair").is_none());
    assert_eq!(world.host.policies(), ["fair"]);
}
