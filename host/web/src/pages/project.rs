//! `/ci/{project}/`: its evaluations, newest first.

use askama::Template;
use axum::http::HeaderMap;
use axum::response::Response;
use harmonia_core::api::Verdict;
use harmonia_core::{EvalId, Viewer};
use serde::Deserialize;

use super::home::EvaluationRow;
use super::{Frame, page_if_changed, query, tag};
use crate::error::WebError;
use crate::state::AppState;

/// Evaluations on one page.
const EVALUATIONS: u32 = 30;
const REFRESH_S: u32 = 5;

#[derive(Deserialize, Default)]
struct ProjectQuery {
    before: Option<EvalId>,
}

#[derive(Template)]
#[template(path = "project.html")]
struct ProjectPage {
    frame: Frame,
    name: String,
    evaluations: Vec<EvaluationRow>,
    /// Where the next page begins.
    before: Option<i64>,
    is_first: bool,
}

pub(super) async fn show(
    state: &AppState,
    viewer: Viewer,
    name: &str,
    raw_query: &str,
    headers: &HeaderMap,
) -> Result<Response, WebError> {
    let asked: ProjectQuery = query(raw_query);
    let db = state.db_for(viewer);
    if !db.is_project_visible(name).await? {
        return Err(WebError::not_found("there is no such project"));
    }
    let (evaluations, jobs) =
        tokio::try_join!(state.evaluations(viewer, Some(name), asked.before, EVALUATIONS), state.job_counts(viewer),)?;
    let now = state.options().clock.now();
    let mut frame = state.frame(name);
    let is_moving = evaluations.iter().any(|evaluation| evaluation.verdict == Verdict::Running);
    frame.refresh_s = is_moving.then_some(REFRESH_S);
    let is_full = evaluations.len() == EVALUATIONS as usize;
    let tag = tag(state, &(name, &*evaluations, jobs));
    page_if_changed(headers, frame, tag, |frame| ProjectPage {
        frame,
        name: name.to_owned(),
        before: evaluations.last().filter(|_| is_full).map(|last| last.id.0),
        evaluations: evaluations.iter().map(|evaluation| EvaluationRow::of(evaluation, &jobs, now)).collect(),
        is_first: asked.before.is_none(),
    })
}
