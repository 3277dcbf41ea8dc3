//! Asks a frontend for the credential of a private repository. Start at [`clone_credential`].
//!
//! Three kinds of answers: yes (perhaps that none is needed), no for good, and not now. Frontends are asked in turn until
//! one says yes; a "no" of one that could ask the forge outweighs others that are away.

use std::time::Duration;

use harmonia_core::api::ApiError;
use harmonia_core::forge::CloneCredential;
use harmonia_core::frontend_api::{CloneCredentialAnswer, CloneCredentialRequest};
use harmonia_core::{ClaimToken, EvalId, SecretText};
use harmonia_db::{Db, DbError};

use super::transient::{is_temporary, retry_after};

/// One frontend has so long to answer: it may have to ask the forge.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    /// The list of frontends.
    #[error("could not look up the live frontends")]
    Database(#[source] DbError),
    /// Nobody to ask.
    #[error("no frontend is online that could ask the forge for a credential")]
    NoFrontend,
    /// The claim is void.
    #[error("the claim is no longer held")]
    Lost,
    /// The forge (or who speaks for it) does not give one, and will not.
    #[error("the frontend at {frontend} says: {message}")]
    Refused { frontend: String, message: String },
    /// None could get one now; the last one said so.
    #[error("the frontend at {frontend} has none now: {message}")]
    NotNow { frontend: String, message: String, retry_after: Option<Duration> },
    /// None could be reached; the last one so.
    #[error("could not reach the frontend at {frontend}")]
    Unreachable {
        frontend: String,
        #[source]
        cause: reqwest::Error,
    },
}

impl CredentialError {
    /// Whether trying later may help.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::NoFrontend | Self::Unreachable { .. } | Self::NotNow { .. })
    }

    /// The pause that was asked for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotNow { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A short-lived credential for the repository of an evaluation that we hold; `None` when it needs none.
pub(crate) async fn clone_credential(
    http: &reqwest::Client,
    db: &Db,
    eval: EvalId,
    token: &ClaimToken,
    silent_after: Duration,
) -> Result<Option<CloneCredential>, CredentialError> {
    let frontends = db.live_frontends(silent_after).await.map_err(CredentialError::Database)?;
    let mut last = CredentialError::NoFrontend;
    for frontend in frontends {
        match ask(http, &frontend, eval, token).await {
            Ok(credential) => return Ok(credential),
            Err(CredentialError::Lost) => return Err(CredentialError::Lost),
            Err(error) if matches!(last, CredentialError::Refused { .. }) => {
                tracing::debug!(error = %harmonia_core::chain(&error), "Another frontend has no credential either");
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(
    http: &reqwest::Client,
    frontend: &str,
    eval: EvalId,
    token: &ClaimToken,
) -> Result<Option<CloneCredential>, CredentialError> {
    let unreachable = |cause| CredentialError::Unreachable { frontend: frontend.to_owned(), cause };
    let answer = http
        .post(format!("{}/internal/clone-credential", frontend.trim_end_matches('/')))
        .timeout(TIMEOUT)
        .bearer_auth(token.to_hex())
        .json(&CloneCredentialRequest { eval })
        .send()
        .await
        .map_err(unreachable)?;
    let status = answer.status().as_u16();
    if status == 200 {
        let answer: CloneCredentialAnswer = answer.json().await.map_err(unreachable)?;
        return Ok(answer.credential.map(|wire| CloneCredential {
            user: wire.user,
            password: SecretText::new(wire.password),
            hosts: wire.hosts,
        }));
    }
    let retry_after = retry_after(answer.headers());
    let text = answer.text().await.unwrap_or_default();
    let said: Option<ApiError> = serde_json::from_str(&text).ok();
    let message = said.as_ref().map_or_else(
        || format!("HTTP {status}: {}", text.chars().take(500).collect::<String>()),
        |said| said.message.chars().take(500).collect(),
    );
    let frontend = frontend.to_owned();
    match (status, said.as_ref().map(|said| said.code.as_str())) {
        // The project has no forge.
        (404, Some("not-found")) => Ok(None),
        (409, _) => Err(CredentialError::Lost),
        // Another 404 is none of a frontend: something else answers at its address.
        (404, _) => Err(CredentialError::NotNow { frontend, message, retry_after }),
        (code, _) if is_temporary(code) => Err(CredentialError::NotNow { frontend, message, retry_after }),
        _ => Err(CredentialError::Refused { frontend, message }),
    }
}

#[cfg(test)]
mod tests;
