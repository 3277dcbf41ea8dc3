//! Limits of builds in projects that have none of their own.

use crate::connection::Db;
use crate::error::DbError;
use crate::queue::{JobLimits, size};

impl Db {
    /// Says whether projects without a forge are public, unless somebody said otherwise of one: those that are, and those to
    /// come. The last frontend that starts decides. Returns how many turned.
    pub async fn set_local_visibility(&self, public: bool) -> Result<u64, DbError> {
        self.run("store who may see projects without a forge", || {
            sqlx::query_scalar!(r#"SELECT set_local_visibility($1) AS "turned!""#, public).fetch_one(&self.pool)
        })
        .await
        .map(|turned| turned as u64)
    }

    /// Sets the limits for jobs inserted from now on by projects without limits of their own. They hold for the whole
    /// cluster: the last frontend that starts decides. Refused when one of them is 0.
    pub async fn set_default_limits(&self, limits: &JobLimits) -> Result<(), DbError> {
        let JobLimits { timeout_s, max_silent_s, output_bytes_max, log_bytes_max } = *limits;
        if [timeout_s, max_silent_s, output_bytes_max, log_bytes_max].contains(&0) {
            return Err(DbError::Refused { reason: "every limit of builds must be more than 0".to_owned() });
        }
        self.run("store the limits of builds", || {
            sqlx::query!(
                "UPDATE default_limits SET timeout_s = $1, max_silent_s = $2, output_bytes_max = $3, log_bytes_max = $4",
                size(timeout_s),
                size(max_silent_s),
                size(output_bytes_max),
                size(log_bytes_max)
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
