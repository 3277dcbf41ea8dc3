//! `POST /webhook/{forge}`: the plugin verifies and reads a delivery, the database takes it, and that is all: whatever
//! calls out happens afterwards. A forge that gets no 2xx delivers again.

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use harmonia_core::forge::{ForgeError, ForgeFeature, WebhookRequest};
use harmonia_db::Recorded;

use crate::bodies::Allowed;
use crate::error::{self, WebError};
use crate::extract::PathPart;
use crate::recorder::Verified;
use crate::state::AppState;

/// Largest body of a delivery.
pub(crate) const BODY_BYTES_MAX: usize = 5 << 20;
/// Most headers that a plugin sees.
const HEADERS_MAX: usize = 100;
/// Longest value of a header that a plugin sees; longer ones are none of a forge's.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Longest id of a delivery.
const ID_BYTES_MAX: usize = 200;

pub(crate) async fn take(
    State(state): State<AppState>,
    PathPart(name): PathPart<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, WebError> {
    let begun = Instant::now();
    let absent = || WebError::not_found("there is no forge of this name here that takes webhooks");
    let forge = state.plugins().forge(&name).filter(|forge| forge.has(ForgeFeature::Webhooks)).ok_or_else(absent)?;
    let bodies = state.bodies();
    let allowed = Allowed { bytes_max: BODY_BYTES_MAX, time: bodies.limits().webhook };
    let (body, _room) = bodies.strangers_bytes(&headers, body, allowed).await?;
    let bytes = body.len();
    let request = WebhookRequest { headers: readable(&headers), body: body.into() };
    let delivery = forge.webhook(request).await.map_err(|error| {
        if matches!(error, ForgeError::Denied(_))
            && let Some(count) = state.refusals().note(&name, begun)
        {
            tracing::warn!(
                forge.name = name,
                count,
                "Refused deliveries to {name}: their signature is missing or wrong. If they are the forge's, the secret \
                 there and in this configuration differ"
            );
        }
        error::refused_webhook(&name, error)
    })?;
    if delivery.id.is_empty() || delivery.id.len() > ID_BYTES_MAX {
        return Err(WebError::bad_request("this delivery has no id, or one longer than 200 bytes"));
    }
    let duration_ms = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
    let id = delivery.id.clone();
    let verified = Verified { forge: name.clone(), delivery, duration_ms, bytes };
    let recorded = state.recorder().record(verified).await?;
    let (follows, word) = match recorded {
        Recorded::New(_) => (true, "queued"),
        Recorded::Duplicate => (true, "known already"),
        Recorded::Nothing => (false, "concerns no enabled project"),
    };
    tracing::debug!(forge.name = name, delivery.id = id, duration_ms, "Delivery taken: {word}");
    let answer = format!("{{\"outcome\":\"{word}\"}}\n");
    Ok(error::taken(follows, ([(header::CONTENT_TYPE, "application/json")], answer)))
}

/// Names in lower case, as `http` has them; values that are text of a sensible length.
fn readable(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    text.filter(|(_, value)| value.len() <= HEADER_BYTES_MAX)
        .take(HEADERS_MAX)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
