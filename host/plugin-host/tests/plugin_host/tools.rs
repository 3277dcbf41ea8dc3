//! `inspect`, `check` and `call`, which the command line offers.

use harmonia_core::plugin::PluginKind;
use harmonia_plugin_host::{CheckResult, InvokeError};
use serde_json::json;

use crate::support::{World, policy, reporter, reporter_with, webhooks};

fn problems(results: &[CheckResult]) -> Vec<String> {
    results.iter().filter_map(|r| r.problem.as_ref().map(|problem| format!("{}: {problem}", r.case))).collect()
}

#[tokio::test]
async fn inspect_shows_what_a_component_could_ever_do() {
    let world = World::new();
    let odd = r#"(import "test:guest/odd" "f" (func $f))"#;
    let path = world.write("odd", &reporter_with("import odd;", odd, "(call $f)"));
    let found = world.host.inspect(&path).await.expect("a reporter");
    assert_eq!(found.kind, PluginKind::Reporter);
    assert_eq!(found.imports, ["test:guest/odd"]);
    assert_eq!(found.tracks, ["harmonia:plugin@0.1", "harmonia:reporter@0.1"]);
    assert!(found.description.is_none() && found.problem.is_some_and(|text| text.contains("test:guest/odd")));
    assert_eq!(found.refused.len(), 1);

    let path = world.write("good", &reporter("", ""));
    let found = world.host.inspect(&path).await.expect("a reporter");
    assert!(found.imports.is_empty() && found.refused.is_empty() && found.is_pooled, "{found:?}");
    assert_eq!(found.description.expect("described").hosts, Vec::<String>::new());
    assert_eq!(found.size_bytes, std::fs::metadata(path).expect("there").len());

    let path = world.write("none", &wat::parse_str("(component)").expect("valid"));
    assert!(world.host.inspect(&path).await.expect_err("no plugin").to_string().contains("exports nothing"));
}

#[tokio::test]
async fn check_finds_what_is_not_as_promised() {
    let world = World::new();
    let trusting = world.host.check(world.spec("hub", &webhooks("", "", ""))).await;
    let found = problems(&trusting).join("\n");
    assert!(found.contains("a delivery without a signature is denied: it answers Ok"), "{found}");
    assert!(found.contains("a forged delivery of nothing is refused: it takes it for 0 events"), "{found}");
    assert!(found.contains("no name, no version"), "{found}");

    let trapping = world.host.check(world.spec("hub", &webhooks("", "", "unreachable"))).await;
    let found = problems(&trapping);
    assert!(found.iter().filter(|text| text.contains("unreachable")).count() >= 7, "each case is tried: {found:?}");

    let denies = "(i32.store8 (i32.const 1024) (i32.const 1))";
    let good = world.host.check(world.spec("hub", &webhooks("", "", denies))).await;
    assert_eq!(problems(&good).len(), 1, "only the name is missing: {good:?}");

    let stillborn = world.host.check(world.spec("chat", &reporter("(func $s unreachable) (start $s)", ""))).await;
    assert_eq!(stillborn.len(), 1);
    assert!(!stillborn[0].passed());
}

#[tokio::test]
async fn check_knows_bad_policies() {
    let world = World::new();
    let grow = "(f64.add (local.get 2) (local.get 4))";
    let fade = "(f64.div (local.get 0) (f64.add (f64.const 1) (local.get 1)))";
    // The first candidate and nobody else; none when there is none.
    let first = "(i32.store (i32.const 1024) (local.get 6))
        (i32.store (i32.const 1028) (i32.gt_u (local.get 7) (i32.const 0)))";
    let good = problems(&world.host.check(world.spec("p", &policy(first, grow, fade))).await);
    assert_eq!(good, ["says its name and version: no name, no version"]);
    let invents = "(i64.store (i32.const 2048) (i64.const 424242))
        (i32.store (i32.const 1024) (i32.const 2048)) (i32.store (i32.const 1028) (i32.const 1))";
    let cases = [
        (policy(invents, grow, fade), "424242, which is no candidate"),
        (policy("", grow, fade), "it names none"),
        (policy(first, "(f64.const 2)", fade), "charged with"),
        (policy(first, "(local.get 2)", fade), "do not grow"),
        (policy(first, grow, "(f64.add (local.get 0) (local.get 1))"), "become"),
    ];
    for (component, expected) in cases {
        let found = problems(&world.host.check(world.spec("p", &component)).await).join("\n");
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[tokio::test]
async fn an_export_is_called_with_json() {
    let world = World::new();
    let spec =
        world.spec("p", &policy("", "(f64.add (local.get 2) (local.get 4))", "(f64.mul (local.get 0) (f64.const 2))"));
    let project = json!({"id": 1, "shares": 100, "consumed-seconds": 1.5, "running": 0});
    let answer = world.host.call(spec.clone(), "policy.charge", json!({"project": project, "seconds": 2})).await;
    assert_eq!(answer.expect("answers"), json!(3.5));
    let answer = world.host.call(spec.clone(), "harmonia:scheduler/policy@0.1.0#decay", json!([4, 0])).await;
    assert_eq!(answer.expect("answers"), json!(8.0));
    let error = world.host.call(spec.clone(), "policy.rnk", json!({})).await.expect_err("no such export");
    assert!(error.to_string().contains("policy.rank, "), "{error}");
    let inputs = [
        (json!({"project": project, "sconds": 2}), "sconds: no such parameter"),
        (json!({"project": {"id": -1}, "seconds": 2}), "project.id: a whole number"),
        (json!({"project": {"nme": 1}, "seconds": 2}), "no field 'nme'; there are: id, shares"),
        (json!({"project": project, "seconds": "2"}), "seconds: a number is expected, not \"2\""),
        (json!([1]), "1 values for 2 parameters"),
    ];
    for (input, expected) in inputs {
        let error = world.host.call(spec.clone(), "policy.charge", input).await.expect_err("refused");
        assert!(matches!(error, InvokeError::Input { .. }) && error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn results_and_bytes_have_a_json_form() {
    let world = World::new();
    // err(invalid(body)): the body's pointer and length are the last two parameters.
    let echo = "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1028) (i32.const 3))
        (i32.store (i32.const 1032) (local.get 2)) (i32.store (i32.const 1036) (local.get 3))";
    let spec = world.spec("hub", &webhooks("", "", echo));
    for (body, said) in [(json!("hé"), "hé"), (json!({"hex": "616263"}), "abc"), (json!([97, 98]), "ab")] {
        let input = json!({"request": {"headers": [{"name": "x", "value": "y"}], "body": body}});
        let answer = world.host.call(spec.clone(), "webhooks.parse", input).await.expect("answers");
        assert_eq!(answer, json!({"err": {"invalid": said}}));
    }
    let input = json!({"request": {"headers": [], "body": {"hex": "ff"}}});
    let error = world.host.call(spec.clone(), "webhooks.parse", input).await.expect_err("no text").to_string();
    assert!(error.contains("answered nonsense") && error.contains("utf-8"), "{error}");
    let ok = world.spec("ok", &webhooks("", "", ""));
    let answer = world.host.call(ok, "webhooks.parse", json!([{"headers": [], "body": ""}])).await.expect("answers");
    assert_eq!(answer, json!({"ok": {"id": "", "events": []}}));
}
