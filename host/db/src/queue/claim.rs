//! Claiming: heads of the ready queues → an order by the caller → the first that can be locked.

use std::cmp::Reverse;
use std::collections::HashSet;

use harmonia_core::policy::{Candidate, ProjectLoad};
use harmonia_core::{AttemptId, ClaimToken, ClassId, Incarnation, JobId, NodeId, ProjectId};
use harmonia_nix::store_path::StorePath;

use crate::connection::{Db, hash, incarnation};
use crate::error::{DbError, parse};

/// What a policy orders.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueueHeads {
    /// The projects among the candidates.
    pub projects: Vec<ProjectLoad>,
    /// The first ready jobs of each project and class.
    pub candidates: Vec<Candidate>,
}

/// Bounds of one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLimits {
    /// Wall clock, in seconds.
    pub timeout_s: u64,
    /// Longest silence, in seconds.
    pub max_silent_s: u64,
    /// Uncompressed size of all outputs, in bytes.
    pub output_bytes_max: u64,
    /// Size of the log, in bytes; what follows is cut, the build goes on.
    pub log_bytes_max: u64,
}

/// A job that this node now holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedJob {
    /// The job.
    pub job: JobId,
    /// This try.
    pub attempt: AttemptId,
    /// The right to write its result.
    pub token: ClaimToken,
    /// What to build.
    pub drv_path: StorePath,
    /// Derivation name.
    pub name: String,
    /// Bounds.
    pub limits: JobLimits,
    /// Transient failures before this try.
    pub retry_count: u32,
}

