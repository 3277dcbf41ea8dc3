//! Evaluations, in lists and one at a time. Start at [`Db::view_evaluation`].

use std::collections::{BTreeMap, HashMap};

use harmonia_core::api::{Attr, AttrCounts, AttrState, Evaluation, EvaluationDetail, JobCounts, Waiting};
use harmonia_core::status::{Facts, verdict};
use harmonia_core::{EvalId, EvalStatus, JobId, Timestamp};

use super::{count, state};
use crate::{Db, DbError};

/// Most evaluations in one answer.
pub(super) const LIMIT_MAX: u32 = 200;

struct Row {
    id: i64,
    project: String,
    commit_sha: Option<String>,
    branch: String,
    attempt: i32,
    commit_title: Option<String>,
    commit_author: Option<String>,
    dirty: bool,
    status: String,
    complete: bool,
    allow_empty: bool,
    error: Option<String>,
    skipped_reason: Option<String>,
    wait_reason: Option<String>,
    waiting_since: Option<Timestamp>,
    not_before: Option<Timestamp>,
    reuses_eval_id: Option<i64>,
    superseded_by: Option<i64>,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    total: i64,
    succeeded: i64,
    failed: i64,
    dep_failed: i64,
    eval_errors: i64,
    building: i64,
    pending: i64,
    cancelled: i64,
}

impl Row {
    fn into_evaluation(self) -> Result<Evaluation, DbError> {
        let status = state(&self.status)?;
        let counts = AttrCounts {
            total: count(self.total),
            succeeded: count(self.succeeded),
            failed: count(self.failed),
            dep_failed: count(self.dep_failed),
            eval_errors: count(self.eval_errors),
            building: count(self.building),
            pending: count(self.pending),
            cancelled: count(self.cancelled),
        };
        let deferred = self.wait_reason.zip(self.waiting_since).zip(self.not_before);
        let waiting = deferred.filter(|_| status == EvalStatus::Queued).map(|((reason, since), until)| Waiting {
            reason,
            since,
            until,
        });
        let facts = Facts {
            status,
            complete: self.complete,
            allow_empty: self.allow_empty,
            is_superseded: self.superseded_by.is_some(),
            is_reuse: self.reuses_eval_id.is_some(),
            counts,
        };
        Ok(Evaluation {
            id: EvalId(self.id),
            project: self.project,
            commit: self.commit_sha,
            branch: self.branch,
            attempt: u32::try_from(self.attempt).unwrap_or(1),
            title: self.commit_title,
            author: self.commit_author,
            dirty: self.dirty,
            status,
            verdict: verdict(&facts),
            complete: self.complete,
            error: self.error.or(self.skipped_reason),
            waiting,
            counts,
            superseded_by: self.superseded_by.map(EvalId),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
        })
    }
}

impl Db {
    /// Evaluations, newest first: of one project or all, older than `before`, at most `limit` (and never more than 200).
    pub async fn view_evaluations(
        &self,
        project: Option<&str>,
        before: Option<EvalId>,
        limit: u32,
    ) -> Result<Vec<Evaluation>, DbError> {
        let ids = sqlx::query_scalar!(
            "SELECT e.id FROM evaluations e JOIN projects p ON p.id = e.project_id
             WHERE (p.is_public OR $4) AND ($1::text IS NULL OR p.name = $1) AND e.id < coalesce($2, 9223372036854775807)
             ORDER BY e.id DESC LIMIT $3",
            project,
            before.map(|id| id.0),
            i64::from(limit.min(LIMIT_MAX)),
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list evaluations", error))?;
        self.evaluations_of(&ids).await
    }

    /// These evaluations, newest first.
    pub(super) async fn evaluations_of(&self, ids: &[i64]) -> Result<Vec<Evaluation>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT e.id, p.name AS project, e.commit_sha, e.branch, e.attempt, e.commit_title, e.commit_author, e.dirty,
                      e.status, e.complete, e.allow_empty, e.error, e.skipped_reason, e.reuses_eval_id, e.superseded_by,
                      e.wait_reason, e.waiting_since, e.not_before, e.created_at, e.started_at, e.finished_at,
                      c.total AS "total!", c.succeeded AS "succeeded!", c.failed AS "failed!", c.dep_failed AS "dep_failed!",
                      c.eval_errors AS "eval_errors!", c.building AS "building!", c.pending AS "pending!",
                      c.cancelled AS "cancelled!"
               FROM unnest($1::bigint[]) AS wanted (id)
               JOIN evaluations e ON e.id = wanted.id
               JOIN projects p ON p.id = e.project_id
               CROSS JOIN LATERAL attr_counts(coalesce(e.reuses_eval_id, e.id)) c
               WHERE p.is_public OR $2
               ORDER BY e.id DESC"#,
            ids,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read evaluations", error))?;
        rows.into_iter().map(Row::into_evaluation).collect()
    }

