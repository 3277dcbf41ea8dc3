//! Projects of repositories: enabling, settings, and what the intake of deliveries asks of one ([`Db::forge_project`]).
//! Webhooks at the forge are in `hooks`, polling in `polls`. Statements that change several rows are in
//! `migrations/functions/repositories.sql`.

mod hooks;
mod polls;

use harmonia_core::api::{HookInfo, ProjectChanges, ProjectSettings};
use harmonia_core::forge::{PullRequestTrust, RepositoryRef};
use harmonia_core::{ClaimToken, EvalId, ProjectId};

use crate::connection::{Db, hash};
use crate::error::{DbError, parse};
use crate::repositories::RepositoryId;

pub use hooks::HookTarget;
pub use polls::{PollSource, PollTarget};

/// Most projects in one list.
const LIST_MAX: u32 = 200;

/// A project of a forge's repository, with the settings that decide what is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct ForgeProject {
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub name: String,
    /// The forge's configured name.
    pub forge: String,
    /// Row of the repository.
    pub repository_id: i64,
    /// The repository as it is called now.
    pub repository: RepositoryRef,
    /// URL for git, without credentials.
    pub clone_url: String,
    /// Default branch.
    pub default_branch: String,
    /// Whether only some may read the repository.
    pub is_private: bool,
    /// Whether anything is evaluated at all.
    pub enabled: bool,
    /// The repository is gone, or not ours to see: its forge is asked nothing about it.
    pub is_gone: bool,
    /// Whether pull requests are.
    pub pr_enabled: bool,
    /// Whose.
    pub pr_trust: PullRequestTrust,
    /// Branches besides the default branch, as patterns.
    pub branch_patterns: Vec<String>,
    /// What the default branch's own file adds to them.
    pub tree_branch_patterns: Vec<String>,
    /// Whether tags are evaluated.
    pub build_tags: bool,
    /// Whether drafts are.
    pub build_drafts: bool,
    /// Whether a result is reused for the same tree.
    pub reuse_trees: bool,
}

