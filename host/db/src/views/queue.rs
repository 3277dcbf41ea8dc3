//! What runs and what waits. Start at [`Db::view_queue`].

use std::collections::HashMap;

use harmonia_core::api::{JobCounts, Queue, QueuedJob};
use harmonia_core::{EvalId, JobId, Timestamp};

use super::state;
use crate::{Db, DbError};

/// Most jobs in one answer, of each kind.
const LIMIT_MAX: u32 = 500;

impl Db {
    /// Jobs that run and jobs that wait, at most `limit` of each (and never more than 500): ready ones first, as they
    /// would be claimed without regard to shares, then blocked ones in order of arrival, as far as they are among the first
    /// that wait.
    pub async fn view_queue(&self, limit: u32, now: Timestamp) -> Result<Queue, DbError> {
        let limit = i64::from(limit.min(LIMIT_MAX));
        let (counts, running, mut waiting) =
            tokio::try_join!(self.view_job_counts(), self.running(limit), self.waiting(limit))?;
        let places: HashMap<JobId, usize> = waiting.iter().map(|(job, ahead)| (job.id, *ahead)).collect();
        let mut why = self.why_in_places(&places, now).await?;
        for (job, _) in &mut waiting {
            job.why = why.remove(&job.id).unwrap_or_default();
        }
        Ok(Queue { counts, running, waiting: waiting.into_iter().map(|(job, _)| job).collect() })
    }

    /// All jobs by status that this viewer may see: how much a private project builds is nobody else's business.
    pub async fn view_job_counts(&self) -> Result<JobCounts, DbError> {
        let rows = sqlx::query!(
            r#"WITH held AS (
                   SELECT status, count(*) AS jobs FROM build_jobs
                   WHERE status || '' IN ('building', 'uploading') AND (public OR $1) GROUP BY status
               )
               SELECT c.status AS "status!", sum(c.jobs)::bigint AS "count!" FROM (
                   SELECT status, jobs FROM job_totals WHERE public OR $1
                   UNION ALL SELECT became, jobs FROM job_marks WHERE public OR $1
                   UNION ALL SELECT was, -jobs FROM job_marks WHERE public OR $1
                   UNION ALL SELECT status, jobs FROM held
                   UNION ALL SELECT 'pending', -jobs FROM held
               ) c
               WHERE c.status IS NOT NULL GROUP BY c.status"#,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("count jobs", error))?;
        super::evaluations::job_counts(rows.iter().map(|row| (row.status.as_str(), row.count)))
    }

    /// How many evaluations are queued and running, of those that this viewer may see.
    pub async fn view_evaluation_load(&self) -> Result<(u64, u64), DbError> {
        let row = sqlx::query!(
            r#"SELECT count(*) FILTER (WHERE e.status = 'queued') AS "queued!",
                      count(*) FILTER (WHERE e.status = 'running') AS "running!"
               FROM (SELECT status, project_id FROM evaluations WHERE status || '' = 'queued'
                     UNION ALL SELECT status, project_id FROM evaluations WHERE status || '' = 'running') e
               JOIN projects p ON p.id = e.project_id
               WHERE p.is_public OR $1"#,
            self.sees_all(),
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
                      j.started_at, 0::bigint AS "ahead!"
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

    /// Each with how many ready ones of its class come first.
    async fn waiting(&self, limit: i64) -> Result<Vec<(QueuedJob, usize)>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            // The heads of each queue, and the first of those: the queue is not read further than it is shown.
            r#"WITH heads AS MATERIALIZED (
                   SELECT h.id, h.priority, h.class_id FROM ready_queues(ARRAY(SELECT c.id FROM job_classes c)) q
                   CROSS JOIN LATERAL (
                       SELECT j.id, j.priority, j.class_id FROM build_jobs j
                       WHERE j.class_id = q.class_id AND j.project_id = q.project_id AND j.priority = 0
                           AND j.status || '' = 'pending' AND j.unmet_deps = 0
                       ORDER BY j.id LIMIT $1
                   ) h
                   UNION ALL
                   SELECT h.id, h.priority, h.class_id FROM job_classes c
                   CROSS JOIN LATERAL (
                       SELECT j.id, j.priority, j.class_id FROM build_jobs j
                       WHERE j.class_id = c.id AND j.priority > 0 AND j.status || '' = 'pending' AND j.unmet_deps = 0
                       ORDER BY j.priority DESC, j.project_id, j.id LIMIT $1
                   ) h
               ), ready AS MATERIALIZED (
                   SELECT id, row_number() OVER (PARTITION BY class_id ORDER BY priority DESC, id) - 1 AS ahead FROM heads
                   ORDER BY priority DESC, id LIMIT $1
               ), blocked AS MATERIALIZED (
                   SELECT w.id FROM (
                       SELECT id, unmet_deps FROM build_jobs WHERE '' || status = 'pending' ORDER BY id LIMIT 10 * $1
                   ) w
                   WHERE w.unmet_deps > 0 ORDER BY w.id LIMIT $1
               )
               SELECT j.id, shown_project(p, j.drv_path, $2) AS "project!", d.name, d.system, j.status, j.claimed_by, j.unmet_deps, j.queued_at,
                      j.started_at, chosen.ahead AS "ahead!"
               FROM (SELECT id, ahead FROM ready UNION ALL SELECT id, 0 FROM blocked) chosen
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
        rows.into_iter()
            .map(|row| {
                let ahead = usize::try_from(row.ahead).unwrap_or(0);
                Ok((row.into_job()?, ahead))
            })
            .collect()
    }

    /// Jobs of an evaluation that wait, though for no other job: for a node, for their time, or for an evaluator to walk below
    /// them. As they would be claimed.
    pub(super) async fn waiting_below(&self, id: EvalId, limit: i64) -> Result<Vec<QueuedJob>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"WITH RECURSIVE reached (id, drv_path, unmet_deps) AS (
                   SELECT j.id, j.drv_path, j.unmet_deps
                   FROM (SELECT a.drv_path FROM evaluations e JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
                         WHERE e.id = $3
                         UNION SELECT h.drv_path FROM eval_holds h WHERE h.eval_id = $3) root
                   JOIN build_jobs j ON j.drv_path = root.drv_path WHERE j.status = 'pending'
                   UNION
                   SELECT j.id, j.drv_path, j.unmet_deps
                   FROM reached r
                   JOIN derivation_inputs i ON i.referrer = r.drv_path AND r.unmet_deps > 0
                   JOIN build_jobs j ON j.drv_path = i.input_drv WHERE j.status = 'pending'
               )
               SELECT j.id, shown_project(p, j.drv_path, $2) AS "project!", d.name, d.system, j.status, j.claimed_by, j.unmet_deps, j.queued_at,
                      j.started_at, 0::bigint AS "ahead!"
               FROM reached r
               JOIN build_jobs j ON j.id = r.id
               JOIN projects p ON p.id = j.project_id
               JOIN derivations d ON d.drv_path = j.drv_path
               WHERE (d.public OR $2) AND (r.unmet_deps = 0 OR EXISTS (SELECT FROM job_walks w WHERE w.job_id = r.id))
               ORDER BY j.priority DESC, j.id LIMIT $1"#,
            limit,
            self.sees_all(),
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list what an evaluation waits for", error))?;
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
    ahead: i64,
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
