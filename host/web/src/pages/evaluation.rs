//! `/ci/{project}/eval/{id}`: how it stands; of its attributes those first that need somebody's eyes, a bounded number of each
//! kind, and lists of the rest; warnings, the end of the engine's log. Start at [`show`].
//!
//! Counts come from the head that everybody shares ([`crate::look::Look`]); what is shown of attributes is read for all who ask
//! for the same of them ([`Shown`]).

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Redirect, Response};
use harmonia_core::api::{Attr, AttrState, EvaluationWaits, Verdict};
use harmonia_core::evaluation_error::message_line;
use harmonia_core::log_text;
use harmonia_core::{EvalId, EvalStatus, Viewer};
use serde::{Deserialize, Serialize};

use super::format::{self, Badge};
use super::home::EvaluationRow;
use super::{Frame, build_path, evaluation_path, page_if_changed, query, tag};
use crate::error::WebError;
use crate::look::Look;
use crate::state::AppState;

/// Attributes of one page of a list.
const ATTRS: usize = 200;
/// Lines of the engine's log on the page; the rest is behind a link.
const LOG_LINES: usize = 200;
const REFRESH_S: u32 = 3;
/// Waiting jobs on the page; the first of them tell what the others wait for.
const STUCK: u32 = 5;
/// Bytes of one error on a page, and of all of them; one that is asked for by its name is shown up to the latter.
const ERROR_BYTES: usize = 8 << 10;
const ERRORS_BYTES: usize = 100 << 10;
/// Bytes of the line that says what is wrong.
const MESSAGE_BYTES: usize = 500;
/// Bytes of all warnings on a page.
const WARNINGS_BYTES: usize = 30 << 10;

#[derive(Deserialize, Default)]
struct EvaluationQuery {
    state: Option<String>,
    q: Option<String>,
    /// The list goes on behind this attribute.
    after: Option<String>,
}

/// What is asked of an evaluation's attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    kind: &'static str,
    search: String,
    after: Option<String>,
}

impl From<EvaluationQuery> for Asked {
    fn from(query: EvaluationQuery) -> Self {
        let kind = KINDS.iter().map(|kind| kind.key).find(|key| Some(*key) == query.state.as_deref()).unwrap_or(ALL);
        Self { kind, search: query.q.unwrap_or_default(), after: query.after }
    }
}

impl Asked {
    fn matches(&self, attr: &str) -> bool {
        attr.contains(&self.search)
    }
}

/// Attributes of one kind.
struct Kind {
    key: &'static str,
    label: &'static str,
    states: &'static [AttrState],
    /// Most of them that are shown beside others.
    few: usize,
    /// Not what somebody comes for: folded as soon as there are more than a few.
    is_folded: bool,
}

const ALL: &str = "all";

const KINDS: &[Kind] = &[
    Kind {
        key: "failed",
        label: "failed",
        states: &[AttrState::Error, AttrState::Failed, AttrState::DepFailed],
        few: 100,
        is_folded: false,
    },
    Kind {
        key: "building",
        label: "building",
        states: &[AttrState::Building, AttrState::Uploading],
        few: 50,
        is_folded: false,
    },
    Kind { key: "pending", label: "waiting", states: &[AttrState::Pending], few: 50, is_folded: false },
    Kind { key: "cancelled", label: "cancelled", states: &[AttrState::Cancelled], few: 50, is_folded: true },
    Kind {
        key: "succeeded",
        label: "succeeded",
        states: &[AttrState::Succeeded, AttrState::Cached],
        few: 50,
        is_folded: true,
    },
];

/// What a page shows of attributes and logs.
pub(crate) struct Shown {
    groups: Vec<Group>,
    /// Why it is not evaluated yet, and what its jobs wait for, when nothing of it is worked on.
    waits: Arc<EvaluationWaits>,
    /// What the engine printed last, and how many lines stand before that.
    log: String,
    log_left_out: usize,
}

#[derive(Serialize)]
struct Group {
    kind: &'static str,
    /// How many there are.
    total: usize,
    attrs: Vec<Attr>,
    /// The name behind which a list goes on.
    next: Option<String>,
}

impl Shown {
    pub(crate) async fn read(state: &AppState, viewer: Viewer, asked: &Asked, look: &Look) -> Result<Self, WebError> {
        let (db, id) = (state.db_for(viewer), look.evaluation.id);
        let mut groups = chosen(look, asked);
        let names: Vec<String> = groups.iter().flat_map(|(_, _, names, _)| names.iter().cloned()).collect();
        let mut attrs: HashMap<String, Attr> = if names.is_empty() {
            HashMap::new()
        } else {
            let read = state.costly(viewer, async { Ok(db.attrs_named(id, &names).await?) }).await?;
            read.into_iter().map(|attr| (attr.attr.clone(), attr)).collect()
        };
        let groups = groups
            .drain(..)
            .map(|(kind, total, names, next)| {
                let attrs = names.iter().filter_map(|name| attrs.remove(name)).collect();
                Group { kind, total, attrs, next }
            })
            .collect();
        let waits = if waits_for_others(look) { state.waits(viewer, id, STUCK).await? } else { None };
        let log = log_text::clean(&db.view_evaluation_log(id).await?.unwrap_or_default());
        let (log, log_left_out) = log_text::last_lines(&log, LOG_LINES);
        Ok(Self { groups, waits: waits.unwrap_or_default(), log: log.to_owned(), log_left_out })
    }
}