    /// One evaluation with its attributes; `None` when there is none that this viewer may see.
    pub async fn view_evaluation(&self, id: EvalId) -> Result<Option<EvaluationDetail>, DbError> {
        let Some(evaluation) = self.evaluations_of(&[id.0]).await?.pop() else { return Ok(None) };
        let (attrs, jobs, warnings) =
            tokio::try_join!(self.attrs_of(id), self.reached_jobs(id), self.evaluation_warnings(id))?;
        Ok(Some(EvaluationDetail { evaluation, attrs, jobs, warnings }))
    }

    /// One evaluation as in lists.
    pub async fn view_evaluation_head(&self, id: EvalId) -> Result<Option<Evaluation>, DbError> {
        Ok(self.evaluations_of(&[id.0]).await?.pop())
    }

    async fn evaluation_warnings(&self, id: EvalId) -> Result<Vec<String>, DbError> {
        sqlx::query_scalar!("SELECT warnings FROM evaluations WHERE id = $1", id.0)
            .fetch_optional(&self.pool)
            .await
            .map(Option::unwrap_or_default)
            .map_err(|error| DbError::from_sqlx("read the warnings of an evaluation", error))
    }

    async fn attrs_of(&self, id: EvalId) -> Result<Vec<Attr>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT a.attr AS "attr!", a.drv_path, a.error, a.job_id AS "job?", a.state AS "state!", a.failure_kind, a.message,
                      d.name AS "name?", d.system AS "system?", r.name AS "root_name?"
               FROM evaluations e
               CROSS JOIN LATERAL attr_states(coalesce(e.reuses_eval_id, e.id)) a
               LEFT JOIN derivations d ON d.drv_path = a.drv_path
               LEFT JOIN build_jobs rj ON rj.id = a.cause
               LEFT JOIN derivations r ON r.drv_path = rj.drv_path
               WHERE e.id = $1
               ORDER BY a.attr"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the attributes of an evaluation", error))?;
        let mut outputs = self.outputs_of_attrs(id).await?;
        rows.into_iter()
            .map(|row| {
                let failed_dependency = row.root_name.map(|name| format!("the dependency {name} failed"));
                Ok(Attr {
                    attr: row.attr,
                    name: row.name,
                    system: row.system,
                    state: attr_state(&row.state)?,
                    outputs: row.drv_path.as_ref().and_then(|drv| outputs.remove(drv)).unwrap_or_default(),
                    drv_path: row.drv_path,
                    job: row.job.map(JobId),
                    error: row.error.or(failed_dependency).or(row.message),
                    failure_kind: row.failure_kind.as_deref().map(super::state).transpose()?,
                })
            })
            .collect::<Result<Vec<Attr>, DbError>>()
            .map(share_outputs)
    }

    async fn outputs_of_attrs(&self, id: EvalId) -> Result<HashMap<String, BTreeMap<String, Option<String>>>, DbError> {
        let rows = sqlx::query!(
            "SELECT o.drv_path, o.output_name, o.output_path
             FROM evaluations e
             JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
             JOIN derivation_outputs o ON o.drv_path = a.drv_path
             WHERE e.id = $1",
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the outputs of an evaluation's attributes", error))?;
        let mut outputs: HashMap<String, BTreeMap<String, Option<String>>> = HashMap::new();
        for row in rows {
            outputs.entry(row.drv_path).or_default().insert(row.output_name, row.output_path);
        }
        Ok(outputs)
    }

    /// Jobs by status over everything below the evaluation's attributes that has a job.
    async fn reached_jobs(&self, id: EvalId) -> Result<JobCounts, DbError> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE reached (drv_path, status) AS (
                   SELECT j.drv_path, j.status
                   FROM evaluations e
                   JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
                   JOIN build_jobs j ON j.drv_path = a.drv_path
                   WHERE e.id = $1
                   UNION
                   SELECT j.drv_path, j.status
                   FROM eval_holds h JOIN build_jobs j ON j.drv_path = h.drv_path
                   WHERE h.eval_id = $1
                   UNION
                   SELECT j.drv_path, j.status
                   FROM reached r
                   JOIN derivation_inputs i ON i.referrer = r.drv_path
                   JOIN build_jobs j ON j.drv_path = i.input_drv
               )
               SELECT job_state(status, drv_path) AS "status!", count(*) AS "count!" FROM reached GROUP BY 1"#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("count the jobs of an evaluation", error))?;
        job_counts(rows.iter().map(|row| (row.status.as_str(), row.count)))
    }

    /// What the engine printed; `None` when there is no such evaluation.
    pub async fn view_evaluation_log(&self, id: EvalId) -> Result<Option<String>, DbError> {
        sqlx::query_scalar!(
            r#"SELECT coalesce((SELECT string_agg(c.text, '' ORDER BY c.seq) FROM evaluation_log_chunks c
                                WHERE c.eval_id = coalesce(e.reuses_eval_id, e.id)), '') AS "text!"
               FROM evaluations e JOIN projects p ON p.id = e.project_id
               WHERE e.id = $1 AND (p.is_public OR $2)"#,
            id.0,
            self.sees_all(),
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the log of an evaluation", error))
    }
}

