//! A Nix that goes on past errors: `nix flake check --keep-going` over a flake that is made for it, whose jobs are the tasks
//! (`expression.rs`). It forces each by itself, prints the error of one that has one, and turns to the next, in one process and
//! purely. Start at [`Jobset::store`].
//!
//! The flake must be in the store, since evaluation is pure. There what is evaluated may find and read it (Nix 2.26 lists the
//! store as far as it may be read), so it says no more than what is asked for: the nonce is in its reference alone.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::BufWriter;

use super::expression::{JOBSET, TASKS_FILE, jobset, write_tasks};
use super::{DEPTH_MAX, Engine, Task};
use crate::evaluator::source::{AddTreeError, add_tree, reference};
use crate::store_daemon::{ConnectError, Connection, StoreDaemon};

const FLAKE_FILE: &str = "flake.nix";

/// The flake for one process, in the store.
pub(super) struct Jobset {
    reference: String,
    /// How Nix calls its expression in traces.
    pub(super) place: String,
    /// Keeps it from the garbage collector.
    _connection: Connection,
}

/// Why it is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobsetError {
    /// Temporary files.
    #[error("could not write temporary files; is the disk full?")]
    Write(#[source] std::io::Error),
    /// No daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It did not take it.
    #[error(transparent)]
    Add(#[from] AddTreeError),
}

impl Jobset {
    /// Of these tasks, which are numbered in this order.
    pub(super) async fn store(engine: &Engine, nonce: &str, tasks: &VecDeque<Task>) -> Result<Self, JobsetError> {
        // Readable for us alone.
        let dir = tempfile::tempdir().map_err(JobsetError::Write)?;
        std::fs::write(dir.path().join(FLAKE_FILE), jobset(&engine.flake, DEPTH_MAX)).map_err(JobsetError::Write)?;
        let file = std::fs::File::create(dir.path().join(TASKS_FILE)).map_err(JobsetError::Write)?;
        write_tasks(BufWriter::new(file), tasks).map_err(JobsetError::Write)?;
        let mut connection = StoreDaemon::new(&engine.confinement.daemon_socket).connect().await?;
        let tree = add_tree(&mut connection, dir.path()).await?;
        let place = format!("at {}/{FLAKE_FILE}:", tree.path);
        Ok(Self { reference: reference(&tree, Some(nonce), 1), place, _connection: connection })
    }

    /// What `nix` is called with.
    pub(super) fn arguments(&self, engine: &Engine) -> Vec<OsString> {
        // Nothing in it is built: it has no checks. What builds print is printed as it is, as by nix-instantiate.
        let mut arguments = ["flake", "check", "--keep-going", "--show-trace", "--no-write-lock-file"].to_vec();
        arguments.extend(["--log-format", "raw-with-logs"]);
        // Nix takes a machine without a network of its own, which our sandbox is, for one that is offline. These are what
        // it has otherwise.
        for (name, value) in [("substitute", "true"), ("tarball-ttl", "3600"), ("download-attempts", "5")] {
            arguments.extend(["--option", name, value]);
        }
        let mut arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
        arguments.extend(engine.nix_options());
        arguments.push(self.reference.clone().into());
        arguments
    }
}

/// Whether `nix flake check` says this of its own work with a jobset: nothing for a log.
pub(super) fn is_of_the_check(line: &str) -> bool {
    line == "evaluating flake..."
        || line == "warning: you don't have Internet access; disabling some network-dependent features"
        || line == "error: some errors were encountered during the evaluation"
        || line.strip_prefix("checking flake output '").is_some_and(|rest| rest == format!("{JOBSET}'..."))
        || line
            .strip_prefix("checking Hydra job '")
            .is_some_and(|rest| rest.starts_with(JOBSET) && rest.ends_with("'..."))
}

/// Whether this frame of a trace is of that work.
pub(super) fn is_frame_of_the_check(frame: &str) -> bool {
    frame.trim_start().strip_prefix("… while checking the Hydra jobset '").is_some_and(|rest| rest.starts_with(JOBSET))
}
