//! Parsing at the edge: what handlers get is a type that cannot be wrong. No raw `Path`, `Query` or `Json` extractors
//! elsewhere, because their refusals would not be [`WebError`]s.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::header;
use axum::http::request::Parts;
use harmonia_cache::Signer;
use harmonia_core::{ClaimToken, Viewer};
use serde::de::DeserializeOwned;

use crate::auth;
use crate::error::WebError;
use crate::state::AppState;

/// The only parameter of the path, parsed; anything else is a 404 without I/O.
pub(crate) struct PathPart<T>(pub(crate) T);

impl<T: FromStr, S: Send + Sync> FromRequestParts<S> for PathPart<T> {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, WebError> {
        let absent = || WebError::not_found("there is nothing at this address");
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| absent())?;
        text.parse().map(Self).map_err(|_| absent())
    }
}

/// The query string.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, WebError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                Err(WebError::bad_request(format!("the query string is wrong: {}", rejection.body_text())))
            }
        }
    }
}

/// Up to this size a body is read before it is asked who sent it: reading costs less than asking, and what the call is about
/// is asked anyway.
const UNASKED_BYTES_MAX: u64 = 64 << 10;

/// `Authorization: Bearer <claim token>`: a worker that holds an attempt or an evaluation, or held one: answers may be asked
/// for again. Whom nobody ever gave this token is refused before a byte of a large body is read; what the token is good for is
/// checked against what the call is about.
pub(crate) struct Claim(pub(crate) ClaimToken);

impl FromRequestParts<AppState> for Claim {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        let token = claim_token(parts)?;
        match state.db().claim_of(&token).await? {
            Some(_) => Ok(Self(token)),
            None => Err(WebError::stale_claim()),
        }
    }
}

fn claim_token(parts: &Parts) -> Result<ClaimToken, WebError> {
    let token = auth::bearer(&parts.headers)
        .ok_or_else(|| WebError::unauthorized("this call needs `Authorization: Bearer <claim token>`"))?;
    token.parse().map_err(|error| WebError::unauthorized(format!("{error}")))
}

/// The same on nodes with a signer; others say that they have none before they ask whose it is.
pub(crate) struct SignerClaim {
    pub(crate) signer: Signer,
    pub(crate) token: ClaimToken,
    /// Whether it is known that the token was given out.
    pub(crate) is_known: bool,
}

impl FromRequestParts<AppState> for SignerClaim {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        let Some(signer) = state.options().signer.clone() else {
            return Err(WebError::no_such_service(
                "this node is no signer: ask one of the nodes that have the capability `signer`",
            ));
        };
        let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length <= UNASKED_BYTES_MAX) {
            return Ok(Self { signer, token: claim_token(parts)?, is_known: false });
        }
        let Claim(token) = Claim::from_request_parts(parts, state).await?;
        Ok(Self { signer, token, is_known: true })
    }
}

/// `Authorization: Bearer <API token>` that the database knows: may change things.
pub(crate) struct ApiUser {
    /// Name of the token, recorded with what it changed.
    pub(crate) name: String,
}

impl FromRequestParts<AppState> for ApiUser {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        let token = auth::bearer(&parts.headers).ok_or_else(|| {
            WebError::unauthorized("this call needs `Authorization: Bearer <API token>` (HARMONIA_CI_TOKEN)")
        })?;
        let name = state.db().api_token_name(auth::api_token_hash(token)).await?;
        name.map(|name| Self { name })
            .ok_or_else(|| WebError::unauthorized("this API token is not known here, expired or was withdrawn"))
    }
}

/// Whoever asks to see something: somebody whose token may read, or anybody.
pub(crate) struct Reader(pub(crate) Viewer);

impl FromRequestParts<AppState> for Reader {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        if !parts.headers.contains_key(header::AUTHORIZATION) {
            return Ok(Self(Viewer::Public));
        }
        let token = auth::readers_token(&parts.headers).ok_or_else(|| {
            WebError::unauthorized("Authorization is neither `Bearer TOKEN` nor basic with a password")
        })?;
        if state.tokens().may_read(state.db(), &token).await? {
            return Ok(Self(Viewer::Token));
        }
        // A wrong token is told, not taken for none.
        Err(WebError::unauthorized("this token is not known here, expired or was withdrawn"))
    }
}

/// The same for the binary cache, on nodes that have one: others answer before they ask who it is.
pub(crate) struct CacheUser(pub(crate) Viewer);

impl FromRequestParts<AppState> for CacheUser {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        if state.options().reader.is_none() {
            return Ok(Self(Viewer::Public));
        }
        Reader::from_request_parts(parts, state).await.map(|Reader(viewer)| Self(viewer))
    }
}
