//! Finds and ends a daemon with all that it started. Start at [`stop`].
//!
//! The daemon forks for each connection, and puts each fork and each build into a session of its own, so neither a
//! process group nor its children's ids lead to all of them. Its forks are known by a variable in their environment,
//! which their kernel copy keeps for good; builds have a clean environment but are their descendants.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::process::Incarnation;

/// Names the state directory of a daemon to those who look for it later.
pub(crate) const MARKER: &str = "HARMONIA_NIX_DAEMON_STATE";
/// For the daemon itself, and for forks whose clients have just gone. The others never hear the request, as nix 2.8
/// leaves them with the signal blocked; being killed costs them their unfinished builds and nothing else.
const ORDERLY_PATIENCE: Duration = Duration::from_secs(1);
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Ends every process of the daemon with this state directory; `false` when there was none.
pub(crate) async fn stop(state_dir: &Path) -> bool {
    let first = find(state_dir);
    if first.is_empty() {
        return false;
    }
    // Builds are remembered from here on, as nothing leads to them once their parent has gone.
    let mut known: Vec<Incarnation> = first.iter().map(|(member, _)| *member).collect();
    let begun = Instant::now();
    while begun.elapsed() < ORDERLY_PATIENCE + KILL_PATIENCE {
        let orderly = begun.elapsed() < ORDERLY_PATIENCE;
        for (member, is_daemon) in find(state_dir) {
            if !known.contains(&member) {
                known.push(member);
            }
            if is_daemon && orderly {
                member.signal(Signal::TERM);
            }
        }
        known.retain(|member| member.is_alive());
        if known.is_empty() {
            return true;
        }
        // A build whose daemon is gone has nobody who ends it.
        let daemon_is_gone = find(state_dir).is_empty();
        if !orderly || daemon_is_gone {
            for member in &known {
                member.signal(Signal::KILL);
            }
        }
        tokio::time::sleep(POLL).await;
    }
    tracing::error!("{} processes of nix-daemon do not end", known.len());
    true
}

/// The daemon's own processes (`true`) and everything below them.
fn find(state_dir: &Path) -> Vec<(Incarnation, bool)> {
    let marker = [MARKER.as_bytes(), b"=", state_dir.as_os_str().as_bytes()].concat();
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let mut marked = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
        // Unreadable: a process of somebody else, which is none of ours.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == marker) {
            marked.push(pid);
        }
    }
    let mut process_tree: Vec<(Incarnation, bool)> = Vec::new();
    let mut to_visit: Vec<(i32, bool)> = marked.iter().map(|pid| (*pid, true)).collect();
    while let Some((pid, is_daemon)) = to_visit.pop() {
        let Some(member) = Pid::from_raw(pid).and_then(Incarnation::of) else { continue };
        if process_tree.iter().any(|(known, _)| *known == member) {
            continue;
        }
        process_tree.push((member, is_daemon));
        to_visit.extend(children.get(&pid).into_iter().flatten().map(|child| (*child, marked.contains(child))));
    }
    process_tree
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
