//! Ids: one type a table, so that a job's id can never be passed where an evaluation's is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that should have been a positive whole number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {kind} id: expected a positive whole number")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text.parse::<$inner>() {
                    Ok(number) if number > 0 => Ok(Self(number)),
                    _ => Err(ParseIdError { kind: $kind, text: text.chars().take(40).collect() }),
                }
            }
        }
    };
}

id!(
    /// A row of `projects`.
    ProjectId, i64, "a project"
);
id!(
    /// A row of `evaluations`.
    EvalId, i64, "an evaluation"
);
id!(
    /// A row of `build_jobs`: one derivation to build.
    JobId, i64, "a job"
);
id!(
    /// A row of `build_attempts`: one try at a job.
    AttemptId, i64, "an attempt"
);
id!(
    /// A row of `job_classes`: (system, sorted required features).
    ClassId, i32, "a class"
);

/// The name of a node, unique in the cluster, from its configuration (default: the host's name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_positive_number() {
        assert_eq!("7".parse::<JobId>(), Ok(JobId(7)));
        for bad in ["", "0", "-1", "x", "9223372036854775808", "1 "] {
            let error = bad.parse::<JobId>().expect_err(bad);
            assert!(error.to_string().contains("not a job id"), "{error}");
        }
    }
}
