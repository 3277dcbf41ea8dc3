//! What could not be delivered, for people: statuses, comments, notifications. Start at [`Db::dead_letters`] (all of them)
//! and [`Db::view_dead_letters`] (a page for everybody: only what concerns public repositories alone).

use std::cmp::Reverse;

use harmonia_core::status::{DeadLetter, DeadLetterKind};

use crate::connection::Db;
use crate::error::DbError;
use crate::views::forges::{LOOKED_AT_MAX, PAGE_MAX, PageOf};

/// Most letters in one answer.
const LIMIT_MAX: u32 = 500;

/// What is still owed, where it is to go, and who may see it: hands those to `$then!`, with its own arguments first. `q` is
/// the row. What waits for a repository that is gone is no letter.
macro_rules! letters {
    ($kind:expr, $then:ident, $($argument:tt)*) => {
        match $kind {
            DeadLetterKind::Status => $then!($($argument)*, "commit_statuses",
                "(q.ambiguous OR q.delivered_digest IS DISTINCT FROM q.desired_digest)", ", ambiguous = true",
                "r.forge", "format('%s %s %s', r.full_name, left(q.commit_sha, 12), q.context)",
                "JOIN repositories r ON r.id = q.repository_id AND (q.dead_at IS NOT NULL OR r.removed_at IS NULL)",
                "NOT r.is_private AND r.removed_at IS NULL
                    AND EXISTS (SELECT FROM projects p WHERE p.repository_id = r.id AND p.is_public)"),
            DeadLetterKind::Comment => $then!($($argument)*, "forge_comments",
                "q.delivered_at IS NULL", "",
                "r.forge", "format('%s #%s', r.full_name, q.number)",
                "JOIN repositories r ON r.id = q.repository_id AND (q.dead_at IS NOT NULL OR r.removed_at IS NULL)",
                "NOT r.is_private AND r.removed_at IS NULL
                    AND EXISTS (SELECT FROM projects p WHERE p.repository_id = r.id AND p.is_public)"),
            DeadLetterKind::Notification => $then!($($argument)*, "outbox",
                "q.delivered_at IS NULL", "",
                "q.reporter", "format('%s %s', p.name, q.dedup_key)",
                "JOIN projects p ON p.id = q.project_id",
                "p.is_public"),
        }
    };
}

/// A page of letters. Rows are fetched one by one, which keeps the planner from walking over all of them.
macro_rules! page {
    ($db:ident, $before:expr, $limit:expr, $all:expr, $row:ident => $each:block, $table:literal, $owed:literal,
        $replayed:literal, $target:literal, $subject:literal, $joins:literal, $public:literal) => {
        for $row in $db
            .run("list dead letters", || {
                sqlx::query!(
                    "WITH looked AS MATERIALIZED (
                         SELECT id FROM (
                             (SELECT id FROM " + $table + " WHERE dead_at IS NOT NULL AND id < $1 ORDER BY id DESC LIMIT $2)
                             UNION ALL
                             (SELECT id FROM " + $table + " q WHERE dead_at IS NULL AND (attempts >= 3 OR denied) AND id < $1
                                 AND " + $owed + " ORDER BY id DESC LIMIT $2)
                         ) AS found ORDER BY id DESC LIMIT $2
                     )
                     SELECT l.looked_at AS \"looked_at!\", l.last, v.id AS \"id?\", v.target AS \"target?\",
                         v.subject AS \"subject?\", v.last_error AS \"last_error?\", v.attempts AS \"attempts?\",
                         v.dead_at AS \"dead_at?\", v.next_attempt_at AS \"next_attempt_at?\"
                     FROM (SELECT count(*) AS looked_at, min(id) AS last FROM looked) l
                     LEFT JOIN LATERAL (
                         SELECT q.id, " + $target + " AS target, " + $subject + " AS subject, q.last_error, q.attempts,
                             q.dead_at, q.next_attempt_at
                         FROM (SELECT id FROM looked ORDER BY id DESC) n
                         CROSS JOIN LATERAL (SELECT t.* FROM " + $table + " t WHERE t.id = n.id LIMIT 1) q
                         " + $joins + " WHERE $4 OR (" + $public + ") ORDER BY n.id DESC LIMIT $3
                     ) v ON true ORDER BY v.id DESC",
                    $before,
                    LOOKED_AT_MAX,
                    i64::from($limit),
                    $all
                )
                .fetch_all(&$db.pool)
            })
            .await?
        $each
    };
}

/// Tries a letter again. Gives how many there were.
macro_rules! replay {
    ($db:ident, $id:expr, $by:expr, $subject:expr, $table:literal, $owed:literal, $replayed:literal, $target:literal,
        $title:literal, $joins:literal, $public:literal) => {
        $db.run("replay a dead letter", || {
            sqlx::query_scalar!(
                "WITH replayed AS (
                     UPDATE "
                    + $table
                    + " q SET dead_at = NULL, attempts = 0, denied = false, next_attempt_at = now()"
                    + $replayed
                    + "
                     WHERE id = $1 AND (dead_at IS NOT NULL OR attempts > 0) AND "
                    + $owed
                    + " RETURNING 1
                 ), noted AS (
                     INSERT INTO audit_log (actor, action, subject) SELECT $2, 'replay', $3 FROM replayed
                 ) SELECT count(*) AS \"n!\" FROM replayed",
                $id,
                $by,
                $subject
            )
            .fetch_one(&$db.pool)
        })
        .await
    };
}

