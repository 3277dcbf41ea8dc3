//! `/ci/{project}/eval/{id}`: attributes with their states, errors, warnings, the engine's log.

use askama::Template;
use axum::response::{IntoResponse as _, Redirect, Response};
use harmonia_core::api::{Attr, AttrState, EvaluationDetail, EvaluationWaits, Verdict};
use harmonia_core::evaluation_error::message_line;
use harmonia_core::log_text;
use harmonia_core::{EvalId, EvalStatus, Viewer};
use serde::Deserialize;

use super::format::{self, Badge};
use super::home::EvaluationRow;
use super::{Frame, build_path, evaluation_path, page, query};
use crate::error::WebError;
use crate::state::AppState;

/// Attributes on one page.
const ATTRS: usize = 500;
/// Lines of the engine's log on the page; the rest is behind a link.
const LOG_LINES: usize = 200;
const REFRESH_S: u32 = 3;
/// Waiting jobs on the page; the first of them tell what the others wait for.
const STUCK: u32 = 5;

#[derive(Deserialize, Default)]
struct EvaluationQuery {
    state: Option<String>,
    q: Option<String>,
    /// How many attributes to leave out.
    from: Option<usize>,
}

struct AttrRow {
    attr: String,
    badge: Badge,
    name: Option<String>,
    system: Option<String>,
    page: Option<String>,
    error: Option<String>,
    /// The line of an evaluation error that says what is wrong; the others are its trace.
    eval_error: Option<String>,
}

/// A job that waits for no other, and why.
struct WaitingJob {
    name: String,
    page: String,
    why: String,
}

/// A filter and how many attributes pass it.
struct Filter {
    key: &'static str,
    label: &'static str,
    count: usize,
    is_current: bool,
}

#[derive(Template)]
#[template(path = "evaluation.html")]
struct EvaluationPage {
    frame: Frame,
    row: EvaluationRow,
    commit: Option<String>,
    attempt: u32,
    status: EvalStatus,
    error: Option<String>,
    /// Why it is not evaluated yet.
    waiting: Vec<String>,
    /// Whether it was tried, and is tried again.
    deferred: bool,
    /// What its jobs wait for, when none of them is being built.
    stuck: Vec<WaitingJob>,
    superseded_by: Option<(i64, String)>,
    complete: bool,
    warnings: Vec<String>,
    filters: Vec<Filter>,
    filter: &'static str,
    search: String,
    /// The same, for links.
    search_encoded: String,
    attrs: Vec<AttrRow>,
    matching: usize,
    next: Option<usize>,
    jobs_done: u64,
    jobs_total: u64,
    jobs_text: String,
    log: String,
    log_left_out: usize,
}

pub(super) async fn show(
    state: &AppState,
    viewer: Viewer,
    project: Option<&str>,
    id: EvalId,
    raw_query: &str,
) -> Result<Response, WebError> {
    let db = state.db_for(viewer);
    let found = state.costly(viewer, async { Ok(db.view_evaluation(id).await?) }).await?;
    let detail = found.ok_or_else(|| WebError::not_found("there is no such evaluation"))?;
    if project != Some(detail.evaluation.project.as_str()) {
        return Ok(Redirect::to(&evaluation_path(&detail.evaluation.project, id)).into_response());
    }
    let waits = if waits_for_others(&detail) {
        state.costly(viewer, async { Ok(db.view_waits(id, STUCK, state.options().clock.now()).await?) }).await?
    } else {
        None
    };
    let log = db.view_evaluation_log(id).await?.unwrap_or_default();
    let mut frame = state.frame(&format!("Evaluation {id} of {}", detail.evaluation.project));
    frame.refresh_s = (detail.evaluation.verdict == Verdict::Running).then_some(REFRESH_S);
    page(&render(frame, detail, waits.unwrap_or_default(), query(raw_query), &log, state))
}

/// Nothing of it is being worked on at this moment.
fn waits_for_others(detail: &EvaluationDetail) -> bool {
    let jobs = &detail.jobs;
    detail.evaluation.status == EvalStatus::Queued
        || (detail.evaluation.verdict == Verdict::Running && jobs.pending > 0 && jobs.building + jobs.uploading == 0)
}

