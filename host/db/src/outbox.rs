//! Notifications to reporters: a durable outbox, filled in the transaction that finds what is to be told
//! ([`Db::compute_report`]), emptied in order. Start at [`Db::claim_notifications`].

use std::time::Duration;

use harmonia_core::reporter::Notification;
use harmonia_core::status::NewNotifications;
use harmonia_core::{NodeId, ProjectId};
use sqlx::PgConnection;

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
use crate::queue::text;
use crate::statuses::{Answer, Consequence};

/// A notification to be sent by the node that claimed it.
#[derive(Debug, Clone, PartialEq)]
pub struct DueNotification {
    /// Its row.
    pub id: i64,
    /// What to tell.
    pub notification: Notification,
    /// Failed tries before.
    pub failures: u32,
    lease: Lease,
}

/// Remembers what is told of an evaluation, with a row for each reporter. Returns how many rows are new.
pub(crate) async fn tell(
    connection: &mut PgConnection,
    project: ProjectId,
    now: &NewNotifications,
    reporters: &[String],
) -> Result<u64, DbError> {
    let failed = |error| DbError::from_sqlx("fill the outbox", error);
    sqlx::query!(
        "INSERT INTO evaluation_notifications (eval_id, evaluation, builds, rounds) VALUES ($1, $2, $3, $4)
         ON CONFLICT (eval_id) DO UPDATE SET evaluation = excluded.evaluation, builds = excluded.builds, rounds = excluded.rounds",
        now.evaluation.0,
        now.notified.evaluation,
        now.notified.builds,
        i32::try_from(now.notified.rounds).unwrap_or(i32::MAX),
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
        let name = Lease::new(node);
        let rows = take!(
            self, "claim notifications", notifications, name, lease, limit,
            {
                of: "", joins: "",
                if: "d.reporter = $4 AND d.delivered_at IS NULL AND d.dead_at IS NULL AND d.next_attempt_at <= now()
                    AND NOT is_paused('reporter', $4)
                    AND NOT EXISTS (SELECT FROM outbox e
                        WHERE e.reporter = $4 AND e.project_id = d.project_id AND e.id < d.id
                            AND e.delivered_at IS NULL AND e.dead_at IS NULL)",
                order: "d.id",
                set: "",
                get: "q.id, q.payload, q.attempts"
            },
            reporter,
        )?;
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
        end!(
            self,
            "store that a notification was delivered",
            notifications,
            (due.id, due.lease),
            "delivered_at = now(), last_error = NULL"
        )
    }

    /// The reporter said no, or nothing. `false`: the lease was lost.
    pub async fn notification_failed(&self, due: &DueNotification, answer: Answer<'_>) -> Result<bool, DbError> {
        let then = Consequence::of(answer.next);
        end!(
            self,
            "store that a notification was not delivered",
            notifications,
            (due.id, due.lease),
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
