//! Evaluations, in lists and one at a time, and their attributes, as many as are asked for. Start at
//! [`Db::view_evaluations`] and [`Db::view_attrs`]; `looks` is how one is followed.

use std::collections::{BTreeMap, HashMap};

use harmonia_core::api::{Attr, AttrCounts, AttrState, Evaluation, EvaluationDetail, JobCounts, Verdict, Waiting};
use harmonia_core::status::{Facts, verdict};
use harmonia_core::{EvalId, EvalStatus, JobId, Timestamp};

use super::{count, state};
use crate::{Db, DbError};

/// Most evaluations in one answer.
pub(super) const LIMIT_MAX: u32 = 200;
/// Most evaluations whose counts are stored by one list; others by the next.
const SETTLED_MAX: usize = 10;

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
    warnings: Vec<String>,
}

/// An evaluation without its counts.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationRow {
    /// With nothing counted.
    evaluation: Evaluation,
    allow_empty: bool,
    reuses: Option<EvalId>,
    /// What the evaluator warned of.
    pub warnings: Vec<String>,
}

impl EvaluationRow {
    /// The evaluation, when its attributes are these.
    pub fn counted(&self, counts: AttrCounts) -> Evaluation {
        let facts = Facts {
            status: self.evaluation.status,
            complete: self.evaluation.complete,
            allow_empty: self.allow_empty,
            is_superseded: self.evaluation.superseded_by.is_some(),
            is_reuse: self.reuses.is_some(),
            counts,
        };
        Evaluation { counts, verdict: verdict(&facts), ..self.evaluation.clone() }
    }

    /// Whether its attributes are those that it had when the other was read: the evaluation itself had ended.
    pub fn has_attributes_of(&self, other: &Self) -> bool {
        self.evaluation.finished_at.is_some()
            && self.evaluation.finished_at == other.evaluation.finished_at
            && self.evaluation.status == other.evaluation.status
            && self.reuses == other.reuses
    }
}

impl Row {
    fn into_row(self) -> Result<EvaluationRow, DbError> {
        let status = state(&self.status)?;
        let deferred = self.wait_reason.zip(self.waiting_since).zip(self.not_before);
        let waiting = deferred.filter(|_| status == EvalStatus::Queued).map(|((reason, since), until)| Waiting {
            reason,
            since,
            until,
        });
        let evaluation = Evaluation {
            id: EvalId(self.id),
            project: self.project,
            commit: self.commit_sha,
            branch: self.branch,
            attempt: u32::try_from(self.attempt).unwrap_or(1),
            title: self.commit_title,
            author: self.commit_author,
            dirty: self.dirty,
            status,
            verdict: Verdict::Running,
            complete: self.complete,
            error: self.error.or(self.skipped_reason),
            waiting,
            counts: AttrCounts::default(),
            superseded_by: self.superseded_by.map(EvalId),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
        };
        let reuses = self.reuses_eval_id.map(EvalId);
        Ok(EvaluationRow { evaluation, allow_empty: self.allow_empty, reuses, warnings: self.warnings })
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
        let (before, limit) = (before.map(|id| id.0), i64::from(limit.min(LIMIT_MAX)));
        let listed = match project {
            // By the project's own index: others may have evaluated much since.
            Some(project) => {
                sqlx::query_scalar!(
                    "SELECT e.id FROM evaluations e
                     WHERE e.project_id = (SELECT p.id FROM projects p WHERE p.name = $1 AND (p.is_public OR $4))
                         AND e.id < coalesce($2, 9223372036854775807)
                     ORDER BY e.project_id, e.id DESC LIMIT $3",
                    project,
                    before,
                    limit,
                    self.sees_all(),
                )
                .fetch_all(&self.pool)
                .await
            }
            None => {
                sqlx::query_scalar!(
                    "SELECT e.id FROM evaluations e JOIN projects p ON p.id = e.project_id
                     WHERE (p.is_public OR $3) AND e.id < coalesce($1, 9223372036854775807)
                     ORDER BY e.id DESC LIMIT $2",
                    before,
                    limit,
                    self.sees_all(),
                )
                .fetch_all(&self.pool)
                .await
            }
        };
        let ids = listed.map_err(|error| DbError::from_sqlx("list evaluations", error))?;
        self.evaluations_listed(&ids).await
    }

    /// These evaluations, newest first, for a list: what cannot change is counted once, and stored.
    pub(super) async fn evaluations_listed(&self, ids: &[i64]) -> Result<Vec<Evaluation>, DbError> {
        let rows = self.evaluation_rows(ids).await?;
        let mut counts = self.settled_counts(ids).await?;
        let open: Vec<i64> =
            rows.iter().map(|row| row.evaluation.id).filter(|id| !counts.contains_key(id)).map(|id| id.0).collect();
        counts.extend(self.attr_counts_of(&open).await?);
        let listed: Vec<(EvaluationRow, Evaluation)> = rows
            .into_iter()
            .map(|row| {
                let evaluation = row.counted(counts.remove(&row.evaluation.id).unwrap_or_default());
                (row, evaluation)
            })
            .collect();
        let is_settled = |(row, evaluation): &&(EvaluationRow, Evaluation)| {
            let AttrCounts { pending, building, .. } = evaluation.counts;
            open.contains(&evaluation.id.0) && row.evaluation.finished_at.is_some() && pending + building == 0
        };
        for (row, evaluation) in listed.iter().filter(is_settled).take(SETTLED_MAX) {
            self.settle(row.reuses.unwrap_or(evaluation.id)).await?;
        }
        Ok(listed.into_iter().map(|(_, evaluation)| evaluation).collect())
    }

