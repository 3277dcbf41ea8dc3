//! The whole chain: a commit in, a signed path out of the cache, and stock Nix as the judge.

use std::collections::BTreeMap;
use std::time::Duration;

use harmonia_tests::repository::{commit, flake, git};
use harmonia_tests::server::{HARMONIA_DAEMON, Server, folder, parse, text, wait_for};
use harmonia_tests::stock_nix::{StockNix, dump, physical};
use serde_json::Value;

/// Attribute → state.
fn states(detail: &Value) -> BTreeMap<String, String> {
    let attrs = detail["attrs"].as_array().expect("attributes").iter();
    attrs
        .map(|a| (a["attr"].as_str().expect("attr").to_owned(), a["state"].as_str().expect("state").to_owned()))
        .collect()
}

/// Every output path of attributes in a good state.
fn good_outputs(detail: &Value) -> Vec<String> {
    let attrs = detail["attrs"].as_array().expect("attributes").iter();
    let good = attrs.filter(|a| matches!(a["state"].as_str(), Some("succeeded" | "cached")));
    good.flat_map(|a| a["outputs"].as_object().expect("outputs").values())
        .map(|path| path.as_str().expect("a path").to_owned())
        .collect()
}

/// Attribute of the demo → the state it must end in.
fn expected_states() -> BTreeMap<String, &'static str> {
    use harmonia_embedded::demo::{EXPECTED, Outcome};
    let system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let state = |outcome| match outcome {
        Outcome::Succeeds => "succeeded",
        Outcome::Fails => "failed",
        Outcome::DependencyFails => "dep-failed",
        Outcome::EvaluationFails => "error",
    };
    EXPECTED.iter().map(|part| (format!("checks.{system}.{}", part.name), state(part.outcome))).collect()
}

/// How many attempts there were in all.
async fn attempts(server: &Server) -> u64 {
    let db = database(server).await;
    db.attempt_statistics().await.expect("counted").total
}

async fn database(server: &Server) -> harmonia_db::Db {
    let options = harmonia_db::DbOptions { url: server.database_url().parse().expect("a URL"), max_connections: 2 };
    harmonia_db::Db::connect(&options).await.expect("the private database answers")
}

#[tokio::test]
async fn the_demo_is_built_served_and_fetched_by_stock_nix() {
    the_demo_is_built_served_and_fetched(&[]).await;
}

/// Without a daemon of Nix.
#[tokio::test]
async fn the_demo_is_built_by_harmonia_daemon_and_fetched_by_stock_nix() {
    the_demo_is_built_served_and_fetched(HARMONIA_DAEMON).await;
}

