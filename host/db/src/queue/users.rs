//! What people do to jobs: rebuild and cancel. `by` goes into the audit log.

use harmonia_core::{EvalId, JobId};

use crate::connection::Db;
use crate::error::DbError;

impl Db {
    /// Makes a failed, dep-failed or cancelled job pending at priority 100, with what it failed for below it and what is
    /// dep-failed above it. Returns how many jobs changed; 0 when the job is in no such state.
    pub async fn rebuild_job(&self, job: JobId, by: &str) -> Result<u64, DbError> {
        let exists = self
            .run("look up a job", || {
                sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM build_jobs WHERE id = $1) AS "exists!""#, job.0)
                    .fetch_one(&self.pool)
            })
            .await?;
        if !exists {
            return Err(DbError::NotFound { what: ["job ", &job.to_string()].concat() });
        }
        self.run("rebuild a job", || {
            sqlx::query_scalar!(r#"SELECT rebuild_jobs($1, $2) AS "jobs!""#, &[job.0][..], by).fetch_one(&self.pool)
        })
        .await
        .map(|jobs| jobs as u64)
    }

    /// As [`Self::rebuild_job`] for every attribute of an evaluation that failed, is dep-failed or was cancelled.
    pub async fn rebuild_failed(&self, evaluation: EvalId, by: &str) -> Result<u64, DbError> {
        self.run("rebuild failed jobs", || {
            sqlx::query_scalar!(r#"SELECT rebuild_failed($1, $2) AS "jobs!""#, evaluation.0, by).fetch_one(&self.pool)
        })
        .await
        .map(|jobs| jobs as u64)
    }

    /// Cancels an unfinished job, what waits for it, and what was only needed for it, in batches from the top down. Refused when
    /// evaluations of more than one branch or project want it. Returns how many jobs changed.
    pub async fn cancel_job(&self, job: JobId, by: &str) -> Result<u64, DbError> {
        let withdrawal = self
            .run("cancel a job", || {
                sqlx::query_scalar!(r#"SELECT cancel_job($1, $2) AS withdrawal"#, job.0, by).fetch_one(&self.pool)
            })
            .await?;
        match withdrawal {
            Some(withdrawal) => self.finish_withdrawal(withdrawal).await,
            None => Ok(0),
        }
    }

    /// Cancels an evaluation, at once, and then every unfinished job that no other live evaluation wants, in batches. Returns how
    /// many rows changed (the evaluation counts as one); 0 when it was over.
    pub async fn cancel_evaluation(&self, evaluation: EvalId, by: &str) -> Result<u64, DbError> {
        let was_live = self
            .run("cancel an evaluation", || {
                sqlx::query_scalar!(r#"SELECT cancel_evaluation($1, $2) AS "was_live!""#, evaluation.0, by)
                    .fetch_one(&self.pool)
            })
            .await?;
        Ok(if was_live { 1 + self.finish_withdrawals_of(&[evaluation]).await } else { 0 })
    }
}
