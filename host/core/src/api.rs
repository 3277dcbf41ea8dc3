//! Wire types of `/api/v1`: what the CLI, the pages and scripts read. Shapes are part of the documented interface.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /api/v1/bundles` | a git bundle (`application/x-git-bundle`) | [`BundleStored`] |
//! | `POST /api/v1/evaluations` | [`NewEvaluation`] | [`EvaluationCreated`] |
//! | `GET /api/v1/evaluations?project=&before=&limit=` | – | `[`[`Evaluation`]`]`, newest first |
//! | `GET /api/v1/evaluations/{id}?after=&limit=` | – | [`EvaluationDetail`], attributes by name |
//! | `GET /api/v1/evaluations/{id}/head?since=` | – | [`EvaluationHead`], with what changed since that revision |
//! | `GET /api/v1/evaluations/{id}/waits?limit=` | – | [`EvaluationWaits`] |
//! | `GET /api/v1/evaluations/{id}/log` | – | the engine's log, text |
//! | `POST /api/v1/evaluations/{id}/cancel` | – | [`Changed`] |
//! | `POST /api/v1/evaluations/{id}/rebuild-failed` | – | [`Changed`] |
//! | `GET /api/v1/builds/{id}` | – | [`Build`] (id: the job's) |
//! | `GET /api/v1/builds/{id}/log` | – | text; with `Accept: text/event-stream` live ([`LogEvent`]) |
//! | `POST /api/v1/builds/{id}/rebuild` · `/cancel` | – | [`Changed`] |
//! | `GET /api/v1/builds/find?q=` | – | [`Build`]: a number, a `.drv` path, or an attribute's name (newest) |
//! | `GET /api/v1/builds/{id}/log?attempt=` | – | text of that attempt's log |
//! | `GET /api/v1/projects` | – | `[`[`Project`]`]` |
//! | `GET /api/v1/project-settings?project=&after=&limit=` | – | `[`[`ProjectSettings`]`]`, by name |
//! | `POST /api/v1/projects` | [`AddProject`] | [`ProjectAdded`] |
//! | `PATCH /api/v1/projects/{name}` | [`ProjectChanges`] | [`ProjectSettings`] |
//! | `GET /api/v1/repositories?search=&forge=&after=&limit=` | – | `[`[`RepositoryInfo`]`]`, by forge and name |
//! | `GET /api/v1/deliveries?forge=&dead=&before=&limit=` | – | `[`[`DeliveryInfo`]`]`, newest first |
//! | `POST /api/v1/deliveries/replay?forge=` | – | [`Changed`]: all dead letters |
//! | `POST /api/v1/deliveries/{id}/replay` | – | [`Changed`] |
//! | `GET /api/v1/queue?limit=` | – | [`Queue`] |
//! | `GET /api/v1/status` | – | [`ServerStatus`] |
//! | `GET /api/v1/nodes` | – | `[`[`Node`]`]` |
//!
//! Calls that change something, and all of them when the server says so, need `Authorization: Bearer <API token>`.
//! Every answer other than 2xx carries [`ApiError`].

mod projects;

pub use projects::{AddProject, DeliveryInfo, HookInfo, ProjectAdded, ProjectChanges, ProjectSettings, RepositoryInfo};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{AttemptId, EvalId, JobId};
use crate::state::{AttemptOutcome, EvalStatus, FailureKind, JobStatus};

/// What went wrong, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable kebab-case word for programs (`not-found`, `stale-claim`, `unavailable`, …).
    pub code: String,
    /// A sentence for people: what failed, why, what to try.
    pub message: String,
    /// Finds the log lines of this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A stored git bundle, to be named in [`Source::Bundle`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleStored {
    /// Its id.
    pub bundle: i64,
}

/// Where the commit comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// A bundle sent before (`POST /api/v1/bundles`) that contains the commit.
    Bundle {
        /// From [`BundleStored`].
        bundle: i64,
    },
    /// A git URL the evaluator can fetch (`https://`, `ssh://`, `git://`, `file://`).
    Git {
        /// The URL, without credentials.
        url: String,
    },
}

