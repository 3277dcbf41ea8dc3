//! Every SQL statement of Harmonia CI: queue, evaluations, nodes, store paths, maintenance.
//!
//! Start reading at [`Db`], then `queue` (what builders and signers do to jobs) and `evaluations` (who wants them).
//! What changes state is a function in `migrations/functions/`, one statement here: it checks the caller's claim token, runs in one
//! transaction, and is tried again after a deadlock. `migrations/functions/guards.sql` has the guarded state machine.
//!
//! Only here: sqlx. Never here: axum, wasmtime, S3, decisions that need no database (those are in core).

mod connection;
mod deliveries;
mod derivations;
mod error;
mod evaluations;
mod intake;
mod leased;
mod limits;
mod listen;
mod maintenance;
mod migrate;
mod nodes;
mod outbox;
mod paths;
mod plugin_kv;
mod projects;
mod queue;
mod repositories;
mod statistics;
mod statuses;
#[cfg(feature = "testing")]
pub mod testing;
mod tokens;
pub mod views;
mod withdrawals;

pub use connection::{Db, DbOptions, Patience};
pub use deliveries::{ClaimedDelivery, DeliveryRowId, NewDelivery, Recorded};
pub use derivations::CheckedDerivation;
pub use error::DbError;
pub use evaluations::{
    AskedLimits, AttrResult, BatchOutcome, ClaimedEvaluation, ClaimedPullRequest, CommitFacts, CreatedEvaluation,
    FinishedEvaluation, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, NewEvaluationRow, NewProject, ProjectKind,
    Walk,
};
pub use harmonia_core::retry::RetryPolicy;
pub use intake::{
    ArrivedHead, AskedPermission, BranchKey, BranchState, EvaluationRequest, Requested, RerunCandidate,
    SavedPullRequest,
};
pub use listen::{Channel, Listener, Notice};
pub use maintenance::{ChoreLock, Deleted, Reaped, Repaired, Violation};
pub use migrate::Migrated;
pub use nodes::{HeartbeatAnswer, NodeRegistration, Released, SignerNode};
pub use outbox::DueNotification;
pub use paths::{
    Alongside, AttemptScope, BuildInput, CanonicalPath, Claimed, ClaimedWalk, EvaluationScope, Finished, Healed,
    MissingPath, NewPath, PathRow, PathState, UnfinishedPublication, UploadScope, UpstreamAnswer, UpstreamFault,
    UpstreamTrouble,
};
pub use projects::{ForgeProject, HookTarget, PollSource, PollTarget};
pub use queue::{
    Booking, ClaimedJob, DecayDue, FailOutcome, JobLimits, LogTail, QueueHeads, RecordedJob, UnchargedAttempt,
};
pub use repositories::{PageSaved, RepositoryFilter, RepositoryId, Sync};
pub use statistics::AttemptStatistics;
pub use statuses::{Answer, ComputedReport, DueStatus, OwedComment, PauseKind, ReportOutcome, ReportTarget};
pub use tokens::ClaimState;
