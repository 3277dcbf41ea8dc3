//! Polling: which projects are due ([`Db::due_polls`]), what was seen of them last, how it went.

use std::collections::HashMap;
use std::time::Duration;

use harmonia_core::forge::RepositoryRef;
use harmonia_core::{NodeId, ProjectId};

use crate::connection::{Db, interval};
use crate::error::DbError;
use crate::leased::{Lease, end, take};
use crate::queue::text;

/// Where a project's heads are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollSource {
    /// A plain git repository.
    Git {
        /// Its URL.
        url: String,
        /// Its branch; `None`: the remote's HEAD.
        branch: Option<String>,
    },
    /// A forge.
    Forge {
        /// Its configured name.
        forge: String,
        /// The repository there.
        repository: RepositoryRef,
        /// Its default branch.
        default_branch: String,
        /// Whether open pull requests are asked for too.
        pull_requests: bool,
    },
}

/// A project that this node polls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollTarget {
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub name: String,
    /// Where.
    pub source: PollSource,
    /// What was seen last: reference → (state, how often it changed).
    pub seen: HashMap<String, (String, u64)>,
    lease: Lease,
}

impl PollTarget {
    /// Id of the synthetic delivery that tells of `commit` at `reference`: the same when a crash makes us tell it again,
    /// another one when the reference comes back to an older commit.
    pub fn delivery_id(&self, reference: &str, commit: &str) -> String {
        let round = match self.seen.get(reference) {
            Some((_, changes)) => changes.to_string(),
            // Never seen, or seen and forgotten: nothing counts it, so this poll's lease has to do.
            None => format!("new-{}", self.lease.tag()),
        };
        format!("poll:{}:{reference}:{round}:{commit}", self.project)
    }
}

impl Db {
    /// Takes up to `limit` projects whose poll is due, for `lease`: those of these forges, and plain git ones with `git`.
    pub async fn due_polls(
        &self,
        node: &NodeId,
        forges: &[String],
        git: bool,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<PollTarget>, DbError> {
        let name = Lease::new(node);
        let rows = take!(
            self, "take projects to poll", polls, name, lease, limit,
            {
                of: ", r.forge, r.external_id, r.full_name, r.default_branch",
                joins: "LEFT JOIN repositories r ON r.id = d.repository_id AND r.removed_at IS NULL",
                if: "d.enabled AND d.poll_interval_s > 0 AND d.next_poll_at <= now()
                    AND ((d.kind = 'git' AND $5) OR r.forge = ANY ($4))",
                order: "d.next_poll_at",
                set: "",
                get: r#"q.id, q.name, q.url, q.default_branch AS own_branch, q.poll_pull_requests,
                    due.forge AS "forge?", due.external_id AS "external_id?", due.full_name AS "full_name?",
                    due.default_branch AS "forge_branch?",
                    ARRAY(SELECT h.reference FROM poll_heads h WHERE h.project_id = q.id ORDER BY 1) AS "references!",
                    ARRAY(SELECT h.state FROM poll_heads h WHERE h.project_id = q.id ORDER BY h.reference) AS "states!",
                    ARRAY(SELECT h.changes FROM poll_heads h WHERE h.project_id = q.id ORDER BY h.reference) AS "changes!""#
            },
            forges,
            git,
        )?;
        rows.into_iter()
            .map(|row| {
                let source = match (row.url, row.forge, row.external_id, row.full_name, row.forge_branch) {
                    (_, Some(forge), Some(id), Some(full_name), Some(default_branch)) => PollSource::Forge {
                        forge,
                        repository: RepositoryRef { id, full_name },
                        default_branch,
                        pull_requests: row.poll_pull_requests,
                    },
                    (Some(url), ..) => PollSource::Git { url, branch: row.own_branch },
                    _ => return Err(DbError::Corrupt { what: ["source of project ", &row.name].concat() }),
                };
                let seen = row.states.into_iter().zip(row.changes.into_iter().map(|changes| changes as u64));
                Ok(PollTarget {
                    project: ProjectId(row.id),
                    name: row.name,
                    source,
                    seen: row.references.into_iter().zip(seen).collect(),
                    lease: name.clone(),
                })
            })
            .collect()
    }

    /// Remembers what a reference is now, after what follows from it was recorded. `None`: it is gone. `false`: the lease
    /// was lost, nothing was written.
    pub async fn save_poll_head(
        &self,
        target: &PollTarget,
        reference: &str,
        state: Option<&str>,
    ) -> Result<bool, DbError> {
        let saved = self
            .run("remember a head", || {
                sqlx::query_scalar!(
                    r#"WITH held AS (
                           SELECT id FROM projects WHERE id = $1 AND leased_by = $2 FOR UPDATE
                       ), gone AS (
                           DELETE FROM poll_heads h USING held
                           WHERE h.project_id = held.id AND h.reference = $3 AND $4::text IS NULL
                       ), seen AS (
                           INSERT INTO poll_heads AS h (project_id, reference, state)
                           SELECT id, $3, $4 FROM held WHERE $4::text IS NOT NULL
                           ON CONFLICT (project_id, reference) DO UPDATE SET state = excluded.state, changes = h.changes + 1
                       ) SELECT EXISTS (SELECT FROM held) AS "held!""#,
                    target.project.0,
                    target.lease.as_str(),
                    text(reference),
                    state.map(text),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(saved)
    }

    /// Ends a poll: the next one is due after the project's interval, and not before `wait`. What went wrong is shown with
    /// the project.
    pub async fn poll_done(
        &self,
        target: &PollTarget,
        error: Option<&str>,
        wait: Option<Duration>,
    ) -> Result<bool, DbError> {
        end!(
            self,
            "end a poll",
            polls,
            (target.project.0, target.lease),
            "last_poll_error = left($3, 2000), next_poll_at = now() + greatest(poll_interval_s * interval '1 s', $4)",
            error.map(text),
            interval(wait.unwrap_or_default()),
        )
    }
}
