//! Asks a frontend for the credential of a private repository. Start at [`clone_credential`].

use std::time::Duration;

use harmonia_core::forge::CloneCredential;
use harmonia_core::frontend_api::{CloneCredentialAnswer, CloneCredentialRequest};
use harmonia_core::{ClaimToken, EvalId, SecretText};
use harmonia_db::{Db, DbError};

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
    /// Every frontend failed; the last one so.
    #[error("the frontend at {frontend} gave no credential: {message}")]
    Refused { frontend: String, message: String },
    /// None could be reached; the last one so.
    #[error("could not reach the frontend at {frontend}")]
    Unreachable {
        frontend: String,
        #[source]
        cause: reqwest::Error,
    },
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
    match answer.status().as_u16() {
        200 => {
            let answer: CloneCredentialAnswer = answer.json().await.map_err(unreachable)?;
            Ok(answer.credential.map(|wire| CloneCredential {
                user: wire.user,
                password: SecretText::new(wire.password),
                hosts: wire.hosts,
            }))
        }
        // The project has no forge.
        404 => Ok(None),
        409 => Err(CredentialError::Lost),
        status => {
            let text = answer.text().await.unwrap_or_default();
            let message = format!("HTTP {status}: {}", text.chars().take(500).collect::<String>());
            Err(CredentialError::Refused { frontend: frontend.to_owned(), message })
        }
    }
}
