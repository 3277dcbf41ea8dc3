//! What runs and what waits. Start at [`Db::view_queue`].

use harmonia_core::api::{JobCounts, Queue, QueuedJob};
use harmonia_core::{JobId, Timestamp};

use super::state;
use crate::{Db, DbError};

/// Most jobs in one answer, of each kind.
const LIMIT_MAX: u32 = 500;

impl Db {
    /// Jobs that run and jobs that wait, at most `limit` of each (and never more than 500): ready ones first, as they
    /// would be claimed without regard to shares, then blocked ones in order of arrival.
    pub async fn view_queue(&self, limit: u32, now: Timestamp) -> Result<Queue, DbError> {
        let limit = i64::from(limit.min(LIMIT_MAX));
        let (counts, running, mut waiting) =
            tokio::try_join!(self.view_job_counts(), self.running(limit), self.waiting(limit))?;
        let ids: Vec<JobId> = waiting.iter().map(|job| job.id).collect();
        let mut why = self.why(&ids, now).await?;
        for job in &mut waiting {
            job.why = why.remove(&job.id).unwrap_or_default();
        }
        Ok(Queue { counts, running, waiting })
    }

    /// All jobs by status.
    pub async fn view_job_counts(&self) -> Result<JobCounts, DbError> {
        let rows = sqlx::query!(r#"SELECT status, count(*) AS "count!" FROM build_jobs GROUP BY status"#)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| DbError::from_sqlx("count jobs", error))?;
        super::evaluations::job_counts(rows.iter().map(|row| (row.status.as_str(), row.count)))
    }

    /// How many evaluations are queued and running.
    pub async fn view_evaluation_load(&self) -> Result<(u64, u64), DbError> {
        let row = sqlx::query!(
            r#"SELECT (SELECT count(*) FROM evaluations WHERE status || '' = 'queued') AS "queued!",
                      (SELECT count(*) FROM evaluations WHERE status || '' = 'running') AS "running!""#
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("count evaluations", error))?;
        Ok((super::count(row.queued), super::count(row.running)))
    }

    async fn running(&self, limit: i64) -> Result<Vec<QueuedJob>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT j.id, shown_project(p, j.drv_path, $2) AS "project!", d.name, d.system, j.status, j.claimed_by, j.unmet_deps, j.queued_at,
                      j.started_at
               FROM build_jobs j JOIN projects p ON p.id = j.project_id JOIN derivations d ON d.drv_path = j.drv_path
               WHERE j.status || '' IN ('building', 'uploading') AND (d.public OR $2)
               ORDER BY j.started_at NULLS LAST, j.id LIMIT $1"#,
            limit,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list running jobs", error))?;
        rows.into_iter().map(Row::into_job).collect()
    }

    async fn waiting(&self, limit: i64) -> Result<Vec<QueuedJob>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"WITH ready AS MATERIALIZED (
                   SELECT id FROM build_jobs WHERE status || '' = 'pending' AND unmet_deps = 0
                   ORDER BY priority DESC, id LIMIT $1
               ), blocked AS MATERIALIZED (
                   SELECT id FROM build_jobs WHERE '' || status = 'pending' AND unmet_deps > 0 ORDER BY id LIMIT $1
               )
               SELECT j.id, shown_project(p, j.drv_path, $2) AS "project!", d.name, d.system, j.status, j.claimed_by, j.unmet_deps, j.queued_at,
                      j.started_at
               FROM (SELECT id FROM ready UNION ALL SELECT id FROM blocked) chosen
               JOIN build_jobs j ON j.id = chosen.id
               JOIN projects p ON p.id = j.project_id
               JOIN derivations d ON d.drv_path = j.drv_path
               WHERE d.public OR $2
               ORDER BY j.unmet_deps > 0, j.priority DESC, j.id LIMIT $1"#,
            limit,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list waiting jobs", error))?;
        rows.into_iter().map(Row::into_job).collect()
    }
}

struct Row {
    id: i64,
    project: String,
    name: String,
    system: String,
    status: String,
    claimed_by: Option<String>,
    unmet_deps: i32,
    queued_at: Timestamp,
    started_at: Option<Timestamp>,
}

impl Row {
    fn into_job(self) -> Result<QueuedJob, DbError> {
        let status: harmonia_core::JobStatus = state(&self.status)?;
        Ok(QueuedJob {
            id: JobId(self.id),
            project: self.project,
            name: self.name,
            system: self.system,
            status,
            node: self.claimed_by,
            unmet_deps: u32::try_from(self.unmet_deps).unwrap_or(0),
            why: Vec::new(),
            queued_at: self.queued_at,
            started_at: self.started_at.filter(|_| status.is_claimed()),
        })
    }
}
