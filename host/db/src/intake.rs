//! From deliveries to evaluations: start at [`Db::branch_state`] (before a forge is asked), then
//! [`Db::request_evaluation`]. Pull requests, approvals, permissions and replies are in `pull_requests`. The statements
//! are in `migrations/functions/intake.sql`.

mod pull_requests;

use harmonia_core::intake::Wanted;
use harmonia_core::{EvalId, EvalStatus, ProjectId};

use crate::connection::Db;
use crate::deliveries::DeliveryRowId;
use crate::error::{DbError, parse};
use crate::queue::text;

pub use pull_requests::{ArrivedHead, AskedPermission, SavedPullRequest};

/// Most evaluations of one commit that are looked at when it is to be run again.
const RERUN_MAX: i64 = 20;

/// A branch, tag or pull request of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchKey {
    /// The project.
    pub project: ProjectId,
    /// Name; `pull/7` for a pull request.
    pub branch: String,
    /// It is a tag.
    pub is_tag: bool,
    /// Number of the pull request.
    pub pull_request: Option<u64>,
}

/// What was known of a branch before its forge was asked. Who then acts on the answer shows it, so that nothing that came
/// meanwhile is overruled by an old answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchState {
    /// Its newest evaluation.
    pub newest: Option<EvalId>,
    /// The newest delivery that had arrived.
    pub seen: DeliveryRowId,
    /// The project is enabled, and its repository is there.
    pub is_active: bool,
}

/// Asks for an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationRequest {
    /// The project.
    pub project: ProjectId,
    /// URL for git, without credentials.
    pub url: String,
    /// Of what.
    pub wanted: Wanted,
    /// Hash of the commit's tree; `None`: not known, or results are not to be reused.
    pub tree_hash: Option<String>,
    /// What decides, with the tree, what an evaluation yields. `None`: not known, so nothing is reused.
    pub reuse_key: Option<String>,
    /// Which delivery asks.
    pub delivery: Option<DeliveryRowId>,
    /// Somebody wants it again: a new attempt unless one is under way.
    pub new_attempt: bool,
    /// The branch before the forge was asked; `None`: it was not asked, and what a later delivery led to stands.
    pub asked: Option<BranchState>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// There is one already, perhaps ended.
    Existing(EvalId),
    /// Results for the same tree are shown.
    Reused {
        /// The skipped evaluation that shows them.
        id: EvalId,
        /// Those of the branch that it replaced and that had not come to an end, they or their builds.
        unfinished: Vec<EvalId>,
    },
    /// A new one.
    Queued {
        /// Its id.
        id: EvalId,
        /// Those of the branch that it replaced and that had not come to an end, they or their builds.
        unfinished: Vec<EvalId>,
    },
    /// The branch is not as it was when the forge was asked: ask again.
    Moved,
    /// The forge was not asked, and a later delivery led to what there is.
    Late,
    /// The project is disabled, or its repository is gone.
    Inactive,
}

/// An evaluation that somebody wants to run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerunCandidate {
    /// Its id.
    pub id: EvalId,
    /// What it is of.
    pub key: BranchKey,
    /// How it is.
    pub status: EvalStatus,
    /// First line of the commit's message.
    pub title: Option<String>,
    /// The commit's author.
    pub author: Option<String>,
}

impl BranchKey {
    pub(crate) fn number(&self) -> Option<i64> {
        self.pull_request.map(number)
    }
}