/// Two attributes may be one derivation: both show its outputs.
fn share_outputs(mut attrs: Vec<Attr>) -> Vec<Attr> {
    let mut known: HashMap<String, BTreeMap<String, Option<String>>> = HashMap::new();
    for attr in &attrs {
        if let Some(drv) = attr.drv_path.as_ref().filter(|_| !attr.outputs.is_empty()) {
            known.insert(drv.clone(), attr.outputs.clone());
        }
    }
    for attr in &mut attrs {
        if let Some(outputs) = attr.drv_path.as_ref().filter(|_| attr.outputs.is_empty()).and_then(|drv| known.get(drv))
        {
            attr.outputs.clone_from(outputs);
        }
    }
    attrs
}

/// A state as `attr_states` words it, which decides it.
pub(crate) fn attr_state(state: &str) -> Result<AttrState, DbError> {
    use harmonia_core::JobStatus;
    Ok(match state {
        "error" => AttrState::Error,
        "cached" => AttrState::Cached,
        of_job => match super::state(of_job)? {
            JobStatus::Succeeded => AttrState::Succeeded,
            JobStatus::Pending => AttrState::Pending,
            JobStatus::Building => AttrState::Building,
            JobStatus::Uploading => AttrState::Uploading,
            JobStatus::Failed => AttrState::Failed,
            JobStatus::Cancelled => AttrState::Cancelled,
            JobStatus::DepFailed => AttrState::DepFailed,
        },
    })
}

/// Sums `(status, count)` rows.
pub(super) fn job_counts<'a>(rows: impl Iterator<Item = (&'a str, i64)>) -> Result<JobCounts, DbError> {
    use harmonia_core::JobStatus;
    let mut counts = JobCounts::default();
    for (status, number) in rows {
        let slot = match state(status)? {
            JobStatus::Pending => &mut counts.pending,
            JobStatus::Building => &mut counts.building,
            JobStatus::Uploading => &mut counts.uploading,
            JobStatus::Succeeded => &mut counts.succeeded,
            JobStatus::Failed => &mut counts.failed,
            JobStatus::DepFailed => &mut counts.dep_failed,
            JobStatus::Cancelled => &mut counts.cancelled,
        };
        *slot += count(number);
    }
    Ok(counts)
}
