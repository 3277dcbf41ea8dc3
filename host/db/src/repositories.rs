//! Repositories as forges tell of them, and where discovery is. Start at [`Db::begin_sync`] (a lease, so that one
//! frontend syncs a forge) and [`Db::save_sync_page`] (each page with the cursor of the next, so that a crash continues).
//! The statements are in `migrations/functions/repositories.sql`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use harmonia_core::api::RepositoryInfo;
use harmonia_core::forge::{ForgeRepository, RepositoryRef};
use harmonia_core::{NodeId, Timestamp};
use serde_json::{Value, json};

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
use crate::queue::text;

/// Most repositories in one list.
const LIST_MAX: u32 = 200;
/// Most topics kept of a repository.
const TOPICS_MAX: usize = 50;

/// A row of `repositories`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryId(pub i64);

/// A sync that this node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// The forge's configured name.
    pub forge: String,
    /// Where it goes on; `None`: at the beginning.
    pub cursor: Option<String>,
    /// When it began; a sync continued after a crash is older than the lease.
    pub started_at: Timestamp,
    /// Failures in a row before this try.
    pub attempts: u32,
    lease: Lease,
}

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSaved {
    /// Go on with the next one.
    More,
    /// That was the last: so many repositories are gone, since the sync before did not see them either.
    Complete {
        /// Repositories not seen.
        removed: u64,
    },
    /// Another node has the sync. Nothing was written; stop.
    LeaseLost,
}

/// Which repositories to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepositoryFilter<'a> {
    /// Of this forge.
    pub forge: Option<&'a str>,
    /// Whose full name contains this, in any case.
    pub search: Option<&'a str>,
    /// Only public ones.
    pub public_only: bool,
    /// After this one in the order of (forge, full name): the last of the page before.
    pub after: Option<(&'a str, &'a str)>,
    /// At most so many.
    pub limit: u32,
}

