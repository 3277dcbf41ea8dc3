//! SIGKILL in the middle of two hundred builds: nothing is lost, nothing that was finished is built twice.

use std::time::Duration;

use harmonia_tests::repository::{commit, flake};
use harmonia_tests::server::{HARMONIA_DAEMON, Server, folder, wait_for};
use serde_json::Value;

/// Derivations of the graph.
const BUILDS: u64 = 200;
/// How many must have succeeded before the kill.
const KILL_AFTER: u64 = 40;

/// Two hundred derivations: twenty chains of ten, each link waiting for the one before.
fn graph() -> String {
    flake(
        r#"let
      link = chain: n: sh "chain-${toString chain}-${toString n}" "echo ${toString n} > $out"
        (if n == 0 then {} else { before = link chain (n - 1); });
    in builtins.listToAttrs (builtins.concatLists (builtins.genList (chain:
      builtins.genList (n: { name = "c${toString chain}-${toString n}"; value = link chain n; }) 10) 20))"#,
    )
}

fn succeeded(status: &Value) -> u64 {
    status["jobs"]["succeeded"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_finished_is_built_twice() {
    nothing_is_lost(&[]).await;
}

#[tokio::test]
async fn nothing_is_lost_with_harmonia_daemon_and_nothing_finished_is_built_twice() {
    nothing_is_lost(HARMONIA_DAEMON).await;
}

async fn nothing_is_lost(environment: &[(&str, &str)]) {
    let data = folder();
    let up = data.path().join("up");
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &graph())]);

    let server = Server::up(&up, &[], environment);
    let path = repository.to_str().expect("UTF-8");
    let id = server.json(&["eval", path, "--json"])["id"].as_u64().expect("an id");
    let find = |server: &Server| {
        let all = server.json(&["evals", "--json"]);
        all.as_array().expect("a list").iter().find(|e| e["id"].as_u64() == Some(id)).cloned().expect("listed")
    };
    let started = wait_for(Duration::from_mins(2), || {
        let status = server.json(&["status", "--json"]);
        (succeeded(&status) >= KILL_AFTER).then_some(())
    });
    assert!(started.is_some(), "builds got under way: {}", find(&server));
    server.kill();

    let server = Server::up(&up, &[], environment);
    let done = wait_for(Duration::from_mins(3), || {
        let evaluation = find(&server);
        (evaluation["verdict"] != "running").then_some(evaluation)
    });
    let done = done.expect("the evaluation ends after the restart");
    assert_eq!(done["verdict"], "succeeded", "{done}");
    assert_eq!(done["counts"]["total"].as_u64(), Some(BUILDS));

    let options = harmonia_db::DbOptions { url: server.database_url().parse().expect("a URL"), max_connections: 2 };
    let db = harmonia_db::Db::connect(&options).await.expect("the private database answers");
    let violations = db.sweep_invariants().await.expect("swept");
    assert!(violations.is_empty(), "{violations:?}");
    let attempts = db.attempt_statistics().await.expect("counted");
    assert_eq!(attempts.jobs_built_twice, 0, "what had succeeded stayed so: {attempts:?}");
    assert!(server.stop().success());
}
