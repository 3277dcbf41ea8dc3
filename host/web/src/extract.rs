//! Parsing at the edge: what handlers get is a type that cannot be wrong. No raw `Path`, `Query` or `Json` extractors
//! elsewhere, because their refusals would not be [`WebError`]s.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use harmonia_core::ClaimToken;
use serde::de::DeserializeOwned;

use crate::auth;
use crate::error::WebError;
use crate::state::AppState;

/// A client that sends nothing of its body for this long is given up.
const BODY_PATIENCE: Duration = Duration::from_mins(1);

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

/// `Authorization: Bearer <claim token>`: a worker that holds an attempt or an evaluation. The signer checks the token
/// against what the call is about.
pub(crate) struct Claim(pub(crate) ClaimToken);

impl<S: Send + Sync> FromRequestParts<S> for Claim {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, WebError> {
        let token = bearer(&parts.headers)
            .ok_or_else(|| WebError::unauthorized("this call needs `Authorization: Bearer <claim token>`"))?;
        token.parse().map(Self).map_err(|error| WebError::unauthorized(format!("{error}")))
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
        let token = bearer(&parts.headers).ok_or_else(|| {
            WebError::unauthorized("this call needs `Authorization: Bearer <API token>` (HARMONIA_CI_TOKEN)")
        })?;
        let name = state.db().api_token_name(auth::api_token_hash(token)).await?;
        name.map(|name| Self { name })
            .ok_or_else(|| WebError::unauthorized("this API token is not known here, expired or was withdrawn"))
    }
}

/// Whoever asks: with a token as [`ApiUser`], or anybody.
pub(crate) struct Reader {
    /// May see what is not public.
    pub(crate) sees_all: bool,
}

impl FromRequestParts<AppState> for Reader {
    type Rejection = WebError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, WebError> {
        if parts.headers.contains_key(header::AUTHORIZATION) {
            // A wrong token is told, not taken for none.
            return ApiUser::from_request_parts(parts, state).await.map(|_| Self { sees_all: true });
        }
        Ok(Self { sees_all: false })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// A JSON body of at most `bytes_max`.
pub(crate) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<T, WebError> {
    let bytes = bytes(headers, body, bytes_max).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| WebError::bad_request(format!("the body is not the JSON expected here: {error}")))
}

/// A body of at most `bytes_max`.
pub(crate) async fn bytes(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, WebError> {
    refuse_declared_excess(headers, bytes_max as u64)?;
    let mut pieces = Pieces::new(body);
    let mut all = BytesMut::new();
    while let Some(piece) = pieces.next().await? {
        if all.len() + piece.len() > bytes_max {
            return Err(WebError::too_large(bytes_max as u64, "the body"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// A body that says beforehand that it is too large is not read at all.
pub(crate) fn refuse_declared_excess(headers: &HeaderMap, bytes_max: u64) -> Result<(), WebError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bytes_max) {
        return Err(WebError::too_large(bytes_max, "the body"));
    }
    Ok(())
}

/// A body, piece by piece.
pub(crate) struct Pieces(axum::body::BodyDataStream);

impl Pieces {
    pub(crate) fn new(body: Body) -> Self {
        Self(body.into_data_stream())
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, WebError> {
        match tokio::time::timeout(BODY_PATIENCE, self.0.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) => Err(WebError::bad_request("the body broke off")),
            Err(_) => Err(WebError::bad_request("the body stood still for 60 seconds")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens() {
        let get = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("header"));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(get("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(get("bearer  abc ").as_deref(), Some("abc"));
        for bad in ["", "Bearer", "Bearer ", "Basic abc", "abc"] {
            assert_eq!(get(bad), None, "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
