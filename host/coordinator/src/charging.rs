//! The books of the scheduling policy: builds are charged to their projects while they run and when they end, and
//! consumption fades. Start at [`run`].
//!
//! Whatever crashes, each second is charged once: attempts and projects change in one transaction, and only when both still
//! are as they were read ([`Db::book_charges`]). A decay that was missed while no frontend ran is made up for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::policy::{Policy, PolicyError, charge_all, decay_all};
use harmonia_core::{AttemptId, ProjectId, chain};
use harmonia_db::{Booking, ChoreLock, Db, DbError, UnchargedAttempt};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Name of the lock: one frontend keeps the books, although several would do no harm.
const LOCK: &str = "charging";
/// Time between two rounds.
const EVERY: Duration = Duration::from_secs(5);
/// Consumption fades in steps of at least this long, in seconds.
const DECAY_STEP_S: f64 = 60.0;
/// Attempts booked at once.
const ATTEMPTS_MAX: u32 = 5_000;
/// How often a booking that lost against another one is tried before the next round.
const TRIES: u32 = 5;

/// Keeps the books until `shutdown`.
pub(crate) async fn run(db: Db, policy: Arc<dyn Policy>, shutdown: CancellationToken) {
    let mut books = Books { db, policy, lock: None, last_error: None };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = books.round().await {
            books.lock = None;
            // The chores say aloud that the database is away.
            debug!(error = %chain(&error), "Could not charge builds; next try in {EVERY:?}");
        }
    }
}

struct Books {
    db: Db,
    policy: Arc<dyn Policy>,
    lock: Option<ChoreLock>,
    /// Said once, not with every round.
    last_error: Option<PolicyError>,
}

impl Books {
    async fn round(&mut self) -> Result<(), DbError> {
        if let Some(lock) = &mut self.lock
            && !lock.is_held().await
        {
            self.lock = None;
        }
        if self.lock.is_none() {
            self.lock = self.db.try_chore_lock(LOCK).await?;
        }
        if self.lock.is_none() {
            return Ok(());
        }
        let decayed = decay(&self.db, &self.policy).await?;
        let charged = charge(&self.db, &self.policy).await?;
        self.note(decayed.or(charged));
        Ok(())
    }

    fn note(&mut self, error: Option<PolicyError>) {
        if let Some(error) = &error
            && self.last_error.as_ref() != Some(error)
        {
            warn!(%error, "The scheduling policy keeps no books, consumption is simply added up and decayed");
        }
        self.last_error = error;
    }
}

/// Charges everything that is not charged yet. Returns what the policy failed with, if it did.
pub(crate) async fn charge(db: &Db, policy: &Arc<dyn Policy>) -> Result<Option<PolicyError>, DbError> {
    let mut last_error = None;
    let mut after = AttemptId(0);
    loop {
        let mut last = None;
        for _ in 0..TRIES {
            let attempts = db.uncharged_attempts(after, ATTEMPTS_MAX).await?;
            last = attempts.last().map(|attempt| attempt.attempt);
            if attempts.is_empty() {
                break;
            }
            let seconds = seconds_of(&attempts);
            let projects: Vec<ProjectId> = seconds.keys().copied().collect();
            let charges: Vec<_> = db
                .project_loads(&projects)
                .await?
                .into_iter()
                .map(|load| {
                    let seconds = seconds.get(&load.project).copied().unwrap_or_default();
                    (load, seconds)
                })
                .collect();
            let (becomes, error, charges) = asked(policy, charges, |policy, charges| charge_all(policy, charges)).await;
            last_error = error.or(last_error);
            if charges.is_empty() {
                return Ok(last_error);
            }
            let bookings: Vec<Booking> = charges
                .iter()
                .zip(becomes)
                .map(|((load, _), becomes_seconds)| Booking {
                    project: load.project,
                    consumed_seconds: load.consumed_seconds,
                    becomes_seconds,
                })
                .collect();
            if db.book_charges(&attempts, &bookings).await? {
                break;
            }
        }
        match last {
            Some(last) => after = last,
            None => return Ok(last_error),
        }
    }
}

/// Seconds to charge, by project.
fn seconds_of(attempts: &[UnchargedAttempt]) -> BTreeMap<ProjectId, f64> {
    let mut seconds = BTreeMap::new();
    for attempt in attempts {
        *seconds.entry(attempt.project).or_insert(0.0) += attempt.seconds();
    }
    seconds
}

/// Lets consumption fade for the time since it last did. Returns what the policy failed with, if it did.
pub(crate) async fn decay(db: &Db, policy: &Arc<dyn Policy>) -> Result<Option<PolicyError>, DbError> {
    let due = db.decay_due().await?;
    if due.seconds < DECAY_STEP_S {
        return Ok(None);
    }
    let consumed: Vec<f64> = due.consumed.iter().map(|(_, consumed)| *consumed).collect();
    let seconds = due.seconds;
    let (becomes, error, _) =
        asked(policy, consumed, move |policy, consumed| decay_all(policy, consumed, seconds)).await;
    let bookings: Vec<Booking> = due
        .consumed
        .iter()
        .zip(becomes)
        .map(|((project, consumed_seconds), becomes_seconds)| Booking {
            project: *project,
            consumed_seconds: *consumed_seconds,
            becomes_seconds,
        })
        .collect();
    if !db.book_decay(&due, &bookings).await? {
        debug!("Somebody else let consumption decay, or it changed meanwhile; the next round does it");
    }
    Ok(error)
}

/// Asks the policy on a thread of its own: it is foreign code with a budget of its own.
async fn asked<T: Send + Sync + 'static>(
    policy: &Arc<dyn Policy>,
    input: Vec<T>,
    question: impl FnOnce(&dyn Policy, &[T]) -> (Vec<f64>, Option<PolicyError>) + Send + 'static,
) -> (Vec<f64>, Option<PolicyError>, Vec<T>) {
    let policy = Arc::clone(policy);
    let answer = tokio::task::spawn_blocking(move || {
        let (numbers, error) = question(&*policy, &input);
        (numbers, error, input)
    })
    .await;
    // Panics of the policy are caught where it is asked; only a runtime that is going down leaves no answer, and then
    // there is nothing to book.
    answer.unwrap_or_default()
}

#[cfg(test)]
mod tests;
