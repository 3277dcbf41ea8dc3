//! The evaluator: claims evaluations, runs the engine over their flakes, and queues what comes out while it comes out.
//!
//! Start reading at [`run`], the claim loop; `evaluation.rs` is one evaluation from claim to end. What happens to foreign
//! code: `source.rs` fetches it with git, `engine.rs` runs Nix over it in a sandbox. What becomes of the results:
//! `insert.rs` makes batches of them, with `graph.rs` walking the derivations below, and `upload.rs` bringing their files
//! and sources to the cache before the jobs that need them can be claimed.

mod credential;
mod engine;
mod evaluation;
mod graph;
mod insert;
mod probe;
mod skip;
mod source;
mod traces;
pub(crate) mod transient;
mod upload;
mod upstream;
mod walks;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::retry::WaitPolicy;
use harmonia_core::token::Incarnation;
use harmonia_core::{ClaimToken, NodeId, chain};
use harmonia_db::{Channel, ClaimedEvaluation, Db, DbError, Notice};
use harmonia_egress::{Egress, EgressGrant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::binary_cache::BinaryCache;
use crate::signer_client::SignerClient;
use crate::store_daemon::{ConnectError, StoreDaemon};
use engine::{Confinement, Engine};
use evaluation::Disposition;
pub use source::MirrorLimits;
use source::{GitSources, Mirrors, PinnedFlake};
use upstream::Upstream;

/// Without a notification, the queue is looked at that often,
const POLL: Duration = Duration::from_secs(10);
/// and the claims of running evaluations that often.
const HELD_CHECK: Duration = Duration::from_secs(5);
/// The pause after a claim whose answer was lost.
const CLAIM_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two tries to say how an evaluation ended, while the database is away.
const REPORT_PAUSE: Duration = Duration::from_secs(2);
/// How long a stopping node tries that.
const SHUTDOWN_REPORTS: u32 = 3;

/// Which program evaluates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// nix-eval-jobs when it is on `PATH`, else plain Nix.
    #[default]
    Auto,
    /// Plain Nix.
    Nix,
    /// This nix-eval-jobs.
    NixEvalJobs(PathBuf),
}

/// How much one attribute may need; more is its error.
#[derive(Debug, Clone, Copy)]
pub struct AttributeBounds {
    /// Derivations below it that are not built yet.
    pub derivations_max: usize,
    /// Memory of this node for what evaluations hold of these derivations, in bytes: each evaluation that it may run at once
    /// has its part, and so has what is queued later.
    pub graph_bytes_max: u64,
    /// One source, as a NAR, in bytes.
    pub source_bytes_max: u64,
}

impl Default for AttributeBounds {
    fn default() -> Self {
        Self { derivations_max: 1_000_000, graph_bytes_max: 1 << 30, source_bytes_max: 4 << 30 }
    }
}

/// What an evaluator needs to know.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent setting of the operator")]
pub struct EvaluatorOptions {
    /// This node.
    pub node: NodeId,
    /// This process of it.
    pub incarnation: Incarnation,
    /// The database.
    pub db: Db,
    /// Where `.drv` files and sources go.
    pub signer: SignerClient,
    /// For upstream caches.
    pub http: reqwest::Client,
    /// Mirrors of repositories and temporary files; of this process alone.
    pub state_dir: PathBuf,
    /// Where the store daemon listens.
    pub daemon_socket: PathBuf,
    /// Where the files of the daemon's `/nix` are, when not at `/nix`: the store is `<root>/nix/store`.
    pub store_root: Option<PathBuf>,
    /// Which program evaluates.
    pub engine: EngineChoice,
    /// Command of the sandbox helper (`harmonia-ci sandbox-exec`).
    pub sandbox_helper: Vec<OsString>,
    /// Refuse to start where the engine's sandbox does not work. Without a sandbox (`false`, and it does not work) the
    /// store must be at `/nix`.
    pub require_sandbox: bool,
    /// Whether the engine reaches the network, for flake inputs that are not in the store.
    pub network: bool,
    /// What engines and git reach beside public addresses; git also the server of the project itself.
    pub allow_hosts: Vec<EgressGrant>,
    /// Whether repositories may be fetched from `file://` URLs.
    pub allow_file_urls: bool,
    /// Engine processes of one evaluation.
    pub workers: usize,
    /// Evaluations side by side.
    pub max_evals: usize,
    /// Longest time of one evaluation with all that it fetches; a repository may ask for less.
    pub timeout: Duration,
    /// A server that takes longer than that to give out a repository is left alone for as long as it took.
    pub fetch_timeout: Duration,
    /// Bounds of what is kept of repositories.
    pub mirrors: MirrorLimits,
    /// Writable memory of one engine process, in bytes.
    pub memory_bytes_max: u64,
    /// Whether evaluating may build, where the repository does not forbid it.
    pub allow_ifd: bool,
    /// Upstream caches: what they have needs no job.
    pub substituters: Vec<BinaryCache>,
    /// A node silent for longer builds nothing.
    pub silent_after: Duration,
    /// How long an evaluation waits for a forge, a frontend or a signer that is away.
    pub waits: WaitPolicy,
    /// What one attribute may need.
    pub bounds: AttributeBounds,
}

