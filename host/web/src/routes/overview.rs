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
    Ok(Json(state.overview(viewer).await?.projects.clone()))
}

pub(crate) async fn queue(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<Limit>,
) -> Result<Json<Queue>, WebError> {
    Ok(Json((*state.queue(viewer, query.limit.unwrap_or(QUEUE_LIMIT)).await?).clone()))
}

pub(crate) async fn nodes(State(state): State<AppState>) -> Result<Json<Vec<Node>>, WebError> {
    Ok(Json(state.nodes().await?.to_vec()))
}

pub(crate) async fn status(
    State(state): State<AppState>,
    Reader(viewer): Reader,
) -> Result<Json<ServerStatus>, WebError> {
    let (options, db) = (state.options(), state.db_for(viewer));
    let (jobs, load, nodes, evaluations) = tokio::try_join!(
        state.job_counts(viewer),
        async { Ok(db.view_evaluation_load().await?) },
        state.nodes(),
        state.evaluations(viewer, None, None, STATUS_EVALUATIONS),
    )?;
    Ok(Json(ServerStatus {
        version: options.version.clone(),
        jobs,
        evaluations_queued: load.0,
        evaluations_running: load.1,
        nodes: nodes.to_vec(),
        public_keys: options.public_keys.iter().map(ToString::to_string).collect(),
        cache_url: options.public_url.clone(),
        evaluations: evaluations.to_vec(),
    }))
}
