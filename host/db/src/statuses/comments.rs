//! Comments that pull requests are owed. Start at [`Db::claim_comments`].

use std::time::Duration;

use harmonia_core::NodeId;
use harmonia_core::forge::RepositoryRef;

use super::Answer;
use super::delivery::{Consequence, new_lease};
use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::queue::text;

/// A comment to be sent by the node that claimed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedComment {
    /// Its row.
    pub id: i64,
    /// Where.
    pub repository: RepositoryRef,
    /// The pull request.
    pub number: u64,
    /// The forge writes a comment with this key once.
    pub key: String,
    /// What it says.
    pub body: String,
    /// Failed tries before.
    pub failures: u32,
    lease: String,
}

impl Db {
    /// Takes up to `limit` comments that are due at this forge, of each pull request the oldest.
    pub async fn claim_comments(
        &self,
        node: &NodeId,
        forge: &str,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<OwedComment>, DbError> {
        let name = new_lease(node);
        let rows = self
            .run("claim comments", || {
                sqlx::query!(
                    "UPDATE forge_comments c SET leased_by = $1, leased_until = now() + $2
                     FROM (
                         SELECT d.id, r.external_id, r.full_name FROM forge_comments d
                         JOIN repositories r ON r.id = d.repository_id
                         WHERE d.delivered_at IS NULL AND d.dead_at IS NULL AND d.next_attempt_at <= now()
                             AND (d.leased_until IS NULL OR d.leased_until <= now())
                             AND r.forge = $3 AND r.removed_at IS NULL
                             AND NOT EXISTS (SELECT FROM delivery_pauses p
                                 WHERE p.kind = 'forge' AND p.name = $3 AND p.until > now())
                             AND NOT EXISTS (SELECT FROM forge_comments e
                                 WHERE e.repository_id = d.repository_id AND e.number = d.number AND e.id < d.id
                                     AND e.delivered_at IS NULL AND e.dead_at IS NULL)
                         ORDER BY d.next_attempt_at, d.id LIMIT $4
                         FOR NO KEY UPDATE OF d SKIP LOCKED
                     ) due
                     WHERE c.id = due.id
                     RETURNING c.id, c.number, c.key, c.body, c.attempts, due.external_id, due.full_name",
                    name,
                    interval(lease),
                    forge,
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let comments = rows.into_iter().map(|row| OwedComment {
            id: row.id,
            repository: RepositoryRef { id: row.external_id, full_name: row.full_name },
            number: u64::try_from(row.number).unwrap_or(0),
            key: row.key,
            body: row.body,
            failures: u32::try_from(row.attempts).unwrap_or(0),
            lease: name.clone(),
        });
        Ok(comments.collect())
    }

    /// The forge has it. `false`: the lease was lost, and another node asks the forge again, which has it once.
    pub async fn comment_delivered(&self, comment: &OwedComment) -> Result<bool, DbError> {
        self.run("store that a comment was delivered", || {
            sqlx::query!(
                "UPDATE forge_comments SET delivered_at = now(), last_error = NULL, leased_by = NULL, leased_until = NULL
                 WHERE id = $1 AND leased_by = $2",
                comment.id,
                comment.lease
            )
            .execute(&self.pool)
        })
        .await
        .map(|done| done.rows_affected() == 1)
    }

    /// The forge said no, or nothing. `false`: the lease was lost.
    pub async fn comment_failed(&self, comment: &OwedComment, answer: Answer<'_>) -> Result<bool, DbError> {
        let then = Consequence::of(answer.next);
        self.run("store that a comment was not delivered", || {
            sqlx::query!(
                "UPDATE forge_comments SET last_error = left($3, 2000), attempts = attempts + $4, next_attempt_at = now() + $5,
                     dead_at = CASE WHEN $6 THEN now() END, leased_by = NULL, leased_until = NULL
                 WHERE id = $1 AND leased_by = $2",
                comment.id,
                comment.lease,
                text(answer.error),
                i32::from(then.counts),
                interval(then.after),
                then.is_dead,
            )
            .execute(&self.pool)
        })
        .await
        .map(|done| done.rows_affected() == 1)
    }
}