/// Why the evaluator cannot start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum EvaluatorError {
    /// The state folder cannot be used.
    #[error("the evaluator cannot use its state folder {}", dir.display())]
    State {
        /// The folder.
        dir: PathBuf,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },
    /// A program is missing.
    #[error("'{0}' is not on PATH: install it, or name it in the configuration")]
    Program(&'static str),
    /// The store daemon.
    #[error("the evaluator cannot reach its store daemon")]
    Daemon(#[from] ConnectError),
    /// The sandbox.
    #[error("foreign code cannot be evaluated in a sandbox on this machine: {reason}")]
    Sandbox {
        /// What the helper or the kernel said.
        reason: String,
    },
    /// The database.
    #[error("the evaluator cannot use the database")]
    Database(#[from] DbError),
    /// Its claims are refused: another process took the node's name, or the node was deregistered.
    #[error("the evaluator may claim nothing more: {reason}")]
    Refused {
        /// As the database says.
        reason: String,
    },
}

/// Options, and what was found out at start.
pub(crate) struct Settings {
    options: EvaluatorOptions,
    daemon: StoreDaemon,
    upstream: Upstream,
    /// Raised when there may be something to walk below.
    walks_wanted: tokio::sync::Notify,
    git: PathBuf,
    nix_instantiate: PathBuf,
    nix: Option<PathBuf>,
    nix_eval_jobs: Option<PathBuf>,
    confinement: Confinement,
    egress: Egress,
    mirrors: Mirrors,
    /// What of this evaluator decides what a tree evaluates to.
    engine_id: String,
}

impl Settings {
    fn scratch_dir(&self) -> PathBuf {
        self.options.state_dir.join("tmp")
    }

    fn git_sources(&self) -> GitSources {
        GitSources {
            git: self.git.clone(),
            mirrors: self.mirrors.clone(),
            scratch_dir: self.scratch_dir(),
            allow_file_urls: self.options.allow_file_urls,
            egress: self.egress.clone(),
        }
    }

    fn engine(&self, flake: PinnedFlake, allow_ifd: bool) -> Engine {
        Engine {
            nix_instantiate: self.nix_instantiate.clone(),
            nix: self.nix.clone(),
            nix_eval_jobs: self.nix_eval_jobs.clone(),
            confinement: self.confinement.clone(),
            flake,
            workers: self.options.workers.max(1),
            memory_bytes_max: self.options.memory_bytes_max,
            allow_ifd: allow_ifd && self.options.allow_ifd,
        }
    }
}

/// Claims and evaluates until told to stop. `drain`: claims nothing more, finishes what runs. `abort`: stops the engines and
/// gives what runs back to the queue.
pub async fn run(
    options: EvaluatorOptions,
    drain: CancellationToken,
    abort: CancellationToken,
) -> Result<(), EvaluatorError> {
    let settings = Arc::new(probe::prepare(options).await?);
    let options = &settings.options;
    let mut listener = options.db.listen(&[Channel::Evaluations, Channel::Claims, Channel::MissingPaths]).await?;
    // Raised whenever a claim may have been lost.
    let (claims_changed, _) = watch::channel(());
    let mut running: JoinSet<()> = JoinSet::new();
    let walks = tokio::spawn(walks::run(Arc::clone(&settings), drain.clone()));
    // The token of a claim whose answer was lost: an evaluation may be held under it, by nobody.
    let mut unacknowledged: Option<ClaimToken> = None;
    // Ends with this function.
    let mut background = JoinSet::new();
    background.spawn(source::keep_tidy(settings.mirrors.clone(), settings.git.clone(), drain.clone()));
    let mut outcome = Ok(());
    let mut is_engine_known = false;
    while !drain.is_cancelled() && !abort.is_cancelled() {
        if let Err(error) = revoke_unacknowledged(options, &mut unacknowledged).await {
            outcome = Err(error);
            break;
        }
        if !is_engine_known {
            // Until then nothing is reused.
            let said = options.db.set_evaluator_engine(&options.node, options.incarnation, &settings.engine_id).await;
            is_engine_known = said.is_ok();
            if let Err(error) = said {
                tracing::warn!(error = %chain(&error), "Could not record which engine evaluates here, trying again");
            }
        }
        if unacknowledged.is_none() && running.len() < options.max_evals.max(1) {
            let token = ClaimToken::from_random(rand::random());
            match options.db.claim_evaluation(&options.node, options.incarnation, &token).await {
                Ok(Some(claimed)) => {
                    tracing::info!(eval.id = %claimed.id, project = %claimed.project_name, "Evaluating {}", claimed.id);
                    let task = one(Arc::clone(&settings), claimed, token, claims_changed.subscribe(), abort.clone());
                    running.spawn(task);
                    continue;
                }
                Ok(None) => {}
                Err(DbError::Refused { reason }) => {
                    outcome = Err(EvaluatorError::Refused { reason });
                    break;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "Could not claim an evaluation, trying again");
                    // It may have been claimed all the same, with the answer lost on its way.
                    unacknowledged = Some(token);
                }
            }
        }
        let pause = if unacknowledged.is_some() { CLAIM_RETRY_PAUSE } else { POLL };
        tokio::select! {
            () = drain.cancelled() => {}
            () = abort.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            Some(ended) = running.join_next(), if !running.is_empty() => log_panic(ended),
            notice = listener.next() => pass_on(&notice, &settings, &claims_changed),
        }
    }
    // Others of this process may finish their work for hours before the node says goodbye, which gives everything back.
    for _ in 0..SHUTDOWN_REPORTS {
        if outcome.is_err()
            || revoke_unacknowledged(options, &mut unacknowledged).await.is_err()
            || unacknowledged.is_none()
        {
            break;
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
    walks.abort();
    // Each task sees `abort` itself; one that does not (we were replaced) is stopped.
    if outcome.is_err() {
        running.shutdown().await;
    }
    if !running.is_empty() && !abort.is_cancelled() {
        tracing::info!(evaluations = running.len(), "Draining: nothing new is evaluated, what runs is finished");
    }
    while !running.is_empty() {
        tokio::select! {
            Some(ended) = running.join_next() => log_panic(ended),
            // One that is cancelled or superseded meanwhile stops at once.
            notice = listener.next() => pass_on(&notice, &settings, &claims_changed),
        }
    }
    outcome
}

/// Claims of this node may have been lost: those who hold one look. And there may be something to walk below.
fn pass_on(notice: &Notice, settings: &Settings, claims_changed: &watch::Sender<()>) {
    match notice {
        Notice::Hint { channel: Channel::Claims, payload } if *payload == settings.options.node.0 => {
            claims_changed.send_replace(());
        }
        Notice::Rescan => {
            claims_changed.send_replace(());
        }
        Notice::Hint { channel: Channel::Evaluations | Channel::MissingPaths, .. } => {
            settings.walks_wanted.notify_one();
        }
        Notice::Hint { .. } => {}
    }
}

/// Gives back the evaluation that a claim took whose answer was lost; `unacknowledged` stays while the database is away.
async fn revoke_unacknowledged(
    options: &EvaluatorOptions,
    unacknowledged: &mut Option<ClaimToken>,
) -> Result<(), EvaluatorError> {
    let Some(token) = unacknowledged else { return Ok(()) };
    match options.db.revoke_evaluation(&options.node, options.incarnation, token).await {
        Ok(was_claimed) => {
            if was_claimed {
                tracing::info!("Gave back an evaluation that was claimed by a call whose answer was lost");
            }
            *unacknowledged = None;
        }
        Err(DbError::Refused { reason }) => {
            return Err(EvaluatorError::Refused { reason });
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "Could not give back a claim whose answer was lost, trying again");
        }
    }
    Ok(())
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "An evaluation ended in a bug");
    }
}

