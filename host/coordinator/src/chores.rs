//! The chores: reap silent nodes, fail what no node can run and take it back when one can, sweep the invariants, cancel
//! what nobody wants (at once where somebody says so, else with the sweep), throw away what was never used. One live frontend does them, chosen by an advisory lock that goes with
//! its connection; when it dies, another takes over. Reaping is the round itself; the others run beside it, so that none
//! delays another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::chain;
use harmonia_core::policy::Policy;
use harmonia_db::{Channel, ChoreLock, Db, DbError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::health::Health;
use crate::in_flight::wake_on;

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
    /// A class that is known for this long, and that no node offered within 30 days, is unsupported.
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
    let mut state = State {
        health: Health::new(),
        lock: None,
        round: 0,
        classes: Beside::new("look after systems that no node offers"),
        withdrawals: Beside::new("cancel what nobody wants any more"),
        sweep: Beside::new("sweep the invariants"),
    };
    let (wake, woken) = watch::channel(());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = wake_on(&options.db, Channel::Withdrawals, &wake, options.every) => {}
        () = rounds(&options, &mut state, woken) => {}
    }
}

async fn rounds(options: &CoordinatorOptions, state: &mut State, mut woken: watch::Receiver<()>) {
    let mut next = Instant::now() + options.every;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => next = Instant::now() + options.every,
            Ok(()) = woken.changed() => {
                if state.lock.is_some() {
                    state.withdrawals.start(finish_withdrawals(options.db.clone()));
                }
                continue;
            }
        }
        match round(options, state).await {
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
    classes: Beside,
    withdrawals: Beside,
    sweep: Beside,
}

/// A chore that runs beside the round that started it, once at a time. It ends with the chores.
struct Beside {
    what: &'static str,
    running: JoinSet<Result<(), DbError>>,
}

impl Beside {
    fn new(what: &'static str) -> Self {
        Self { what, running: JoinSet::new() }
    }

    /// Starts it, unless the one before still runs.
    fn start(&mut self, chore: impl Future<Output = Result<(), DbError>> + Send + 'static) {
        while let Some(ended) = self.running.try_join_next() {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(error = %chain(&error), "Could not {}, trying again with the next round", self.what);
                }
                Err(error) => error!(%error, "A chore ended in a bug: {}", self.what),
            }
        }
        if self.running.is_empty() {
            self.running.spawn(chore);
        }
    }
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
    state.withdrawals.start(finish_withdrawals(options.db.clone()));
    state.classes.start(look_after_classes(options.db.clone(), options.unsupported_after));
    if state.round.is_multiple_of(SWEEP_EVERY_ROUNDS) {
        state.sweep.start(sweep(options.db.clone()));
    }
    state.round = state.round.wrapping_add(1);
    Ok(())
}

/// Whoever withdrew something goes on with it, unless it crashed; what turned out to be wanted by nobody on the way is left to us.
async fn finish_withdrawals(db: Db) -> Result<(), DbError> {
    let cancelled = db.finish_withdrawals().await?;
    if cancelled > 0 {
        info!(jobs = cancelled, "Cancelled jobs that no evaluation wants any more");
    }
    Ok(())
}

async fn look_after_classes(db: Db, unsupported_after: Duration) -> Result<(), DbError> {
    let unsupported = db.mark_unsupported(unsupported_after).await?;
    if unsupported > 0 {
        warn!(jobs = unsupported, "No node offers the system and features of these jobs; they failed as unsupported");
    }
    let revived = db.revive_unsupported().await?;
    if revived > 0 {
        info!(jobs = revived, "A node offers the class of these jobs again; they wait for it");
    }
    Ok(())
}

/// Reports what should never be, repairs what can be, cancels what nobody wants, and throws away what only takes room.
async fn sweep(db: Db) -> Result<(), DbError> {
    let violations = db.sweep_invariants().await?;
    for violation in &violations {
        error!(invariant = violation.invariant, detail = %violation.detail, "Invariant {} is violated", violation.invariant);
    }
    // Always: a job that nobody wants any more is no violation, and is only found here.
    let repaired = db.repair().await?;
    if repaired.cancelled > 0 {
        info!(jobs = repaired.cancelled, "Cancelled jobs that no evaluation wants any more");
    }
    if repaired.recounted > 0 {
        error!(
            totals = repaired.recounted,
            "Totals of jobs were not what there is, and are now: somewhere a job changed uncounted"
        );
    }
    if !violations.is_empty() {
        let left = db.sweep_invariants().await?.len();
        if left == 0 {
            info!(repaired = violations.len(), "Repaired");
        } else {
            error!(left, "Some violations could not be repaired");
        }
    }
    db.delete_stale(STALE_BUNDLE_AFTER).await?;
    db.delete_old_deliveries(DELIVERIES_KEPT).await?;
    db.delete_expired_kv().await?;
    Ok(())
}
