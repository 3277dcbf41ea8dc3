//! Chores: who runs them, reaping silent nodes, unsupported classes, the invariant sweep and its repair.

use std::time::Duration;

use harmonia_core::limits::{LOST_NODES_MAX, SYSTEMS_KNOWN_FOR};
use sqlx::{Connection as _, PgConnection};

use crate::connection::{Db, Patience, in_time, interval};
use crate::error::DbError;
use crate::withdrawals::BATCH;

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
        if row.evaluations > 0 {
            self.go_on_with_withdrawals().await;
        }
        Ok(Reaped { nodes: row.nodes as u64, jobs: row.jobs as u64, evaluations: row.evaluations as u64 })
    }

    /// Fails pending jobs of classes that are known for `after` and that no node offered within [`SYSTEMS_KNOWN_FOR`], in batches.
    /// Returns how many.
    pub async fn mark_unsupported(&self, after: Duration) -> Result<u64, DbError> {
        let mut failed = 0;
        loop {
            let row = self
                .run("mark unsupported jobs", || {
                    sqlx::query!(
                        r#"SELECT looked AS "looked!", failed AS "failed!" FROM mark_unsupported($1, $2, $3)"#,
                        interval(after),
                        interval(SYSTEMS_KNOWN_FOR),
                        BATCH as i32
                    )
                    .fetch_one(&self.pool)
                })
                .await?;
            failed += row.failed as u64;
            if row.looked < BATCH as i64 {
                return Ok(failed);
            }
        }
    }

    /// Makes unsupported jobs pending again whose class some node was seen to offer since, in batches. Returns how many came back.
    pub async fn revive_unsupported(&self) -> Result<u64, DbError> {
        let mut revived = 0;
        loop {
            let row = self
                .run("revive unsupported jobs", || {
                    sqlx::query!(
                        r#"SELECT looked AS "looked!", revived AS "revived!" FROM revive_unsupported($1)"#,
                        BATCH as i32
                    )
                    .fetch_one(&self.pool)
                })
                .await?;
            revived += row.revived as u64;
            if row.looked < BATCH as i64 {
                break;
            }
        }
        if revived > 0 {
            self.finish_withdrawals().await?;
        }
        Ok(revived)
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

    /// Corrects counters, totals and blocked states, and cancels pending jobs that nobody wants. What is wrong is looked for without
    /// locks, and mended in batches.
    pub async fn repair(&self) -> Result<Repaired, DbError> {
        // Somebody may not have come to the end.
        let mut cancelled = self.finish_withdrawals().await?;
        let found = self
            .run("look for jobs to repair", || {
                sqlx::query!(r#"SELECT job_id AS "job!", revives AS "revives!" FROM jobs_to_repair()"#)
                    .fetch_all(&self.pool)
            })
            .await?;
        let (revived, counted): (Vec<_>, Vec<_>) = found.into_iter().partition(|row| row.revives);
        let mut settled = 0;
        for jobs in [revived, counted] {
            let jobs: Vec<i64> = jobs.into_iter().map(|row| row.job).collect();
            for batch in jobs.chunks(BATCH) {
                settled += self
                    .run("repair jobs", || {
                        sqlx::query_scalar!(r#"SELECT repair_jobs($1) AS "settled!""#, batch).fetch_one(&self.pool)
                    })
                    .await?;
            }
        }
        let withdrawal = self
            .run("look for jobs that nobody wants", || {
                sqlx::query_scalar!("SELECT withdraw_unwanted()").fetch_one(&self.pool)
            })
            .await?;
        if let Some(withdrawal) = withdrawal {
            cancelled += self.finish_withdrawal(withdrawal).await?;
        }
        let recounted = self
            .run("count jobs", || sqlx::query_scalar!(r#"SELECT recount_jobs() AS "recounted!""#).fetch_one(&self.pool))
            .await?;
        Ok(Repaired { settled: settled as u64, cancelled, recounted: recounted as u64 })
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