/// Asks for an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvaluation {
    /// Project name (`local/NAME` for `eval PATH`); created when it is a local or plain git one and does not exist.
    pub project: String,
    /// Where the commit comes from.
    pub source: Source,
    /// Full commit hash. For [`Source::Git`] it may be left out: the head of `branch` when the evaluator fetches.
    #[serde(default)]
    pub commit: Option<String>,
    /// Branch name. For [`Source::Git`] it may be left out: the branch that the remote's HEAD names.
    #[serde(default)]
    pub branch: Option<String>,
    /// Flake output prefixes instead of those of `.harmonia-ci.toml`.
    #[serde(default)]
    pub attrs: Option<Vec<String>>,
    /// The tree had uncommitted changes, which the commit contains.
    #[serde(default)]
    pub dirty: bool,
    /// First line of the commit message.
    #[serde(default)]
    pub title: Option<String>,
    /// Author of the commit.
    #[serde(default)]
    pub author: Option<String>,
}

/// An evaluation was queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationCreated {
    /// Its id.
    pub id: EvalId,
    /// Its page, relative to the server.
    pub page: String,
    /// Evaluations that it superseded.
    pub superseded: Vec<EvalId>,
}

/// How many attributes of an evaluation stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrCounts {
    /// All attributes so far.
    pub total: u64,
    /// Built or available.
    pub succeeded: u64,
    /// Failed builds.
    pub failed: u64,
    /// Failed because a dependency failed.
    pub dep_failed: u64,
    /// Attributes that did not evaluate.
    pub eval_errors: u64,
    /// Now building or uploading.
    pub building: u64,
    /// Waiting.
    pub pending: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl AttrCounts {
    /// Counts states as `attr_counts` of the database does.
    pub fn of(states: impl IntoIterator<Item = AttrState>) -> Self {
        let mut counts = Self::default();
        for state in states {
            counts.total += 1;
            *match state {
                AttrState::Succeeded | AttrState::Cached => &mut counts.succeeded,
                AttrState::Failed => &mut counts.failed,
                AttrState::DepFailed => &mut counts.dep_failed,
                AttrState::Error => &mut counts.eval_errors,
                AttrState::Building | AttrState::Uploading => &mut counts.building,
                AttrState::Pending => &mut counts.pending,
                AttrState::Cancelled => &mut counts.cancelled,
            } += 1;
        }
        counts
    }
}

/// What it all amounts to. Green needs every condition of invariant 5 in database.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Still evaluating or building.
    Running,
    /// Complete, and everything it reaches succeeded or is available.
    Succeeded,
    /// Something failed.
    Failed,
    /// Cancelled or superseded.
    Cancelled,
}

/// One evaluation, as in lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Its id.
    pub id: EvalId,
    /// Project name.
    pub project: String,
    /// Full commit hash, once known.
    pub commit: Option<String>,
    /// Branch.
    pub branch: String,
    /// Counts evaluations of one (project, commit, branch).
    pub attempt: u32,
    /// First line of the commit message.
    pub title: Option<String>,
    /// The commit's author.
    pub author: Option<String>,
    /// Whether the tree was dirty.
    pub dirty: bool,
    /// Where the evaluation itself stands.
    pub status: EvalStatus,
    /// What it and its builds amount to.
    pub verdict: Verdict,
    /// Every name has a result or an error.
    pub complete: bool,
    /// Why the evaluation failed, or why it was skipped.
    pub error: Option<String>,
    /// Why it is not evaluated yet, when something that it needs cannot be had now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Counts of its attributes.
    pub counts: AttrCounts,
    /// The evaluation that replaced it.
    pub superseded_by: Option<EvalId>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: Timestamp,
    /// When an evaluator took it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<Timestamp>,
    /// When the evaluation (not its builds) ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<Timestamp>,
}

/// A queued evaluation that was put off: its source, or a credential for it, could not be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// What could not be had the last time.
    pub reason: String,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: Timestamp,
    /// When it is tried again.
    #[serde(with = "time::serde::rfc3339")]
    pub until: Timestamp,
}

/// One project with its newest evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// `local`, `git` or `forge`.
    pub kind: String,
    /// The newest evaluation, whatever its branch.
    #[serde(default)]
    pub last_evaluation: Option<Evaluation>,
}

