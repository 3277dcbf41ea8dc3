//! Which refusal each crate's errors become. Public texts never contain a cause.

use harmonia_cache::{ReadError, SignError, SignErrorKind};
use harmonia_core::forge::ForgeError;
use harmonia_db::DbError;

use super::WebError;
use crate::live::WatchError;
use crate::memory::TooLong;
use crate::validate::InvalidEvaluation;
use crate::validate::projects::InvalidSettings;

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
            | DbError::SchemaTooNew { .. }
            | DbError::OtherLayout { .. } => Self::database_unavailable().because(error),
            _ if error.is_transient() => Self::database_unavailable().because(error),
            _ => Self::internal("database-query").because(error),
        }
    }
}

impl WebError {
    pub(crate) fn database_unavailable() -> Self {
        Self::unavailable("database-unavailable", "the database does not answer now: try again")
    }
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

/// What a forge answers while somebody waits for us: what may be better later is a 503, the rest is refused.
impl From<ForgeError> for WebError {
    fn from(error: ForgeError) -> Self {
        match &error {
            ForgeError::RetryAfter(seconds) => Self::wait("the forge asks us to wait: try again later", *seconds),
            ForgeError::Unavailable(_) => {
                Self::unavailable("forge-unavailable", "the forge does not answer now: try again").because(error)
            }
            ForgeError::Plugin(_) => plugin_broken().because(error),
            ForgeError::Denied(_) => {
                Self::refused("the forge does not let us: its operator must look at what was granted")
            }
            ForgeError::NotFound => Self::refused("the forge does not know this"),
            ForgeError::Invalid(_) => Self::refused("the forge's plugin makes no sense of this"),
            ForgeError::Unsupported(_) => Self::refused("this forge cannot do that"),
        }
    }
}

fn plugin_broken() -> WebError {
    WebError::unavailable(
        "plugin-failed",
        "the forge's plugin failed: try again; its operator finds the cause in the log",
    )
}

/// What became of a webhook that its plugin refused to take. The forge shows it to whoever looks at its deliveries.
pub(crate) fn refused_webhook(forge: &str, error: ForgeError) -> WebError {
    match &error {
        ForgeError::Denied(_) => WebError::unauthorized("the signature of this delivery is missing or wrong"),
        ForgeError::Invalid(reason) => WebError::bad_request(format!(
            "this delivery cannot be understood: {}",
            reason.chars().take(300).collect::<String>()
        )),
        ForgeError::Unsupported(_) | ForgeError::NotFound => {
            WebError::not_found(format!("the forge '{forge}' takes no webhooks"))
        }
        ForgeError::RetryAfter(_) | ForgeError::Unavailable(_) | ForgeError::Plugin(_) => error.into(),
    }
}

impl From<TooLong> for WebError {
    fn from(TooLong: TooLong) -> Self {
        Self::busy()
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

impl From<InvalidSettings> for WebError {
    fn from(error: InvalidSettings) -> Self {
        Self::refused(error.to_string())
    }
}
