//! `/api/v1/status`, `queue`, `nodes`, `projects`.

use axum::Json;
use axum::extract::State;
use harmonia_core::api::{Node, Project, Queue, ServerStatus};
use serde::Deserialize;

use crate::error::WebError;
use crate::extract::{Params, Reader};
use crate::state::AppState;

/// Newest evaluations in the status.
const STATUS_EVALUATIONS: u32 = 10;
/// Jobs in the queue when nobody says how many.
const QUEUE_LIMIT: u32 = 100;

#[derive(Deserialize)]
pub(crate) struct Limit {
    limit: Option<u32>,
}

pub(crate) async fn projects(
    State(state): State<AppState>,
    Reader(viewer): Reader,
) -> Result<Json<Vec<Project>>, WebError> {
    let db = state.db_for(viewer);
    Ok(Json(state.costly(viewer, async { Ok(db.view_projects().await?) }).await?))
}

pub(crate) async fn queue(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<Limit>,
) -> Result<Json<Queue>, WebError> {
    let now = state.options().clock.now();
    Ok(Json(state.db_for(viewer).view_queue(query.limit.unwrap_or(QUEUE_LIMIT), now).await?))
}

pub(crate) async fn nodes(State(state): State<AppState>) -> Result<Json<Vec<Node>>, WebError> {
    Ok(Json(state.db().nodes(state.options().node_silent_after).await?))
}

pub(crate) async fn status(
    State(state): State<AppState>,
    Reader(viewer): Reader,
) -> Result<Json<ServerStatus>, WebError> {
    let (options, db) = (state.options(), state.db_for(viewer));
    let (jobs, load, nodes, evaluations) = tokio::try_join!(
        db.view_job_counts(),
        db.view_evaluation_load(),
        db.nodes(options.node_silent_after),
        db.view_evaluations(None, None, STATUS_EVALUATIONS),
    )?;
    Ok(Json(ServerStatus {
        version: options.version.clone(),
        jobs,
        evaluations_queued: load.0,
        evaluations_running: load.1,
        nodes,
        public_keys: options.public_keys.iter().map(ToString::to_string).collect(),
        cache_url: options.public_url.clone(),
        evaluations,
    }))
}