impl Db {
    /// Asks for a sync of these forges as soon as the forge allows. A sync in flight is followed by another.
    pub async fn request_sync(&self, forges: &[String]) -> Result<(), DbError> {
        self.run("ask for a sync", || {
            sqlx::query!(
                "WITH asked AS (
                     INSERT INTO forge_syncs AS s (forge, requested_at) SELECT DISTINCT f, now() FROM unnest($1::text[]) AS f
                     ON CONFLICT (forge) DO UPDATE SET requested_at = now(), wanted_at = least(s.wanted_at, now())
                     RETURNING forge
                 ) SELECT pg_notify('projects', '') FROM asked LIMIT 1",
                forges
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Takes one due sync of these forges for `lease`: a new one, or one that stopped half-way. A forge that was never
    /// synced is due.
    pub async fn begin_sync(&self, node: &NodeId, forges: &[String], lease: Duration) -> Result<Option<Sync>, DbError> {
        self.run("note forges", || {
            sqlx::query!(
                "INSERT INTO forge_syncs (forge) SELECT DISTINCT f FROM unnest($1::text[]) AS f
                 WHERE NOT EXISTS (SELECT FROM forge_syncs s WHERE s.forge = f) ON CONFLICT DO NOTHING",
                forges
            )
            .execute(&self.pool)
        })
        .await?;
        let name = Lease::new(node);
        let rows = take!(
            self, "begin a sync", syncs, name, lease, 1_i32,
            {
                of: "", joins: "",
                if: "d.forge = ANY ($4) AND d.wanted_at <= now() AND (d.not_before IS NULL OR d.not_before <= now())",
                order: "d.wanted_at, d.forge",
                set: ", started_at = coalesce(q.started_at, now())",
                get: r#"q.forge, q.cursor, q.started_at AS "started_at!", q.attempts"#
            },
            forges,
        )?;
        Ok(rows.into_iter().next().map(|row| Sync {
            forge: row.forge,
            cursor: row.cursor,
            started_at: row.started_at,
            attempts: row.attempts as u32,
            lease: name,
        }))
    }

    /// Saves a page and where the sync goes on, at once; `next` `None` ends it, and the next one is due after `every`.
    /// Renews the lease for `lease`.
    pub async fn save_sync_page(
        &self,
        sync: &mut Sync,
        repositories: &[ForgeRepository],
        next: Option<&str>,
        lease: Duration,
        every: Duration,
    ) -> Result<PageSaved, DbError> {
        let rows = rows(repositories);
        let saved = self
            .run("save a page of repositories", || {
                sqlx::query!(
                    r#"SELECT held AS "held!", removed FROM save_sync_page($1, $2, $3, $4, $5, $6)"#,
                    sync.forge,
                    sync.lease.as_str(),
                    rows,
                    next.map(text),
                    interval(lease),
                    interval(every),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        match (saved.held, saved.removed) {
            (false, _) => Ok(PageSaved::LeaseLost),
            (true, Some(removed)) => {
                self.go_on_with_withdrawals().await;
                Ok(PageSaved::Complete { removed: removed as u64 })
            }
            (true, None) => {
                sync.cursor = next.map(text);
                Ok(PageSaved::More)
            }
        }
    }

    /// Gives a sync back after a failure: it goes on after `wait`, or begins anew when `restart` (its cursor is no good).
    pub async fn sync_failed(&self, sync: &Sync, error: &str, wait: Duration, restart: bool) -> Result<(), DbError> {
        end!(
            self,
            "put a sync off",
            syncs,
            (sync.forge, sync.lease),
            "last_error = left($3, 2000), attempts = attempts + 1, not_before = now() + $4,
                cursor = CASE WHEN $5 THEN NULL ELSE cursor END, started_at = CASE WHEN $5 THEN NULL ELSE started_at END,
                seen = CASE WHEN $5 THEN 0 ELSE seen END",
            text(error),
            interval(wait),
            restart,
        )
        .map(|_| ())
    }

    /// Gives a sync back as it is (the node stops): any node goes on at once.
    pub async fn release_sync(&self, sync: &Sync) -> Result<(), DbError> {
        end!(self, "give a sync back", syncs, (sync.forge, sync.lease), "cursor = cursor").map(|_| ())
    }

    /// Writes what a forge says of its repositories. A row keeps its id through a rename; whoever had a name that another
    /// has now is gone, until it turns up under its own. Projects become as visible as their repositories.
    pub async fn upsert_repositories(&self, forge: &str, repositories: &[ForgeRepository]) -> Result<(), DbError> {
        let rows = rows(repositories);
        self.run("write repositories", || {
            sqlx::query!("SELECT upsert_repositories($1, $2)", forge, rows).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// These are gone, or not ours to see. Returns how many were there. Their projects stay, but nothing is asked of the
    /// forge for them: evaluations that have not come to an end are cancelled, and jobs that nobody else wants withdrawn.
    pub async fn repositories_removed(&self, forge: &str, repositories: &[RepositoryRef]) -> Result<u64, DbError> {
        let ids: Vec<String> = repositories.iter().map(|repository| text(&repository.id)).collect();
        let gone = self
            .run("remove repositories", || {
                sqlx::query_scalar!(r#"SELECT remove_repositories($1, $2) AS "gone!""#, forge, &ids)
                    .fetch_one(&self.pool)
            })
            .await?;
        self.go_on_with_withdrawals().await;
        Ok(gone as u64)
    }

    /// Of the forge's repositories with these ids, those that never were a project, with their full names.
    pub async fn repositories_without_project(
        &self,
        forge: &str,
        ids: &[String],
    ) -> Result<Vec<(RepositoryId, String)>, DbError> {
        let rows = self
            .run("look for repositories without project", || {
                sqlx::query!(
                    "SELECT r.id, r.full_name FROM repositories r
                     WHERE r.forge = $1 AND r.external_id = ANY ($2) AND r.removed_at IS NULL
                         AND NOT EXISTS (SELECT FROM projects p WHERE p.repository_id = r.id)
                     ORDER BY r.full_name",
                    forge,
                    ids
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows.into_iter().map(|row| (RepositoryId(row.id), row.full_name)).collect())
    }

    /// Repositories that exist, in the order of (forge, full name).
    pub async fn repositories(&self, filter: RepositoryFilter<'_>) -> Result<Vec<RepositoryInfo>, DbError> {
        let search = filter.search.filter(|search| !search.is_empty()).map(like);
        let (after_forge, after_name) = filter.after.unzip();
        let rows = self
            .run("list repositories", || {
                sqlx::query!(
                    r#"SELECT r.id, r.forge, r.full_name, r.html_url, r.default_branch, r.is_private, r.is_archived, r.topics,
                           p.name AS "project?", p.enabled AS "enabled?"
                       FROM repositories r LEFT JOIN projects p ON p.repository_id = r.id
                       WHERE r.removed_at IS NULL AND ($1::text IS NULL OR r.forge = $1)
                           AND ($2::text IS NULL OR lower(r.full_name) LIKE $2)
                           AND (NOT $3 OR NOT r.is_private)
                           AND ($4::text IS NULL OR (r.forge, lower(r.full_name), r.full_name) > ($4, lower($5), $5))
                       ORDER BY r.forge, lower(r.full_name), r.full_name LIMIT $6"#,
                    filter.forge,
                    search,
                    filter.public_only,
                    after_forge,
                    after_name,
                    i64::from(filter.limit.clamp(1, LIST_MAX)),
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| RepositoryInfo {
                id: row.id,
                forge: row.forge,
                full_name: row.full_name,
                html_url: row.html_url,
                default_branch: row.default_branch,
                is_private: row.is_private,
                is_archived: row.is_archived,
                topics: row.topics,
                project: row.project,
                enabled: row.enabled.unwrap_or(false),
            })
            .collect())
    }

    /// The repository of this name, if the forge told of one.
    pub async fn repository(&self, forge: &str, full_name: &str) -> Result<Option<RepositoryId>, DbError> {
        self.run("look for a repository", || {
            sqlx::query_scalar!(
                "SELECT id FROM repositories WHERE forge = $1 AND removed_at IS NULL AND lower(full_name) = lower($2)
                 ORDER BY full_name = $2 DESC LIMIT 1",
                forge,
                full_name
            )
            .fetch_optional(&self.pool)
        })
        .await
        .map(|id| id.map(RepositoryId))
    }
}

/// The argument of `upsert_repositories`: each id and each name once, the last one counts.
fn rows(repositories: &[ForgeRepository]) -> Value {
    let by_id: HashMap<&str, usize> = repositories.iter().enumerate().map(|(at, r)| (r.id.as_str(), at)).collect();
    let by_name: HashMap<&str, usize> =
        repositories.iter().enumerate().map(|(at, r)| (r.full_name.as_str(), at)).collect();
    let kept: HashSet<usize> = by_id.into_values().collect();
    let last: HashSet<usize> = by_name.into_values().collect();
    repositories
        .iter()
        .enumerate()
        .filter(|(at, _)| kept.contains(at) && last.contains(at))
        .map(|(_, r)| {
            json!({
                "id": text(&r.id), "owner": text(&r.owner), "name": text(&r.name), "full_name": text(&r.full_name),
                "clone_url": text(&r.clone_url), "html_url": text(&r.html_url), "default_branch": text(&r.default_branch),
                "is_private": r.is_private, "is_archived": r.is_archived,
                "topics": r.topics.iter().take(TOPICS_MAX).map(|topic| text(topic)).collect::<Vec<_>>(),
            })
        })
        .collect()
}

/// A pattern for LIKE that finds `search` anywhere.
fn like(search: &str) -> String {
    let mut pattern = String::from("%");
    for character in search.to_lowercase().chars().filter(|c| *c != '\0') {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}
