//! The queue as it was, for the simulator: jobs, what they waited for, how long they took.

use harmonia_core::{JobId, Timestamp};

use crate::connection::Db;
use crate::error::DbError;

/// One job of the past or present.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedJob {
    /// The job.
    pub job: JobId,
    /// Name of its derivation.
    pub name: String,
    /// Project that first wanted it.
    pub project: String,
    /// That project's shares.
    pub shares: u32,
    /// Class, as `system` and its required features, separated by spaces.
    pub class: String,
    /// Priority.
    pub priority: i32,
    /// When it came into the queue.
    pub queued_at: Timestamp,
    /// Longest chain of jobs above it, itself included.
    pub path_length: u32,
    /// Seconds of the last attempt that succeeded or failed by itself.
    pub build_seconds: Option<f64>,
    /// Jobs it waits for.
    pub inputs: Vec<JobId>,
}

impl Db {
    /// Up to `limit` jobs with an id above `after`, by id, that were queued since `since`. All jobs of the cluster are read
    /// by calling again with the last id.
    pub async fn recorded_jobs(&self, since: Timestamp, after: JobId, limit: u32) -> Result<Vec<RecordedJob>, DbError> {
        let rows = self
            .run("record the queue", || {
                sqlx::query!(
                    r#"SELECT j.id, d.name, p.name AS project, p.scheduling_shares AS shares,
                           c.system || array_to_string(array_prepend('', c.features), ' ') AS "class!",
                           j.priority, j.queued_at, j.path_length,
                           (SELECT coalesce(nullif(a.build_seconds, 0),
                                   extract(epoch FROM coalesce(a.uploading_at, a.finished_at) - a.started_at)::double precision)
                               FROM build_attempts a WHERE a.job_id = j.id AND a.outcome IN ('succeeded', 'failed')
                               ORDER BY a.id DESC LIMIT 1) AS build_seconds,
                           ARRAY(SELECT i.id FROM derivation_inputs n JOIN build_jobs i ON i.drv_path = n.input_drv
                               WHERE n.referrer = j.drv_path ORDER BY i.id) AS "inputs!"
                       FROM build_jobs j JOIN derivations d USING (drv_path) JOIN projects p ON p.id = j.project_id
                       JOIN job_classes c ON c.id = j.class_id
                       WHERE j.id > $1 AND j.queued_at >= $2 ORDER BY j.id LIMIT $3"#,
                    after.0,
                    since,
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| RecordedJob {
                job: JobId(row.id),
                name: row.name,
                project: row.project,
                shares: row.shares as u32,
                class: row.class,
                priority: row.priority,
                queued_at: row.queued_at,
                path_length: row.path_length as u32,
                build_seconds: row.build_seconds,
                inputs: row.inputs.into_iter().map(JobId).collect(),
            })
            .collect())
    }
}
