//! Running Nix over a flake. Start at [`Engine`]; `engine/nix.rs` drives plain Nix, `engine/eval_jobs.rs` drives
//! nix-eval-jobs. Both speak the JSON lines of nix-eval-jobs, read by `engine/line.rs`.

mod eval_jobs;
mod expression;
mod line;
mod nix;
mod output;
mod process;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use tokio::sync::mpsc;

use super::source::PinnedFlake;

pub(crate) use line::{EngineLine, LineError, shorten_error};
pub(crate) use nix::Enumeration;
pub(crate) use process::Confinement;

/// Most attributes of one evaluation.
pub(crate) const ATTRS_MAX: usize = 100_000;
/// Deepest attribute path that is looked into.
const DEPTH_MAX: usize = 16;

/// Everything a run needs to know. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// Plain Nix: `nix-instantiate`.
    pub(crate) nix_instantiate: PathBuf,
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
    /// An attribute's result or error.
    Line(EngineLine),
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
    /// It printed something that is no valid line.
    #[error("the engine printed something that is no valid line")]
    Line(#[source] LineError),
    /// More attributes than an evaluation may have.
    #[error("the flake has more than {ATTRS_MAX} attributes to build: name fewer in 'attrs'")]
    TooMany,
    /// Whoever listens is gone.
    #[error("the evaluation was given up")]
    GivenUp,
}

impl Engine {
    /// The names of all attributes below these prefixes, without evaluating the attributes themselves.
    pub(crate) async fn enumerate(
        &self,
        prefixes: &[Vec<String>],
        systems: Option<&[String]>,
        events: &mpsc::Sender<EngineEvent>,
    ) -> Result<Enumeration, EngineError> {
        nix::enumerate(self, prefixes, systems, events).await
    }

    /// Evaluates these attributes, and the sets among them recursively. Every one gets a line or is warned of; returned
    /// are those that got a line.
    pub(crate) async fn evaluate(
        &self,
        attrs: Vec<Vec<String>>,
        events: &mpsc::Sender<EngineEvent>,
    ) -> Result<BTreeSet<Vec<String>>, EngineError> {
        match &self.nix_eval_jobs {
            Some(program) => eval_jobs::evaluate(self, program, attrs, events).await,
            None => nix::evaluate(self, attrs, events).await,
        }
    }

    /// Whether it runs at all.
    pub(crate) async fn try_out(&self) -> Result<(), EngineError> {
        nix::try_out(self).await
    }

    fn nix_arguments(&self) -> Vec<OsString> {
        [
            "--eval",
            "--read-write-mode",
            "--show-trace",
            "--option",
            "pure-eval",
            "true",
            "--option",
            "allow-import-from-derivation",
            if self.allow_ifd { "true" } else { "false" },
            "-",
        ]
        .map(OsString::from)
        .to_vec()
    }
}

async fn tell(events: &mpsc::Sender<EngineEvent>, event: EngineEvent) -> Result<(), EngineError> {
    events.send(event).await.map_err(|_| EngineError::GivenUp)
}

#[cfg(test)]
pub(super) mod tests;
