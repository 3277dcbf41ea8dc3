//! What it takes to use an evaluation's results for another commit with the same tree. Start at [`Db::reuse_key`];
//! `request_evaluation` (in `intake`) is what uses them. `migrations/functions/evaluations.sql`.

use std::time::Duration;

use harmonia_core::{ClaimToken, EvalId, Incarnation, NodeId, ProjectId, reuse};

use crate::connection::{Db, hash, incarnation, interval};
use crate::error::DbError;
use crate::queue::text;

impl Db {
    /// Says what of this evaluator decides what a tree evaluates to.
    pub async fn set_evaluator_engine(&self, node: &NodeId, run: Incarnation, engine: &str) -> Result<(), DbError> {
        self.run("record the engine", || {
            sqlx::query!("SELECT set_evaluator_engine($1, $2, $3)", node.0, incarnation(run), text(engine))
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// By which rules an evaluation was made, and whether something in it contains its commit's hash or date. `None`: not
    /// known, so it is never used again. To be said before it is finished.
    pub async fn set_evaluation_reuse(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        reuse_key: &str,
        embeds_commit: Option<bool>,
    ) -> Result<(), DbError> {
        self.run("record whether results depend on the commit", || {
            sqlx::query!(
                "SELECT set_evaluation_reuse($1, $2, $3, $4)",
                eval.0,
                hash(token),
                text(reuse_key),
                embeds_commit
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// The rules by which a commit would be evaluated now. `None` while nobody evaluates, or evaluators differ: then it
    /// depends on who takes it.
    pub async fn reuse_key(&self, silent_after: Duration) -> Result<Option<String>, DbError> {
        let engines = self
            .run("read the engines of evaluators", || {
                sqlx::query_scalar!(
                    r#"SELECT DISTINCT n.engine FROM nodes n
                       WHERE 'evaluator' = ANY (n.capabilities) AND NOT n.stopped AND n.last_seen > now() - $1::interval
                       LIMIT 2"#,
                    interval(silent_after)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let [Some(engine)] = engines.as_slice() else { return Ok(None) };
        let systems = self.builder_systems().await?;
        Ok(Some(reuse::key(engine, &systems)))
    }

    /// Of these commits, nearest first, the first whose newest evaluation has results, and the evaluation that has them.
    pub async fn evaluated_commit(
        &self,
        project: ProjectId,
        commits: &[String],
    ) -> Result<Option<(String, EvalId)>, DbError> {
        let row = self
            .run("look for an evaluated ancestor", || {
                sqlx::query!(
                    r#"SELECT c.sha AS "commit!", coalesce(e.reuses_eval_id, e.id) AS "id!"
                       FROM unnest($2::text[]) WITH ORDINALITY AS c (sha, place)
                       CROSS JOIN LATERAL (
                           SELECT n.id, n.reuses_eval_id, n.status, n.complete FROM evaluations n
                           WHERE n.project_id = $1 AND n.commit_sha = c.sha AND n.pr_number IS NULL
                               AND n.attrs_requested IS NULL AND NOT n.dirty
                           ORDER BY n.id DESC LIMIT 1) e
                       WHERE e.complete AND (e.status = 'succeeded' OR (e.status = 'skipped' AND e.reuses_eval_id IS NOT NULL))
                       ORDER BY c.place LIMIT 1"#,
                    project.0,
                    commits,
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        Ok(row.map(|row| (row.commit, EvalId(row.id))))
    }

    /// Ends an evaluation that shows the results of another one of its project. `false`: those are gone, evaluate.
    pub async fn skip_evaluation(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        reuses: EvalId,
        reason: &str,
    ) -> Result<bool, DbError> {
        let skipped = self
            .run("skip an evaluation", || {
                sqlx::query_scalar!(
                    r#"SELECT skip_evaluation($1, $2, $3, $4) AS "skipped!""#,
                    eval.0,
                    hash(token),
                    reuses.0,
                    text(reason)
                )
                .fetch_one(&self.pool)
            })
            .await?;
        self.finish_withdrawals_of(&[eval]).await;
        Ok(skipped)
    }
}
