//! What forges told lately, for pages that everybody may read: start at [`Db::view_deliveries`]. Only what concerns public repositories alone.
//!
//! A page looks at so many rows and no more, whatever is hidden among them, so that it costs the same everywhere; where it
//! stopped is where the next one begins.

use harmonia_core::api::DeliveryInfo;

use crate::connection::Db;
use crate::error::DbError;

/// Rows that one page looks at.
pub(crate) const LOOKED_AT_MAX: i64 = 500;
/// Most rows on one page.
pub(crate) const PAGE_MAX: u32 = 200;

/// A part of a list, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageOf<T> {
    /// What may be seen of it. May be empty although there are further pages.
    pub rows: Vec<T>,
    /// What the next page begins before; `None`: this is the last one.
    pub before: Option<i64>,
}

impl<T> PageOf<T> {
    /// `looked_at` rows were looked at, down to `last`; `id` names a row.
    pub(crate) fn new(rows: Vec<T>, limit: u32, looked_at: i64, last: Option<i64>, id: impl Fn(&T) -> i64) -> Self {
        let full = rows.len() >= limit as usize;
        let before = if full { rows.last().map(id) } else { last.filter(|_| looked_at >= LOOKED_AT_MAX) };
        Self { rows, before }
    }
}

impl Db {
    /// Deliveries of one forge or all, below `before`, only dead letters if asked: those that name no repository, or none
    /// that is not known to be public, neither by its name nor by the forge's id of it.
    pub async fn view_deliveries(
        &self,
        forge: Option<&str>,
        dead_only: bool,
        before: Option<i64>,
        limit: u32,
    ) -> Result<PageOf<DeliveryInfo>, DbError> {
        let limit = limit.clamp(1, PAGE_MAX);
        let rows = self
            .run("list deliveries", || {
                sqlx::query!(
                    // Of the first three parts one runs, each along an index of its own: what is said twice there, and that
                    // rows are fetched one by one, keeps the planner from walking over all of them.
                    r#"WITH looked AS MATERIALIZED (
                           (SELECT id FROM webhook_deliveries WHERE $1::text IS NULL AND NOT $2 AND id < $3
                               ORDER BY id DESC LIMIT $4)
                           UNION ALL
                           (SELECT id FROM webhook_deliveries WHERE forge >= $1 AND forge <= $1 AND NOT $2 AND id < $3
                               ORDER BY forge, id DESC LIMIT $4)
                           UNION ALL
                           (SELECT id FROM webhook_deliveries
                               WHERE $2 AND state || '' = 'dead' AND ($1 IS NULL OR forge = $1) AND id < $3
                               ORDER BY id DESC LIMIT $4)
                       )
                       SELECT l.looked_at AS "looked_at!", l.last, v.id AS "id?", v.forge AS "forge?",
                           v.delivery_id AS "delivery_id?", v.received_at AS "received_at?", v.state AS "state?",
                           v.repositories AS "repositories?", v.outcome AS "outcome?", v.duration_ms AS "duration_ms?",
                           v.attempts AS "attempts?", v.last_error AS "last_error?", v.finished_at AS "finished_at?",
                           v.next_attempt_at AS "next_attempt_at?",
                           ARRAY(SELECT CASE jsonb_typeof(e) WHEN 'string' THEN e #>> '{}'
                                   ELSE (SELECT k FROM jsonb_object_keys(e) AS k LIMIT 1) END
                               FROM jsonb_array_elements(v.events) AS e LIMIT 20) AS "events!: Vec<String>"
                       FROM (SELECT count(*) AS looked_at, min(id) AS last FROM looked) l
                       LEFT JOIN LATERAL (
                           SELECT d.* FROM (SELECT id FROM looked ORDER BY id DESC) o
                           CROSS JOIN LATERAL (SELECT w.* FROM webhook_deliveries w WHERE w.id = o.id LIMIT 1) d
                           WHERE NOT EXISTS (
                               SELECT FROM unnest(d.repositories) AS named(full_name)
                               WHERE NOT EXISTS (SELECT FROM repositories r WHERE r.forge = d.forge
                                   AND r.full_name = named.full_name AND r.removed_at IS NULL AND NOT r.is_private))
                           AND NOT EXISTS (
                               SELECT FROM (
                                   SELECT jsonb_path_query(d.events, '$[*].*.repository.id') #>> '{}'
                                   UNION ALL
                                   SELECT jsonb_path_query(d.events, '$[*]."repositories-changed"[*].id') #>> '{}'
                                   UNION ALL
                                   SELECT jsonb_path_query(d.events, '$[*]."repositories-removed"[*].id') #>> '{}'
                                   UNION ALL
                                   SELECT jsonb_path_query(d.events, '$[*]."permissions-changed".id') #>> '{}'
                               ) AS about(external_id)
                               WHERE NOT EXISTS (SELECT FROM repositories r WHERE r.forge = d.forge
                                   AND r.external_id = about.external_id AND r.removed_at IS NULL AND NOT r.is_private))
                           ORDER BY o.id DESC LIMIT $5
                       ) v ON true
                       ORDER BY v.id DESC"#,
                    forge,
                    dead_only,
                    before.unwrap_or(i64::MAX),
                    LOOKED_AT_MAX,
                    i64::from(limit),
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let (looked_at, last) = rows.first().map_or((0, None), |row| (row.looked_at, row.last));
        let shown = rows.into_iter().filter_map(|row| {
            let state = row.state?;
            Some(DeliveryInfo {
                id: row.id?,
                forge: row.forge?,
                delivery: row.delivery_id?,
                received_at: row.received_at?,
                next_attempt_at: row.next_attempt_at.filter(|_| state == "queued"),
                state,
                repositories: row.repositories?,
                events: row.events,
                outcome: row.outcome,
                duration_ms: row.duration_ms.map_or(0, |duration| u32::try_from(duration).unwrap_or(0)),
                attempts: row.attempts.map_or(0, |attempts| u32::try_from(attempts).unwrap_or(0)),
                error: row.last_error,
                finished_at: row.finished_at,
            })
        });
        Ok(PageOf::new(shown.collect(), limit, looked_at, last, |delivery| delivery.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_begins_where_this_one_stopped() {
        let page = |rows: &[i64], looked_at, last| PageOf::new(rows.to_vec(), 2, looked_at, last, |id| *id).before;
        assert_eq!(page(&[], 0, None), None, "nothing at all");
        assert_eq!(page(&[9], 3, Some(7)), None, "all was looked at");
        assert_eq!(page(&[9, 8], 3, Some(7)), Some(8), "what follows was not shown");
        assert_eq!(page(&[9], LOOKED_AT_MAX, Some(7)), Some(7), "all the rest was hidden, but there is more");
        assert_eq!(page(&[], LOOKED_AT_MAX, Some(7)), Some(7));
    }
}
