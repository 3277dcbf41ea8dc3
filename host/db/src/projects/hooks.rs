//! Webhooks at forges: what should be ([`Db::want_hooks`]), what is to be done ([`Db::due_hooks`]), how it went.
//!
//! `hook_url` is written before a forge is asked, so that a hook whose installation's answer was lost is removed as well.
//! A hook has a lease of its own: a poll of its project, however slow, does not keep it waiting.

use std::time::Duration;

use harmonia_core::forge::RepositoryRef;
use harmonia_core::{NodeId, ProjectId};

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
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
    lease: Lease,
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
        let name = Lease::new(node);
        let rows = take!(
            self, "take hooks to put right", hooks, name, lease, limit,
            {
                of: ", r.forge, r.external_id, r.full_name",
                joins: "JOIN repositories r ON r.id = d.repository_id",
                if: "((d.hook_wanted AND NOT d.hook_installed) OR (NOT d.hook_wanted AND d.hook_url IS NOT NULL))
                    AND d.hook_next_at <= now() AND r.forge = ANY ($4)",
                order: "d.hook_next_at",
                set: "",
                get: "q.id, q.name, due.forge, due.external_id, due.full_name, q.hook_wanted, q.hook_url, q.hook_attempts"
            },
            forges,
        )?;
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
                lease: name.clone(),
            })
            .collect())
    }

    /// Notes where a hook is about to be installed. `false`: the lease was lost; ask nothing of the forge.
    pub async fn hook_begins(&self, target: &HookTarget, url: &str) -> Result<bool, DbError> {
        let done = self
            .run("note a hook", || {
                sqlx::query!(
                    "UPDATE projects SET hook_url = $3 WHERE id = $1 AND hook_leased_by = $2",
                    target.project.0,
                    target.lease.as_str(),
                    url
                )
                .execute(&self.pool)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The hook is as it was wanted. Should something else be wanted by now, it is due again.
    pub async fn hook_done(&self, target: &HookTarget) -> Result<bool, DbError> {
        end!(
            self,
            "finish a hook",
            hooks,
            (target.project.0, target.lease),
            "hook_installed = $3, hook_url = CASE WHEN $3 THEN hook_url END, hook_error = NULL, hook_attempts = 0,
                hook_next_at = now()",
            target.wanted,
        )
    }

    /// It did not work: shown to admins, tried again after `wait`.
    pub async fn hook_failed(&self, target: &HookTarget, error: &str, wait: Duration) -> Result<bool, DbError> {
        end!(
            self,
            "put a hook off",
            hooks,
            (target.project.0, target.lease),
            "hook_error = left($3, 2000), hook_attempts = hook_attempts + 1, hook_next_at = now() + $4",
            text(error),
            interval(wait),
        )
    }
}
