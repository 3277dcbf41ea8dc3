//! `GET /api/v1/plugins`: the plugins of the node that answers, and how they are.

use axum::Json;
use axum::extract::State;
use harmonia_core::plugin::PluginStatus;

use crate::error::WebError;
use crate::extract::ApiUser;
use crate::state::AppState;

/// Errors of plugins may name repositories that not everybody may see: for users of the API only.
pub(crate) async fn list(State(state): State<AppState>, _: ApiUser) -> Result<Json<Vec<PluginStatus>>, WebError> {
    Ok(Json(state.plugins().statuses()))
}
