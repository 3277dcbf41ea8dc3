//! The builder: claims jobs, builds them through a store daemon, uploads what came out.
//!
//! Start reading at [`Builder::run`], then `builder/claiming.rs` (the loop) and `builder/job.rs` (one job from claim to
//! end). What a failure means is decided in `builder/failure.rs`, whether to claim in `builder/capacity.rs`.

mod build;
mod capacity;
mod claimer;
mod claiming;
mod connections;
mod evidence;
mod failure;
mod held;
mod inputs;
mod job;
mod replace;
mod roots;
mod slots;
mod spool;
mod upload;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harmonia_core::policy::{Policy, PolicyError};
use harmonia_core::{ClaimToken, Incarnation, NodeId};
use harmonia_db::{Db, DbError};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::binary_cache::BinaryCache;
use crate::signer_client::SignerClient;
use crate::store_daemon::StoreDaemon;
use crate::substitute::{Substituter, SubstituterOptions};
use connections::Connections;
use evidence::Watch;
use held::Held;
use roots::Roots;
use slots::{Slot, Slots};

pub use claimer::{Claimer, Claims};
pub use spool::Spool;

/// What a builder needs to know.
#[derive(Clone)]
pub struct BuilderOptions {
    /// This node.
    pub node: NodeId,
    /// This process of it.
    pub incarnation: Incarnation,
    /// The database.
    pub db: Db,
    /// Where outputs and logs go.
    pub signer: SignerClient,
    /// For caches.
    pub http: reqwest::Client,
    /// Our cache, asked first for inputs, and for `.drv` files.
    pub cache: BinaryCache,
    /// Other caches, asked in this order.
    pub substituters: Vec<BinaryCache>,
    /// Where the store daemon listens. It must trust this process.
    pub daemon_socket: PathBuf,
    /// Where the files of the daemon's `/nix` are, when not at `/nix`: the store is `<root>/nix/store`.
    pub store_root: Option<PathBuf>,
    /// A folder for logs and archives on their way, for this process alone.
    pub spool_dir: PathBuf,
    /// Time for making a build's inputs ready; and for waiting, before that, until nobody uses those that have to be replaced.
    pub prepare_timeout: Duration,
    /// Time for publishing what it built, waiting for others' uploads included.
    pub upload_timeout: Duration,
    /// Builds at the same time.
    pub max_jobs: u32,
    /// Uploads at the same time; they take no build slot.
    pub parallel_uploads: u32,
    /// Cores that each build is told to use; 0 for all.
    pub cores: u64,
    /// Systems that the daemon can build for.
    pub systems: Vec<String>,
    /// Features that it offers, such as `kvm`.
    pub features: Vec<String>,
    /// No build begins with less free disk, in bytes.
    pub min_free_bytes: u64,
    /// zstd level of outputs.
    pub compression_level: i32,
    /// Threads that compress one output.
    pub compression_threads: u32,
    /// Orders the candidates of each claim.
    pub policy: Arc<dyn Policy>,
}

