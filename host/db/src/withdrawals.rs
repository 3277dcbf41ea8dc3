//! Jobs that nobody wants any more go in batches, each a transaction: start at [`Db::finish_withdrawals`]. Whoever takes interest
//! away (`queue`, `evaluations`, `intake`) goes on until its own are over; the chores go on where somebody crashed.
//! `migrations/functions/withdrawals.sql`, decision 0019.

use harmonia_core::{EvalId, chain};

use crate::connection::Db;
use crate::error::DbError;

/// Jobs that one transaction looks at: what somebody who needs one of them may have to wait for. (`stays_wanted` and
/// `register_node` have it, too.)
pub(crate) const BATCH: usize = 250;

impl Db {
    /// Goes on with all withdrawals until they are over. Returns how many jobs it cancelled.
    pub async fn finish_withdrawals(&self) -> Result<u64, DbError> {
        let ids = self
            .run("look for withdrawals", || {
                sqlx::query_scalar!("SELECT id FROM withdrawals ORDER BY id").fetch_all(&self.pool)
            })
            .await?;
        let mut cancelled = 0;
        for id in ids {
            cancelled += self.finish_withdrawal(id).await?;
        }
        Ok(cancelled)
    }

    /// Goes on with one until it is over.
    pub(crate) async fn finish_withdrawal(&self, id: i64) -> Result<u64, DbError> {
        let mut cancelled = 0;
        loop {
            let row = self
                .run("cancel what nobody wants any more", || {
                    sqlx::query!(
                        r#"SELECT cancelled AS "cancelled!", is_over AS "is_over!" FROM withdraw_some($1, $2)"#,
                        id,
                        BATCH as i32
                    )
                    .fetch_one(&self.pool)
                })
                .await?;
            cancelled += row.cancelled as u64;
            if row.is_over {
                return Ok(cancelled);
            }
        }
    }

    /// What these evaluations do not want any more goes. Their change is done and stays so: if this does not come to its end, the
    /// chores go on with it. Returns how many jobs it cancelled.
    pub(crate) async fn finish_withdrawals_of(&self, evaluations: &[EvalId]) -> u64 {
        let evaluations: Vec<i64> = evaluations.iter().map(|evaluation| evaluation.0).collect();
        if evaluations.is_empty() {
            return 0;
        }
        let ids = self
            .run("look for withdrawals of evaluations", || {
                sqlx::query_scalar!("SELECT id FROM withdrawals WHERE eval_id = ANY ($1) ORDER BY id", &evaluations)
                    .fetch_all(&self.pool)
            })
            .await;
        let mut cancelled = 0;
        let finished = async {
            for id in ids? {
                cancelled += self.finish_withdrawal(id).await?;
            }
            Ok(())
        };
        left_to_the_chores(finished.await);
        cancelled
    }

    /// What a change that is done left to be withdrawn goes now, if nothing comes in between.
    pub(crate) async fn go_on_with_withdrawals(&self) {
        left_to_the_chores(self.finish_withdrawals().await.map(|_| ()));
    }
}

fn left_to_the_chores(finished: Result<(), DbError>) {
    if let Err(error) = finished {
        tracing::warn!(
            error = %chain(&error),
            "Jobs that nobody wants any more are not all cancelled yet; the chores go on with them"
        );
    }
}