impl Db {
    /// The project of the forge's repository with this id, enabled or not.
    pub async fn forge_project(
        &self,
        forge: &str,
        repository: &RepositoryRef,
    ) -> Result<Option<ForgeProject>, DbError> {
        let row = self
            .run("look for a repository's project", || {
                sqlx::query!(
                    r#"SELECT p.id, p.name, r.forge, r.id AS repository_id, r.external_id, r.full_name, r.clone_url,
                         r.default_branch, r.is_private, r.removed_at IS NOT NULL AS "is_gone!", p.enabled, p.pr_enabled,
                         p.pr_trust, p.branch_patterns, p.tree_branch_patterns, p.build_tags, p.build_drafts, p.reuse_trees
                     FROM repositories r JOIN projects p ON p.repository_id = r.id
                     WHERE r.forge = $1 AND r.external_id = $2"#,
                    forge,
                    repository.id
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        row.map(|row| {
            Ok(ForgeProject {
                project: ProjectId(row.id),
                name: row.name,
                forge: row.forge,
                repository_id: row.repository_id,
                repository: RepositoryRef { id: row.external_id, full_name: row.full_name },
                clone_url: row.clone_url,
                default_branch: row.default_branch,
                is_private: row.is_private,
                enabled: row.enabled,
                is_gone: row.is_gone,
                pr_enabled: row.pr_enabled,
                pr_trust: trust(&row.pr_trust)?,
                branch_patterns: row.branch_patterns,
                tree_branch_patterns: row.tree_branch_patterns,
                build_tags: row.build_tags,
                build_drafts: row.build_drafts,
                reuse_trees: row.reuse_trees,
            })
        })
        .transpose()
    }

    /// The forge and repository behind an evaluation that the holder of `token` runs, or [`DbError::StaleClaim`]. `None`:
    /// its project has no forge.
    pub async fn evaluation_repository(
        &self,
        eval: EvalId,
        token: &ClaimToken,
    ) -> Result<Option<(String, RepositoryRef)>, DbError> {
        let row = self
            .run("check a claim", || {
                sqlx::query!(
                    r#"SELECT r.forge AS "forge?", r.external_id AS "external_id?", r.full_name AS "full_name?"
                       FROM evaluations e JOIN projects p ON p.id = e.project_id
                       LEFT JOIN repositories r ON r.id = p.repository_id
                       WHERE e.id = $1 AND evaluation_held($1, $2)"#,
                    eval.0,
                    hash(token)
                )
                .fetch_optional(&self.pool)
            })
            .await?
            .ok_or(DbError::StaleClaim)?;
        Ok(match (row.forge, row.external_id, row.full_name) {
            (Some(forge), Some(id), Some(full_name)) => Some((forge, RepositoryRef { id, full_name })),
            _ => None,
        })
    }

    /// Makes a project of a repository, named by the first of `names` that is free, or enables the one that it has.
    pub async fn enable_repository(
        &self,
        repository: RepositoryId,
        names: &[String],
        by: &str,
    ) -> Result<(ProjectId, String), DbError> {
        let row = self
            .run("enable a repository", || {
                sqlx::query!(
                    r#"SELECT project AS "project!", project_name AS "project_name!" FROM enable_repository($1, $2, $3)"#,
                    repository.0,
                    names,
                    by
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok((ProjectId(row.project), row.project_name))
    }

    /// Evaluates nothing of it from now on. What runs goes on.
    pub async fn disable_project(&self, name: &str, by: &str) -> Result<(), DbError> {
        self.set_project(name, &ProjectChanges { enabled: Some(false), ..ProjectChanges::default() }, by).await
    }

    /// A project of a plain git repository: its branch (`None`: the remote's HEAD) is polled every `poll_s` seconds (0:
    /// never). Refused when the name is taken.
    pub async fn add_git_project(
        &self,
        name: &str,
        url: &str,
        branch: Option<&str>,
        poll_s: u32,
        by: &str,
    ) -> Result<ProjectId, DbError> {
        let poll_s = i32::try_from(poll_s).unwrap_or(i32::MAX);
        self.run("add a project", || {
            sqlx::query_scalar!("SELECT add_git_project($1, $2, $3, $4, $5)", name, url, branch, poll_s, by)
                .fetch_one(&self.pool)
        })
        .await?
        .map(ProjectId)
        .ok_or_else(|| DbError::Refused {
            reason: ["a project named '", name, "' exists: choose another name, or change that one"].concat(),
        })
    }

    /// Changes settings of a project; what is `None` stays.
    pub async fn set_project(&self, name: &str, changes: &ProjectChanges, by: &str) -> Result<(), DbError> {
        let changes =
            serde_json::to_value(changes).map_err(|error| DbError::Corrupt { what: format!("settings: {error}") })?;
        self.run("change a project's settings", || {
            sqlx::query!("SELECT set_project($1, $2, $3)", name, changes, by).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Settings of projects by name: of `only`, or of all after `after`. Without private ones when `public_only`.
    pub async fn projects_settings(
        &self,
        only: Option<&str>,
        after: Option<&str>,
        public_only: bool,
        limit: u32,
    ) -> Result<Vec<ProjectSettings>, DbError> {
        let rows = self
            .run("list projects", || {
                sqlx::query!(
                    r#"SELECT p.name, p.kind, r.forge AS "forge?", r.full_name AS "full_name?", r.html_url AS "html_url?",
                           r.removed_at AS "removed_at?", p.url, coalesce(r.default_branch, p.default_branch) AS default_branch,
                           p.enabled, p.is_public, p.scheduling_shares, p.pr_enabled, p.pr_trust, p.poll_interval_s,
                           p.poll_pull_requests, p.last_poll_error, p.branch_patterns, p.tree_branch_patterns, p.build_tags,
                           p.build_drafts, p.reuse_trees, p.hook_wanted, p.hook_installed, p.hook_error
                       FROM projects p LEFT JOIN repositories r ON r.id = p.repository_id
                       WHERE ($1::text IS NULL OR p.name = $1) AND ($2::text IS NULL OR p.name > $2)
                           AND (NOT $3 OR p.is_public)
                       ORDER BY p.name LIMIT $4"#,
                    only,
                    after,
                    public_only,
                    i64::from(limit.clamp(1, LIST_MAX)),
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(ProjectSettings {
                    name: row.name,
                    kind: row.kind,
                    forge: row.forge,
                    repository: row.full_name,
                    repository_url: row.html_url.filter(|url| !url.is_empty()),
                    repository_removed: row.removed_at.is_some(),
                    url: row.url,
                    default_branch: row.default_branch,
                    enabled: row.enabled,
                    is_public: row.is_public,
                    scheduling_shares: row.scheduling_shares as u32,
                    pr_enabled: row.pr_enabled,
                    pr_trust: trust(&row.pr_trust)?,
                    poll_interval_s: row.poll_interval_s as u32,
                    poll_pull_requests: row.poll_pull_requests,
                    poll_error: row.last_poll_error,
                    branch_patterns: row.branch_patterns,
                    tree_branch_patterns: row.tree_branch_patterns,
                    build_tags: row.build_tags,
                    build_drafts: row.build_drafts,
                    reuse_trees: row.reuse_trees,
                    hook: (row.hook_wanted || row.hook_installed)
                        .then_some(HookInfo { installed: row.hook_installed, error: row.hook_error }),
                })
            })
            .collect()
    }
}

fn trust(text: &str) -> Result<PullRequestTrust, DbError> {
    parse("pr_trust", text)
}
