//! Deliveries of forges: recorded once while the forge waits ([`Db::record_delivery`]), processed later under a lease
//! ([`Db::claim_deliveries`]), kept for the list of recent ones. The table is its own queue. The statement that records
//! is in `migrations/functions/intake.sql`.

use std::collections::BTreeSet;
use std::time::Duration;

use harmonia_core::api::DeliveryInfo;
use harmonia_core::forge::{Delivery, Event, PullRequestEvent, RepositoryRef};
use harmonia_core::{NodeId, Timestamp};
use serde_json::Value;

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
use crate::queue::text;

/// Most names of repositories kept for the list of recent deliveries.
const NAMES_MAX: usize = 20;
/// Longest text kept of an outcome or an error, in characters.
const OUTCOME_CHARS_MAX: usize = 2_000;
/// Most deliveries in one list.
const LIST_MAX: u32 = 200;

/// A row of `webhook_deliveries`. Ids grow in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryRowId(pub i64);

/// A delivery to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct NewDelivery<'a> {
    /// The forge's configured name.
    pub forge: &'a str,
    /// What it says, verified.
    pub delivery: &'a Delivery,
    /// How long it took to verify, in milliseconds.
    pub duration_ms: u32,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// Queued.
    New(DeliveryRowId),
    /// It was recorded before; nothing changed.
    Duplicate,
    /// It concerns no enabled project, and says nothing of repositories or permissions. A row is kept for the list.
    Nothing,
}

/// A delivery that this node processes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedDelivery {
    /// Its row; its place in the order of arrival.
    pub id: DeliveryRowId,
    /// The forge's configured name.
    pub forge: String,
    /// What it says.
    pub delivery: Delivery,
    /// Tries, this one included.
    pub attempts: u32,
    /// When it arrived.
    pub received_at: Timestamp,
    lease: Lease,
}

impl Db {
    /// Records a delivery, in one transaction: its row, the heads of pull requests it tells of in the order of arrival,
    /// and what it makes us forget of permissions. Notifies `deliveries`.
    pub async fn record_delivery(&self, new: &NewDelivery<'_>) -> Result<Recorded, DbError> {
        let mut recorded = self.record_deliveries(&[*new]).await?;
        recorded.pop().ok_or_else(|| DbError::Corrupt { what: "a delivery was recorded without an answer".to_owned() })
    }