/// One claimed evaluation: runs it beside a watch over its claim, and says how it ended.
async fn one(
    settings: Arc<Settings>,
    claimed: ClaimedEvaluation,
    token: ClaimToken,
    mut claims_changed: watch::Receiver<()>,
    abort: CancellationToken,
) {
    let (db, eval) = (&settings.options.db, claimed.id);
    let lost = async {
        loop {
            // Ends with the sender, when the evaluator itself is going.
            let _either = tokio::time::timeout(HELD_CHECK, claims_changed.changed()).await;
            if let Ok(false) = db.evaluation_held(eval, &token).await {
                return;
            }
            if claims_changed.has_changed().is_err() {
                tokio::time::sleep(HELD_CHECK).await;
            }
        }
    };
    // In a task of its own a bug in it would leave the claim held, so panics are caught here and reported.
    let work = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(evaluation::evaluate(
        &settings, &claimed, &token,
    )));
    let ended = tokio::select! {
        ended = work => Some(ended),
        () = lost => {
            tracing::info!(eval.id = %eval, "Evaluation {eval} is not ours any more, its engine was stopped");
            return;
        }
        () = abort.cancelled() => None,
    };
    let (disposition, message) = match &ended {
        Some(Ok(Ok(()))) => {
            tracing::info!(eval.id = %eval, "Evaluation {eval} is complete");
            return;
        }
        Some(Ok(Err(error))) => (error.disposition(), evaluation::explain(error)),
        Some(Err(_)) => {
            (Disposition::Fail, "the evaluator has a bug that stopped this evaluation; its log tells more".to_owned())
        }
        None => (Disposition::Release, "the node stops".to_owned()),
    };
    report(&settings, &claimed, &token, disposition, &message, &abort).await;
}

