//! How one evaluation is followed: everything once ([`Db::look_at_evaluation`]), then only what changed
//! ([`Db::look_again`]). What it is followed by (attributes with their states, jobs that are not there yet) is small, so that
//! whoever looks keeps it.
//!
//! Of what may change between two statements the older state is read first, so that a change is found the next time.

use harmonia_core::api::AttrState;
use harmonia_core::{EvalId, JobId, JobStatus};

use super::evaluations::{EvaluationRow, attr_state};
use super::state;
use crate::{Db, DbError};

/// An attribute and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookedAttr {
    /// Its name.
    pub attr: String,
    /// Where it stands.
    pub state: AttrState,
    /// Its job.
    pub job: Option<JobId>,
}

/// A job that the evaluation reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookedJob {
    /// Which.
    pub job: JobId,
    /// As its row says: what it is followed by.
    pub status: JobStatus,
    /// As it is shown: what is available has succeeded, whatever the row says.
    pub shown: JobStatus,
}

/// Everything that an evaluation is followed by.
#[derive(Debug)]
pub struct WholeLook {
    /// The evaluation.
    pub row: EvaluationRow,
    /// All jobs below its attributes.
    pub jobs: Vec<LookedJob>,
    /// All attributes, by name.
    pub attrs: Vec<LookedAttr>,
}

impl Db {
    /// One evaluation as it is; `None` when there is none that this viewer may see. Costs what it reaches.
    pub async fn look_at_evaluation(&self, id: EvalId) -> Result<Option<WholeLook>, DbError> {
        let Some(row) = self.look_at_row(id).await? else { return Ok(None) };
        let jobs = self.reached_jobs(id).await?;
        let rows = sqlx::query!(
            r#"SELECT a.attr AS "attr!", a.state AS "state!", a.job_id AS "job?"
               FROM evaluations e CROSS JOIN LATERAL attr_states(coalesce(e.reuses_eval_id, e.id)) a
               WHERE e.id = $1 ORDER BY a.attr"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look at the attributes of an evaluation", error))?;
        let attrs = rows
            .into_iter()
            .map(|row| Ok(LookedAttr { attr: row.attr, state: attr_state(&row.state)?, job: row.job.map(JobId) }));
        Ok(Some(WholeLook { row, jobs, attrs: attrs.collect::<Result<_, DbError>>()? }))
    }

    /// The evaluation itself; `None` when there is none that this viewer may see.
    pub async fn look_at_row(&self, id: EvalId) -> Result<Option<EvaluationRow>, DbError> {
        Ok(self.evaluation_rows(&[id.0]).await?.pop())
    }

    /// Those of these jobs whose row says something else by now. Costs a lookup for each.
    pub async fn look_again(&self, known: &[(JobId, JobStatus)]) -> Result<Vec<LookedJob>, DbError> {
        let (ids, statuses): (Vec<i64>, Vec<String>) =
            known.iter().map(|(job, status)| (job.0, status.as_str().to_owned())).unzip();
        let rows = sqlx::query!(
            r#"SELECT j.id, j.status, job_state(j.status, j.drv_path) AS "shown!"
               FROM unnest($1::bigint[], $2::text[]) AS known (id, status) JOIN build_jobs j ON j.id = known.id
               WHERE j.status <> known.status"#,
            &ids,
            &statuses,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look which jobs of an evaluation changed", error))?;
        rows.into_iter()
            .map(|row| Ok(LookedJob { job: JobId(row.id), status: state(&row.status)?, shown: state(&row.shown)? }))
            .collect()
    }

    /// Where these attributes of an evaluation stand.
    pub async fn look_at_attrs(&self, id: EvalId, names: &[&str]) -> Result<Vec<(String, AttrState)>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT a.attr AS "attr!", a.state AS "state!"
               FROM evaluations e CROSS JOIN unnest($2::text[]) AS wanted (attr)
               CROSS JOIN LATERAL (
                   SELECT * FROM attr_states(coalesce(e.reuses_eval_id, e.id)) s WHERE s.attr = wanted.attr OFFSET 0
               ) a
               WHERE e.id = $1"#,
            id.0,
            names as &[&str],
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look at attributes of an evaluation", error))?;
        rows.into_iter().map(|row| Ok((row.attr, attr_state(&row.state)?))).collect()
    }

    /// The number of a change that somebody saw: larger than all that were given out before, on every node.
    pub async fn next_revision(&self) -> Result<i64, DbError> {
        sqlx::query_scalar!(r#"SELECT nextval('evaluation_revisions') AS "revision!""#)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| DbError::from_sqlx("number a change", error))
    }

    /// Everything below the evaluation's attributes that has a job.
    pub(super) async fn reached_jobs(&self, id: EvalId) -> Result<Vec<LookedJob>, DbError> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE reached (drv_path, id, status) AS (
                   SELECT j.drv_path, j.id, j.status
                   FROM evaluations e
                   JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
                   JOIN build_jobs j ON j.drv_path = a.drv_path
                   WHERE e.id = $1
                   UNION
                   SELECT j.drv_path, j.id, j.status
                   FROM eval_holds h JOIN build_jobs j ON j.drv_path = h.drv_path
                   WHERE h.eval_id = $1
                   UNION
                   SELECT j.drv_path, j.id, j.status
                   FROM reached r
                   JOIN derivation_inputs i ON i.referrer = r.drv_path
                   JOIN build_jobs j ON j.drv_path = i.input_drv
               )
               SELECT id AS "id!", status AS "status!", job_state(status, drv_path) AS "shown!" FROM reached"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list the jobs of an evaluation", error))?;
        rows.into_iter()
            .map(|row| Ok(LookedJob { job: JobId(row.id), status: state(&row.status)?, shown: state(&row.shown)? }))
            .collect()
    }
}