    /// Counts an evaluation once more, and remembers that as long as nothing of it changes.
    async fn settle(&self, id: EvalId) -> Result<bool, DbError> {
        let failed = |error| DbError::from_sqlx("store the counts of an evaluation", error);
        sqlx::query!("SELECT begin_counts($1)", id.0).execute(&self.pool).await.map_err(failed)?;
        sqlx::query_scalar!(r#"SELECT settle_counts($1) AS "settled!""#, id.0)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)
    }

    /// Counts that are stored, of those of these evaluations of which nothing is to be built again: where marks say so that
    /// nobody took yet, they are not true any more.
    async fn settled_counts(&self, ids: &[i64]) -> Result<HashMap<EvalId, AttrCounts>, DbError> {
        let rows = sqlx::query!(
            r#"WITH back AS MATERIALIZED (
                   SELECT j.drv_path FROM job_marks m JOIN build_jobs j ON j.id = m.job_id WHERE m.was <> 'pending'
               )
               SELECT e.id, s.counts AS "counts!"
               FROM unnest($1::bigint[]) AS wanted (id)
               JOIN evaluations e ON e.id = wanted.id
               JOIN settled_counts s ON s.eval_id = coalesce(e.reuses_eval_id, e.id)
               WHERE s.counts IS NOT NULL AND NOT EXISTS (
                   SELECT FROM back b CROSS JOIN LATERAL (
                       SELECT FROM eval_attrs a WHERE a.drv_path = b.drv_path AND a.eval_id = s.eval_id OFFSET 0) a)"#,
            ids,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read counts of evaluations", error))?;
        let counts = rows.into_iter().map(|row| {
            let at = |place: usize| row.counts.get(place).copied().map_or(0, count);
            let counts = AttrCounts {
                total: at(0),
                succeeded: at(1),
                failed: at(2),
                dep_failed: at(3),
                eval_errors: at(4),
                cancelled: at(5),
                building: 0,
                pending: 0,
            };
            (EvalId(row.id), counts)
        });
        Ok(counts.collect())
    }

    /// These evaluations, newest first.
    pub(super) async fn evaluations_of(&self, ids: &[i64]) -> Result<Vec<Evaluation>, DbError> {
        // Rows first: attributes of one that had ended then are all there when they are counted.
        let rows = self.evaluation_rows(ids).await?;
        let mut counts = self.attr_counts_of(ids).await?;
        Ok(rows.iter().map(|row| row.counted(counts.remove(&row.evaluation.id).unwrap_or_default())).collect())
    }

    /// Those of these evaluations that this viewer may see, newest first.
    pub(super) async fn evaluation_rows(&self, ids: &[i64]) -> Result<Vec<EvaluationRow>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT e.id, p.name AS project, e.commit_sha, e.branch, e.attempt, e.commit_title, e.commit_author, e.dirty,
                      e.status, e.complete, e.allow_empty, e.error, e.skipped_reason, e.reuses_eval_id, e.superseded_by,
                      e.wait_reason, e.waiting_since, e.not_before, e.created_at, e.started_at, e.finished_at, e.warnings
               FROM unnest($1::bigint[]) AS wanted (id)
               JOIN evaluations e ON e.id = wanted.id
               JOIN projects p ON p.id = e.project_id
               WHERE p.is_public OR $2
               ORDER BY e.id DESC"#,
            ids,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read evaluations", error))?;
        rows.into_iter().map(Row::into_row).collect()
    }