/// What there is to say about an evaluation that did not come to its end.
enum Word {
    Release,
    PutOff(Duration, String),
    Fail(String),
}

impl Word {
    /// `None`: nothing. What has waited as long as it may fails, with what it waited for.
    fn of(disposition: Disposition, message: &str, claimed: &ClaimedEvaluation, waits: &WaitPolicy) -> Option<Self> {
        match disposition {
            Disposition::Drop => None,
            Disposition::Release => Some(Self::Release),
            Disposition::Fail => Some(Self::Fail(message.to_owned())),
            Disposition::PutOff { asked } => {
                Some(match waits.pause(claimed.waits, claimed.waited, asked, rand::random()) {
                    Some(pause) => Self::PutOff(pause, message.to_owned()),
                    None if claimed.waits == 0 => Self::Fail(message.to_owned()),
                    None => Self::Fail(format!(
                        "given up after {} tries within {} min ({message}). When that is repaired, run the evaluation again",
                        claimed.waits + 1,
                        claimed.waited.as_secs() / 60
                    )),
                })
            }
        }
    }
}

async fn report(
    settings: &Settings,
    claimed: &ClaimedEvaluation,
    token: &ClaimToken,
    disposition: Disposition,
    message: &str,
    abort: &CancellationToken,
) {
    let (db, eval) = (&settings.options.db, claimed.id);
    let Some(word) = Word::of(disposition, message, claimed, &settings.options.waits) else { return };
    let mut tries_left = SHUTDOWN_REPORTS;
    loop {
        let said = match &word {
            Word::Release => db.release_evaluation(eval, token).await,
            Word::PutOff(pause, reason) => db.defer_evaluation(eval, token, *pause, reason).await,
            Word::Fail(error) => db.fail_evaluation(eval, token, error).await,
        };
        match said {
            Ok(()) => {
                tracing::info!(eval.id = %eval, reason = message, "Evaluation {eval}: {disposition:?}");
                return;
            }
            Err(DbError::StaleClaim) => return,
            Err(error) if !error.is_transient() => {
                tracing::error!(eval.id = %eval, error = %chain(&error), "Could not say how evaluation {eval} ended");
                return;
            }
            Err(error) => {
                tracing::warn!(eval.id = %eval, error = %chain(&error), "Could not say how evaluation {eval} ended");
            }
        }
        if abort.is_cancelled() {
            tries_left -= 1;
            if tries_left == 0 {
                // It comes back to the queue when this node registers again or is found silent.
                return;
            }
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
