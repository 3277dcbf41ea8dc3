//! States of jobs, attempts and evaluations, and which may follow which. The database guards the same table by a
//! trigger; [`JobStatus::may_become`] is the readable form and a test compares the two.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that names no known value of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}; known: {known}")]
pub struct ParseStateError {
    what: &'static str,
    text: String,
    known: String,
}

macro_rules! state {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text used in the database, on the wire and on pages.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseStateError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| ParseStateError {
                    what: $what,
                    text: text.chars().take(40).collect(),
                    known: Self::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

state!(
    /// Where a build job stands.
    JobStatus, "a job status" {
        /// Waits for its inputs or for a builder.
        Pending = "pending",
        /// A builder holds it and its claim token.
        Building = "building",
        /// Built; its outputs travel to the object store. Takes no build slot.
        Uploading = "uploading",
        /// Every output is published (or available upstream).
        Succeeded = "succeeded",
        /// Failed by itself; `failure_kind` says how.
        Failed = "failed",
        /// Nobody wants it any more, or somebody cancelled it.
        Cancelled = "cancelled",
        /// Something it depends on failed.
        DepFailed = "dep-failed",
    }
);

state!(
    /// Why a job failed.
    FailureKind, "a failure kind" {
        /// The builder exited non-zero, or its output was rejected.
        Build = "build",
        /// Wall-clock or silence timeout.
        Timeout = "timeout",
        /// A size limit (output).
        Limit = "limit",
        /// Transient tries are exhausted: not the derivation's fault.
        Infrastructure = "infrastructure",
        /// No node offers its system and features.
        Unsupported = "unsupported",
    }
);

state!(
    /// How one try ended.
    AttemptOutcome, "an attempt outcome" {
        /// Still running.
        Running = "running",
        /// Its outputs were accepted.
        Succeeded = "succeeded",
        /// Permanent failure.
        Failed = "failed",
        /// Transient failure, tried again or exhausted.
        Transient = "transient",
        /// Shut down, drained or cancelled: says nothing about the derivation.
        Aborted = "aborted",
        /// Its node vanished.
        Lost = "lost",
    }
);

state!(
    /// Where an evaluation stands. Says nothing of its builds.
    EvalStatus, "an evaluation status" {
        /// Waits for an evaluator.
        Queued = "queued",
        /// An evaluator holds it.
        Running = "running",
        /// Every attribute has a result or an error of its own.
        Succeeded = "succeeded",
        /// The evaluation as a whole failed; it has no attributes.
        Failed = "failed",
        /// Superseded or cancelled.
        Cancelled = "cancelled",
        /// Not evaluated: `skipped_reason` says why.
        Skipped = "skipped",
    }
);

state!(
    /// What a node does.
    Capability, "a capability" {
        /// Webhooks, pages, API, chores.
        Frontend = "frontend",
        /// Evaluates flakes.
        Evaluator = "evaluator",
        /// Holds the signing key and the object store's credentials.
        Signer = "signer",
        /// Builds.
        Builder = "builder",
    }
);

impl JobStatus {
    /// Whether the job can change no more by itself.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::DepFailed)
    }

    /// Whether a claim token is held.
    pub const fn is_claimed(self) -> bool {
        matches!(self, Self::Building | Self::Uploading)
    }

    /// Whether `next` may follow directly (database.md, "State machine of a job").
    pub const fn may_become(self, next: Self) -> bool {
        use JobStatus::{Building, Cancelled, DepFailed, Failed, Pending, Succeeded, Uploading};
        matches!(
            (self, next),
            (Pending, Building | Succeeded | Failed | Cancelled | DepFailed)
                | (Building, Uploading | Pending | Failed | Cancelled)
                | (Uploading, Succeeded | Pending | Failed | Cancelled)
                | (Failed | DepFailed | Cancelled | Succeeded, Pending)
        )
    }
}

impl EvalStatus {
    /// Whether the evaluation has ended.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_text() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
            let json = serde_json::to_string(status).expect("serializes");
            assert_eq!(json, format!("\"{status}\""));
        }
        let error = "done".parse::<JobStatus>().expect_err("unknown");
        assert!(error.to_string().contains("dep-failed"), "{error}");
    }

    #[test]
    fn nothing_follows_itself_and_terminal_states_only_reopen() {
        for from in JobStatus::ALL {
            assert!(!from.may_become(*from));
            for to in JobStatus::ALL {
                if from.is_terminal() && from.may_become(*to) {
                    assert_eq!(*to, JobStatus::Pending, "{from} → {to}");
                }
            }
        }
    }
}