/// State of one attribute: its job's, or `cached`, or `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttrState {
    /// Was available when it was evaluated; no job.
    Cached,
    /// Did not evaluate.
    Error,
    /// Waits.
    Pending,
    /// Builds.
    Building,
    /// Uploads.
    Uploading,
    /// Built.
    Succeeded,
    /// Failed.
    Failed,
    /// A dependency failed.
    DepFailed,
    /// Cancelled.
    Cancelled,
}

/// One attribute of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Attribute path, dotted (`checks.x86_64-linux.hello`; parts with dots are quoted).
    pub attr: String,
    /// Derivation name.
    pub name: Option<String>,
    /// System.
    pub system: Option<String>,
    /// Where it stands.
    pub state: AttrState,
    /// Full path of its derivation.
    pub drv_path: Option<String>,
    /// Output name → full store path.
    pub outputs: std::collections::BTreeMap<String, Option<String>>,
    /// Its job, when it has one.
    pub job: Option<JobId>,
    /// Evaluation error, build failure, or the failed dependency.
    pub error: Option<String>,
    /// How the job failed.
    pub failure_kind: Option<FailureKind>,
}

/// How an evaluation stands, and what changed: small, however many attributes it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationHead {
    /// Another and mostly a larger number whenever anything changed that is shown of it: to be compared for being the same, and
    /// to be sent back as `since`.
    pub revision: i64,
    /// As in lists.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Counts over all jobs that the evaluation reaches (not only attributes).
    pub jobs: JobCounts,
    /// `changed` is every attribute: the server does not know (any more) what changed since then.
    pub whole: bool,
    /// Attributes whose state changed since the revision that was sent along, by name.
    pub changed: Vec<AttrChange>,
}

/// An attribute, and where it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    /// Attribute path.
    pub attr: String,
    /// Where it stands.
    pub state: AttrState,
}

/// One evaluation with its attributes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationDetail {
    /// As in lists.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Attributes, by name.
    pub attrs: Vec<Attr>,
    /// There are more: what to send as `after` to get the next ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Counts over all jobs that the evaluation reaches (not only attributes).
    pub jobs: JobCounts,
    /// Warnings for the page (unknown configuration keys, doubtful engine ends, …).
    pub warnings: Vec<String>,
}

/// Jobs by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCounts {
    /// Wait.
    pub pending: u64,
    /// Build.
    pub building: u64,
    /// Upload.
    pub uploading: u64,
    /// Succeeded.
    pub succeeded: u64,
    /// Failed.
    pub failed: u64,
    /// A dependency failed.
    pub dep_failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl JobCounts {
    /// The count of this status.
    pub const fn of_mut(&mut self, status: JobStatus) -> &mut u64 {
        match status {
            JobStatus::Pending => &mut self.pending,
            JobStatus::Building => &mut self.building,
            JobStatus::Uploading => &mut self.uploading,
            JobStatus::Succeeded => &mut self.succeeded,
            JobStatus::Failed => &mut self.failed,
            JobStatus::DepFailed => &mut self.dep_failed,
            JobStatus::Cancelled => &mut self.cancelled,
        }
    }

    /// All of them.
    pub const fn total(&self) -> u64 {
        self.pending + self.building + self.uploading + self.succeeded + self.failed + self.dep_failed + self.cancelled
    }
}

/// One try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// Node that ran it.
    pub node: String,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// How it failed.
    pub failure_kind: Option<FailureKind>,
    /// Message of its failure.
    pub message: Option<String>,
    /// Exit code of its builder.
    pub exit_code: Option<i32>,
    /// Object key of its log, when stored.
    pub log_key: Option<String>,
    /// Start.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: Timestamp,
    /// End.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<Timestamp>,
}

