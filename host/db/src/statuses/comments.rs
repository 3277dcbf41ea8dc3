//! Comments that pull requests are owed. Start at [`Db::claim_comments`].

use std::time::Duration;

use harmonia_core::NodeId;
use harmonia_core::forge::RepositoryRef;

use super::Answer;
use super::delivery::Consequence;
use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
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
    lease: Lease,
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
        let name = Lease::new(node);
        let rows = take!(
            self, "claim comments", comments, name, lease, limit,
            {
                of: ", r.external_id, r.full_name",
                joins: "JOIN repositories r ON r.id = d.repository_id",
                if: "d.delivered_at IS NULL AND d.dead_at IS NULL AND d.next_attempt_at <= now() AND r.forge = $4
                    AND r.removed_at IS NULL AND NOT is_paused('forge', $4)
                    AND NOT EXISTS (SELECT FROM forge_comments e
                        WHERE e.repository_id = d.repository_id AND e.number = d.number AND e.id < d.id
                            AND e.delivered_at IS NULL AND e.dead_at IS NULL)",
                order: "d.next_attempt_at, d.id",
                set: "",
                get: "q.id, q.number, q.key, q.body, q.attempts, due.external_id, due.full_name"
            },
            forge,
        )?;
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
        end!(
            self,
            "store that a comment was delivered",
            comments,
            (comment.id, comment.lease),
            "delivered_at = now(), last_error = NULL"
        )
    }

    /// The forge said no, or nothing. `false`: the lease was lost.
    pub async fn comment_failed(&self, comment: &OwedComment, answer: Answer<'_>) -> Result<bool, DbError> {
        let then = Consequence::of(answer.next);
        end!(
            self,
            "store that a comment was not delivered",
            comments,
            (comment.id, comment.lease),
            "last_error = left($3, 2000), attempts = attempts + $4, next_attempt_at = now() + $5,
                dead_at = CASE WHEN $6 THEN now() END, denied = $7",
            text(answer.error),
            i32::from(then.counts),
            interval(then.after),
            then.is_dead(),
            then.is_denied(),
        )
    }
}
