//! `/api/v1/deliveries…`: what forges delivered lately. Names of private repositories are in there: with a token only.

use axum::Json;
use axum::extract::State;
use harmonia_core::api::{Changed, DeliveryInfo};
use serde::Deserialize;

use crate::error::WebError;
use crate::extract::{ApiUser, Params, PathPart};
use crate::state::AppState;

/// Deliveries in a list when nobody says how many.
const LIST_LIMIT: u32 = 50;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    forge: Option<String>,
    #[serde(default)]
    dead: bool,
    before: Option<i64>,
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    _: ApiUser,
    Params(query): Params<ListQuery>,
) -> Result<Json<Vec<DeliveryInfo>>, WebError> {
    let limit = query.limit.unwrap_or(LIST_LIMIT);
    Ok(Json(state.db().recent_deliveries(query.forge.as_deref(), query.dead, query.before, limit).await?))
}

#[derive(Deserialize)]
pub(crate) struct ReplayQuery {
    forge: Option<String>,
}

/// Queues all dead letters once more, of one forge or all.
pub(crate) async fn replay_dead(
    State(state): State<AppState>,
    user: ApiUser,
    Params(query): Params<ReplayQuery>,
) -> Result<Json<Changed>, WebError> {
    let changed = state.db().replay_dead_deliveries(query.forge.as_deref(), &user.name).await?;
    Ok(Json(Changed { changed }))
}

/// Queues one that ended once more.
pub(crate) async fn replay(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(id): PathPart<i64>,
) -> Result<Json<Changed>, WebError> {
    if state.db().replay_delivery(id, &user.name).await? {
        return Ok(Json(Changed { changed: 1 }));
    }
    Err(WebError::not_found(format!("there is no delivery {id}, or it is still queued")))
}
