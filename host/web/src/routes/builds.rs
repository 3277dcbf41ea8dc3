//! `/api/v1/builds…`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use harmonia_core::api::{Build, Changed};
use harmonia_core::{AttemptId, JobId};
use serde::Deserialize;

use crate::client::Client;
use crate::error::WebError;
use crate::extract::{ApiUser, Params, PathPart, Reader};
use crate::live::cursor::Position;
use crate::live::stream;
use crate::logs;
use crate::state::AppState;

#[derive(Deserialize)]
pub(crate) struct FindQuery {
    q: String,
}

#[derive(Deserialize)]
pub(crate) struct LogQuery {
    /// Text of an older attempt.
    attempt: Option<AttemptId>,
    /// Where a live stream begins, `attempt:offset`: what a page has shown already. `Last-Event-ID` goes before it.
    from: Option<String>,
}

pub(crate) async fn find(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<FindQuery>,
) -> Result<Json<Build>, WebError> {
    let (db, now) = (state.db_for(viewer), state.options().clock.now());
    let build = state.costly(viewer, async { Ok(db.find_build(query.q.trim(), now).await?) }).await?;
    build.map(Json).ok_or_else(|| {
        WebError::not_found(
            "no build matches: give its number, a .drv path, or an attribute of a recent evaluation (an attribute that was \
             in a cache already has no build)",
        )
    })
}

pub(crate) async fn show(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<JobId>,
) -> Result<Json<Build>, WebError> {
    state.db_for(viewer).view_build(id, state.options().clock.now()).await?.map(Json).ok_or_else(|| absent(id))
}

pub(crate) async fn rebuild(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(id): PathPart<JobId>,
) -> Result<Json<Changed>, WebError> {
    Ok(Json(Changed { changed: state.db().rebuild_job(id, &user.name).await? }))
}

pub(crate) async fn cancel(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(id): PathPart<JobId>,
) -> Result<Json<Changed>, WebError> {
    Ok(Json(Changed { changed: state.db().cancel_job(id, &user.name).await? }))
}

/// Text, or with `Accept: text/event-stream` live events.
pub(crate) async fn log(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<JobId>,
    Params(query): Params<LogQuery>,
    client: Client,
    headers: HeaderMap,
) -> Result<Response, WebError> {
    let accepts =
        |kind: &str| headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|v| v.contains(kind)));
    if accepts("text/event-stream") {
        let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
        let resume = last.or(query.from.as_deref()).and_then(|text| text.parse::<Position>().ok());
        return stream::open(&state, viewer, client, id, resume).await;
    }
    let text = logs::text(&state, viewer, id, query.attempt).await?.ok_or_else(|| absent(id))?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(text)).into_response())
}

fn absent(id: JobId) -> WebError {
    WebError::not_found(format!("there is no build {id}"))
}