async fn the_demo_is_built_served_and_fetched(environment: &[(&str, &str)]) {
    let data = folder();
    let server = Server::up(data.path(), &["--demo"], environment);
    // The other pipe may lag behind the ready line.
    let told = || server.stderr().contains("nix --extra-experimental-features nix-command copy").then_some(());
    assert!(wait_for(Duration::from_secs(30), told).is_some(), "the last lines tell how to fetch: {}", server.stderr());

    // A second evaluation of the same commit ends in every expected state, and builds nothing.
    let before = attempts(&server).await;
    let demo = data.path().join("demo");
    let output = server.run(&["eval", demo.to_str().expect("UTF-8"), "--wait", "--json"]);
    assert_eq!(output.status.code(), Some(1), "the demo has failures on purpose: {}", text(&output));
    let detail = parse(&output);
    let states = states(&detail);
    let expected = expected_states();
    assert_eq!(states.len(), expected.len(), "{states:?}");
    for (attr, state) in &expected {
        let found = states.get(attr).map(String::as_str);
        match *state {
            // What is there already needs no job.
            "succeeded" => assert!(matches!(found, Some("succeeded" | "cached")), "{attr} is {found:?}"),
            wanted => assert_eq!(found, Some(wanted), "{attr}"),
        }
    }
    for attr in detail["attrs"].as_array().expect("attributes") {
        let error = attr["state"] == "error";
        assert_eq!(attr["drv_path"].is_null(), error, "{attr}");
        assert_eq!(attr["outputs"].as_object().is_some_and(serde_json::Map::is_empty), error, "{attr}");
        if error {
            assert!(attr["error"].as_str().is_some_and(|text| text.contains("error")), "{attr}");
        }
    }
    assert_eq!(attempts(&server).await, before, "the same commit again builds nothing");

    // Stock Nix takes every good output with its closure, with signatures required and only our key trusted.
    let nix = StockNix::trusting(&server.public_key());
    let outputs = good_outputs(&detail);
    assert!(outputs.len() >= 8, "{outputs:?}");
    for path in &outputs {
        nix.copy_from(&server.url, path);
        for member in nix.closure(path) {
            let built = dump(&physical(&data.path().join("root"), &member));
            assert_eq!(dump(&nix.physical(&member)), built, "NAR of {member}");
        }
    }
    let stranger = StockNix::trusting("other-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=");
    let refused = stranger.run("nix", &["copy", "--from", &server.url, &outputs[0]]);
    assert!(!refused.status.success(), "a key that signed nothing must not be enough");

    // nix log finds the log of a build through the cache; so does anybody else, also that of a failed one.
    let of = |name: &str| {
        let attrs = detail["attrs"].as_array().expect("attributes").iter();
        let mut named = attrs.filter(|a| a["attr"].as_str().is_some_and(|attr| attr.ends_with(&format!(".{name}"))));
        named.next().expect("such an attribute").clone()
    };
    let poem = of("poem")["outputs"]["out"].as_str().expect("a path").to_owned();
    let log = nix.run("nix", &["log", "--store", &server.url, &poem]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("line 3"), "nix log {poem}: {}", text(&log));
    let job = of("broken")["job"].to_string();
    let log = server.run(&["log", &job]);
    let wanted = harmonia_embedded::demo::BROKEN_LOG_LINE;
    assert!(String::from_utf8_lossy(&log.stdout).contains(wanted), "log {job}: {}", text(&log));
    assert!(server.stop().success(), "a clean end");
}

#[tokio::test]
async fn a_changed_leaf_rebuilds_exactly_its_dependents() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let repository = data.path().join("repository");
    let body = |leaf: &str| {
        flake(&format!(
            r#"rec {{
      leaf = sh "leaf" "echo {leaf} > $out" {{ }};
      other = sh "other" "echo other > $out" {{ }};
      middle = sh "middle" "cat $leaf > $out" {{ inherit leaf; }};
      top = sh "top" "cat $middle $other > $out" {{ inherit middle other; }};
      apart = sh "apart" "cat $other > $out" {{ inherit other; }};
    }}"#
        ))
    };
    commit(&repository, &[("flake.nix", &body("one"))]);
    let path = repository.to_str().expect("UTF-8");
    let first = server.json(&["eval", path, "--wait", "--json"]);
    assert_eq!(states(&first).values().filter(|state| *state == "succeeded").count(), 5, "{first}");
    let before = attempts(&server).await;
    assert_eq!(before, 5);

    commit(&repository, &[("flake.nix", &body("two"))]);
    let second = server.json(&["eval", path, "--wait", "--json"]);
    assert_eq!(
        second["evaluation"]["commit"].as_str().or(second["commit"].as_str()),
        Some(git(&repository, &["rev-parse", "HEAD"]).as_str())
    );
    assert_eq!(attempts(&server).await - before, 3, "leaf, middle and top, and nothing else: {second}");
    let drv_of = |detail: &Value, name: &str| {
        let attrs = detail["attrs"].as_array().expect("attributes").iter();
        attrs
            .filter(|a| a["attr"].as_str().is_some_and(|attr| attr.ends_with(name)))
            .map(|a| a["drv_path"].clone())
            .next()
    };
    for (name, changed) in [("leaf", true), ("middle", true), ("top", true), ("other", false), ("apart", false)] {
        assert_eq!(drv_of(&first, name) != drv_of(&second, name), changed, "{name}");
    }
    assert!(database(&server).await.sweep_invariants().await.expect("swept").is_empty());
}
