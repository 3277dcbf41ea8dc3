//! Notifications to reporters: a durable outbox, filled in the transaction that finds what is to be told
//! ([`Db::compute_report`]), emptied in order. Start at [`Db::claim_notifications`].

use std::time::Duration;

use harmonia_core::reporter::Notification;
use harmonia_core::status::ToldNow;
use harmonia_core::{NodeId, ProjectId};
use sqlx::PgConnection;

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::queue::text;
use crate::statuses::{Answer, Consequence, new_lease};

/// A notification to be sent by the node that claimed it.
#[derive(Debug, Clone, PartialEq)]
pub struct DueNotification {
    /// Its row.
    pub id: i64,
    /// What to tell.
    pub notification: Notification,
    /// Failed tries before.
    pub failures: u32,
    lease: String,
}

/// Remembers what is told of an evaluation, with a row for each reporter. Returns how many rows are new.
pub(crate) async fn tell(
    connection: &mut PgConnection,
    project: ProjectId,
    now: &ToldNow,
    reporters: &[String],
) -> Result<u64, DbError> {
    let failed = |error| DbError::from_sqlx("fill the outbox", error);
    sqlx::query!(
        "INSERT INTO evaluations_told (eval_id, evaluation, builds, rounds) VALUES ($1, $2, $3, $4)
         ON CONFLICT (eval_id) DO UPDATE SET evaluation = excluded.evaluation, builds = excluded.builds, rounds = excluded.rounds",
        now.evaluation.0,
        now.told.evaluation,
        now.told.builds,
        i32::try_from(now.told.rounds).unwrap_or(i32::MAX),
    )
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    let mut rows = 0;
    for notification in &now.notifications {
        let payload = serde_json::to_value(notification)
            .map_err(|_| DbError::Corrupt { what: "a notification that is no JSON".to_owned() })?;
        let inserted = sqlx::query!(
            "INSERT INTO outbox (reporter, project_id, dedup_key, payload)
             SELECT reporter, $2, $3, $4 FROM unnest($1::text[]) AS reporter
             ON CONFLICT (reporter, dedup_key) DO NOTHING",
            reporters,
            project.0,
            notification.key,
            payload,
        )
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
        rows += inserted.rows_affected();
    }
    Ok(rows)
}

impl Db {
    /// Takes up to `limit` notifications that are due at this reporter: of each project the oldest that is neither
    /// delivered nor given up, so that none overtakes another.
    pub async fn claim_notifications(
        &self,
        node: &NodeId,
        reporter: &str,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<DueNotification>, DbError> {
        let name = new_lease(node);
        let rows = self
            .run("claim notifications", || {
                sqlx::query!(
                    "UPDATE outbox o SET leased_by = $1, leased_until = now() + $2
                     WHERE o.id IN (
                         SELECT d.id FROM outbox d
                         WHERE d.reporter = $3 AND d.delivered_at IS NULL AND d.dead_at IS NULL
                             AND d.next_attempt_at <= now() AND (d.leased_until IS NULL OR d.leased_until <= now())
                             AND NOT EXISTS (SELECT FROM delivery_pauses p
                                 WHERE p.kind = 'reporter' AND p.name = $3 AND p.until > now())
                             AND NOT EXISTS (SELECT FROM outbox e
                                 WHERE e.reporter = $3 AND e.project_id = d.project_id AND e.id < d.id
                                     AND e.delivered_at IS NULL AND e.dead_at IS NULL)
                         ORDER BY d.id LIMIT $4
                         FOR NO KEY UPDATE OF d SKIP LOCKED)
                     RETURNING o.id, o.payload, o.attempts",
                    name,
                    interval(lease),
                    reporter,
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(DueNotification {
                    id: row.id,
                    notification: serde_json::from_value(row.payload)
                        .map_err(|_| DbError::Corrupt { what: format!("payload of notification {}", row.id) })?,
                    failures: u32::try_from(row.attempts).unwrap_or(0),
                    lease: name.clone(),
                })
            })
            .collect()
    }

    /// The reporter has it. `false`: the lease was lost, and another node tells it again under the same key.
    pub async fn notification_delivered(&self, due: &DueNotification) -> Result<bool, DbError> {
        self.run("store that a notification was delivered", || {
            sqlx::query!(
                "UPDATE outbox SET delivered_at = now(), last_error = NULL, leased_by = NULL, leased_until = NULL
                 WHERE id = $1 AND leased_by = $2",
                due.id,
                due.lease
            )
            .execute(&self.pool)
        })
        .await
        .map(|done| done.rows_affected() == 1)
    }

    /// The reporter said no, or nothing. `false`: the lease was lost.
    pub async fn notification_failed(&self, due: &DueNotification, answer: Answer<'_>) -> Result<bool, DbError> {
        let then = Consequence::of(answer.next);
        self.run("store that a notification was not delivered", || {
            sqlx::query!(
                "UPDATE outbox SET last_error = left($3, 2000), attempts = attempts + $4, next_attempt_at = now() + $5,
                     dead_at = CASE WHEN $6 THEN now() END, leased_by = NULL, leased_until = NULL
                 WHERE id = $1 AND leased_by = $2",
                due.id,
                due.lease,
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
