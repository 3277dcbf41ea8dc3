//! What reporters are told. Start at [`Notification`].

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotificationKind {
    /// The evaluation ended well; its builds go on.
    EvaluationSucceeded,
    /// The evaluation failed: nothing is built.
    EvaluationFailed,
    /// Everything of an evaluation is built.
    BuildsSucceeded,
    /// Everything of an evaluation ended, and something failed.
    BuildsFailed,
}

/// One failed attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifiedFailure {
    /// Attribute.
    pub attr: String,
    /// One line.
    pub message: String,
    /// Page.
    pub url: String,
}

/// Something to tell people. The payload of an outbox row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Unique for what it says.
    pub key: String,
    /// What happened.
    pub kind: NotificationKind,
    /// Project.
    pub project: String,
    /// Branch.
    pub branch: String,
    /// Number of the pull request.
    pub pull_request: Option<u64>,
    /// Full hash; empty when unknown.
    pub commit: String,
    /// First line of the commit message; empty when unknown.
    pub title: String,
    /// Author; empty when unknown.
    pub author: String,
    /// Page of the evaluation.
    pub url: String,
    /// Attributes that are built or available.
    pub succeeded: u32,
    /// Attributes that failed.
    pub failed: u32,
    /// The first failures.
    pub failures: Vec<NotifiedFailure>,
    /// Whether the evaluation before it on the branch failed; `None`: there was none.
    pub failed_before: Option<bool>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: Timestamp,
}

/// Why a reporter did not take a notification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Nobody will ever take it.
    #[error("nobody will take this: {0}")]
    Invalid(String),
    /// An operator has to act.
    #[error("refused: {0}")]
    Denied(String),
    /// Try again after so many seconds.
    #[error("asked to wait for {0} s")]
    RetryAfter(u32),
    /// Try again.
    #[error("not available: {0}")]
    Unavailable(String),
    /// The plugin trapped, exceeded a limit, or is circuit-broken.
    #[error("the plugin failed: {0}")]
    Plugin(String),
}
