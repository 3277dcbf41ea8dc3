//! One run of a builder, and what becomes of what it prints. Start at [`Job::run`].

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::build_log::BuildLog;
use super::log::{Activity, INFO};
use super::outcome::Outcome;
use super::run::Run;
use crate::build::{self, BuildFailure, BuildOutcome, BuildRequest};

/// What begins a line by which a builder tells of its phases.
const MESSAGE_PREFIX: &[u8] = b"@nix ";

/// What a builder prints, on its way to the client and to the log.
#[derive(Debug)]
struct Lines {
    activity: Activity,
    file: Option<BuildLog>,
}

#[derive(serde::Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
enum Message {
    SetPhase {
        phase: String,
    },
    Msg {
        #[serde(default)]
        level: u64,
        msg: String,
    },
    #[serde(other)]
    Other,
}

impl Lines {
    fn take(&mut self, said: build::BuildLog<'_>) {
        match said {
            build::BuildLog::Output(bytes) => self.write(bytes),
            build::BuildLog::Line(line) => self.line(line),
            build::BuildLog::Note(note) => self.activity.log().text(INFO, note),
        }
    }

    fn line(&self, line: &[u8]) {
        match line.strip_prefix(MESSAGE_PREFIX).and_then(|json| serde_json::from_slice(json).ok()) {
            None => self.activity.build_line(line),
            Some(Message::SetPhase { phase }) => self.activity.phase(phase.as_bytes()),
            // Builders are not trusted with what looks like our own errors.
            Some(Message::Msg { level, msg }) => self.activity.log().text(level.max(INFO), &msg),
            Some(Message::Other) => {}
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write(bytes) {
            tracing::warn!(%error, "Could not write the log of a build");
            self.file = None;
        }
    }

    fn close(&mut self) {
        if let Some(Err(error)) = self.file.take().map(BuildLog::finish) {
            tracing::warn!(%error, "Could not write the log of a build");
        }
    }
}

/// A builder that runs; it is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Job<T> {
    task: tokio::task::JoinHandle<(BuildOutcome, T)>,
    cancel: CancellationToken,
}

impl<T: Send + 'static> Job<T> {
    /// Starts the builder. `held` is what it needs: it is given back when every process of the build is dead, which takes
    /// longer than dropping this.
    pub(super) fn start(run: &Arc<Run>, request: BuildRequest, activity: Activity, held: T) -> Self {
        let settings = &run.scheduler.settings;
        let path = run.scheduler.store.layout().build_log(request.drv_path.base_name());
        let file = settings.keep_log.then(|| BuildLog::new(&path, settings.compress_log));
        let mut lines = Lines { activity, file };
        let cancel = run.scheduler.stop.child_token();
        let stop = cancel.clone();
        let task = run.scheduler.builds.spawn(async move {
            let outcome = build::run(request, |said| lines.take(said), stop).await;
            lines.close();
            (outcome, held)
        });
        Self { task, cancel }
    }

    /// How it ended, and what it was given to hold.
    pub(super) async fn end(mut self) -> (BuildOutcome, T) {
        match (&mut self.task).await {
            Ok(ended) => ended,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The daemon stops.
                Err(_cancelled) => futures_util::future::pending().await,
            },
        }
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A failure as the client is told of it.
pub(super) fn failed(failure: &BuildFailure) -> Outcome {
    let is_hash_mismatch = failure.mismatched.is_some();
    Outcome { is_hash_mismatch, ..Outcome::failure(failure.status, failure.message.clone()) }
}
