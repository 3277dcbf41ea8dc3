//! Running Nix over a flake. Start at [`Engine`]: names first (`engine/enumerate.rs`), then values: `engine/nix.rs` for
//! plain Nix, `engine/eval_jobs.rs` for nix-eval-jobs. `engine/expression.rs` is what both are given, `engine/driver.rs`
//! runs plain Nix process after process, `engine/jobset.rs` is one that goes on past errors.
//!
//! Whatever is wrong with an attribute is its own error: an engine ends in an error of its own only when the flake as a
//! whole cannot be evaluated, or the machine fails.

mod driver;
mod enumerate;
mod eval_jobs;
mod expression;
mod jobset;
mod line;
mod names;
mod nix;
mod output;
mod process;

use std::ffi::OsString;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::source::PinnedFlake;

pub(crate) use enumerate::Enumeration;
pub(crate) use line::{EngineLine, Evaluated, shorten_error};
pub(crate) use names::{Missing, Task};
pub(crate) use process::{Confinement, tells_what_runs};

/// Most attributes of one evaluation.
pub(crate) const ATTRS_MAX: usize = 100_000;
/// Deepest attribute path that is looked into.
const DEPTH_MAX: usize = 16;

/// Everything a run needs to know. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// Plain Nix: `nix-instantiate`.
    pub(crate) nix_instantiate: PathBuf,
    /// `nix`, which goes on past errors. `None`: plain Nix is started anew behind each.
    pub(crate) nix: Option<PathBuf>,
    /// nix-eval-jobs, when that is to be used.
    pub(crate) nix_eval_jobs: Option<PathBuf>,
    /// Where the engine runs.
    pub(crate) confinement: Confinement,
    /// The pinned flake.
    pub(crate) flake: PinnedFlake,
    /// Processes side by side.
    pub(crate) workers: usize,
    /// Writable memory of one process, in bytes.
    pub(crate) memory_bytes_max: u64,
    /// Whether evaluating may build.
    pub(crate) allow_ifd: bool,
}

/// What a run tells while it goes on.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// Names of attributes, before any is evaluated: each gets a line, or is said to be a set or left out.
    Expected(Vec<Vec<String>>),
    /// An attribute's result or error.
    Line(EngineLine),
    /// This one is a set: its members get lines.
    Set {
        /// The set.
        path: Vec<String>,
        /// Its members.
        members: Vec<Vec<String>>,
    },
    /// This one is nothing to build.
    LeftOut {
        /// The attribute.
        path: Vec<String>,
        /// For the evaluation's page.
        warning: Option<String>,
    },
    /// Something the engine printed, for the log.
    Log(String),
    /// Something for the evaluation's page.
    Warning(String),
}

/// The evaluation as a whole cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The program cannot be started.
    #[error("could not start the engine {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The sandbox cannot be set up.
    #[error("the engine's sandbox could not be set up: {0}")]
    Sandbox(String),
    /// Reading from or writing to the engine failed.
    #[error("lost the connection to the engine")]
    Pipe(#[source] std::io::Error),
    /// It failed before it came to any attribute: the text is its own.
    #[error("{0}")]
    Failed(String),
    /// Whoever listens is gone.
    #[error("the evaluation was given up")]
    GivenUp,
}

impl Engine {
    /// The names of all attributes below these prefixes, without evaluating the attributes themselves.
    pub(crate) async fn enumerate(
        &self,
        prefixes: Vec<Task>,
        systems: Option<&[String]>,
        events: &mpsc::Sender<EngineEvent>,
    ) -> Result<Enumeration, EngineError> {
        enumerate::enumerate(self, prefixes, systems, events).await
    }

    /// Evaluates these attributes, and the sets among them recursively. Every one gets a line, is said to be a set of
    /// others, or is left out.
    pub(crate) async fn evaluate(
        &self,
        tasks: Vec<Task>,
        events: &mpsc::Sender<EngineEvent>,
    ) -> Result<(), EngineError> {
        match &self.nix_eval_jobs {
            Some(program) => eval_jobs::evaluate(self, program, tasks, events).await,
            None => nix::evaluate(self, tasks, events).await,
        }
    }

    /// Whether it runs at all.
    pub(crate) async fn try_out(&self) -> Result<(), EngineError> {
        driver::try_out(self).await
    }

    fn nix_arguments(&self) -> Vec<OsString> {
        let mut arguments = ["--eval", "--read-write-mode", "--show-trace"].map(OsString::from).to_vec();
        arguments.extend(self.nix_options());
        arguments.push("-".into());
        arguments
    }

    fn nix_options(&self) -> [OsString; 6] {
        let ifd = if self.allow_ifd { "true" } else { "false" };
        ["--option", "pure-eval", "true", "--option", "allow-import-from-derivation", ifd].map(OsString::from)
    }
}

pub(super) async fn tell(events: &mpsc::Sender<EngineEvent>, event: EngineEvent) -> Result<(), EngineError> {
    events.send(event).await.map_err(|_| EngineError::GivenUp)
}

#[cfg(test)]
pub(super) mod tests;
