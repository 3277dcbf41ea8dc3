//! The chores: reap silent nodes, fail what no node can run and take it back when one can, sweep the invariants,
//! throw away what was never used. One live frontend does them, chosen by an advisory lock that goes with its
//! connection; when it dies, another takes over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::chain;
use harmonia_core::policy::Policy;
use harmonia_db::{ChoreLock, Db, DbError};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::health::Health;

/// Name of the lock.
const LOCK: &str = "chores";
/// Every how many rounds the invariants are swept: it reads every pending job.
const SWEEP_EVERY_ROUNDS: u32 = 10;
/// Bundles that no evaluation took up for this long are thrown away.
const STALE_BUNDLE_AFTER: Duration = Duration::from_hours(24);

/// How long deliveries of forges are kept after they came, for the list of recent ones and for replays. Forges deliver
/// again for a few days at most.
const DELIVERIES_KEPT: Duration = Duration::from_hours(30 * 24);

/// How the chores run.
#[derive(Clone)]
pub struct CoordinatorOptions {
    /// The database.
    pub db: Db,
    /// Time between two rounds.
    pub every: Duration,
    /// A node silent for this long is dead.
    pub node_dead_after: Duration,
    /// A class that no node offered for this long is unsupported.
    pub unsupported_after: Duration,
    /// Keeps the books: what builds cost their projects, and how that fades.
    pub policy: Arc<dyn Policy>,
}

/// Does the chores whenever this process holds their lock, until `shutdown`.
pub async fn run(options: CoordinatorOptions, shutdown: CancellationToken) {
    let books = crate::charging::run(options.db.clone(), Arc::clone(&options.policy), shutdown.clone());
    tokio::join!(chores(options, shutdown), books);
}

async fn chores(options: CoordinatorOptions, shutdown: CancellationToken) {
    let mut state = State { health: Health::new(), lock: None, round: 0 };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(options.every) => {}
        }
        match round(&options, &mut state).await {
            Ok(()) => state.health.answered(Instant::now(), options.every * 3),
            Err(error) => {
                state.health.failed();
                state.lock = None;
                warn!(error = %chain(&error), "Chores could not run; next try in {:?}", options.every);
            }
        }
    }
}

struct State {
    health: Health,
    lock: Option<ChoreLock>,
    round: u32,
}

async fn round(options: &CoordinatorOptions, state: &mut State) -> Result<(), DbError> {
    options.db.ping().await?;
    if let Some(lock) = &mut state.lock {
        // The lock lives in one connection: when that broke, somebody else may have it.
        if !lock.is_held().await {
            state.lock = None;
        }
    }
    if state.lock.is_none() {
        state.lock = options.db.try_chore_lock(LOCK).await?;
    }
    if state.lock.is_none() {
        return Ok(());
    }
    if state.health.may_judge(Instant::now(), options.node_dead_after) {
        let reaped = options.db.reap_silent_nodes(options.node_dead_after).await?;
        if reaped.jobs > 0 || reaped.evaluations > 0 {
            info!(
                jobs = reaped.jobs,
                evaluations = reaped.evaluations,
                "Gave the work of silent nodes back to the queue"
            );
        }
    }
    let unsupported = options.db.mark_unsupported(options.unsupported_after).await?;
    if unsupported > 0 {
        warn!(jobs = unsupported, "No node offers the system and features of these jobs; they failed as unsupported");
    }
    let revived = options.db.revive_unsupported().await?;
    if revived > 0 {
        info!(jobs = revived, "A node offers the class of these jobs again; they wait for it");
    }
    if state.round.is_multiple_of(SWEEP_EVERY_ROUNDS) {
        sweep(&options.db).await?;
        options.db.delete_stale(STALE_BUNDLE_AFTER).await?;
        options.db.delete_old_deliveries(DELIVERIES_KEPT).await?;
        options.db.delete_expired_kv().await?;
    }
    state.round = state.round.wrapping_add(1);
    Ok(())
}

/// Reports what should never be, and repairs what can be.
async fn sweep(db: &Db) -> Result<(), DbError> {
    let violations = db.sweep_invariants().await?;
    if violations.is_empty() {
        return Ok(());
    }
    for violation in &violations {
        error!(invariant = violation.invariant, detail = %violation.detail, "Invariant {} is violated", violation.invariant);
    }
    db.repair().await?;
    let left = db.sweep_invariants().await?.len();
    if left == 0 {
        info!(repaired = violations.len(), "Repaired");
    } else {
        error!(left, "Some violations could not be repaired");
    }
    Ok(())
}
