//! What forges are to show, as desired state. Start at [`Db::compute_report`]: marks, rows and statuses in one
//! transaction; then `delivery` (what is due at a forge, under a lease), `comments`, and `dead_letters`.
//!
//! `migrations/0006_reporting.sql` says why no last word is lost.

mod comments;
mod dead_letters;
mod delivery;
mod facts;

use std::time::Duration;

use harmonia_core::ProjectId;
use harmonia_core::status::{CommitReport, DesiredStatus, NewNotifications};
use sqlx::PgConnection;

use crate::connection::{Db, interval, vanished};
use crate::error::DbError;
use crate::outbox;

pub use comments::OwedComment;
pub(crate) use delivery::Consequence;
pub use delivery::{Answer, DueStatus, PauseKind};

/// Marks of jobs that are taken at once.
const JOB_MARKS_MAX: i32 = 20_000;

/// A commit whose statuses may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportTarget {
    /// The project.
    pub project: ProjectId,
    /// Full hash; empty when it was never learned.
    pub commit: String,
}

/// What follows from a report, by a pure function.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComputedReport {
    /// What forges should show.
    pub statuses: Vec<DesiredStatus>,
    /// What reporters are told.
    pub told: Vec<NewNotifications>,
    /// Nothing is under way that would change it.
    pub settled: bool,
}

/// What a computation wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportOutcome {
    /// It was done.
    Done {
        /// Statuses that are new or changed.
        changed: u64,
        /// Notifications, each to one reporter.
        notified: u64,
    },
    /// Another node computes something of this project: come back.
    Busy,
    /// Nothing was marked any more.
    Nothing,
}

