//! The claims that this node holds, the writer of their log tails, and the watch that stops what is no longer held.
//! Start at [`Held`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::{AttemptId, ClaimToken, NodeId};
use harmonia_db::{Db, DbError, LogTail};
use tokio_util::sync::CancellationToken;

use super::spool::{AttemptLog, Spool};

/// How often tails are written, when they changed.
pub(super) const TAIL_PERIOD: Duration = Duration::from_millis(500);
/// How often held claims are checked without a hint.
pub(super) const VOID_CHECK_PERIOD: Duration = Duration::from_secs(3);

/// Claims that this process holds now.
#[derive(Debug, Default)]
pub(super) struct Held {
    claims: Mutex<HashMap<AttemptId, Claim>>,
}

#[derive(Debug)]
struct Claim {
    token: ClaimToken,
    void: CancellationToken,
}

/// One held claim; dropping it lets go.
#[derive(Debug)]
pub(super) struct Hold {
    held: Arc<Held>,
    attempt: AttemptId,
    /// Cancelled when the claim turned out to be void.
    pub(super) void: CancellationToken,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.locked().remove(&self.attempt);
    }
}

impl Held {
    /// Remembers a claim.
    pub(super) fn add(self: &Arc<Self>, attempt: AttemptId, token: &ClaimToken) -> Hold {
        let void = CancellationToken::new();
        self.locked().insert(attempt, Claim { token: token.clone(), void: void.clone() });
        Hold { held: Arc::clone(self), attempt, void }
    }

    /// The claim was used up: that it is void from now on is no reason to stop.
    pub(super) fn let_go(&self, attempt: AttemptId) {
        self.locked().remove(&attempt);
    }

    /// Asks the database which claims are void, and stops their builds.
    pub(super) async fn stop_void(&self, db: &Db) -> Result<(), DbError> {
        let claims: Vec<(AttemptId, ClaimToken)> =
            self.locked().iter().map(|(attempt, claim)| (*attempt, claim.token.clone())).collect();
        if claims.is_empty() {
            return Ok(());
        }
        for attempt in db.void_claims(&claims).await? {
            if let Some(claim) = self.locked().get(&attempt) {
                tracing::info!(%attempt, "The claim of attempt {attempt} is void, its build is stopped");
                claim.void.cancel();
            }
        }
        Ok(())
    }

    /// The tails that changed, each with its log and where it ends.
    fn tails(&self, spool: &Spool) -> Vec<((Arc<AttemptLog>, u64), LogTail)> {
        let claims = self.locked();
        let tail = |log: Arc<AttemptLog>| {
            let claim = claims.get(&log.attempt())?;
            let tail = log.changed_tail()?;
            let end = tail.end();
            let row = LogTail {
                attempt: log.attempt(),
                token: claim.token.clone(),
                start_offset: tail.start_offset,
                bytes: tail.bytes,
            };
            Some(((log, end), row))
        };
        spool.open_logs().into_iter().filter_map(tail).collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the tails of all running builds, in one statement a tick, until the future is dropped.
pub(super) async fn write_tails(db: &Db, node: &NodeId, held: &Held, spool: &Spool) {
    let mut ticks = tokio::time::interval(TAIL_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (ends, rows): (Vec<_>, Vec<_>) = held.tails(spool).into_iter().unzip();
        if rows.is_empty() {
            continue;
        }
        match db.write_log_tails(node, &rows).await {
            Ok(()) => {
                for (log, end) in &ends {
                    log.stored(*end);
                }
            }
            // Tried again with the next tick; the spool has it all.
            Err(error) => tracing::debug!(%error, "Could not store log tails"),
        }
    }
}
