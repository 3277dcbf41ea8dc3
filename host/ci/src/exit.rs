//! How the program ends: exit codes, and an error as a person should read it.
//!
//! | code | means |
//! |---|---|
//! | 0 | done; with `eval --wait`, everything succeeded |
//! | 1 | it failed; with `eval --wait`, something did not evaluate or build |
//! | 2 | bad usage or configuration: nothing was done |
//! | 3 | a server this command needs (ours, PostgreSQL, the object store) cannot be reached |

use std::process::ExitCode;

pub(crate) use harmonia_core::chain;
use harmonia_core::log_text;

/// What went wrong, its cause and what to try: printed once, by `main`.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// It failed (exit code 1).
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), hint: None }
    }

    /// Bad usage or configuration (exit code 2).
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into(), hint: None }
    }

    /// Something cannot be reached (exit code 3).
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into(), hint: None }
    }

    /// No HTTP client could be made. All that can be missing is a machine's certificates of authorities.
    pub(crate) fn no_http(error: &dyn std::error::Error) -> Self {
        Self::failed(format!("could not set up HTTP: {}", chain(error))).hint(
            "install the system's certificates of authorities (the package ca-certificates), or name a file that holds \
             some in SSL_CERT_FILE",
        )
    }

    /// Adds what to try.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What went wrong, in one sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        // Servers and files that we are told of write into it.
        eprintln!("error: {}", log_text::clean(&self.message));
        if let Some(hint) = &self.hint {
            eprintln!("  try: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl From<crate::config::load::ConfigError> for Failure {
    fn from(error: crate::config::load::ConfigError) -> Self {
        Self::usage(chain(&error))
    }
}