impl Db {
    /// What was given up, and what was denied or has failed three times and is still tried, of all kinds: what is still
    /// tried first, then what was given up last.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, DbError> {
        let limit = limit.min(LIMIT_MAX);
        let mut letters = Vec::new();
        for kind in DeadLetterKind::ALL {
            letters.extend(self.letters(kind, None, limit, true).await?.rows);
        }
        letters.sort_by_key(|letter| (letter.dead_at.is_some(), Reverse((letter.dead_at, letter.id))));
        letters.truncate(limit as usize);
        Ok(letters)
    }

    /// Letters of one kind below `before`, the newest first: what was given up, and what was denied or has failed three times
    /// and is still tried. A page looks at so many rows and no more, whatever is hidden among them.
    pub async fn view_dead_letters(
        &self,
        kind: DeadLetterKind,
        before: Option<i64>,
        limit: u32,
    ) -> Result<PageOf<DeadLetter>, DbError> {
        self.letters(kind, before, limit.clamp(1, PAGE_MAX), false).await
    }

    async fn letters(
        &self,
        kind: DeadLetterKind,
        before: Option<i64>,
        limit: u32,
        all: bool,
    ) -> Result<PageOf<DeadLetter>, DbError> {
        let before = before.unwrap_or(i64::MAX);
        let (mut rows, mut looked_at, mut last) = (Vec::new(), 0, None);
        letters!(kind, page, self, before, limit, all, row => {
            (looked_at, last) = (row.looked_at, row.last);
            let (Some(id), Some(target), Some(subject)) = (row.id, row.target, row.subject) else { continue };
            let Some(next_attempt_at) = row.next_attempt_at else { continue };
            let attempts = row.attempts.map_or(0, |attempts| u32::try_from(attempts).unwrap_or(0));
            let (error, dead_at) = (row.last_error, row.dead_at);
            rows.push(DeadLetter { kind, id, target, subject, error, attempts, dead_at, next_attempt_at });
        });
        Ok(PageOf::new(rows, limit, looked_at, last, |letter| letter.id))
    }

    /// Tries a letter again, as if for the first time. `false`: there is none that is dead or has failed.
    pub async fn replay_dead_letter(&self, kind: DeadLetterKind, id: i64, by: &str) -> Result<bool, DbError> {
        let subject = format!("{kind} {id}");
        let replayed: Result<i64, DbError> = letters!(kind, replay, self, id, by, subject);
        Ok(replayed? > 0)
    }
}