impl Db {
    /// Finds whose commits jobs concern that ended or came back. Returns how many marks it took, at most 20,000.
    pub async fn take_job_marks(&self) -> Result<u64, DbError> {
        self.run("take the marks of jobs", || {
            sqlx::query_scalar!(r#"SELECT take_job_marks($1) AS "taken!""#, JOB_MARKS_MAX).fetch_one(&self.pool)
        })
        .await
        .map(|taken| taken as u64)
    }

    /// Commits that were marked, once `burst` has passed since the first mark; what is expensive waits longer (twenty
    /// times what it cost).
    pub async fn due_reports(&self, burst: Duration, limit: u32) -> Result<Vec<ReportTarget>, DbError> {
        let rows = self
            .run("find commits to report", || {
                sqlx::query!(
                    r#"SELECT m.project_id AS "project!", m.commit_sha AS "commit!" FROM (
                           SELECT project_id, commit_sha, min(marked_at) AS since, bool_or(urgent) AS urgent
                           FROM report_marks GROUP BY project_id, commit_sha
                       ) m
                       LEFT JOIN commit_reports r ON r.project_id = m.project_id AND r.commit_sha = m.commit_sha
                       WHERE m.urgent
                           OR m.since <= now() - greatest($1, coalesce(r.cost_ms, 0) * 20 * interval '1 ms')
                       ORDER BY m.since LIMIT $2"#,
                    interval(burst),
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows.into_iter().map(|row| ReportTarget { project: ProjectId(row.project), commit: row.commit }).collect())
    }

    /// Takes a commit's marks, reads its rows in the same snapshot, and stores what `compute` makes of them: statuses,
    /// and a notification for each of `reporters`. While nothing but the progress of builds changed, a status is sent
    /// at most every `progress_every`.
    pub async fn compute_report(
        &self,
        target: &ReportTarget,
        reporters: &[String],
        progress_every: Duration,
        compute: impl Fn(&CommitReport) -> ComputedReport,
    ) -> Result<ReportOutcome, DbError> {
        let mut tries = 1;
        loop {
            let report = Box::pin(self.try_report(target, reporters, progress_every, &compute));
            let vanished = |_| Err(DbError::Unavailable { source: vanished() });
            match tokio::time::timeout(self.patience.answer, report).await.unwrap_or_else(vanished) {
                Err(error) if tries < 12 && !matches!(error, DbError::Unavailable { .. }) && error.is_transient() => {
                    tracing::debug!(tries, "a report lost against a concurrent change, trying again");
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_report(
        &self,
        target: &ReportTarget,
        reporters: &[String],
        progress_every: Duration,
        compute: &impl Fn(&CommitReport) -> ComputedReport,
    ) -> Result<ReportOutcome, DbError> {
        let failed = |error| DbError::from_sqlx("report a commit", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let connection = &mut *transaction;
        // One snapshot: what a mark tells of is in it when the mark is. Who was faster on these rows makes this fail and
        // start again.
        sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        // One at a time for each project, so that what its reporters hear is numbered in the order of commit.
        let is_ours = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext('harmonia-ci report'), hashtext($1)) AS "ours!""#,
            target.project.to_string()
        );
        if !is_ours.fetch_one(&mut *connection).await.map_err(failed)? {
            return Ok(ReportOutcome::Busy);
        }
        let marks = sqlx::query!(
            "DELETE FROM report_marks WHERE project_id = $1 AND commit_sha = $2",
            target.project.0,
            target.commit
        );
        if marks.execute(&mut *connection).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(ReportOutcome::Nothing);
        }
        let Some((report, repository)) = facts::read(&mut *connection, target).await? else {
            // The project is gone.
            transaction.commit().await.map_err(failed)?;
            return Ok(ReportOutcome::Nothing);
        };
        let computed = compute(&report);
        let mut changed = 0;
        if let Some(repository) = repository.filter(|_| !target.commit.is_empty()) {
            for status in &computed.statuses {
                changed +=
                    u64::from(store(&mut *connection, repository, &target.commit, status, progress_every).await?);
            }
        }
        let mut notified = 0;
        for told in &computed.told {
            notified += outbox::tell(&mut *connection, target.project, told, reporters).await?;
        }
        sqlx::query!(
            "INSERT INTO commit_reports AS r (project_id, commit_sha, settled, cost_ms)
             VALUES ($1, $2, $3, least(extract(milliseconds FROM clock_timestamp() - now()), 600000)::integer)
             ON CONFLICT (project_id, commit_sha) DO UPDATE
                 SET computed_at = now(), settled = excluded.settled, cost_ms = excluded.cost_ms",
            target.project.0,
            target.commit,
            computed.settled,
        )
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(ReportOutcome::Done { changed, notified })
    }

    /// Begins a transaction in a task of its own. The driver, dropped between sending BEGIN and hearing of it, gives the
    /// connection back with the transaction open, and what the next one writes on it is never committed.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        let pool = self.pool.clone();
        tokio::spawn(async move { pool.begin().await }).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// Marks commits that are not settled and were not computed for `age`, and tidies. Returns how many it marked.
    pub async fn sweep_reports(&self, age: Duration) -> Result<u64, DbError> {
        self.run("sweep unsettled reports", || {
            sqlx::query_scalar!(r#"SELECT sweep_reports($1, 1000) AS "marked!""#, interval(age)).fetch_one(&self.pool)
        })
        .await
        .map(|marked| marked as u64)
    }

    /// The evaluator says where the tree under evaluation is in its store: errors that name files below are the
    /// repository's.
    pub async fn set_evaluation_source(
        &self,
        eval: harmonia_core::EvalId,
        token: &harmonia_core::ClaimToken,
        path: &harmonia_nix::store_path::StorePath,
    ) -> Result<(), DbError> {
        self.run("record the source of an evaluation", || {
            sqlx::query!(
                "SELECT set_evaluation_source($1, $2, $3)",
                eval.0,
                crate::connection::hash(token),
                path.as_str()
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}

/// Writes one desired status; `false`: it is as it was.
async fn store(
    connection: &mut PgConnection,
    repository: i64,
    commit: &str,
    status: &DesiredStatus,
    progress_every: Duration,
) -> Result<bool, DbError> {
    let annotations = serde_json::to_value(&status.annotations)
        .map_err(|_| DbError::Corrupt { what: "annotations that are no JSON".to_owned() })?;
    let written = sqlx::query!(
        "INSERT INTO commit_statuses AS s (repository_id, commit_sha, context, attr, desired_state, desired_description,
             desired_url, desired_summary, desired_annotations, desired_started_at, desired_finished_at, desired_digest)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (repository_id, commit_sha, context) DO UPDATE SET
             attr = excluded.attr, desired_state = excluded.desired_state,
             desired_description = excluded.desired_description, desired_url = excluded.desired_url,
             desired_summary = excluded.desired_summary, desired_annotations = excluded.desired_annotations,
             desired_started_at = excluded.desired_started_at, desired_finished_at = excluded.desired_finished_at,
             desired_digest = excluded.desired_digest, desired_at = now(), dead_at = NULL,
             attempts = CASE WHEN s.dead_at IS NULL THEN s.attempts ELSE 0 END,
             next_attempt_at = CASE
                 WHEN s.dead_at IS NOT NULL THEN now()
                 WHEN s.attempts > 0 THEN s.next_attempt_at -- the forge is away: the news waits with the rest
                 WHEN excluded.desired_state = 'pending' AND s.delivered_state = 'pending'
                     THEN greatest(now(), s.delivered_at + $13)
                 ELSE now() END
         WHERE s.desired_digest <> excluded.desired_digest",
        repository,
        commit,
        status.context,
        status.attr.as_deref(),
        status.state.as_str(),
        status.description,
        status.target_url.as_deref(),
        status.summary,
        annotations,
        status.started_at,
        status.finished_at,
        &status.digest()[..],
        interval(progress_every),
    )
    .execute(connection)
    .await
    .map_err(|error| DbError::from_sqlx("store a desired status", error))?;
    Ok(written.rows_affected() == 1)
}
