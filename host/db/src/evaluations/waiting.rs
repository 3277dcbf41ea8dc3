//! Evaluations that are put off: what they need cannot be had now. `migrations/0004_evaluations.sql`.

use std::time::Duration;

use harmonia_core::{ClaimToken, EvalId};

use crate::connection::{Db, hash, interval};
use crate::error::DbError;
use crate::queue::text;

impl Db {
    /// Back to the queue, for nobody to take before `delay` is over. The jobs it reached stay wanted. `reason` is for
    /// people who ask why it waits.
    pub async fn defer_evaluation(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        delay: Duration,
        reason: &str,
    ) -> Result<(), DbError> {
        self.run("put off an evaluation", || {
            sqlx::query!("SELECT defer_evaluation($1, $2, $3, $4)", eval.0, hash(token), interval(delay), text(reason))
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
