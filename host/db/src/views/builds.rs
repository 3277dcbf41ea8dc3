//! One job with its history. Start at [`Db::view_build`].

use std::collections::BTreeMap;

use harmonia_core::api::{Attempt, Build, RootCause};
use harmonia_core::{AttemptId, EvalId, JobId, JobStatus, Timestamp};
use harmonia_nix::StorePath;

use super::state;
use crate::{Db, DbError};

/// Most attribute paths shown of one derivation.
const ATTRS_MAX: i64 = 20;
/// Most tries shown of one job.
const ATTEMPTS_MAX: i64 = 50;
/// How many of the newest evaluations are searched for an attribute's name.
const SEARCHED_EVALUATIONS: i64 = 200;

impl Db {
    /// One job; `None` when there is none that this viewer may see.
    pub async fn view_build(&self, id: JobId, now: Timestamp) -> Result<Option<Build>, DbError> {
        let row = sqlx::query!(
            r#"SELECT j.id, shown_project(p, j.drv_path, $2) AS "project!", j.drv_path, d.name, d.system, d.required_features,
                      job_state(j.status, j.drv_path) AS "status!", j.failure_kind,
                      j.message, j.exit_code, j.priority, j.queued_at, j.finished_at,
                      rj.id AS "root?", rd.name AS "root_name?"
               FROM build_jobs j
               JOIN projects p ON p.id = j.project_id
               JOIN derivations d ON d.drv_path = j.drv_path
               LEFT JOIN build_jobs rj ON rj.id = j.root_cause
               LEFT JOIN derivations rd ON rd.drv_path = rj.drv_path
               WHERE j.id = $1 AND (d.public OR $2)"#,
            id.0,
            self.sees_all(),
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read a build", error))?;
        let Some(row) = row else { return Ok(None) };
        let ids = [id];
        let (outputs, attrs, attempts, mut why) = tokio::try_join!(
            self.outputs_of(&row.drv_path),
            self.attrs_naming(&row.drv_path),
            self.attempts_of(id),
            self.why(&ids, now),
        )?;
        let status: JobStatus = state(&row.status)?;
        // A message of an earlier failure stays in the row until the next end.
        let has_ended_badly = matches!(status, JobStatus::Failed | JobStatus::DepFailed | JobStatus::Cancelled);
        Ok(Some(Build {
            id,
            project: row.project,
            drv_path: row.drv_path,
            name: row.name,
            system: row.system,
            required_features: row.required_features,
            status,
            failure_kind: row.failure_kind.as_deref().filter(|_| has_ended_badly).map(state).transpose()?,
            message: row.message.filter(|_| has_ended_badly),
            exit_code: row.exit_code.filter(|_| has_ended_badly),
            priority: row.priority,
            outputs,
            attrs,
            root_cause: row
                .root
                .zip(row.root_name)
                .filter(|_| has_ended_badly)
                .map(|(job, name)| RootCause { job: JobId(job), name }),
            why: why.remove(&id).unwrap_or_default(),
            attempts,
            queued_at: row.queued_at,
            finished_at: row.finished_at,
        }))
    }

    /// The job that `text` names: a number, a `.drv` path (full, or its base name), or an attribute (whole, or its last
    /// part) of one of the newest evaluations.
    pub async fn find_build(&self, text: &str, now: Timestamp) -> Result<Option<Build>, DbError> {
        let id = if let Ok(id) = text.parse::<JobId>() {
            Some(id)
        } else if let Ok(path) = StorePath::parse(text).or_else(|_| StorePath::from_base_name(text)) {
            self.job_of_derivation(path.as_str()).await?
        } else {
            self.job_of_attr(text).await?
        };
        match id {
            Some(id) => self.view_build(id, now).await,
            None => Ok(None),
        }
    }

    async fn job_of_derivation(&self, drv_path: &str) -> Result<Option<JobId>, DbError> {
        sqlx::query_scalar!("SELECT id FROM build_jobs WHERE drv_path = $1", drv_path)
            .fetch_optional(&self.pool)
            .await
            .map(|id| id.map(JobId))
            .map_err(|error| DbError::from_sqlx("find a build by its derivation", error))
    }

    /// Exact names first, then last parts (`hello` for `checks.x86_64-linux.hello`), then derivation names.
    async fn job_of_attr(&self, text: &str) -> Result<Option<JobId>, DbError> {
        sqlx::query_scalar!(
            r#"SELECT j.id
               FROM (SELECT e.id, coalesce(e.reuses_eval_id, e.id) AS attrs_of
                     FROM evaluations e JOIN projects p ON p.id = e.project_id
                     WHERE p.is_public OR $3 ORDER BY e.id DESC LIMIT $2) newest
               JOIN eval_attrs a ON a.eval_id = newest.attrs_of
               JOIN build_jobs j ON j.drv_path = a.drv_path
               JOIN derivations d ON d.drv_path = j.drv_path
               WHERE a.attr = $1 OR right(a.attr, length($1) + 1) = '.' || $1 OR d.name = $1
               ORDER BY (a.attr = $1) DESC, (d.name = $1), newest.id DESC
               LIMIT 1"#,
            text,
            SEARCHED_EVALUATIONS,
            self.sees_all(),
        )
        .fetch_optional(&self.pool)
        .await
        .map(|id| id.map(JobId))
        .map_err(|error| DbError::from_sqlx("find a build by an attribute", error))
    }

    async fn outputs_of(&self, drv_path: &str) -> Result<BTreeMap<String, Option<String>>, DbError> {
        sqlx::query!("SELECT output_name, output_path FROM derivation_outputs WHERE drv_path = $1", drv_path)
            .fetch_all(&self.pool)
            .await
            .map(|rows| rows.into_iter().map(|row| (row.output_name, row.output_path)).collect())
            .map_err(|error| DbError::from_sqlx("read the outputs of a build", error))
    }

    async fn attrs_naming(&self, drv_path: &str) -> Result<Vec<String>, DbError> {
        sqlx::query_scalar!(
            r#"SELECT a.attr AS "attr!"
               FROM eval_attrs a JOIN evaluations e ON e.id = a.eval_id JOIN projects p ON p.id = e.project_id
               WHERE a.drv_path = $1 AND (p.is_public OR $3)
               GROUP BY a.attr ORDER BY max(a.eval_id) DESC, a.attr LIMIT $2"#,
            drv_path,
            ATTRS_MAX,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read which attributes a build is", error))
    }

    /// The newest evaluation that this viewer may see in which the job's derivation is an attribute.
    pub async fn newest_evaluation_with(&self, id: JobId) -> Result<Option<EvalId>, DbError> {
        sqlx::query_scalar!(
            r#"SELECT max(a.eval_id) FROM build_jobs j JOIN eval_attrs a ON a.drv_path = j.drv_path
               JOIN evaluations e ON e.id = a.eval_id JOIN projects p ON p.id = e.project_id
               WHERE j.id = $1 AND (p.is_public OR $2)"#,
            id.0,
            self.sees_all(),
        )
        .fetch_one(&self.pool)
        .await
        .map(|id| id.map(EvalId))
        .map_err(|error| DbError::from_sqlx("find the evaluation of a build", error))
    }

    async fn attempts_of(&self, id: JobId) -> Result<Vec<Attempt>, DbError> {
        let rows = sqlx::query!(
            "SELECT id, node, outcome, failure_kind, message, exit_code, log_key, started_at, finished_at
             FROM build_attempts WHERE job_id = $1 ORDER BY id DESC LIMIT $2",
            id.0,
            ATTEMPTS_MAX,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the attempts of a build", error))?;
        rows.into_iter()
            .map(|row| {
                Ok(Attempt {
                    id: AttemptId(row.id),
                    node: row.node,
                    outcome: state(&row.outcome)?,
                    failure_kind: row.failure_kind.as_deref().map(state).transpose()?,
                    message: row.message,
                    exit_code: row.exit_code,
                    log_key: row.log_key,
                    started_at: row.started_at,
                    finished_at: row.finished_at,
                })
            })
            .collect()
    }
}
