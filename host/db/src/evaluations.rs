//! Evaluations: who asks for them, the evaluator that runs them, and the graph it inserts. Start at [`Db::create_evaluation`];
//! the graph is in `graph`, git bundles in `bundles`, what is put off in `waiting`, what is needed to use results again in
//! `reuse`. Statements are in `migrations/functions/evaluations.sql`.

mod bundles;
mod graph;
mod reuse;
mod waiting;

use std::time::Duration;

use harmonia_core::api::Source;
use harmonia_core::{ClaimToken, EvalId, Incarnation, NodeId, ProjectId};

use crate::connection::{Db, hash, incarnation};
use crate::error::DbError;
use crate::queue::text;

pub use graph::{AskedLimits, AttrResult, BatchOutcome, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, Walk};

/// A project that needs no forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProject {
    /// Unique name.
    pub name: String,
    /// Where its commits come from.
    pub kind: ProjectKind,
}

/// Kinds of projects without a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectKind {
    /// Commits come as bundles (`eval PATH`).
    Local,
    /// A plain git repository.
    Git {
        /// Its URL.
        url: String,
    },
}

/// What is known of an evaluation when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvaluationRow {
    /// The project.
    pub project: ProjectId,
    /// Where the commit comes from.
    pub source: Source,
    /// Full commit hash; `None`: the branch's head when the evaluator fetches.
    pub commit: Option<String>,
    /// Branch.
    pub branch: String,
    /// Flake output prefixes instead of those of the tree.
    pub attrs: Option<Vec<String>>,
    /// The tree had uncommitted changes.
    pub dirty: bool,
    /// First line of the commit message.
    pub title: Option<String>,
    /// The commit's author.
    pub author: Option<String>,
}

/// An evaluation was queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedEvaluation {
    /// Its id.
    pub id: EvalId,
    /// Live evaluations of the same branch that it replaced.
    pub superseded: Vec<EvalId>,
}

/// An evaluation that this node now holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each says something of its own")]
pub struct ClaimedEvaluation {
    /// Its id.
    pub id: EvalId,
    /// Counts evaluations of one (project, commit, branch).
    pub attempt: u32,
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub project_name: String,
    /// Where the commit comes from.
    pub source: Source,
    /// Full commit hash, when known.
    pub commit: Option<String>,
    /// Branch.
    pub branch: String,
    /// Flake output prefixes instead of those of the tree.
    pub attrs: Option<Vec<String>>,
    /// The tree had uncommitted changes.
    pub dirty: bool,
    /// How many evaluators vanished while they held it.
    pub lost_count: u32,
    /// How often it was put off,
    pub waits: u32,
    /// and how long ago for the first time; zero when it never was.
    pub waited: Duration,
    /// Results may be shown for other commits with the same tree.
    pub reuse_trees: bool,
    /// Everybody may see the project.
    pub is_public: bool,
    /// `branch` is a tag.
    pub is_tag: bool,
    /// The repository is a forge's: there may be a credential for it.
    pub has_forge: bool,
    /// Of a pull request; `commit` is its head.
    pub pull_request: Option<ClaimedPullRequest>,
}

/// Onto what the head of a pull request is to be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedPullRequest {
    /// Number.
    pub number: u64,
    /// Where the base repository has the head.
    pub head_ref: Option<String>,
    /// Branch to merge into.
    pub base_branch: String,
    /// Its commit.
    pub base_commit: Option<String>,
}

/// What the evaluator learned by fetching.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitFacts {
    /// Full commit hash.
    pub commit: String,
    /// Hash of its tree.
    pub tree_hash: Option<String>,
    /// First line of its message.
    pub title: Option<String>,
    /// Its author.
    pub author: Option<String>,
}

/// Whether an evaluation could be finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedEvaluation {
    /// It is over: every expected name has a result or an error. Otherwise nothing changed.
    pub complete: bool,
    /// Expected names that have neither.
    pub missing: Vec<String>,
    /// Attributes it has.
    pub attrs: u64,
}

