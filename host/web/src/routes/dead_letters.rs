//! `/api/v1/dead-letters…`: statuses, comments and notifications that were given up, or fail again and again. Names of
//! private repositories are in there: with a token only.

use axum::Json;
use axum::extract::{Path, State};
use harmonia_core::api::Changed;
use harmonia_core::status::{DeadLetter, DeadLetterKind};
use serde::Deserialize;

use crate::error::WebError;
use crate::extract::{ApiUser, Params};
use crate::state::AppState;

/// Letters in a list when nobody says how many.
const LIST_LIMIT: u32 = 100;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    _: ApiUser,
    Params(query): Params<ListQuery>,
) -> Result<Json<Vec<DeadLetter>>, WebError> {
    Ok(Json(state.db().dead_letters(query.limit.unwrap_or(LIST_LIMIT)).await?))
}

/// Tries one again, as if for the first time.
pub(crate) async fn replay(
    State(state): State<AppState>,
    user: ApiUser,
    Path((kind, id)): Path<(String, String)>,
) -> Result<Json<Changed>, WebError> {
    let absent = || WebError::not_found("there is no such dead letter, or it was delivered meanwhile");
    let kind: DeadLetterKind = kind.parse().map_err(|_| absent())?;
    let id: i64 = id.parse().map_err(|_| absent())?;
    if state.db().replay_dead_letter(kind, id, &user.name).await? {
        return Ok(Json(Changed { changed: 1 }));
    }
    Err(absent())
}