fn render(
    frame: Frame,
    detail: EvaluationDetail,
    waits: EvaluationWaits,
    asked: EvaluationQuery,
    log: &str,
    state: &AppState,
) -> EvaluationPage {
    let EvaluationDetail { evaluation, attrs, jobs, warnings } = detail;
    let filter = FILTERS.iter().map(|(key, ..)| *key).find(|key| Some(*key) == asked.state.as_deref()).unwrap_or("all");
    let filters = FILTERS
        .iter()
        .map(|(key, label, passes)| Filter {
            key,
            label,
            count: attrs.iter().filter(|attr| passes(attr.state)).count(),
            is_current: *key == filter,
        })
        .filter(|filter| filter.count > 0 || filter.is_current || filter.key == "all")
        .collect();
    let search = asked.q.unwrap_or_default();
    let mut chosen: Vec<Attr> =
        attrs.into_iter().filter(|attr| passes(filter, attr.state) && attr.attr.contains(&search)).collect();
    // What needs somebody's eyes first; within that by name, as they come.
    chosen.sort_by_key(|attr| urgency(attr.state));
    let matching = chosen.len();
    let from = asked.from.unwrap_or(0).min(matching);
    let project = &evaluation.project;
    let rows = chosen.into_iter().skip(from).take(ATTRS).map(|attr| row(attr, project)).collect();
    let log = log_text::clean(log);
    let (log, log_left_out) = log_text::last_lines(&log, LOG_LINES);
    let jobs_total =
        jobs.pending + jobs.building + jobs.uploading + jobs.succeeded + jobs.failed + jobs.dep_failed + jobs.cancelled;
    EvaluationPage {
        frame,
        row: EvaluationRow::of(&evaluation, &jobs, state.options().clock.now()),
        attempt: evaluation.attempt,
        status: evaluation.status,
        superseded_by: evaluation.superseded_by.map(|id| (id.0, evaluation_path(project, id))),
        commit: evaluation.commit,
        error: evaluation.error,
        deferred: evaluation.waiting.is_some(),
        waiting: match evaluation.waiting {
            Some(waiting) => vec![waiting.reason],
            None => waits.evaluation,
        },
        stuck: waits
            .jobs
            .into_iter()
            .map(|job| WaitingJob { page: build_path(project, job.id), name: job.name, why: job.why.join("; ") })
            .collect(),
        complete: evaluation.complete,
        warnings,
        filters,
        filter,
        search_encoded: url::form_urlencoded::byte_serialize(search.as_bytes()).collect(),
        search,
        attrs: rows,
        matching,
        next: (from + ATTRS < matching).then_some(from + ATTRS),
        jobs_done: jobs_total - jobs.pending - jobs.building - jobs.uploading,
        jobs_total,
        jobs_text: format::plural(jobs_total, "derivation", "derivations"),
        log: log.to_owned(),
        log_left_out,
    }
}

type Passes = fn(AttrState) -> bool;

const FILTERS: &[(&str, &str, Passes)] = &[
    ("all", "all", |_| true),
    ("failed", "failed", |state| matches!(state, AttrState::Failed | AttrState::DepFailed | AttrState::Error)),
    ("building", "building", |state| matches!(state, AttrState::Building | AttrState::Uploading)),
    ("pending", "waiting", |state| state == AttrState::Pending),
    ("succeeded", "succeeded", |state| matches!(state, AttrState::Succeeded | AttrState::Cached)),
    ("cancelled", "cancelled", |state| state == AttrState::Cancelled),
];

fn passes(filter: &str, state: AttrState) -> bool {
    FILTERS.iter().find(|(key, ..)| *key == filter).is_none_or(|(_, _, passes)| passes(state))
}

fn urgency(state: AttrState) -> u8 {
    match state {
        AttrState::Error => 0,
        AttrState::Failed => 1,
        AttrState::DepFailed => 2,
        AttrState::Building | AttrState::Uploading => 3,
        AttrState::Pending => 4,
        AttrState::Cancelled => 5,
        AttrState::Succeeded | AttrState::Cached => 6,
    }
}

fn row(attr: Attr, project: &str) -> AttrRow {
    let error = attr.error.map(|error| log_text::clean(&error));
    AttrRow {
        badge: format::attr(attr.state),
        page: attr.job.map(|job| build_path(project, job)),
        eval_error: error.as_deref().filter(|_| attr.state == AttrState::Error).map(message_line),
        error,
        attr: attr.attr,
        name: attr.name,
        system: attr.system,
    }
}