/// Why the builder cannot start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// The folder for logs and archives cannot be used.
    #[error("the builder cannot use its spool folder {dir}")]
    Spool {
        /// The folder.
        dir: PathBuf,
        /// The error of the operating system.
        #[source]
        cause: std::io::Error,
    },
    /// The folder for garbage collector roots cannot be used.
    #[error(
        "the builder cannot use the store's folder for garbage collector roots in {dir}: it must be able to write there"
    )]
    Roots {
        /// The state folder of the store.
        dir: PathBuf,
        /// The error of the operating system.
        #[source]
        cause: std::io::Error,
    },
    /// The database refused what every builder must be able to do.
    #[error("the builder cannot work with the database")]
    Database(#[source] DbError),
    /// This process may not claim (any more): it is not registered, or another one took its name.
    #[error("the database lets this node claim no jobs")]
    Refused(#[source] DbError),
}

/// A builder, ready to run.
pub struct Builder {
    node: Arc<Node>,
    paused: watch::Receiver<Option<String>>,
}

/// What all jobs of this process share.
struct Node {
    options: BuilderOptions,
    daemon: StoreDaemon,
    /// Those that builds use.
    connections: Connections,
    substituter: Substituter,
    signer: SignerClient,
    spool: Arc<Spool>,
    roots: Roots,
    held: Arc<Held>,
    slots: Arc<Slots>,
    uploads: Semaphore,
    /// Sees what the node goes through while something is built.
    watch: Watch,
    paused: watch::Sender<Option<String>>,
    /// Tokens of a claim whose answer was lost: jobs may be held under them, by nobody.
    unacknowledged: Mutex<Vec<ClaimToken>>,
    /// The last error of the policy, so that it is said when it changes and not with every claim.
    policy_error: Mutex<Option<PolicyError>>,
}

/// Where the files of the store are.
fn store_dir(options: &BuilderOptions) -> PathBuf {
    options.store_root.as_deref().map_or_else(|| "/nix/store".into(), |root| root.join("nix/store"))
}

/// [`Builder::new`] and [`Builder::run`].
pub async fn run(
    options: BuilderOptions,
    drain: CancellationToken,
    abort: CancellationToken,
) -> Result<(), BuilderError> {
    Builder::new(options)?.run(drain, abort).await
}

impl Builder {
    /// Opens the spool and sweeps what an earlier process of this node left.
    pub fn new(options: BuilderOptions) -> Result<Self, BuilderError> {
        let spool = Spool::open(&options.spool_dir)
            .map_err(|cause| BuilderError::Spool { dir: options.spool_dir.clone(), cause })?;
        let state = options.store_root.clone().unwrap_or_else(|| "/".into()).join("nix/var/nix");
        let roots = Roots::open(&state, &options.node).map_err(|cause| BuilderError::Roots { dir: state, cause })?;
        let daemon = StoreDaemon::new(&options.daemon_socket);
        let caches = std::iter::once(&options.cache).chain(&options.substituters).cloned().collect();
        let substituter = Substituter::new(options.http.clone(), daemon.clone(), SubstituterOptions::new(caches));
        let (sender, paused) = watch::channel(None);
        // Builds write where the daemon has its temporary files, and to the store.
        let watch = Watch::new(vec![store_dir(&options), std::env::temp_dir(), options.spool_dir.clone()]);
        let node = Node {
            connections: Connections::new(daemon.clone()),
            daemon,
            substituter,
            signer: options.signer.clone(),
            spool,
            roots,
            held: Arc::default(),
            slots: Arc::default(),
            uploads: Semaphore::new(options.parallel_uploads.max(1) as usize),
            watch,
            paused: sender,
            unacknowledged: Mutex::default(),
            policy_error: Mutex::default(),
            options,
        };
        Ok(Self { node: Arc::new(node), paused })
    }

    /// The logs of running builds, for whoever serves them.
    pub fn spool(&self) -> Arc<Spool> {
        Arc::clone(&self.node.spool)
    }

    /// Why nothing is claimed, while that is so (for the heartbeat).
    pub fn paused(&self) -> watch::Receiver<Option<String>> {
        self.paused.clone()
    }

    /// Works until told to stop. `drain`: claims nothing more, finishes what runs. `abort`: kills what runs and gives the
    /// jobs back, which takes a few seconds at most.
    pub async fn run(self, drain: CancellationToken, abort: CancellationToken) -> Result<(), BuilderError> {
        let Self { node, .. } = self;
        let tails = held::write_tails(&node.options.db, &node.options.node, &node.held, &node.spool);
        tokio::select! {
            result = claiming::claim_loop(Arc::clone(&node), drain, abort) => result,
            () = tails => Ok(()),
        }
    }
}

impl Node {
    fn set_paused(&self, reason: Option<String>) {
        self.paused.send_if_modified(|paused| {
            if *paused == reason {
                return false;
            }
            if let Some(reason) = &reason {
                tracing::warn!(reason, "No more jobs are claimed");
            } else {
                tracing::info!("Jobs are claimed again");
            }
            *paused = reason;
            true
        });
    }

    fn unacknowledged(&self) -> MutexGuard<'_, Vec<ClaimToken>> {
        self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the log and on the nodes page that the policy failed, or works again: when that changes.
    async fn note_policy_error(&self, error: Option<PolicyError>) {
        {
            let mut last = self.policy_error.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == error {
                return;
            }
            if let Some(error) = &error {
                tracing::warn!(%error, "The scheduling policy failed, jobs are claimed first in, first out");
            } else {
                tracing::info!("The scheduling policy works again");
            }
            last.clone_from(&error);
        }
        let BuilderOptions { db, node, incarnation, .. } = &self.options;
        let reason = error.map(|error| error.reason);
        if let Err(error) = db.report_policy_error(node, *incarnation, reason.as_deref()).await {
            tracing::debug!(error = %failure::chain(&error), "Could not report how the scheduling policy does");
        }
    }
}

/// Tries a database call again, with growing pauses, as long as the database is away: a build outlives that. Whoever must
/// stop drops the future.
async fn persist<T, F, C>(mut call: C) -> Result<T, DbError>
where
    F: Future<Output = Result<T, DbError>>,
    C: FnMut() -> F,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match call().await {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "The database is away, trying again");
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            result => return result,
        }
    }
}
