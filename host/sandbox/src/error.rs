//! Why a program could not be put into a sandbox.

use std::io;

/// Why a program could not be put into a sandbox. Nothing of it has run then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The process has threads, which namespaces cannot take along.
    #[error("this process has several threads: call this from the start of a helper's main")]
    Threads,
    /// The spec says something impossible.
    #[error("the sandbox's specification is wrong: {0}")]
    Spec(String),
    /// The spec could not be read.
    #[error("could not read the sandbox's specification")]
    ReadSpec(#[source] io::Error),
    /// The kernel refused one of the steps.
    #[error("could not {step}")]
    Step {
        /// What was tried.
        step: String,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// A step inside the namespaces failed; only its text gets out.
    #[error("{0}")]
    Inside(String),
}

/// Names a step that may fail.
pub(crate) fn step<T, E: Into<io::Error>>(
    name: impl FnOnce() -> String,
    outcome: Result<T, E>,
) -> Result<T, SandboxError> {
    outcome.map_err(|cause| SandboxError::Step { step: name(), cause: cause.into() })
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
