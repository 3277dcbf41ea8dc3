//! What could not be delivered, as the API shows it: [`DeadLetter`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadLetterKind {
    /// A commit's status.
    Status,
    /// A comment on a pull request.
    Comment,
    /// A notification to a reporter.
    Notification,
}

impl DeadLetterKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Status, Self::Comment, Self::Notification];

    /// As in addresses and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Comment => "comment",
            Self::Notification => "notification",
        }
    }
}

impl fmt::Display for DeadLetterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a dead letter is a status, a comment or a notification")]
pub struct ParseDeadLetterKindError;

impl FromStr for DeadLetterKind {
    type Err = ParseDeadLetterKindError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(ParseDeadLetterKindError)
    }
}

/// Something that was given up, or fails again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// What.
    pub kind: DeadLetterKind,
    /// Its number, for a replay.
    pub id: i64,
    /// Name of the forge or reporter.
    pub target: String,
    /// What it is about.
    pub subject: String,
    /// The last answer.
    pub error: Option<String>,
    /// Failed tries.
    pub attempts: u32,
    /// When it was given up; `None`: it is still tried.
    #[serde(with = "time::serde::rfc3339::option")]
    pub dead_at: Option<Timestamp>,
    /// When it is tried next, unless given up.
    #[serde(with = "time::serde::rfc3339")]
    pub next_attempt_at: Timestamp,
}
