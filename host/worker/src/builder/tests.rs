//! The builder with a real PostgreSQL, a real stock daemon with a store of its own, and a signer whose answers are scripted
//! (the true one lives in a crate that workers must not know; the black-box tests have it). [`World`] is all of them.

mod building;
mod caches;
mod connections;
mod hanging;
mod lost_answers;
mod queue;
mod replacing;
mod whole;
mod world;

use std::time::Duration;

use harmonia_db::{Db, DbError, DbOptions};

use super::persist;

/// An event that must come comes within this, also on a loaded machine; one that does not fails its test.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits for a condition that nothing announces.
async fn until(what: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_met() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Processes of this machine that have `marker` in their command line.
fn processes_with(marker: &str) -> Vec<u32> {
    let pid_of = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let has_marker = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(marker)
    };
    std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(pid_of).filter(has_marker).collect()
}

/// Kills them.
fn kill_all(marker: &str) {
    for pid in processes_with(marker) {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        // It may be gone by now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A text that is nowhere else.
fn unique() -> String {
    format!("marker-{:016x}", rand::random::<u64>())
}

/// A derivation whose script runs in the busybox shell of the sandbox.
fn derivation(name: &str, script: &str) -> String {
    derivation_with(name, script, "")
}

/// With more attributes, such as `outputs = [ "out" "dev" ];`.
fn derivation_with(name: &str, script: &str, more: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" ''{script}'' ]; {more} }}"
    )
}

#[tokio::test]
async fn database_calls_outlive_an_outage_but_not_a_refusal() {
    let nowhere = DbOptions {
        url: "postgres://nobody@localhost/x?host=/no/such/socket".parse().expect("a URL"),
        max_connections: 1,
    };
    let mut calls = 0;
    let answer = persist(|| {
        calls += 1;
        let (nowhere, is_back) = (&nowhere, calls == 3);
        async move { if is_back { Ok(7) } else { Db::connect(nowhere).await.map(|_| 0) } }
    });
    assert_eq!(answer.await.expect("the database came back"), 7);
    assert_eq!(calls, 3);

    let refused = persist(|| async { Err::<(), _>(DbError::StaleClaim) });
    assert!(matches!(refused.await, Err(DbError::StaleClaim)));
}
