//! Chores: who runs them, reaping silent nodes, unsupported classes, the invariant sweep and its repair.

use std::time::Duration;

use harmonia_core::limits::{LOST_NODES_MAX, SYSTEMS_KNOWN_FOR};
use sqlx::{Connection as _, PgConnection};

use crate::connection::{Db, Patience, in_time, interval};
use crate::error::DbError;

/// The right to run one chore, held as long as its connection lives. Dropping it gives it back.
#[derive(Debug)]
pub struct ChoreLock {
    connection: PgConnection,
    patience: Patience,
}

/// What silent nodes gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Nodes that held something.
    pub nodes: u64,
    /// Jobs that went back to pending, or failed because they lost too many nodes.
    pub jobs: u64,
    /// Evaluations queued again, or failed because they lost too many nodes.
    pub evaluations: u64,
}

/// An invariant of database.md that does not hold, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its number.
    pub invariant: u8,
    /// Which rows, and what is wrong.
    pub detail: String,
}

/// What a repair changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Jobs whose count or state was wrong.
    pub settled: u64,
    /// Pending jobs cancelled because nobody wants them.
    pub cancelled: u64,
    /// Totals of jobs that were not what there is.
    pub recounted: u64,
}

/// Rows that only took room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Git bundles of ended evaluations, or never used.
    pub bundles: u64,
    /// Log tails of ended attempts.
    pub log_tails: u64,
    /// Memo rows of upstream caches.
    pub upstream: u64,
}

impl ChoreLock {
    /// Whether the lock is still ours; ask before each round of a long chore.
    pub async fn is_held(&mut self) -> bool {
        in_time(self.patience.ping, self.connection.ping()).await.is_ok()
    }

    /// Gives the lock back at once.
    pub async fn release(self) {
        // A failure means that the connection is gone, and the lock with it.
        let _ = in_time(self.patience.ping, self.connection.close()).await;
    }
}

impl Db {
    /// Takes the right to run a chore; `None` while another node has it. Released when dropped or when the connection ends.
    pub async fn try_chore_lock(&self, name: &str) -> Result<Option<ChoreLock>, DbError> {
        let patience = self.patience;
        let mut connection = in_time(patience.connection, Box::pin(PgConnection::connect_with(&self.connect)))
            .await
            .map_err(|source| DbError::from_sqlx("connect for a chore", source))?;
        let taken = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_lock(hashtext('harmonia-ci chore'), hashtext($1)) AS "taken!""#,
            name
        );
        let taken = in_time(patience.ping, taken.fetch_one(&mut connection))
            .await
            .map_err(|source| DbError::from_sqlx("take a chore", source))?;
        let lock = ChoreLock { connection, patience };
        if taken {
            return Ok(Some(lock));
        }
        lock.release().await;
        Ok(None)
    }

    /// Takes back what nodes hold that were not heard of for `silent_after`. Only for a reaper that itself had a healthy
    /// database for all that time.
    pub async fn reap_silent_nodes(&self, silent_after: Duration) -> Result<Reaped, DbError> {
        let row = self
            .run("reap silent nodes", || {
                sqlx::query!(
                    r#"SELECT nodes AS "nodes!", jobs AS "jobs!", evaluations AS "evaluations!"
                       FROM reap_silent_nodes($1, $2)"#,
                    interval(silent_after),
                    LOST_NODES_MAX as i32
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(Reaped { nodes: row.nodes as u64, jobs: row.jobs as u64, evaluations: row.evaluations as u64 })
    }

    /// Fails pending jobs of classes that are known for `after` and that no node offered within [`SYSTEMS_KNOWN_FOR`]. Returns how
    /// many.
    pub async fn mark_unsupported(&self, after: Duration) -> Result<u64, DbError> {
        self.run("mark unsupported jobs", || {
            sqlx::query_scalar!(
                r#"SELECT mark_unsupported($1, $2) AS "jobs!""#,
                interval(after),
                interval(SYSTEMS_KNOWN_FOR)
            )
            .fetch_one(&self.pool)
        })
        .await
        .map(|jobs| jobs as u64)
    }

    /// Makes unsupported jobs pending again whose class some node was seen to offer since. Returns how many came back.
    pub async fn revive_unsupported(&self) -> Result<u64, DbError> {
        self.run("revive unsupported jobs", || {
            sqlx::query_scalar!(r#"SELECT revive_unsupported() AS "jobs!""#).fetch_one(&self.pool)
        })
        .await
        .map(|jobs| jobs as u64)
    }

    /// Looks whether invariants 1 to 3 and 5 hold, in one snapshot (4 is a trigger). Empty when all is well.
    pub async fn sweep_invariants(&self) -> Result<Vec<Violation>, DbError> {
        let rows = self
            .run("sweep the invariants", || {
                sqlx::query!(r#"SELECT invariant AS "invariant!", detail AS "detail!" FROM sweep_invariants()"#)
                    .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows.into_iter().map(|row| Violation { invariant: row.invariant as u8, detail: row.detail }).collect())
    }

    /// Corrects counters, totals and blocked states, and cancels pending jobs that nobody wants.
    pub async fn repair(&self) -> Result<Repaired, DbError> {
        let row = self
            .run("repair the queue", || {
                sqlx::query!(
                    r#"SELECT settled AS "settled!", cancelled AS "cancelled!", recounted AS "recounted!" FROM repair_jobs()"#
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(Repaired { settled: row.settled as u64, cancelled: row.cancelled as u64, recounted: row.recounted as u64 })
    }

    /// Deletes bundles of ended evaluations or older than `bundle_age`, tails of ended logs, and old memo rows.
    pub async fn delete_stale(&self, bundle_age: Duration) -> Result<Deleted, DbError> {
        let row = self
            .run("delete stale rows", || {
                sqlx::query!(
                    r#"SELECT bundles AS "bundles!", log_tails AS "log_tails!", upstream AS "upstream!" FROM delete_stale($1)"#,
                    interval(bundle_age)
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(Deleted { bundles: row.bundles as u64, log_tails: row.log_tails as u64, upstream: row.upstream as u64 })
    }
}