impl Db {
    /// The project of this name, made if there is none. A git project's URL follows the newest call. Refused when the
    /// name belongs to another kind of project.
    pub async fn ensure_project(&self, project: &NewProject) -> Result<ProjectId, DbError> {
        let (kind, url) = match &project.kind {
            ProjectKind::Local => ("local", None),
            ProjectKind::Git { url } => ("git", Some(url.as_str())),
        };
        let id = self
            .run("make a project", || {
                sqlx::query_scalar!(
                    "INSERT INTO projects AS p (name, kind, url, is_public) SELECT $1, $2, $3, local_public FROM default_limits
                     ON CONFLICT (name) DO UPDATE SET url = excluded.url WHERE p.kind = excluded.kind
                     RETURNING id",
                    project.name,
                    kind,
                    url
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        id.map(ProjectId).ok_or_else(|| DbError::Refused {
            reason: ["a project named '", &project.name, "' exists and is not of kind ", kind].concat(),
        })
    }

    /// Queues an evaluation. It supersedes the live ones of its branch: those no longer want their jobs.
    pub async fn create_evaluation(&self, new: &NewEvaluationRow) -> Result<CreatedEvaluation, DbError> {
        let (kind, bundle, url) = match &new.source {
            Source::Bundle { bundle } => ("bundle", Some(*bundle), None),
            Source::Git { url } => ("git", None, Some(url.as_str())),
        };
        let row = self
            .run("queue an evaluation", || {
                sqlx::query!(
                    r#"SELECT id AS "id!", superseded AS "superseded!"
                       FROM create_evaluation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"#,
                    new.project.0,
                    kind,
                    bundle,
                    url,
                    new.commit.as_deref(),
                    new.branch,
                    new.attrs.as_deref(),
                    new.dirty,
                    new.title.as_deref().map(text),
                    new.author.as_deref().map(text),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let superseded: Vec<EvalId> = row.superseded.into_iter().map(EvalId).collect();
        self.finish_withdrawals_of(&superseded).await;
        Ok(CreatedEvaluation { id: EvalId(row.id), superseded })
    }

    /// Takes the oldest queued evaluation. Nothing while the node drains; refused when another process took its name.
    pub async fn claim_evaluation(
        &self,
        node: &NodeId,
        run: Incarnation,
        token: &ClaimToken,
    ) -> Result<Option<ClaimedEvaluation>, DbError> {
        let id = self
            .run("claim an evaluation", || {
                sqlx::query_scalar!("SELECT claim_evaluation($1, $2, $3)", node.0, incarnation(run), hash(token))
                    .fetch_one(&self.pool)
            })
            .await?;
        let Some(id) = id else { return Ok(None) };
        let row = self
            .run("read a claimed evaluation", || {
                sqlx::query!(
                    r#"SELECT e.attempt, e.project_id, p.name, e.source_kind, e.bundle_id, e.flake_url, e.commit_sha,
                           e.branch, e.attrs_requested, e.dirty, e.lost_count, e.is_tag, e.pr_number, e.pr_head_ref,
                           e.pr_base_branch, e.pr_base_sha, p.repository_id, e.wait_count, p.reuse_trees,
                           p.is_public,
                           coalesce(extract(epoch FROM now() - e.waiting_since), 0)::bigint AS "waited_s!"
                       FROM evaluations e JOIN projects p ON p.id = e.project_id WHERE e.id = $1"#,
                    id
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let source = match (row.source_kind.as_str(), row.bundle_id, row.flake_url) {
            ("bundle", Some(bundle), _) => Source::Bundle { bundle },
            ("git", _, Some(url)) => Source::Git { url },
            _ => return Err(DbError::Corrupt { what: ["source of evaluation ", &id.to_string()].concat() }),
        };
        Ok(Some(ClaimedEvaluation {
            id: EvalId(id),
            attempt: row.attempt as u32,
            project: ProjectId(row.project_id),
            project_name: row.name,
            source,
            commit: row.commit_sha,
            branch: row.branch,
            attrs: row.attrs_requested,
            dirty: row.dirty,
            lost_count: row.lost_count as u32,
            waits: row.wait_count as u32,
            waited: Duration::from_secs(u64::try_from(row.waited_s).unwrap_or(0)),
            reuse_trees: row.reuse_trees,
            is_public: row.is_public,
            is_tag: row.is_tag,
            has_forge: row.repository_id.is_some(),
            pull_request: row.pr_number.zip(row.pr_base_branch).map(|(number, base_branch)| ClaimedPullRequest {
                number: number as u64,
                head_ref: row.pr_head_ref,
                base_branch,
                base_commit: row.pr_base_sha,
            }),
        }))
    }

    /// Puts back into the queue what this node claimed under a token that it does not hold, because the answer to
    /// [`Self::claim_evaluation`] was lost on its way. `false`: nothing was claimed under it, and nothing will be.
    pub async fn revoke_evaluation(
        &self,
        node: &NodeId,
        run: Incarnation,
        token: &ClaimToken,
    ) -> Result<bool, DbError> {
        self.run("give back an evaluation whose claim's answer was lost", || {
            sqlx::query_scalar!(
                r#"SELECT revoke_evaluation($1, $2, $3) AS "was_claimed!""#,
                node.0,
                incarnation(run),
                hash(token)
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// Records what fetching showed. A commit that was not known before gets its place among the attempts at it.
    pub async fn set_evaluation_commit(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        facts: &CommitFacts,
    ) -> Result<(), DbError> {
        self.run("record a commit", || {
            sqlx::query!(
                "SELECT set_evaluation_commit($1, $2, $3, $4, $5, $6)",
                eval.0,
                hash(token),
                facts.commit,
                facts.tree_hash.as_deref(),
                facts.title.as_deref().map(text),
                facts.author.as_deref().map(text),
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Records which commits a pull request's evaluation merged, and into which.
    pub async fn set_evaluation_merge(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        head: &str,
        base: &str,
        merge: &str,
    ) -> Result<(), DbError> {
        self.run("record a merge", || {
            sqlx::query!("SELECT set_evaluation_merge($1, $2, $3, $4, $5)", eval.0, hash(token), head, base, merge)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Remembers which branches the default branch's own file wants built. `false`: nothing changed, or the evaluation is
    /// not of the default branch.
    pub async fn set_tree_branches(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        patterns: &[String],
    ) -> Result<bool, DbError> {
        self.run("remember the branches of the tree", || {
            sqlx::query_scalar!(r#"SELECT set_tree_branches($1, $2, $3) AS "changed!""#, eval.0, hash(token), patterns)
                .fetch_one(&self.pool)
        })
        .await
    }

    /// `false`: cancelled, superseded or reaped; stop the engine.
    pub async fn evaluation_held(&self, eval: EvalId, token: &ClaimToken) -> Result<bool, DbError> {
        self.run("check an evaluation's claim", || {
            sqlx::query_scalar!(r#"SELECT evaluation_held($1, $2) AS "held!""#, eval.0, hash(token))
                .fetch_one(&self.pool)
        })
        .await
    }

    /// Adds to the engine's log. The first MiB is kept.
    pub async fn append_evaluation_log(&self, eval: EvalId, token: &ClaimToken, log: &str) -> Result<(), DbError> {
        if log.is_empty() {
            return Ok(());
        }
        self.run("store the engine's log", || {
            sqlx::query!("SELECT append_evaluation_log($1, $2, $3)", eval.0, hash(token), text(log)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Adds warnings for the evaluation's page: the first 1,000 different ones are kept, each up to 4 KiB.
    pub async fn add_warnings(&self, eval: EvalId, token: &ClaimToken, warnings: &[String]) -> Result<(), DbError> {
        let warnings: Vec<String> = warnings.iter().map(|warning| text(warning)).collect();
        self.run("store warnings", || {
            sqlx::query!("SELECT add_warnings($1, $2, $3)", eval.0, hash(token), &warnings).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Adds to the names that the evaluation is going to answer for.
    pub async fn expect_attrs(&self, eval: EvalId, token: &ClaimToken, names: &[String]) -> Result<(), DbError> {
        self.run("store expected attributes", || {
            sqlx::query!("SELECT expect_attrs($1, $2, $3)", eval.0, hash(token), names).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// The tree says that no attributes are fine.
    pub async fn allow_empty_evaluation(&self, eval: EvalId, token: &ClaimToken) -> Result<(), DbError> {
        self.run("allow an empty evaluation", || {
            sqlx::query!("SELECT allow_empty_evaluation($1, $2)", eval.0, hash(token)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Ends the evaluation well when every expected name has a result or an error; else names what is missing and leaves
    /// it running. Refused when it has no attribute at all, unless that was allowed.
    pub async fn finish_evaluation(&self, eval: EvalId, token: &ClaimToken) -> Result<FinishedEvaluation, DbError> {
        let row = self
            .run("finish an evaluation", || {
                sqlx::query!(
                    r#"SELECT missing AS "missing!", attrs AS "attrs!" FROM finish_evaluation($1, $2)"#,
                    eval.0,
                    hash(token)
                )
                .fetch_one(&self.pool)
            })
            .await?;
        self.finish_withdrawals_of(&[eval]).await;
        Ok(FinishedEvaluation { complete: row.missing.is_empty(), missing: row.missing, attrs: row.attrs as u64 })
    }

    /// Ends the evaluation as failed: its attributes go, and with them its interest in jobs.
    pub async fn fail_evaluation(&self, eval: EvalId, token: &ClaimToken, error: &str) -> Result<(), DbError> {
        self.run("fail an evaluation", || {
            sqlx::query!("SELECT fail_evaluation($1, $2, $3)", eval.0, hash(token), text(error)).execute(&self.pool)
        })
        .await?;
        self.finish_withdrawals_of(&[eval]).await;
        Ok(())
    }

    /// Back to the queue (the node stops). The jobs it reached stay wanted.
    pub async fn release_evaluation(&self, eval: EvalId, token: &ClaimToken) -> Result<(), DbError> {
        self.run("release an evaluation", || {
            sqlx::query!("SELECT release_evaluation($1, $2)", eval.0, hash(token)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
