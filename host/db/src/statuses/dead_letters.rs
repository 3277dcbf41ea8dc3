//! What could not be delivered, for people: statuses, comments, notifications. Start at [`Db::dead_letters`].

use harmonia_core::status::{DeadLetter, DeadLetterKind};

use crate::connection::Db;
use crate::error::{DbError, parse};

/// Most letters in one answer.
const LIMIT_MAX: u32 = 500;

impl Db {
    /// What was given up, newest first, and before it what has failed three times and is still tried.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, DbError> {
        let rows = self
            .run("list dead letters", || {
                sqlx::query!(
                    r#"SELECT kind AS "kind!", id AS "id!", target AS "target!", subject AS "subject!", last_error,
                           attempts AS "attempts!", dead_at, next_attempt_at AS "next_attempt_at!"
                       FROM (
                           SELECT 'status' AS kind, s.id, r.forge AS target,
                               format('%s %s %s', r.full_name, left(s.commit_sha, 12), s.context) AS subject,
                               s.last_error, s.attempts, s.dead_at, s.next_attempt_at
                           FROM commit_statuses s JOIN repositories r ON r.id = s.repository_id
                           WHERE s.dead_at IS NOT NULL OR (s.attempts >= 3 AND r.removed_at IS NULL
                               AND (s.ambiguous OR s.delivered_digest IS DISTINCT FROM s.desired_digest))
                           UNION ALL
                           SELECT 'comment', c.id, r.forge, format('%s #%s', r.full_name, c.number), c.last_error,
                               c.attempts, c.dead_at, c.next_attempt_at
                           FROM forge_comments c JOIN repositories r ON r.id = c.repository_id
                           WHERE c.dead_at IS NOT NULL OR (c.attempts >= 3 AND c.delivered_at IS NULL AND r.removed_at IS NULL)
                           UNION ALL
                           SELECT 'notification', o.id, o.reporter, format('%s %s', p.name, o.dedup_key), o.last_error,
                               o.attempts, o.dead_at, o.next_attempt_at
                           FROM outbox o JOIN projects p ON p.id = o.project_id
                           WHERE o.dead_at IS NOT NULL OR (o.attempts >= 3 AND o.delivered_at IS NULL)
                       ) l
                       ORDER BY dead_at DESC NULLS FIRST, id DESC LIMIT $1"#,
                    i64::from(limit.min(LIMIT_MAX))
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(DeadLetter {
                    kind: parse("kind of a dead letter", &row.kind)?,
                    id: row.id,
                    target: row.target,
                    subject: row.subject,
                    error: row.last_error,
                    attempts: u32::try_from(row.attempts).unwrap_or(0),
                    dead_at: row.dead_at,
                    next_attempt_at: row.next_attempt_at,
                })
            })
            .collect()
    }

    /// Tries a letter again, as if for the first time. `false`: there is none that is dead or has failed.
    pub async fn replay_dead_letter(&self, kind: DeadLetterKind, id: i64, by: &str) -> Result<bool, DbError> {
        let subject = format!("{kind} {id}");
        let replayed = match kind {
            DeadLetterKind::Status => {
                self.run("replay a status", || {
                    sqlx::query_scalar!(
                        r#"WITH replayed AS (
                               UPDATE commit_statuses SET dead_at = NULL, attempts = 0, next_attempt_at = now(), ambiguous = true
                               WHERE id = $1 AND (dead_at IS NOT NULL OR attempts > 0) RETURNING 1
                           ), noted AS (
                               INSERT INTO audit_log (actor, action, subject) SELECT $2, 'replay', $3 FROM replayed
                           ) SELECT count(*) AS "n!" FROM replayed"#,
                        id,
                        by,
                        subject
                    )
                    .fetch_one(&self.pool)
                })
                .await?
            }
            DeadLetterKind::Comment => {
                self.run("replay a comment", || {
                    sqlx::query_scalar!(
                        r#"WITH replayed AS (
                               UPDATE forge_comments SET dead_at = NULL, attempts = 0, next_attempt_at = now()
                               WHERE id = $1 AND delivered_at IS NULL AND (dead_at IS NOT NULL OR attempts > 0) RETURNING 1
                           ), noted AS (
                               INSERT INTO audit_log (actor, action, subject) SELECT $2, 'replay', $3 FROM replayed
                           ) SELECT count(*) AS "n!" FROM replayed"#,
                        id,
                        by,
                        subject
                    )
                    .fetch_one(&self.pool)
                })
                .await?
            }
            DeadLetterKind::Notification => {
                self.run("replay a notification", || {
                    sqlx::query_scalar!(
                        r#"WITH replayed AS (
                               UPDATE outbox SET dead_at = NULL, attempts = 0, next_attempt_at = now()
                               WHERE id = $1 AND delivered_at IS NULL AND (dead_at IS NOT NULL OR attempts > 0) RETURNING 1
                           ), noted AS (
                               INSERT INTO audit_log (actor, action, subject) SELECT $2, 'replay', $3 FROM replayed
                           ) SELECT count(*) AS "n!" FROM replayed"#,
                        id,
                        by,
                        subject
                    )
                    .fetch_one(&self.pool)
                })
                .await?
            }
        };
        Ok(replayed > 0)
    }
}
