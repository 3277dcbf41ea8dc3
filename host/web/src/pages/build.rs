//! `/ci/{project}/build/{id}`: state, why it waits or failed, attempts, outputs, log.

use askama::Template;
use axum::response::{IntoResponse as _, Redirect, Response};
use harmonia_core::api::{Attempt, Build};
use harmonia_core::log_text;
use harmonia_core::{JobId, JobStatus, Timestamp, Viewer};

use super::format::{self, Badge, PathParts, When};
use super::{Frame, build_path, page};
use crate::error::WebError;
use crate::logs;
use crate::state::AppState;

/// Lines of the log on the page; all of it is behind a link.
const LOG_LINES: usize = 500;
const REFRESH_S: u32 = 3;

struct OutputRow {
    name: String,
    path: Option<PathParts>,
    /// Its narinfo, once it is published.
    narinfo: Option<String>,
}

struct AttemptRow {
    id: i64,
    badge: Badge,
    node: String,
    message: Option<String>,
    exit_code: Option<i32>,
    started: When,
    took: String,
    has_log: bool,
}

#[derive(Template)]
#[template(path = "build.html")]
struct BuildPage {
    frame: Frame,
    id: i64,
    project: String,
    name: String,
    badge: Badge,
    system: String,
    features: Vec<String>,
    drv: PathParts,
    failure: Option<&'static str>,
    message: Option<String>,
    exit_code: Option<i32>,
    root_cause: Option<(String, String)>,
    why: Vec<String>,
    priority: i32,
    queued: When,
    finished: Option<When>,
    attrs: Vec<String>,
    evaluation: Option<i64>,
    outputs: Vec<OutputRow>,
    attempts: Vec<AttemptRow>,
    log: String,
    log_left_out: bool,
    /// `attempt:offset` from which the script goes on, while the build runs.
    log_position: Option<String>,
    log_problem: Option<String>,
    cache_url: String,
}

pub(super) async fn show(
    state: &AppState,
    viewer: Viewer,
    project: Option<&str>,
    id: JobId,
) -> Result<Response, WebError> {
    let db = state.db_for(viewer);
    let now = state.options().clock.now();
    let build = db.view_build(id, now).await?.ok_or_else(|| WebError::not_found("there is no such build"))?;
    if project != Some(build.project.as_str()) {
        return Ok(Redirect::to(&build_path(&build.project, id)).into_response());
    }
    let evaluation = db.newest_evaluation_with(id).await?.map(|id| id.0);
    // The page is worth showing without its log, and says so.
    let (excerpt, log_problem) = match logs::excerpt(state, viewer, id).await {
        Ok(excerpt) => (excerpt.unwrap_or_default(), None),
        Err(error) => (logs::Excerpt::default(), Some(error.public_text().to_owned())),
    };
    let mut frame = state.frame(&build.name);
    frame.refresh_s = (!build.status.is_terminal()).then_some(REFRESH_S);
    page(&render(frame, build, evaluation, excerpt, log_problem, now, &state.options().public_url))
}

fn render(
    frame: Frame,
    build: Build,
    evaluation: Option<i64>,
    excerpt: logs::Excerpt,
    log_problem: Option<String>,
    now: Timestamp,
    cache_url: &str,
) -> BuildPage {
    let text = log_text::clean(&excerpt.text);
    let (log, left_out) = log_text::last_lines(&text, LOG_LINES);
    let is_published = build.status == JobStatus::Succeeded;
    let outputs = build.outputs.into_iter().map(|(name, path)| {
        let path = path.as_deref().map(format::path_parts);
        let narinfo = path.as_ref().filter(|_| is_published).map(|path| format!("/{}.narinfo", path.hash));
        OutputRow { name, path, narinfo }
    });
    BuildPage {
        frame,
        id: build.id.0,
        badge: format::job(build.status),
        system: build.system,
        features: build.required_features,
        drv: format::path_parts(&build.drv_path),
        failure: build.failure_kind.map(format::failure),
        message: build.message.map(|message| log_text::clean(&message)),
        exit_code: build.exit_code,
        root_cause: build.root_cause.map(|cause| (cause.name, build_path(&build.project, cause.job))),
        why: build.why,
        priority: build.priority,
        queued: format::when(build.queued_at, now),
        finished: build.finished_at.map(|moment| format::when(moment, now)),
        attrs: build.attrs,
        evaluation,
        outputs: outputs.collect(),
        attempts: build.attempts.into_iter().map(|attempt| attempt_row(attempt, now)).collect(),
        log: log.to_owned(),
        log_left_out: left_out > 0 || excerpt.is_cut,
        log_position: excerpt.position.filter(|_| !build.status.is_terminal()).map(|position| position.to_string()),
        log_problem,
        project: build.project,
        name: build.name,
        cache_url: cache_url.to_owned(),
    }
}

fn attempt_row(attempt: Attempt, now: Timestamp) -> AttemptRow {
    AttemptRow {
        id: attempt.id.0,
        badge: format::attempt(attempt.outcome),
        node: attempt.node,
        message: attempt.message.map(|message| log_text::clean(&message)),
        exit_code: attempt.exit_code,
        started: format::when(attempt.started_at, now),
        took: format::between(attempt.started_at, attempt.finished_at.unwrap_or(now)),
        has_log: attempt.log_key.is_some(),
    }
}
