//! Claiming: heads of the ready queues → an order by the caller → the first that can be locked.

use std::collections::BTreeMap;

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
    /// System.
    pub system: String,
    /// Project that first wanted it.
    pub project: String,
    /// Output name → path (`None`: floating content-addressed).
    pub outputs: BTreeMap<String, Option<StorePath>>,
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

    /// The first `per_project` ready jobs of each project that has any, for these classes.
    pub async fn queue_heads(&self, classes: &[ClassId], per_project: u32) -> Result<QueueHeads, DbError> {
        if classes.is_empty() {
            return Ok(QueueHeads::default());
        }
        let classes: Vec<i32> = classes.iter().map(|class| class.0).collect();
        let rows = self
            .run("look at the queue", || {
                sqlx::query!(
                    r#"SELECT job_id AS "job!", project_id AS "project!", class_id AS "class!", priority AS "priority!",
                           queued_at AS "queued_at!" FROM queue_heads($1, $2)"#,
                    &classes,
                    i32::try_from(per_project).unwrap_or(i32::MAX)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let candidates: Vec<Candidate> = rows
            .into_iter()
            .map(|row| Candidate {
                job: JobId(row.job),
                project: ProjectId(row.project),
                class: ClassId(row.class),
                priority: row.priority,
                queued_at: row.queued_at,
                retries: 0,
                path_length: 1,
            })
            .collect();
        let mut projects: Vec<i64> = candidates.iter().map(|candidate| candidate.project.0).collect();
        projects.sort_unstable();
        projects.dedup();
        if projects.is_empty() {
            return Ok(QueueHeads::default());
        }
        let loads = self
            .run("look at project loads", || {
                sqlx::query!(
                    r#"SELECT project_id AS "project!", shares AS "shares!", consumed_seconds AS "consumed!",
                           running AS "running!" FROM project_loads($1)"#,
                    &projects
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let projects = loads
            .into_iter()
            .map(|row| ProjectLoad {
                project: ProjectId(row.project),
                shares: row.shares as u32,
                consumed_seconds: row.consumed,
                running: row.running as u32,
            })
            .collect();
        Ok(QueueHeads { projects, candidates })
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
        if ordered.is_empty() || tokens.is_empty() {
            return Ok(Vec::new());
        }
        let ordered: Vec<i64> = ordered.iter().map(|job| job.0).collect();
        let hashes: Vec<Vec<u8>> = tokens.iter().map(hash).collect();
        let claims = self
            .run("claim jobs", || {
                sqlx::query!(
                    r#"SELECT attempt_id AS "attempt!", token_index AS "token!" FROM claim_jobs($1, $2, $3, $4)"#,
                    node.0,
                    incarnation(run),
                    &ordered,
                    &hashes
                )
                .fetch_all(&self.pool)
            })
            .await?;
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let attempts: Vec<i64> = claims.iter().map(|claim| claim.attempt).collect();
        let rows = self
            .run("read claimed jobs", || {
                sqlx::query!(
                    r#"SELECT attempt_id AS "attempt!", job_id AS "job!", drv_path AS "drv_path!", name AS "name!",
                           system AS "system!", project AS "project!", output_names AS "output_names!",
                           output_paths AS "output_paths!: Vec<Option<String>>", timeout_s AS "timeout_s!",
                           max_silent_s AS "max_silent_s!", output_bytes_max AS "output_bytes_max!",
                           log_bytes_max AS "log_bytes_max!", retry_count AS "retry_count!"
                       FROM claimed_jobs($1)"#,
                    &attempts
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let mut rows: BTreeMap<i64, _> = rows.into_iter().map(|row| (row.attempt, row)).collect();
        let mut claimed = Vec::with_capacity(claims.len());
        for claim in claims {
            let token = tokens.get(claim.token as usize - 1);
            let (Some(row), Some(token)) = (rows.remove(&claim.attempt), token) else {
                return Err(DbError::Corrupt { what: ["claimed attempt ", &claim.attempt.to_string()].concat() });
            };
            let mut outputs = BTreeMap::new();
            for (name, path) in row.output_names.into_iter().zip(row.output_paths) {
                let path = path.map(|path| parse("output path", &path)).transpose()?;
                outputs.insert(name, path);
            }
            claimed.push(ClaimedJob {
                job: JobId(row.job),
                attempt: AttemptId(row.attempt),
                token: token.clone(),
                drv_path: parse("derivation", &row.drv_path)?,
                name: row.name,
                system: row.system,
                project: row.project,
                outputs,
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

    /// Gives back what this node claimed under tokens that it does not hold, because the answer to [`Self::claim_jobs`] was
    /// lost on its way: pending again, nothing counted. Returns how many jobs that were.
    ///
    /// The tokens are void from then on, also for a claim that is still on its way. Those that never claimed anything are
    /// fine, and so is asking twice. [`DbError::Refused`] when another process took the node's name (which gave back
    /// everything).
    pub async fn disown_claims(&self, node: &NodeId, run: Incarnation, tokens: &[ClaimToken]) -> Result<u64, DbError> {
        if tokens.is_empty() {
            return Ok(0);
        }
        let hashes: Vec<Vec<u8>> = tokens.iter().map(hash).collect();
        let jobs = self
            .run("give back claims whose answer was lost", || {
                sqlx::query_scalar!(r#"SELECT disown_claims($1, $2, $3) AS "jobs!""#, node.0, incarnation(run), &hashes)
                    .fetch_one(&self.pool)
            })
            .await?;
        Ok(jobs as u64)
    }
}
