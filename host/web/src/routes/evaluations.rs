//! `/api/v1/evaluations…`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use harmonia_core::EvalId;
use harmonia_core::api::{
    Changed, Evaluation, EvaluationCreated, EvaluationDetail, EvaluationHead, EvaluationWaits, NewEvaluation, Source,
};
use harmonia_db::{NewEvaluationRow, NewProject, ProjectKind};
use serde::Deserialize;

use crate::bodies::Room;
use crate::error::WebError;
use crate::extract::{ApiUser, Params, PathPart, Reader};
use crate::pages;
use crate::state::AppState;
use crate::validate::{self, CheckedEvaluation};

/// Largest body of a request for an evaluation: 1,000 attributes of 1,024 bytes, and the rest.
const NEW_EVALUATION_BYTES_MAX: usize = 2 << 20;
/// Evaluations in a list when nobody says how many.
const LIST_LIMIT: u32 = 30;
/// Attributes in an answer when nobody says how many, and at most.
const ATTRS_LIMIT: u32 = 1_000;
const ATTRS_LIMIT_MAX: u32 = 5_000;
/// Waiting jobs in an answer when nobody says how many.
const WAITS_LIMIT: u32 = 10;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    project: Option<String>,
    before: Option<EvalId>,
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<ListQuery>,
) -> Result<Json<Vec<Evaluation>>, WebError> {
    let limit = query.limit.unwrap_or(LIST_LIMIT);
    let evaluations = state.evaluations(viewer, query.project.as_deref(), query.before, limit).await?;
    Ok(Json(evaluations.to_vec()))
}

pub(crate) async fn create(
    State(state): State<AppState>,
    _: ApiUser,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EvaluationCreated>, WebError> {
    let (new, _room): (NewEvaluation, Room) = state.call_body(&headers, body, NEW_EVALUATION_BYTES_MAX).await?;
    let new = validate::check(new)?;
    let branch = branch(&state, &new).await?;
    let kind = match &new.source {
        Source::Bundle { .. } => ProjectKind::Local,
        Source::Git { url } => ProjectKind::Git { url: url.clone() },
    };
    let page_of = |id| pages::evaluation_path(&new.project, id);
    let project = state.db().ensure_project(&NewProject { name: new.project.clone(), kind }).await?;
    let row = NewEvaluationRow {
        project,
        source: new.source.clone(),
        commit: new.commit.clone(),
        branch,
        attrs: new.attrs.clone(),
        dirty: new.dirty,
        title: new.title.clone(),
        author: new.author.clone(),
    };
    let created = state.db().create_evaluation(&row).await?;
    Ok(Json(EvaluationCreated { id: created.id, page: page_of(created.id), superseded: created.superseded }))
}

/// The branch that was asked for, or the one that the remote's HEAD names now: newer evaluations of it take this one's place.
async fn branch(state: &AppState, new: &CheckedEvaluation) -> Result<String, WebError> {
    let heads = state.options().remote_heads.as_ref();
    match (&new.branch, &new.source, heads) {
        (Some(branch), _, _) => Ok(branch.clone()),
        (None, Source::Git { url }, Some(heads)) => {
            heads.head(url.clone(), None).await.map(|head| head.branch).map_err(WebError::refused)
        }
        _ => Err(WebError::refused("nobody here can ask which branch is the default: name one")),
    }
}

#[derive(Deserialize)]
pub(crate) struct AttrsQuery {
    after: Option<String>,
    limit: Option<u32>,
}

/// One with its attributes, by name and so many at once.
pub(crate) async fn show(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<EvalId>,
    Params(query): Params<AttrsQuery>,
) -> Result<Json<EvaluationDetail>, WebError> {
    let look = state.look(viewer, id).await?.ok_or_else(|| absent(id))?;
    let limit = query.limit.unwrap_or(ATTRS_LIMIT).min(ATTRS_LIMIT_MAX);
    let db = state.db_for(viewer);
    let (attrs, next) =
        state.costly(viewer, async { Ok(db.view_attrs(id, query.after.as_deref(), limit).await?) }).await?;
    Ok(Json(EvaluationDetail {
        evaluation: look.evaluation.clone(),
        attrs,
        next,
        jobs: look.jobs,
        warnings: look.warnings().to_vec(),
    }))
}

#[derive(Deserialize)]
pub(crate) struct HeadQuery {
    since: Option<i64>,
}

pub(crate) async fn head(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<EvalId>,
    Params(query): Params<HeadQuery>,
) -> Result<Json<EvaluationHead>, WebError> {
    let look = state.look(viewer, id).await?.ok_or_else(|| absent(id))?;
    Ok(Json(look.head(query.since)))
}

#[derive(Deserialize)]
pub(crate) struct WaitsQuery {
    limit: Option<u32>,
}

pub(crate) async fn waits(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<EvalId>,
    Params(query): Params<WaitsQuery>,
) -> Result<Json<EvaluationWaits>, WebError> {
    let waits = state.waits(viewer, id, query.limit.unwrap_or(WAITS_LIMIT)).await?;
    waits.map(|waits| Json((*waits).clone())).ok_or_else(|| absent(id))
}

pub(crate) async fn log(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    PathPart(id): PathPart<EvalId>,
) -> Result<Response, WebError> {
    let log = state.db_for(viewer).view_evaluation_log(id).await?.ok_or_else(|| absent(id))?;
    Ok(log.into_response())
}

pub(crate) async fn cancel(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(id): PathPart<EvalId>,
) -> Result<Json<Changed>, WebError> {
    Ok(Json(Changed { changed: state.db().cancel_evaluation(id, &user.name).await? }))
}

pub(crate) async fn rebuild_failed(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(id): PathPart<EvalId>,
) -> Result<Json<Changed>, WebError> {
    Ok(Json(Changed { changed: state.db().rebuild_failed(id, &user.name).await? }))
}

fn absent(id: EvalId) -> WebError {
    WebError::not_found(format!("there is no evaluation {id}"))
}