/// Of each kind that is asked for how many there are, the names of those that are shown, and where the list goes on.
fn chosen(look: &Look, asked: &Asked) -> Vec<(&'static str, usize, Vec<String>, Option<String>)> {
    let of_kind = |kind: &Kind| -> Vec<(&str, AttrState)> {
        look.attrs().filter(|(attr, state)| kind.states.contains(state) && asked.matches(attr)).collect()
    };
    let own = |attrs: &[(&str, AttrState)]| attrs.iter().map(|(attr, _)| (*attr).to_owned()).collect();
    if let Some(kind) = KINDS.iter().find(|kind| kind.key == asked.kind) {
        let all = of_kind(kind);
        // Its state may have changed since: the list goes on where it would stand.
        let names: Vec<&str> = look.attrs().map(|(attr, _)| attr).collect();
        let at = asked.after.as_deref().and_then(|after| names.iter().position(|name| *name == after));
        let rest: Vec<(&str, AttrState)> = match at {
            None => all.clone(),
            Some(at) => {
                let behind: std::collections::HashSet<&str> = names[at + 1..].iter().copied().collect();
                all.iter().copied().filter(|(attr, _)| behind.contains(attr)).collect()
            }
        };
        let page = &rest[..rest.len().min(ATTRS)];
        let next = page.last().filter(|_| page.len() < rest.len()).map(|(attr, _)| (*attr).to_owned());
        return vec![(kind.key, all.len(), own(page), next)];
    }
    let groups = KINDS.iter().map(|kind| {
        let mut all = of_kind(kind);
        // What did not evaluate, then what failed by itself.
        all.sort_by_key(|(_, state)| kind.states.iter().position(|of| of == state));
        (kind.key, all.len(), own(&all[..all.len().min(kind.few)]), None)
    });
    groups.filter(|(_, total, ..)| *total > 0).collect()
}

/// Nothing of it is being worked on at this moment.
fn waits_for_others(look: &Look) -> bool {
    let (evaluation, jobs) = (&look.evaluation, &look.jobs);
    evaluation.status == EvalStatus::Queued
        || (evaluation.verdict == Verdict::Running && jobs.pending > 0 && jobs.building + jobs.uploading == 0)
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
    /// Where all of an error is shown of which a part is not.
    whole: Option<String>,
}

/// Attributes of one kind on the page.
struct GroupRows {
    key: &'static str,
    label: &'static str,
    total: usize,
    rows: Vec<AttrRow>,
    is_open: bool,
    /// The rest of them, and how many these are.
    more: Option<(String, usize)>,
}

/// A job that waits for no other, and why.
struct WaitingJob {
    name: String,
    page: String,
    why: String,
}

/// A filter and how many attributes pass it.
struct Filter {
    href: String,
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
    warnings_left_out: usize,
    filters: Vec<Filter>,
    filter: &'static str,
    search: String,
    groups: Vec<GroupRows>,
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
    headers: &HeaderMap,
) -> Result<Response, WebError> {
    let look = state.look(viewer, id).await?.ok_or_else(|| WebError::not_found("there is no such evaluation"))?;
    let evaluation = &look.evaluation;
    if project != Some(evaluation.project.as_str()) {
        return Ok(Redirect::to(&evaluation_path(&evaluation.project, id)).into_response());
    }
    let asked = Asked::from(query::<EvaluationQuery>(raw_query));
    let shown = state.shown(viewer, &asked, &look).await?;
    let mut frame = state.frame(&format!("Evaluation {id} of {}", evaluation.project));
    frame.refresh_s = (evaluation.verdict == Verdict::Running).then_some(REFRESH_S);
    let shows = (id.0, look.revision(), raw_query, &shown.groups, &*shown.waits, &shown.log, shown.log_left_out);
    page_if_changed(headers, frame, tag(state, &shows), |frame| render(frame, &look, &shown, asked, state))
}