    async fn attr_counts_of(&self, ids: &[i64]) -> Result<HashMap<EvalId, AttrCounts>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT e.id, c.total AS "total!", c.succeeded AS "succeeded!", c.failed AS "failed!", c.dep_failed AS "dep_failed!",
                      c.eval_errors AS "eval_errors!", c.building AS "building!", c.pending AS "pending!",
                      c.cancelled AS "cancelled!"
               FROM unnest($1::bigint[]) AS wanted (id)
               JOIN evaluations e ON e.id = wanted.id
               CROSS JOIN LATERAL attr_counts(coalesce(e.reuses_eval_id, e.id)) c"#,
            ids,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("count the attributes of evaluations", error))?;
        let counts = rows.into_iter().map(|row| {
            let counts = AttrCounts {
                total: count(row.total),
                succeeded: count(row.succeeded),
                failed: count(row.failed),
                dep_failed: count(row.dep_failed),
                eval_errors: count(row.eval_errors),
                building: count(row.building),
                pending: count(row.pending),
                cancelled: count(row.cancelled),
            };
            (EvalId(row.id), counts)
        });
        Ok(counts.collect())
    }

    /// One evaluation with all of its attributes, however many; `None` when there is none that this viewer may see.
    pub async fn view_evaluation(&self, id: EvalId) -> Result<Option<EvaluationDetail>, DbError> {
        let Some(evaluation) = self.view_evaluation_head(id).await? else { return Ok(None) };
        let jobs = self.reached_jobs(id).await?;
        let mut detail = EvaluationDetail {
            evaluation,
            attrs: Vec::new(),
            next: None,
            jobs: JobCounts::default(),
            warnings: self.evaluation_rows(&[id.0]).await?.pop().map(|row| row.warnings).unwrap_or_default(),
        };
        for job in jobs {
            *detail.jobs.of_mut(job.shown) += 1;
        }
        detail.attrs = self.attrs_named(id, &self.attr_names(id, None, i64::MAX).await?).await?;
        Ok(Some(detail))
    }

    /// Attributes by name, those after this one, at most so many; and the name to go on after when there are more.
    pub async fn view_attrs(
        &self,
        id: EvalId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Attr>, Option<String>), DbError> {
        let mut names = self.attr_names(id, after, i64::from(limit) + 1).await?;
        let has_more = names.len() > limit as usize;
        names.truncate(limit as usize);
        let next = names.last().cloned().filter(|_| has_more);
        Ok((self.attrs_named(id, &names).await?, next))
    }

    /// One evaluation as in lists.
    pub async fn view_evaluation_head(&self, id: EvalId) -> Result<Option<Evaluation>, DbError> {
        Ok(self.evaluations_of(&[id.0]).await?.pop())
    }

    async fn attr_names(&self, id: EvalId, after: Option<&str>, limit: i64) -> Result<Vec<String>, DbError> {
        sqlx::query_scalar!(
            "SELECT a.attr FROM eval_attrs a
             WHERE a.eval_id = (SELECT coalesce(e.reuses_eval_id, e.id) FROM evaluations e
                                JOIN projects p ON p.id = e.project_id WHERE e.id = $1 AND (p.is_public OR $4))
                 AND a.attr > coalesce($2, '')
             ORDER BY a.attr LIMIT $3",
            id.0,
            after,
            limit,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list the attributes of an evaluation", error))
    }

    /// These attributes of an evaluation, by name, as far as this viewer may see them.
    pub async fn attrs_named(&self, id: EvalId, names: &[String]) -> Result<Vec<Attr>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT a.attr AS "attr!", a.drv_path, a.error, a.job_id AS "job?", a.state AS "state!", a.failure_kind, a.message,
                      d.name AS "name?", d.system AS "system?", r.name AS "root_name?"
               FROM evaluations e
               JOIN projects p ON p.id = e.project_id
               CROSS JOIN unnest($2::text[]) AS wanted (attr)
               -- One by one: otherwise it may ask where all of them stand, and then choose.
               CROSS JOIN LATERAL (
                   SELECT * FROM attr_states(coalesce(e.reuses_eval_id, e.id)) s WHERE s.attr = wanted.attr OFFSET 0
               ) a
               LEFT JOIN derivations d ON d.drv_path = a.drv_path
               LEFT JOIN build_jobs rj ON rj.id = a.cause
               LEFT JOIN derivations r ON r.drv_path = rj.drv_path
               WHERE e.id = $1 AND (p.is_public OR $3)
               ORDER BY a.attr"#,
            id.0,
            names,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the attributes of an evaluation", error))?;
        let drvs: Vec<String> = rows.iter().filter_map(|row| row.drv_path.clone()).collect();
        let outputs = self.outputs_of_each(&drvs).await?;
        rows.into_iter()
            .map(|row| {
                let failed_dependency = row.root_name.map(|name| format!("the dependency {name} failed"));
                Ok(Attr {
                    attr: row.attr,
                    name: row.name,
                    system: row.system,
                    state: attr_state(&row.state)?,
                    // Two attributes may be one derivation.
                    outputs: row.drv_path.as_ref().and_then(|drv| outputs.get(drv)).cloned().unwrap_or_default(),
                    drv_path: row.drv_path,
                    job: row.job.map(JobId),
                    error: row.error.or(failed_dependency).or(row.message),
                    failure_kind: row.failure_kind.as_deref().map(super::state).transpose()?,
                })
            })
            .collect()
    }

    async fn outputs_of_each(
        &self,
        drvs: &[String],
    ) -> Result<HashMap<String, BTreeMap<String, Option<String>>>, DbError> {
        let rows = sqlx::query!(
            "SELECT o.drv_path, o.output_name, o.output_path
             FROM unnest($1::text[]) AS wanted (drv_path) JOIN derivation_outputs o ON o.drv_path = wanted.drv_path",
            drvs,
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
    let mut counts = JobCounts::default();
    for (status, number) in rows {
        *counts.of_mut(state(status)?) += count(number);
    }
    Ok(counts)
}