    /// [`Self::record_delivery`] for several, in the order in which they arrived: one round trip and one transaction, so
    /// either all are recorded or none. Transactions that notify wait for each other's writes to reach the disk, however
    /// many there are; so this is what makes more than one a disk write possible. An answer for each, in the same order.
    pub async fn record_deliveries(&self, new: &[NewDelivery<'_>]) -> Result<Vec<Recorded>, DbError> {
        let rows = new.iter().enumerate().map(|(place, new)| row(place, new)).collect::<Result<Vec<_>, _>>()?;
        let rows = Value::Array(rows);
        let answers = self
            .run("record deliveries", || {
                sqlx::query!(
                    r#"SELECT t.place AS "place!", d.id AS "id!", d.recorded AS "recorded!"
                       FROM jsonb_to_recordset($1) AS t(place integer, forge text, delivery text, events jsonb,
                           duration_ms integer, names text[], always boolean, repositories text[],
                           pull_repositories text[], pull_numbers bigint[], pull_heads text[], permissions text[],
                           all_permissions boolean)
                       CROSS JOIN LATERAL record_delivery(t.forge, t.delivery, t.events, t.duration_ms, t.names, t.always,
                           t.repositories, t.pull_repositories, t.pull_numbers, t.pull_heads, t.permissions,
                           t.all_permissions) AS d"#,
                    rows,
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let mut recorded = vec![None; new.len()];
        for answer in answers {
            let place = usize::try_from(answer.place).ok().and_then(|place| recorded.get_mut(place));
            if let Some(place) = place {
                *place = Some(match answer.recorded.as_str() {
                    "new" => Recorded::New(DeliveryRowId(answer.id)),
                    "duplicate" => Recorded::Duplicate,
                    _ => Recorded::Nothing,
                });
            }
        }
        let all: Option<Vec<Recorded>> = recorded.into_iter().collect();
        all.ok_or_else(|| DbError::Corrupt { what: "a delivery was recorded without an answer".to_owned() })
    }

    /// Takes up to `limit` due deliveries for `lease`, the oldest first. See [`Self::claim_deliveries_except`].
    pub async fn claim_deliveries(
        &self,
        node: &NodeId,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<ClaimedDelivery>, DbError> {
        self.claim_deliveries_except(node, limit, lease, &[]).await
    }

    /// As [`Self::claim_deliveries`], without those of `forges` (a slow forge must not hold up the others). What a forge
    /// delivered comes before what polling found, of which there may be much at once.
    pub async fn claim_deliveries_except(
        &self,
        node: &NodeId,
        limit: u32,
        lease: Duration,
        forges: &[String],
    ) -> Result<Vec<ClaimedDelivery>, DbError> {
        let lease_name = Lease::new(node);
        let mut rows = take!(
            self, "claim deliveries", deliveries, lease_name, lease, limit,
            {
                of: "", joins: "",
                if: "d.state = 'queued' AND d.next_attempt_at <= now() AND d.forge <> ALL ($4)",
                order: "starts_with(d.delivery_id, 'poll:'), d.id",
                set: ", attempts = q.attempts + 1",
                get: "q.id, q.forge, q.delivery_id, q.events, q.attempts, q.received_at"
            },
            forges,
        )?;
        rows.sort_unstable_by_key(|row| row.id);
        let mut claimed = Vec::with_capacity(rows.len());
        for row in rows {
            let mut delivery = ClaimedDelivery {
                id: DeliveryRowId(row.id),
                forge: row.forge,
                delivery: Delivery { id: row.delivery_id, events: Vec::new() },
                attempts: row.attempts as u32,
                received_at: row.received_at,
                lease: lease_name.clone(),
            };
            match serde_json::from_value(row.events) {
                Ok(events) => {
                    delivery.delivery.events = events;
                    claimed.push(delivery);
                }
                // A newer version wrote it, and an older one reads: it must not stop the others.
                Err(error) => {
                    let reason = format!("its events cannot be read by this version: {error}");
                    self.delivery_dead(&delivery, &reason).await?;
                }
            }
        }
        Ok(claimed)
    }

    /// Ends a delivery well. `false`: the lease was lost, nothing changed.
    pub async fn delivery_done(&self, claimed: &ClaimedDelivery, outcome: &str) -> Result<bool, DbError> {
        self.end_delivery(claimed, "done", outcome, None).await
    }

    /// Ends a delivery badly: a dead letter, which an admin may replay. `false`: the lease was lost, nothing changed.
    pub async fn delivery_dead(&self, claimed: &ClaimedDelivery, error: &str) -> Result<bool, DbError> {
        self.end_delivery(claimed, "dead", "given up", Some(error)).await
    }

    async fn end_delivery(
        &self,
        claimed: &ClaimedDelivery,
        state: &str,
        outcome: &str,
        error: Option<&str>,
    ) -> Result<bool, DbError> {
        end!(
            self,
            "end a delivery",
            deliveries,
            (claimed.id.0, claimed.lease),
            "state = $3, outcome = $4, last_error = $5, finished_at = now()",
            state,
            short(outcome),
            error.map(short),
        )
    }

    /// Tries a delivery again after `wait`. `false`: the lease was lost, nothing changed.
    pub async fn delivery_retry(
        &self,
        claimed: &ClaimedDelivery,
        error: &str,
        wait: Duration,
    ) -> Result<bool, DbError> {
        end!(
            self,
            "put a delivery off",
            deliveries,
            (claimed.id.0, claimed.lease),
            "last_error = $3, next_attempt_at = now() + $4",
            short(error),
            interval(wait),
        )
    }

    /// Deliveries, the newest first: of one forge or all, below `before`, only dead letters if asked.
    pub async fn recent_deliveries(
        &self,
        forge: Option<&str>,
        dead_only: bool,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<DeliveryInfo>, DbError> {
        let rows = self
            .run("list deliveries", || {
                sqlx::query!(
                    r#"SELECT d.id, d.forge, d.delivery_id, d.received_at, d.state, d.repositories, d.outcome, d.duration_ms,
                           d.attempts, d.last_error, d.finished_at, d.next_attempt_at,
                           ARRAY(SELECT CASE jsonb_typeof(e) WHEN 'string' THEN e #>> '{}'
                                   ELSE (SELECT k FROM jsonb_object_keys(e) AS k LIMIT 1) END
                               FROM jsonb_array_elements(d.events) AS e LIMIT 20) AS "events!"
                       FROM (
                           (SELECT w.id FROM webhook_deliveries w
                            WHERE NOT $2 AND ($1::text IS NULL OR w.forge = $1) AND ($3::bigint IS NULL OR w.id < $3)
                            ORDER BY w.id DESC LIMIT $4)
                           UNION ALL
                           (SELECT w.id FROM webhook_deliveries w
                            WHERE $2 AND w.state || '' = 'dead' AND ($1 IS NULL OR w.forge = $1) AND ($3 IS NULL OR w.id < $3)
                            ORDER BY w.id DESC LIMIT $4)
                       ) l CROSS JOIN LATERAL (SELECT w.* FROM webhook_deliveries w WHERE w.id = l.id OFFSET 0) d
                       ORDER BY d.id DESC"#,
                    forge,
                    dead_only,
                    before,
                    i64::from(limit.clamp(1, LIST_MAX)),
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| DeliveryInfo {
                id: row.id,
                forge: row.forge,
                delivery: row.delivery_id,
                received_at: row.received_at,
                next_attempt_at: (row.state == "queued").then_some(row.next_attempt_at),
                state: row.state,
                repositories: row.repositories,
                events: row.events,
                outcome: row.outcome,
                duration_ms: row.duration_ms.map_or(0, |duration| duration as u32),
                attempts: row.attempts as u32,
                error: row.last_error,
                finished_at: row.finished_at,
            })
            .collect())
    }

    /// Queues a delivery that ended once more, well or badly. `false`: there is no such delivery, or it is queued.
    pub async fn replay_delivery(&self, id: i64, by: &str) -> Result<bool, DbError> {
        self.run("replay a delivery", || {
            sqlx::query_scalar!(
                r#"WITH replayed AS (
                       UPDATE webhook_deliveries SET state = 'queued', attempts = 0, next_attempt_at = now(), outcome = NULL,
                           last_error = NULL, finished_at = NULL, concerned = true
                       WHERE id = $1 AND state <> 'queued' RETURNING id, forge, delivery_id
                   ), audit AS (
                       INSERT INTO audit_log (actor, action, subject, detail)
                       SELECT $2, 'replay', 'delivery ' || id, jsonb_build_object('forge', forge, 'delivery', delivery_id)
                       FROM replayed
                   ) SELECT count(pg_notify('deliveries', id::text)) > 0 AS "replayed!" FROM replayed"#,
                id,
                by
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// Queues all dead letters once more, of one forge or all. Returns how many.
    pub async fn replay_dead_deliveries(&self, forge: Option<&str>, by: &str) -> Result<u64, DbError> {
        self.run("replay the dead deliveries", || {
            sqlx::query_scalar!(
                r#"WITH replayed AS (
                       UPDATE webhook_deliveries SET state = 'queued', attempts = 0, next_attempt_at = now(), outcome = NULL,
                           last_error = NULL, finished_at = NULL
                       WHERE state || '' = 'dead' AND ($1::text IS NULL OR forge || '' = $1) RETURNING id
                   ), counted AS (SELECT count(*) AS n, min(id) AS first, max(id) AS last FROM replayed
                   ), audit AS (
                       INSERT INTO audit_log (actor, action, subject, detail)
                       SELECT $2, 'replay', 'all dead deliveries',
                           jsonb_build_object('forge', $1::text, 'count', n, 'first', first, 'last', last)
                       FROM counted WHERE n > 0
                   ), told AS (SELECT count(pg_notify('deliveries', '')) FROM counted WHERE n > 0
                   ) SELECT n AS "n!" FROM counted, told"#,
                forge,
                by
            )
            .fetch_one(&self.pool)
        })
        .await
        .map(|replayed| replayed as u64)
    }

    /// Deletes up to 10,000 deliveries that came longer than `keep` ago and have ended. Returns how many.
    pub async fn delete_old_deliveries(&self, keep: Duration) -> Result<u64, DbError> {
        self.run("delete old deliveries", || {
            sqlx::query_scalar!(r#"SELECT delete_old_deliveries($1) AS "deleted!""#, interval(keep))
                .fetch_one(&self.pool)
        })
        .await
        .map(|deleted| deleted as u64)
    }
}

/// What the statement needs to know of a delivery's events.
#[derive(Debug, Default, PartialEq, Eq)]
struct About {
    names: Vec<String>,
    always: bool,
    repositories: Vec<String>,
    pull_repositories: Vec<String>,
    pull_numbers: Vec<i64>,
    pull_heads: Vec<String>,
    permissions: Vec<String>,
    all_permissions: bool,
}

impl About {
    fn of(events: &[Event]) -> Self {
        let mut about = Self::default();
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let mut see = |repository: &RepositoryRef| {
            names.insert(text(&repository.full_name));
            ids.insert(text(&repository.id));
        };
        for event in events {
            match event {
                Event::Push(push) => see(&push.repository),
                Event::PullRequest(event) => {
                    see(&event.repository);
                    about.head(event);
                }
                Event::MergeGroup(group) => see(&group.repository),
                Event::Comment(comment) => see(&comment.repository),
                Event::Rerun(rerun) => see(&rerun.repository),
                Event::RepositoriesChanged(repositories) => {
                    about.always = true;
                    for repository in repositories.iter().take(NAMES_MAX) {
                        see(&RepositoryRef { id: repository.id.clone(), full_name: repository.full_name.clone() });
                    }
                }
                Event::RepositoriesRemoved(repositories) => {
                    about.always = true;
                    repositories.iter().take(NAMES_MAX).for_each(&mut see);
                }
                Event::Discover => about.always = true,
                Event::PermissionsChanged(repository) => {
                    about.always = true;
                    match repository {
                        Some(repository) => {
                            see(repository);
                            about.permissions.push(text(&repository.id));
                        }
                        None => about.all_permissions = true,
                    }
                }
                Event::Ping => {}
            }
        }
        about.names = names.into_iter().take(NAMES_MAX).collect();
        about.repositories = ids.into_iter().collect();
        about
    }

    fn head(&mut self, event: &PullRequestEvent) {
        let Ok(number) = i64::try_from(event.pull_request.number) else { return };
        self.pull_repositories.push(text(&event.repository.id));
        self.pull_numbers.push(number);
        self.pull_heads.push(text(&event.pull_request.head_commit));
    }
}

/// A delivery as an argument of the statement that records.
fn row(place: usize, new: &NewDelivery<'_>) -> Result<Value, DbError> {
    let about = About::of(&new.delivery.events);
    Ok(serde_json::json!({
        "place": place,
        "forge": new.forge,
        "delivery": text(&new.delivery.id),
        "events": storable(&new.delivery.events)?,
        "duration_ms": i32::try_from(new.duration_ms).unwrap_or(i32::MAX),
        "names": about.names,
        "always": about.always,
        "repositories": about.repositories,
        "pull_repositories": about.pull_repositories,
        "pull_numbers": about.pull_numbers,
        "pull_heads": about.pull_heads,
        "permissions": about.permissions,
        "all_permissions": about.all_permissions,
    }))
}

/// Events as `jsonb`, which cannot hold the character NUL.
fn storable(events: &[Event]) -> Result<Value, DbError> {
    fn clean(value: &mut Value) {
        match value {
            Value::String(string) if string.contains('\0') => *string = text(string),
            Value::Array(values) => values.iter_mut().for_each(clean),
            Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    let mut value =
        serde_json::to_value(events).map_err(|error| DbError::Corrupt { what: format!("events: {error}") })?;
    clean(&mut value);
    Ok(value)
}

fn short(message: &str) -> String {
    text(message).chars().take(OUTCOME_CHARS_MAX).collect()
}