fn render(frame: Frame, look: &Look, shown: &Shown, asked: Asked, state: &AppState) -> EvaluationPage {
    let (evaluation, jobs) = (&look.evaluation, &look.jobs);
    let project = &evaluation.project;
    let search: String = url::form_urlencoded::byte_serialize(asked.search.as_bytes()).collect();
    let jobs_total = jobs.total();
    let mut warnings_bytes = 0;
    let warnings: Vec<String> = look
        .warnings()
        .iter()
        .take_while(|warning| {
            warnings_bytes += warning.len();
            warnings_bytes <= WARNINGS_BYTES
        })
        .cloned()
        .collect();
    EvaluationPage {
        frame,
        row: EvaluationRow::of(evaluation, jobs, state.options().clock.now()),
        attempt: evaluation.attempt,
        status: evaluation.status,
        superseded_by: evaluation.superseded_by.map(|id| (id.0, evaluation_path(project, id))),
        commit: evaluation.commit.clone(),
        error: evaluation.error.clone(),
        deferred: evaluation.waiting.is_some(),
        waiting: match &evaluation.waiting {
            Some(waiting) => vec![waiting.reason.clone()],
            None => shown.waits.evaluation.clone(),
        },
        stuck: shown
            .waits
            .jobs
            .iter()
            .map(|job| WaitingJob {
                page: build_path(project, job.id),
                name: job.name.clone(),
                why: job.why.join("; "),
            })
            .collect(),
        complete: evaluation.complete,
        warnings_left_out: look.warnings().len() - warnings.len(),
        warnings,
        filters: filters(look, &asked, &search),
        groups: groups(shown, &asked, &search, project),
        filter: asked.kind,
        search: asked.search,
        jobs_done: jobs_total - jobs.pending - jobs.building - jobs.uploading,
        jobs_total,
        jobs_text: format::plural(jobs_total, "derivation", "derivations"),
        log: shown.log.clone(),
        log_left_out: shown.log_left_out,
    }
}

fn href(kind: &str, search: &str, after: Option<&str>) -> String {
    let mut href = format!("?state={kind}");
    if !search.is_empty() {
        href.extend(["&q=", search]);
    }
    if let Some(after) = after {
        href.push_str("&after=");
        href.extend(url::form_urlencoded::byte_serialize(after.as_bytes()));
    }
    href
}

fn filters(look: &Look, asked: &Asked, search: &str) -> Vec<Filter> {
    let count = |states: &[AttrState]| look.attrs().filter(|(_, state)| states.contains(state)).count();
    let all = Filter {
        href: href(ALL, search, None),
        label: ALL,
        count: look.attrs().count(),
        is_current: asked.kind == ALL,
    };
    let others = KINDS.iter().map(|kind| Filter {
        href: href(kind.key, search, None),
        label: kind.label,
        count: count(kind.states),
        is_current: asked.kind == kind.key,
    });
    std::iter::once(all).chain(others.filter(|filter| filter.count > 0 || filter.is_current)).collect()
}

fn groups(shown: &Shown, asked: &Asked, search: &str, project: &str) -> Vec<GroupRows> {
    let rows: usize = shown.groups.iter().map(|group| group.attrs.len()).sum();
    let mut room = if rows == 1 { Room { each: ERRORS_BYTES, left: ERRORS_BYTES } } else { Room::default() };
    let groups = shown.groups.iter().filter_map(|group| {
        let kind = KINDS.iter().find(|kind| kind.key == group.kind)?;
        let left = group.total.saturating_sub(group.attrs.len());
        Some(GroupRows {
            key: kind.key,
            label: kind.label,
            total: group.total,
            rows: group.attrs.iter().map(|attr| row(attr, project, &mut room)).collect(),
            is_open: !kind.is_folded || left == 0 || asked.kind == kind.key,
            more: match (&group.next, asked.kind == kind.key) {
                (Some(next), true) => Some((href(kind.key, search, Some(next)), left)),
                (_, true) => None,
                (_, false) => (left > 0).then(|| (href(kind.key, search, None), left)),
            },
        })
    });
    groups.collect()
}

/// What errors may still take of a page.
struct Room {
    each: usize,
    left: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { each: ERROR_BYTES, left: ERRORS_BYTES }
    }
}

impl Room {
    /// The error as far as there is room for it, and whether that is all of it.
    fn take(&mut self, error: &str) -> (String, bool) {
        let shown = &error[..error.floor_char_boundary(self.each.min(self.left))];
        self.left -= shown.len();
        (shown.to_owned(), shown.len() == error.len())
    }
}

fn row(attr: &Attr, project: &str, room: &mut Room) -> AttrRow {
    let error = attr.error.as_deref().map(log_text::clean);
    let eval_error = error.as_deref().filter(|_| attr.state == AttrState::Error).map(message_line);
    let eval_error = eval_error.map(|line| line[..line.floor_char_boundary(MESSAGE_BYTES)].to_owned());
    let (error, is_whole) = match error.map(|error| room.take(&error)) {
        Some((error, is_whole)) => (Some(error), is_whole),
        None => (None, true),
    };
    let search: String = url::form_urlencoded::byte_serialize(attr.attr.as_bytes()).collect();
    AttrRow {
        badge: format::attr(attr.state),
        page: attr.job.map(|job| build_path(project, job)),
        eval_error,
        error,
        whole: (!is_whole).then(|| href("failed", &search, None)),
        attr: attr.attr.clone(),
        name: attr.name.clone(),
        system: attr.system.clone(),
    }
}