/// One job with its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Its id.
    pub id: JobId,
    /// Project that first wanted it.
    pub project: String,
    /// Full path of its derivation.
    pub drv_path: String,
    /// Derivation name.
    pub name: String,
    /// System.
    pub system: String,
    /// Required features.
    pub required_features: Vec<String>,
    /// Where it stands.
    pub status: JobStatus,
    /// How it failed.
    pub failure_kind: Option<FailureKind>,
    /// Message of the failure.
    pub message: Option<String>,
    /// Exit code of its builder.
    pub exit_code: Option<i32>,
    /// 0, or 100 after a manual rebuild.
    pub priority: i32,
    /// Output name → full store path.
    pub outputs: std::collections::BTreeMap<String, Option<String>>,
    /// Attribute paths that are this derivation, newest evaluation first (at most 20).
    pub attrs: Vec<String>,
    /// The failed job a dep-failed one goes back to.
    pub root_cause: Option<RootCause>,
    /// Why it does not run, one sentence each; empty unless pending.
    pub why: Vec<String>,
    /// Tries, newest first.
    pub attempts: Vec<Attempt>,
    /// When it was inserted or last reset.
    #[serde(with = "time::serde::rfc3339")]
    pub queued_at: Timestamp,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<Timestamp>,
}

/// Which failure a dep-failed job goes back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCause {
    /// The failed job.
    pub job: JobId,
    /// Its derivation's name.
    pub name: String,
}

/// One job in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueuedJob {
    /// Its id.
    pub id: JobId,
    /// Project that first wanted it.
    pub project: String,
    /// Derivation name.
    pub name: String,
    /// System.
    pub system: String,
    /// Where it stands.
    pub status: JobStatus,
    /// Node that holds it.
    pub node: Option<String>,
    /// Inputs it still waits for.
    pub unmet_deps: u32,
    /// Why it does not run, one sentence each.
    pub why: Vec<String>,
    /// When it was inserted or last reset.
    #[serde(with = "time::serde::rfc3339")]
    pub queued_at: Timestamp,
    /// When the current try began.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<Timestamp>,
}

/// What an evaluation waits for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationWaits {
    /// Why it is not evaluated yet, one sentence each; empty when it is not queued.
    pub evaluation: Vec<String>,
    /// Its jobs that wait for no other job, each with its reasons, in claim order as far as known; at most the asked number.
    pub jobs: Vec<QueuedJob>,
}

/// What runs and what waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// All jobs by status.
    pub counts: JobCounts,
    /// Building and uploading, oldest first.
    pub running: Vec<QueuedJob>,
    /// Pending, in claim order as far as known; at most the asked number.
    pub waiting: Vec<QueuedJob>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// frontend, evaluator, signer, builder.
    pub capabilities: Vec<String>,
    /// Systems it builds.
    pub systems: Vec<String>,
    /// Features it offers.
    pub features: Vec<String>,
    /// Build slots.
    pub max_jobs: u32,
    /// Jobs it holds.
    pub running: u32,
    /// Takes no new work.
    pub draining: bool,
    /// Heard of lately.
    pub online: bool,
    /// Version of its binary.
    pub version: String,
    /// Why it claims nothing, when it says so.
    pub paused: Option<String>,
    /// What the scheduling policy last failed with there; jobs go first in, first out meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_error: Option<String>,
    /// Last heartbeat.
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen: Timestamp,
}

/// The whole server on one screen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Version of the answering binary.
    pub version: String,
    /// All jobs by status.
    pub jobs: JobCounts,
    /// Evaluations queued.
    pub evaluations_queued: u64,
    /// Evaluations running.
    pub evaluations_running: u64,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Public keys of the cache, `name:base64`.
    pub public_keys: Vec<String>,
    /// URL of the binary cache as clients see it.
    pub cache_url: String,
    /// Newest evaluations.
    pub evaluations: Vec<Evaluation>,
}

/// How many rows a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Jobs (or evaluations) changed.
    pub changed: u64,
}

/// Data of one Server-Sent Event of a live log. The event's name is the variant in kebab-case, its id
/// `attempt:offset` (offset after the bytes it carries).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum LogEvent {
    /// Bytes of the log (lossy UTF-8), in order.
    Log {
        /// Text.
        text: String,
    },
    /// This many bytes cannot be had now and come with the archive.
    Gap {
        /// Bytes left out.
        bytes: u64,
    },
    /// A new attempt begins; offsets start again at 0.
    Attempt {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The job ended; the stream closes.
    End {
        /// How.
        status: JobStatus,
    },
}
