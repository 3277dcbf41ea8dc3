//! Webhooks at forges: what should be ([`Db::want_hooks`]), what is to be done ([`Db::due_hooks`]), how it went.
//!
//! `hook_url` is written before a forge is asked, so that a hook whose installation's answer was lost is removed as well.
//! A hook has a lease of its own: a poll of its project, however slow, does not keep it waiting.

use std::time::Duration;

use harmonia_core::forge::RepositoryRef;
use harmonia_core::{NodeId, ProjectId, Timestamp};

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::queue::text;

/// A hook that this node puts right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookTarget {
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub name: String,
    /// The forge's configured name.
    pub forge: String,
    /// Where.
    pub repository: RepositoryRef,
    /// Whether there should be a hook.
    pub wanted: bool,
    /// Where an earlier one may point to.
    pub old_url: Option<String>,
    /// Failures in a row before this try.
    pub attempts: u32,
    lease: (NodeId, Timestamp),
}

impl Db {
    /// Decides which projects should have a hook: the enabled ones of these forges, at the address of each (`urls`, one a
    /// forge). A hook elsewhere counts as none. Returns how many projects changed.
    pub async fn want_hooks(&self, forges: &[String], urls: &[String]) -> Result<u64, DbError> {
        let changed = self
            .run("see which hooks are wanted", || {
                sqlx::query!(
                    "UPDATE projects p SET hook_wanted = w.wanted,
                         hook_installed = p.hook_installed AND p.hook_url IS NOT DISTINCT FROM w.url,
                         hook_next_at = now(), hook_attempts = 0, hook_error = NULL
                     FROM (
                         SELECT q.id, q.enabled AND r.removed_at IS NULL AS wanted, f.url
                         FROM projects q JOIN repositories r ON r.id = q.repository_id
                         JOIN unnest($1::text[], $2::text[]) AS f(forge, url) ON f.forge = r.forge
                     ) w
                     WHERE w.id = p.id AND (p.hook_wanted <> w.wanted
                         OR (w.wanted AND p.hook_installed AND p.hook_url IS DISTINCT FROM w.url))",
                    forges,
                    urls
                )
                .execute(&self.pool)
            })
            .await?;
        Ok(changed.rows_affected())
    }

    /// Takes up to `limit` hooks of these forges that are not as they should be, for `lease`.
    pub async fn due_hooks(
        &self,
        node: &NodeId,
        forges: &[String],
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<HookTarget>, DbError> {
        let rows = self
            .run("take hooks to put right", || {
                sqlx::query!(
                    r#"WITH due AS (
                           SELECT p.id, r.forge, r.external_id, r.full_name
                           FROM projects p JOIN repositories r ON r.id = p.repository_id
                           WHERE ((p.hook_wanted AND NOT p.hook_installed) OR (NOT p.hook_wanted AND p.hook_url IS NOT NULL))
                               AND p.hook_next_at <= now() AND r.forge = ANY ($2)
                               AND (p.hook_leased_until IS NULL OR p.hook_leased_until < now())
                           ORDER BY p.hook_next_at LIMIT $3 FOR UPDATE OF p SKIP LOCKED
                       ) UPDATE projects p SET hook_leased_by = $1, hook_leased_until = now() + $4
                       FROM due WHERE p.id = due.id
                       RETURNING p.id, p.name, due.forge, due.external_id, due.full_name, p.hook_wanted, p.hook_url,
                           p.hook_attempts, p.hook_leased_until AS "hook_leased_until!""#,
                    node.0,
                    forges,
                    i64::from(limit),
                    interval(lease),
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| HookTarget {
                project: ProjectId(row.id),
                name: row.name,
                forge: row.forge,
                repository: RepositoryRef { id: row.external_id, full_name: row.full_name },
                wanted: row.hook_wanted,
                old_url: row.hook_url,
                attempts: row.hook_attempts as u32,
                lease: (node.clone(), row.hook_leased_until),
            })
            .collect())
    }

    /// Notes where a hook is about to be installed. `false`: the lease was lost; ask nothing of the forge.
    pub async fn hook_begins(&self, target: &HookTarget, url: &str) -> Result<bool, DbError> {
        let done = self
            .run("note a hook", || {
                sqlx::query!(
                    "UPDATE projects SET hook_url = $4 WHERE id = $1 AND hook_leased_by = $2 AND hook_leased_until = $3",
                    target.project.0,
                    target.lease.0.0,
                    target.lease.1,
                    url
                )
                .execute(&self.pool)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The hook is as it was wanted. Should something else be wanted by now, it is due again.
    pub async fn hook_done(&self, target: &HookTarget) -> Result<bool, DbError> {
        let done = self
            .run("finish a hook", || {
                sqlx::query!(
                    "UPDATE projects SET hook_installed = $4, hook_url = CASE WHEN $4 THEN hook_url END, hook_error = NULL,
                         hook_attempts = 0, hook_next_at = now(), hook_leased_by = NULL, hook_leased_until = NULL
                     WHERE id = $1 AND hook_leased_by = $2 AND hook_leased_until = $3",
                    target.project.0,
                    target.lease.0.0,
                    target.lease.1,
                    target.wanted,
                )
                .execute(&self.pool)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// It did not work: shown to admins, tried again after `wait`.
    pub async fn hook_failed(&self, target: &HookTarget, error: &str, wait: Duration) -> Result<bool, DbError> {
        let error: String = text(error).chars().take(2_000).collect();
        let done = self
            .run("put a hook off", || {
                sqlx::query!(
                    "UPDATE projects SET hook_error = $4, hook_attempts = hook_attempts + 1, hook_next_at = now() + $5,
                         hook_leased_by = NULL, hook_leased_until = NULL
                     WHERE id = $1 AND hook_leased_by = $2 AND hook_leased_until = $3",
                    target.project.0,
                    target.lease.0.0,
                    target.lease.1,
                    error,
                    interval(wait),
                )
                .execute(&self.pool)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