impl Db {
    /// Classes that a node with these systems and features can run (`builtin` needs no system). Also remembers that such
    /// a node lives. New classes appear with new graphs: ask again when a hint names an unknown one.
    pub async fn resolve_classes(&self, systems: &[String], features: &[String]) -> Result<Vec<ClassId>, DbError> {
        let ids = self
            .run("resolve job classes", || {
                sqlx::query_scalar!(r#"SELECT c AS "id!" FROM resolve_classes($1, $2) AS c"#, systems, features)
                    .fetch_all(&self.pool)
            })
            .await?;
        Ok(ids.into_iter().map(ClassId).collect())
    }

    /// The first `each` ready jobs of each project and class that has any, for these classes, with the projects' loads. When there are more, as things stood a few milliseconds ago; boosted jobs are always there.
    pub async fn queue_heads(&self, classes: &[ClassId], each: u32) -> Result<QueueHeads, DbError> {
        if classes.is_empty() {
            return Ok(QueueHeads::default());
        }
        let classes: Vec<i32> = classes.iter().map(|class| class.0).collect();
        let rows = self
            .run("look at the queue", || {
                sqlx::query!(
                    r#"SELECT job_id AS "job!", project_id AS "project!", class_id AS "class!", priority AS "priority!",
                           queued_at AS "queued_at!", retry_count AS "retries!", path_length AS "path_length!",
                           shares AS "shares!", consumed_seconds AS "consumed!", running AS "running!"
                       FROM queue_heads($1, $2)"#,
                    &classes,
                    i32::try_from(each).unwrap_or(i32::MAX)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let mut heads = QueueHeads { projects: Vec::new(), candidates: Vec::with_capacity(rows.len()) };
        let (mut jobs, mut projects) = (HashSet::with_capacity(rows.len()), HashSet::new());
        for row in rows {
            if !jobs.insert(row.job) {
                continue;
            }
            if projects.insert(row.project) {
                heads.projects.push(ProjectLoad {
                    project: ProjectId(row.project),
                    shares: row.shares as u32,
                    consumed_seconds: row.consumed,
                    running: row.running as u32,
                });
            }
            heads.candidates.push(Candidate {
                job: JobId(row.job),
                project: ProjectId(row.project),
                class: ClassId(row.class),
                priority: row.priority,
                queued_at: row.queued_at,
                retries: row.retries as u32,
                path_length: row.path_length as u32,
            });
        }
        // The digest's heads and boosted ones come separately.
        heads.candidates.sort_unstable_by_key(|head| (head.project, head.class, Reverse(head.priority), head.job));
        let (mut queue, mut place) = (None, 0);
        heads.candidates.retain(|head| {
            let its = Some((head.project, head.class));
            place = if queue == its { place + 1 } else { 1 };
            queue = its;
            place <= each
        });
        Ok(heads)
    }

    /// Claims the first of `ordered` that are still ready and that nobody else is claiming, at most one a token.
    /// Nothing while the node drains; [`DbError::Refused`] when another process took the node's name.
    pub async fn claim_jobs(
        &self,
        node: &NodeId,
        run: Incarnation,
        ordered: &[JobId],
        tokens: &[ClaimToken],
    ) -> Result<Vec<ClaimedJob>, DbError> {
        self.claim_first(node, run, ordered, tokens, false).await
    }

    /// As [`Self::claim_jobs`], by an order that the caller kept for some moments. Claims nothing while boosted jobs are ready
    /// for this node: they may be newer than the order, and go first.
    pub async fn claim_kept_jobs(
        &self,
        node: &NodeId,
        run: Incarnation,
        ordered: &[JobId],
        tokens: &[ClaimToken],
    ) -> Result<Vec<ClaimedJob>, DbError> {
        self.claim_first(node, run, ordered, tokens, true).await
    }

    async fn claim_first(
        &self,
        node: &NodeId,
        run: Incarnation,
        ordered: &[JobId],
        tokens: &[ClaimToken],
        kept: bool,
    ) -> Result<Vec<ClaimedJob>, DbError> {
        if ordered.is_empty() || tokens.is_empty() {
            return Ok(Vec::new());
        }
        let ordered: Vec<i64> = ordered.iter().map(|job| job.0).collect();
        let hashes: Vec<Vec<u8>> = tokens.iter().map(hash).collect();
        let mut rows = self
            .run("claim jobs", || {
                sqlx::query!(
                    r#"SELECT attempt_id AS "attempt!", job_id AS "job!", token_index AS "token!", drv_path AS "drv_path!",
                           timeout_s AS "timeout_s!", max_silent_s AS "max_silent_s!",
                           output_bytes_max AS "output_bytes_max!", log_bytes_max AS "log_bytes_max!",
                           retry_count AS "retry_count!"
                       FROM claim_jobs($1, $2, $3, $4, $5)"#,
                    node.0,
                    incarnation(run),
                    &ordered,
                    &hashes,
                    kept
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.sort_unstable_by_key(|row| row.token);
        let mut claimed = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(token) = usize::try_from(row.token - 1).ok().and_then(|index| tokens.get(index)) else {
                return Err(DbError::Corrupt { what: ["claimed attempt ", &row.attempt.to_string()].concat() });
            };
            let drv_path: StorePath = parse("derivation", &row.drv_path)?;
            claimed.push(ClaimedJob {
                job: JobId(row.job),
                attempt: AttemptId(row.attempt),
                token: token.clone(),
                name: drv_path.name().strip_suffix(".drv").unwrap_or_default().to_owned(),
                drv_path,
                limits: JobLimits {
                    timeout_s: row.timeout_s as u64,
                    max_silent_s: row.max_silent_s as u64,
                    output_bytes_max: row.output_bytes_max as u64,
                    log_bytes_max: row.log_bytes_max as u64,
                },
                retry_count: row.retry_count as u32,
            });
        }
        Ok(claimed)
    }

    /// What this node's scheduling policy failed with, for whoever looks at the nodes; `None`: it works.
    pub async fn report_policy_error(
        &self,
        node: &NodeId,
        run: Incarnation,
        error: Option<&str>,
    ) -> Result<(), DbError> {
        let error = error.map(super::text);
        self.run("report the policy's failure", || {
            sqlx::query!("SELECT report_policy_error($1, $2, $3)", node.0, incarnation(run), error).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Gives back what this node claimed under tokens that it does not hold, because the answer to [`Self::claim_jobs`] was
    /// lost on its way: pending again, nothing counted. Returns how many jobs that were.
    ///
    /// The tokens are void from then on, also for a claim that is still on its way. Those that never claimed anything are
    /// fine, and so is asking twice. [`DbError::Refused`] when another process took the node's name (which gave back
    /// everything).
    pub async fn revoke_claims(&self, node: &NodeId, run: Incarnation, tokens: &[ClaimToken]) -> Result<u64, DbError> {
        if tokens.is_empty() {
            return Ok(0);
        }
        let hashes: Vec<Vec<u8>> = tokens.iter().map(hash).collect();
        let jobs = self
            .run("give back claims whose answer was lost", || {
                sqlx::query_scalar!(r#"SELECT revoke_claims($1, $2, $3) AS "jobs!""#, node.0, incarnation(run), &hashes)
                    .fetch_one(&self.pool)
            })
            .await?;
        Ok(jobs as u64)
    }
}
