//! What other nodes ask of a frontend (`harmonia_core::frontend_api`), with their claim tokens.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use harmonia_core::forge::{ForgeError, ForgeFeature};
use harmonia_core::frontend_api::{CloneCredentialAnswer, CloneCredentialRequest, WireCredential};

use crate::bodies::Room;
use crate::error::WebError;
use crate::extract::Claim;
use crate::state::AppState;

const BODY_BYTES_MAX: usize = 4 << 10;

/// The credential for the repository of the evaluation that the token holds, and for no other.
pub(crate) async fn clone_credential(
    State(state): State<AppState>,
    Claim(token): Claim,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, WebError> {
    let (request, _room): (CloneCredentialRequest, Room) = state.call_body(&headers, body, BODY_BYTES_MAX).await?;
    let Some((name, repository)) = state.db().evaluation_repository(request.eval, &token).await? else {
        return Err(WebError::not_found("the project of this evaluation has no forge"));
    };
    // Not a 404: that would say that none is needed.
    let forge = state.plugins().forge(&name).ok_or_else(|| {
        WebError::unavailable(
            "forge-unavailable",
            format!("the forge '{name}' is not configured on this node: ask another"),
        )
    })?;
    let credential = if forge.has(ForgeFeature::Credentials) {
        match forge.clone_credential(repository).await {
            Ok(credential) => credential,
            Err(ForgeError::Unsupported(_)) => None,
            // Shown on the evaluation's page, to people who can do something about it.
            Err(ForgeError::Denied(_)) => {
                return Err(WebError::refused(format!(
                    "'{name}' does not let us read the repository: grant what we are registered as there the right to read \
                     its code, then run the evaluation again"
                )));
            }
            Err(ForgeError::NotFound) => {
                return Err(WebError::refused(format!(
                    "'{name}' does not know the repository: it is gone, or what we are registered as there was removed from it"
                )));
            }
            Err(error) => return Err(error.into()),
        }
    } else {
        None
    };
    let credential = credential.map(|credential| WireCredential {
        user: credential.user,
        password: credential.password.expose().to_owned(),
        hosts: credential.hosts,
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(CloneCredentialAnswer { credential })).into_response())
}