impl Db {
    /// What is known of a branch now. To be read before the forge is asked where it is.
    pub async fn branch_state(&self, key: &BranchKey) -> Result<BranchState, DbError> {
        let row = self
            .run("look at a branch", || {
                // What is said twice keeps the planner to the one index that begins with the newest.
                sqlx::query!(
                    r#"SELECT (SELECT e.id FROM evaluations e
                               WHERE e.project_id = $1 AND e.branch = $2 AND e.is_tag >= $3 AND e.is_tag <= $3
                                   AND coalesce(e.pr_number, 0) = coalesce($4::bigint, 0)
                               ORDER BY e.is_tag, e.id DESC LIMIT 1) AS newest,
                           (SELECT coalesce(max(d.id), 0) FROM webhook_deliveries d) AS "seen!",
                           EXISTS (SELECT FROM projects p LEFT JOIN repositories r ON r.id = p.repository_id
                               WHERE p.id = $1 AND p.enabled AND r.removed_at IS NULL) AS "is_active!""#,
                    key.project.0,
                    text(&key.branch),
                    key.is_tag,
                    key.number(),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(BranchState { newest: row.newest.map(EvalId), seen: DeliveryRowId(row.seen), is_active: row.is_active })
    }

    /// Makes sure, in one transaction, that there is an evaluation: returns the one of this commit if the branch has
    /// nothing newer, or the results of an evaluation of the same tree, or queues one. It then supersedes the older ones
    /// of its branch, whose jobs are withdrawn unless another wants them. Requests of one project go one after the other.
    pub async fn request_evaluation(&self, request: &EvaluationRequest) -> Result<Requested, DbError> {
        let wanted = &request.wanted;
        let pull = wanted.pull_request.as_ref();
        let row = self
            .run("ask for an evaluation", || {
                sqlx::query!(
                    r#"SELECT outcome AS "outcome!", id, superseded AS "superseded!", unfinished AS "unfinished!"
                       FROM request_evaluation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
                           $18, $19, $20)"#,
                    request.project.0,
                    request.url,
                    text(&wanted.commit),
                    text(&wanted.branch),
                    wanted.is_tag,
                    pull.map(|pull| number(pull.number)),
                    pull.map(|pull| text(&pull.author)),
                    pull.map(|pull| text(&pull.head_ref)),
                    pull.map(|pull| text(&pull.base_branch)),
                    pull.map(|pull| text(&pull.base_commit)),
                    wanted.title.as_deref().map(text),
                    wanted.author.as_deref().map(text),
                    request.tree_hash.as_deref().map(text),
                    request.reuse_key.as_deref(),
                    request.delivery.map(|delivery| delivery.0),
                    wanted.supersede,
                    request.new_attempt,
                    request.asked.is_some(),
                    request.asked.and_then(|asked| asked.newest).map(|newest| newest.0),
                    request.asked.map(|asked| asked.seen.0),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let superseded: Vec<EvalId> = row.superseded.into_iter().map(EvalId).collect();
        self.finish_withdrawals_of(&superseded).await;
        let unfinished = row.unfinished.into_iter().map(EvalId).collect();
        match (row.outcome.as_str(), row.id.map(EvalId)) {
            ("existing", Some(id)) => Ok(Requested::Existing(id)),
            ("reused", Some(id)) => Ok(Requested::Reused { id, unfinished }),
            ("queued", Some(id)) => Ok(Requested::Queued { id, unfinished }),
            ("moved", _) => Ok(Requested::Moved),
            ("late", _) => Ok(Requested::Late),
            ("inactive", _) => Ok(Requested::Inactive),
            (outcome, _) => Err(DbError::Corrupt { what: ["outcome of a request: ", outcome].concat() }),
        }
    }

    /// The branch, tag or pull request is gone: closes its evaluations. What runs is cancelled, results stay to be seen,
    /// and jobs that nobody else wants are withdrawn. Evaluations that a delivery later than `seen` asked for stay.
    /// Returns how many were closed.
    pub async fn close_evaluations(&self, key: &BranchKey, seen: DeliveryRowId, reason: &str) -> Result<u64, DbError> {
        let closed = self
            .run("close evaluations", || {
                sqlx::query_scalar!(
                    r#"SELECT close_evaluations($1, $2, $3, $4, $5, $6) AS "closed!""#,
                    key.project.0,
                    text(&key.branch),
                    key.is_tag,
                    key.number(),
                    seen.0,
                    text(reason),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let closed: Vec<EvalId> = closed.into_iter().map(EvalId).collect();
        self.finish_withdrawals_of(&closed).await;
        Ok(closed.len() as u64)
    }

    /// The newest evaluation of a commit on each of its branches, unless superseded or closed.
    pub async fn rerun_candidates(&self, project: ProjectId, commit: &str) -> Result<Vec<RerunCandidate>, DbError> {
        let rows = self
            .run("look for evaluations of a commit", || {
                sqlx::query!(
                    r#"SELECT id, branch, is_tag, pr_number, status, commit_title, commit_author FROM (
                           SELECT DISTINCT ON (branch, is_tag, pr_number) id, branch, is_tag, pr_number, status,
                               commit_title, commit_author, superseded_by IS NULL AND closed_at IS NULL AS is_current
                           FROM evaluations
                           WHERE project_id = $1 AND commit_sha = $2 AND attrs_requested IS NULL AND NOT dirty
                           ORDER BY branch, is_tag, pr_number, id DESC
                       ) e WHERE is_current ORDER BY id DESC LIMIT $3"#,
                    project.0,
                    text(commit),
                    RERUN_MAX,
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(RerunCandidate {
                    id: EvalId(row.id),
                    key: BranchKey {
                        project,
                        branch: row.branch,
                        is_tag: row.is_tag,
                        pull_request: row.pr_number.map(|number| number as u64),
                    },
                    status: parse("status of an evaluation", &row.status)?,
                    title: row.commit_title,
                    author: row.commit_author,
                })
            })
            .collect()
    }
}

/// A pull request's number as the database has it.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
