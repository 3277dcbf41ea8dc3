//! What is due at forges, under a lease. Start at [`Db::claim_statuses`].
//!
//! When a lease ends without an answer, its holder is gone, nobody knows what the forge heard, and the status is asserted
//! twice.

use std::time::Duration;

use harmonia_core::NodeId;
use harmonia_core::forge::{CommitStatus, RepositoryRef};
use harmonia_core::status::delivery::Next;

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
use crate::queue::text;

/// After a lease that ended without an answer, the status is asserted once more so long after it was delivered: by then
/// the forge has processed what it may have heard late.
const ASSERT_AFTER: Duration = Duration::from_secs(30);

/// A status to be sent by the node that claimed it.
#[derive(Debug, Clone, PartialEq)]
pub struct DueStatus {
    /// Its row.
    pub id: i64,
    /// What to send.
    pub status: CommitStatus,
    /// Failed tries before.
    pub failures: u32,
    digest: Vec<u8>,
    lease: Lease,
}

/// How a try ended that was no success, and what is to be remembered of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// What follows.
    pub next: Next,
    /// What was said, for people.
    pub error: &'a str,
}

/// Whom a pause concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseKind {
    /// A forge.
    Forge,
    /// A reporter.
    Reporter,
}

impl PauseKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Forge => "forge",
            Self::Reporter => "reporter",
        }
    }
}

/// What an answer means for a row: delay of the next try, whether it counts as failed try, whether it may have happened, and
/// how it stands.
pub(crate) struct Consequence {
    pub(crate) after: Duration,
    pub(crate) counts: bool,
    pub(crate) is_ambiguous: bool,
    stands: Standing,
}

#[derive(PartialEq)]
enum Standing {
    Tried,
    /// Somebody has to change something first.
    Denied,
    GivenUp,
}

impl Consequence {
    pub(crate) fn of(next: Next) -> Self {
        let no = Self { after: Duration::ZERO, counts: true, is_ambiguous: false, stands: Standing::Tried };
        match next {
            Next::Again { after, is_ambiguous } => Self { after, is_ambiguous, ..no },
            Next::Denied { after } => Self { after, stands: Standing::Denied, ..no },
            Next::Pause { during } => Self { after: during, counts: false, ..no },
            Next::Dead => Self { stands: Standing::GivenUp, ..no },
        }
    }

    pub(crate) fn is_denied(&self) -> bool {
        self.stands == Standing::Denied
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.stands == Standing::GivenUp
    }
}

impl Db {
    /// Takes up to `limit` statuses that are due at this forge, unless it asked to be left alone. Nobody else gets them
    /// until `lease` has passed.
    pub async fn claim_statuses(
        &self,
        node: &NodeId,
        forge: &str,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<DueStatus>, DbError> {
        let name = Lease::new(node);
        let rows = take!(
            self, "claim statuses", statuses, name, lease, limit,
            {
                of: ", r.external_id, r.full_name",
                joins: "JOIN repositories r ON r.id = d.repository_id",
                if: "d.dead_at IS NULL AND (d.ambiguous OR d.delivered_digest IS DISTINCT FROM d.desired_digest)
                    AND d.next_attempt_at <= now() AND r.forge = $4 AND r.removed_at IS NULL AND NOT is_paused('forge', $4)",
                order: "d.next_attempt_at, d.id",
                set: ", asserts = CASE WHEN q.leased_by IS NULL THEN q.asserts ELSE 1 END",
                get: "q.id, q.commit_sha, q.context, q.desired_state, q.desired_description, q.desired_url, q.desired_summary,
                    q.desired_annotations, q.desired_started_at, q.desired_finished_at, q.desired_digest, q.attempts,
                    due.external_id, due.full_name"
            },
            forge,
        )?;
        rows.into_iter()
            .map(|row| {
                let corrupt = |what: &str| DbError::Corrupt { what: format!("{what} of status {}", row.id) };
                let status = CommitStatus {
                    repository: RepositoryRef { id: row.external_id, full_name: row.full_name },
                    commit: row.commit_sha,
                    context: row.context,
                    state: row.desired_state.parse().map_err(|()| corrupt("state"))?,
                    description: row.desired_description,
                    target_url: row.desired_url,
                    summary: row.desired_summary,
                    annotations: serde_json::from_value(row.desired_annotations).map_err(|_| corrupt("annotations"))?,
                    started_at: row.desired_started_at,
                    finished_at: row.desired_finished_at,
                };
                let failures = u32::try_from(row.attempts).unwrap_or(0);
                Ok(DueStatus { id: row.id, status, failures, digest: row.desired_digest, lease: name.clone() })
            })
            .collect()
    }

    /// The forge has it. `false`: the lease was lost, so that it will be asserted again.
    pub async fn status_delivered(&self, due: &DueStatus) -> Result<bool, DbError> {
        let stored = end!(
            self,
            "store that a status was delivered",
            statuses,
            (due.id, due.lease),
            "delivered_digest = $3, delivered_state = $4, delivered_description = $5, delivered_url = $6,
                delivered_at = now(), attempts = 0, last_error = NULL, denied = false, ambiguous = asserts > 0,
                asserts = greatest(asserts - 1, 0), next_attempt_at = CASE WHEN asserts > 0 AND desired_digest = $3
                    THEN now() + $7 ELSE next_attempt_at END",
            due.digest,
            due.status.state.as_str(),
            due.status.description,
            due.status.target_url.as_deref(),
            interval(ASSERT_AFTER)
        )?;
        if !stored {
            self.status_doubtful(due).await?;
        }
        Ok(stored)
    }

    /// The forge said no, or nothing. `false`: the lease was lost.
    pub async fn status_failed(&self, due: &DueStatus, answer: Answer<'_>) -> Result<bool, DbError> {
        let then = Consequence::of(answer.next);
        // What was refused for good may have changed meanwhile.
        let stored = end!(
            self,
            "store that a status was not delivered",
            statuses,
            (due.id, due.lease),
            "last_error = left($3, 2000), attempts = attempts + $4, ambiguous = ambiguous OR $5,
                next_attempt_at = now() + $6, dead_at = CASE WHEN $7 AND desired_digest = $8 THEN now() END, denied = $9",
            text(answer.error),
            i32::from(then.counts),
            then.is_ambiguous,
            interval(then.after),
            then.is_dead(),
            due.digest,
            then.is_denied(),
        )?;
        if !stored {
            self.status_doubtful(due).await?;
        }
        Ok(stored)
    }

    /// Somebody sent this without holding the lease any more.
    async fn status_doubtful(&self, due: &DueStatus) -> Result<(), DbError> {
        self.run("store that a status is in doubt", || {
            sqlx::query!("UPDATE commit_statuses SET ambiguous = true, asserts = 1 WHERE id = $1", due.id)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Nothing is sent there for so long.
    pub async fn pause_deliveries(
        &self,
        kind: PauseKind,
        name: &str,
        during: Duration,
        reason: &str,
    ) -> Result<(), DbError> {
        self.run("leave a forge or reporter alone", || {
            sqlx::query!(
                "INSERT INTO delivery_pauses AS p (kind, name, until, reason) VALUES ($1, $2, now() + $3, left($4, 2000))
                 ON CONFLICT (kind, name) DO UPDATE SET until = greatest(p.until, excluded.until), reason = excluded.reason",
                kind.as_str(),
                name,
                interval(during),
                text(reason)
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
