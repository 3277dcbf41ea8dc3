//! Which refusal each crate's errors become. Public texts never contain a cause.

use harmonia_cache::{ReadError, SignError, SignErrorKind};
use harmonia_db::DbError;

use super::WebError;
use crate::live::WatchError;
use crate::validate::InvalidEvaluation;

impl From<DbError> for WebError {
    fn from(error: DbError) -> Self {
        match &error {
            DbError::StaleClaim => Self::stale_claim(),
            DbError::NotFound { what } => Self::not_found(format!("{what} does not exist")),
            DbError::Refused { reason } => Self::refused(reason.clone()),
            // Reachable but not usable: an operator acts, clients come back.
            DbError::Unavailable { .. }
            | DbError::Credentials { .. }
            | DbError::NoDatabase { .. }
            | DbError::Url { .. }
            | DbError::SchemaTooOld { .. }
            | DbError::SchemaTooNew { .. } => database_unavailable().because(error),
            _ if error.is_transient() => database_unavailable().because(error),
            _ => Self::internal("database-query").because(error),
        }
    }
}

fn database_unavailable() -> WebError {
    WebError::unavailable("database-unavailable", "the database does not answer now: try again")
}

impl From<SignError> for WebError {
    fn from(error: SignError) -> Self {
        let message = error.public_message();
        match error.kind() {
            SignErrorKind::StaleClaim => Self::stale_claim(),
            SignErrorKind::Refused => Self::refused(message),
            SignErrorKind::NotUploaded => Self::not_uploaded(message),
            SignErrorKind::TryAgain => Self::unavailable("signer-unavailable", message).because(error),
            SignErrorKind::Misconfigured => {
                let message = format!("this signer cannot work, its operator must act: {message}");
                Self::unavailable("signer-misconfigured", message).because(error)
            }
        }
    }
}

impl From<ReadError> for WebError {
    fn from(error: ReadError) -> Self {
        let code = match &error {
            ReadError::Store(_) => "object-store-unavailable",
            ReadError::Database(_) => "database-unavailable",
            ReadError::Damaged { .. } => "object-damaged",
            ReadError::Shared(_) => "cache-unavailable",
        };
        Self::unavailable(code, "the cache cannot say now: try again").because(error)
    }
}

impl From<WatchError> for WebError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Full => Self::unavailable(
                "too-many-streams",
                "too many live logs are open here: try again, or read the log without live updates",
            ),
            WatchError::Database(error) => error.into(),
        }
    }
}

impl From<askama::Error> for WebError {
    fn from(error: askama::Error) -> Self {
        Self::internal("template").because(error)
    }
}

impl From<InvalidEvaluation> for WebError {
    fn from(error: InvalidEvaluation) -> Self {
        Self::refused(error.to_string())
    }
}
