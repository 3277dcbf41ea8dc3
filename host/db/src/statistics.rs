//! Figures over the whole history of attempts. They read the whole table: for operators and tests, not for pages.

use crate::connection::Db;
use crate::error::DbError;

/// How the attempts of all times ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptStatistics {
    /// All attempts.
    pub total: u64,
    /// Those whose outputs were accepted.
    pub succeeded: u64,
    /// Jobs that more than one attempt succeeded for: work done twice, unless a lost output was healed.
    pub jobs_built_twice: u64,
}

impl Db {
    /// Counts all attempts.
    pub async fn attempt_statistics(&self) -> Result<AttemptStatistics, DbError> {
        let row = self
            .run("count the attempts", || {
                sqlx::query!(
                    r#"SELECT count(*) AS "total!", count(*) FILTER (WHERE outcome = 'succeeded') AS "succeeded!",
                           count(*) FILTER (WHERE outcome = 'succeeded')
                               - count(DISTINCT job_id) FILTER (WHERE outcome = 'succeeded') AS "again!"
                       FROM build_attempts"#
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(AttemptStatistics {
            total: count(row.total),
            succeeded: count(row.succeeded),
            jobs_built_twice: count(row.again),
        })
    }
}
