//! Everything about one commit, read for `harmonia_core::status`. Start at [`read`].

use harmonia_core::api::AttrCounts;
use harmonia_core::status::{
    AttrReport, CommitReport, EvaluationReport, FAILURES_MAX, Facts, Notified, ShownStatus, WaitingPullRequest,
};
use harmonia_core::{EvalId, EvalStatus, JobId};
use sqlx::PgConnection;

use super::ReportTarget;
use crate::error::{DbError, parse};
use crate::views::attr_state;

/// Longest text of one error that is read, in characters.
const ERROR_CHARS_MAX: i32 = 16_384;

fn failed(error: sqlx::Error) -> DbError {
    DbError::from_sqlx("read what is known of a commit", error)
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The report and the repository's row; `None` when the project is gone.
pub(super) async fn read(
    connection: &mut PgConnection,
    target: &ReportTarget,
) -> Result<Option<(CommitReport, Option<i64>)>, DbError> {
    let project =
        sqlx::query!("SELECT name, status_prefix, repository_id FROM projects WHERE id = $1", target.project.0)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
    let Some(project) = project else { return Ok(None) };
    let (shown, waiting) = match project.repository_id {
        Some(repository) => {
            (read_shown(connection, repository, &target.commit).await?, read_waiting(connection, target).await?)
        }
        None => (Vec::new(), Vec::new()),
    };
    let attrs: Vec<String> = shown.iter().filter_map(|status| status.attr.clone()).collect();
    let evaluations = read_evaluations(connection, target, &attrs).await?;
    let report = CommitReport {
        project: project.name,
        commit: target.commit.clone(),
        prefix: project.status_prefix,
        evaluations,
        waiting,
        shown,
    };
    Ok(Some((report, project.repository_id)))
}

async fn read_shown(connection: &mut PgConnection, repository: i64, commit: &str) -> Result<Vec<ShownStatus>, DbError> {
    let rows = sqlx::query!(
        "SELECT context, attr, desired_state FROM commit_statuses WHERE repository_id = $1 AND commit_sha = $2
         ORDER BY id LIMIT 2000",
        repository,
        commit
    )
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    rows.into_iter()
        .map(|row| {
            let state = row.desired_state.parse();
            let state =
                state.map_err(|()| DbError::Corrupt { what: ["status state ", &row.desired_state].concat() })?;
            Ok(ShownStatus { context: row.context, attr: row.attr, state })
        })
        .collect()
}

async fn read_waiting(
    connection: &mut PgConnection,
    target: &ReportTarget,
) -> Result<Vec<WaitingPullRequest>, DbError> {
    let rows = sqlx::query!(
        r#"SELECT number, waiting AS "reason!" FROM pull_requests
           WHERE project_id = $1 AND head_commit = $2 AND is_open AND waiting IS NOT NULL ORDER BY number LIMIT 20"#,
        target.project.0,
        target.commit
    )
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    let waiting = rows.into_iter().map(|row| WaitingPullRequest { number: count(row.number), reason: row.reason });
    Ok(waiting.collect())
}

/// Of each branch, tag and pull request the newest evaluation of the commit, if there is one of all its attributes then of these.
async fn read_evaluations(
    connection: &mut PgConnection,
    target: &ReportTarget,
    shown: &[String],
) -> Result<Vec<EvaluationReport>, DbError> {
    let rows = sqlx::query!(
        r#"WITH of_commit AS (
               SELECT id, branch, is_tag, pr_number, is_part FROM evaluations WHERE project_id = $1 AND pr_head_sha = $2
               UNION ALL
               SELECT id, branch, is_tag, pr_number, is_part FROM evaluations
               WHERE project_id = $1 AND commit_sha = $2 AND pr_head_sha IS NULL
               UNION ALL
               (SELECT id, branch, is_tag, pr_number, is_part FROM evaluations
                WHERE $2 = '' AND project_id = $1 AND commit_sha IS NULL AND pr_head_sha IS NULL ORDER BY id DESC LIMIT 20)
           ), newest AS (
               SELECT coalesce(max(id) FILTER (WHERE NOT is_part), max(id)) AS id FROM of_commit
               GROUP BY branch, is_tag, pr_number ORDER BY 1 DESC LIMIT 20
           )
           SELECT e.id, e.branch, e.is_tag, e.pr_number, e.status, e.complete, e.allow_empty, e.superseded_by,
               e.closed_at IS NOT NULL AS "closed!", e.reuses_eval_id, coalesce(e.error, e.skipped_reason) AS error,
               CASE WHEN e.status = 'queued' THEN e.wait_reason END AS deferred,
               e.source_path, e.commit_title, e.commit_author, e.created_at, e.started_at, e.finished_at,
               c.total AS "total!", c.succeeded AS "succeeded!", c.failed AS "failed!", c.dep_failed AS "dep_failed!",
               c.eval_errors AS "eval_errors!", c.building AS "building!", c.pending AS "pending!",
               c.cancelled AS "cancelled!", c.infrastructure AS "infrastructure!", c.builds_finished_at,
               t.evaluation AS "told_evaluation?", t.builds AS "told_builds?", t.rounds AS "told_rounds?",
               (SELECT NOT (coalesce(b.evaluation, true) AND coalesce(b.builds, true))
                FROM evaluations before JOIN evaluation_notifications b ON b.eval_id = before.id
                WHERE before.project_id = e.project_id AND before.branch = e.branch AND before.is_tag = e.is_tag
                    AND before.pr_number IS NOT DISTINCT FROM e.pr_number AND before.id < e.id
                    AND (NOT before.is_part OR e.is_part) AND (b.builds IS NOT NULL OR b.evaluation = false)
                ORDER BY before.id DESC LIMIT 1) AS failed_before
           FROM newest JOIN evaluations e ON e.id = newest.id
           LEFT JOIN evaluation_notifications t ON t.eval_id = e.id
           CROSS JOIN LATERAL attr_counts(coalesce(e.reuses_eval_id, e.id)) c
           ORDER BY e.id DESC"#,
        target.project.0,
        target.commit
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let mut evaluations = Vec::with_capacity(rows.len());
    for row in rows {
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
        let attrs_of = row.reuses_eval_id.unwrap_or(row.id);
        let broken = counts.failed + counts.dep_failed + counts.eval_errors + counts.cancelled;
        let failed = if broken > 0 { read_failed(connection, attrs_of).await? } else { Vec::new() };
        let shown = if shown.is_empty() { Vec::new() } else { read_attrs(connection, attrs_of, shown).await? };
        let status: EvalStatus = parse("evaluation status", &row.status)?;
        evaluations.push(EvaluationReport {
            id: EvalId(row.id),
            branch: row.branch,
            is_tag: row.is_tag,
            pull_request: row.pr_number.map(count),
            facts: Facts {
                status,
                complete: row.complete,
                allow_empty: row.allow_empty,
                // What is closed waits for nothing either.
                is_superseded: row.superseded_by.is_some() || row.closed,
                is_reuse: row.reuses_eval_id.is_some(),
                counts,
            },
            superseded_by: row.superseded_by.map(EvalId),
            is_closed: row.closed,
            reuses: row.reuses_eval_id.map(EvalId),
            error: row.error,
            deferred: row.deferred,
            infrastructure: count(row.infrastructure),
            failed,
            shown,
            source_path: row.source_path,
            title: row.commit_title,
            author: row.commit_author,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            builds_finished_at: row.builds_finished_at,
            notified: Notified {
                evaluation: row.told_evaluation,
                builds: row.told_builds,
                rounds: row.told_rounds.and_then(|rounds| u32::try_from(rounds).ok()).unwrap_or(0),
            },
            failed_before: row.failed_before,
        });
    }
    Ok(evaluations)
}

struct AttrRow {
    attr: String,
    error: Option<String>,
    job: Option<i64>,
    state: String,
    kind: Option<String>,
    message: Option<String>,
    dependency: Option<String>,
}

impl AttrRow {
    fn into_report(self) -> Result<AttrReport, DbError> {
        Ok(AttrReport {
            attr: self.attr,
            state: attr_state(&self.state)?,
            kind: self.kind.as_deref().map(|kind| parse("failure kind", kind)).transpose()?,
            dependency: self.dependency,
            message: self.error.or(self.message),
            job: self.job.map(JobId),
        })
    }
}

/// Derivations' own failures first, then what does not evaluate, then what failed for another or by no fault of its own.
async fn read_failed(connection: &mut PgConnection, eval: i64) -> Result<Vec<AttrReport>, DbError> {
    let rows = sqlx::query_as!(
        AttrRow,
        r#"SELECT a.attr AS "attr!", left(a.error, $3) AS error, a.job_id AS job, a.state AS "state!", a.failure_kind AS kind,
               left(a.message, $3) AS message, d.name AS "dependency?"
           FROM attr_states($1) a
           LEFT JOIN build_jobs k ON k.id = a.cause
           LEFT JOIN derivations d ON d.drv_path = k.drv_path
           WHERE a.state IN ('error', 'failed', 'dep-failed', 'cancelled')
           ORDER BY a.state = 'cancelled', coalesce(a.failure_kind IN ('infrastructure', 'unsupported'), false),
               a.state = 'dep-failed', a.error IS NOT NULL, a.attr
           LIMIT $2"#,
        eval,
        FAILURES_MAX as i64,
        ERROR_CHARS_MAX,
    )
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    rows.into_iter().map(AttrRow::into_report).collect()
}

/// These attributes, as far as the evaluation has them.
async fn read_attrs(connection: &mut PgConnection, eval: i64, attrs: &[String]) -> Result<Vec<AttrReport>, DbError> {
    let rows = sqlx::query_as!(
        AttrRow,
        r#"SELECT a.attr AS "attr!", left(a.error, $3) AS error, a.job_id AS job, a.state AS "state!", a.failure_kind AS kind,
               left(a.message, $3) AS message, d.name AS "dependency?"
           FROM attr_states($1) a
           LEFT JOIN build_jobs k ON k.id = a.cause
           LEFT JOIN derivations d ON d.drv_path = k.drv_path
           WHERE a.attr = ANY ($2)
           ORDER BY a.attr"#,
        eval,
        attrs,
        ERROR_CHARS_MAX,
    )
    .fetch_all(connection)
    .await
    .map_err(failed)?;
    rows.into_iter().map(AttrRow::into_report).collect()
}
