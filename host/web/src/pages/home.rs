//! `/ci/`: projects, newest evaluations, queue and nodes at a glance.

use std::fmt::Write as _;

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use harmonia_core::Timestamp;
use harmonia_core::api::{AttrCounts, Evaluation, JobCounts, Node, Verdict};

use super::format::{self, Badge, When};
use super::{Frame, evaluation_path, page_if_changed, tag};
use crate::error::WebError;
use crate::extract::Reader;
use crate::state::AppState;

/// While something runs, the page is fetched again this often, in seconds.
const REFRESH_S: u32 = 5;

/// An evaluation as a row of a list.
pub(super) struct EvaluationRow {
    pub(super) page: String,
    pub(super) id: i64,
    pub(super) project: String,
    pub(super) badge: Badge,
    pub(super) title: Option<String>,
    pub(super) author: Option<String>,
    pub(super) branch: String,
    pub(super) commit: Option<String>,
    pub(super) dirty: bool,
    pub(super) counts: String,
    pub(super) bar: Bar,
    pub(super) created: When,
    pub(super) took: Option<String>,
}

/// Shares of attributes in percent, for the bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bar {
    pub(super) good: f64,
    pub(super) bad: f64,
    pub(super) warn: f64,
    pub(super) busy: f64,
}

impl Bar {
    pub(super) fn of(counts: &AttrCounts) -> Self {
        let share = |number: u64| {
            let percent = number as f64 * 100.0 / counts.total.max(1) as f64;
            (percent * 100.0).round() / 100.0
        };
        Self {
            good: share(counts.succeeded),
            bad: share(counts.failed + counts.eval_errors),
            warn: share(counts.dep_failed),
            busy: share(counts.building),
        }
    }

    // Offsets of the segments, one after another.
    pub(super) fn bad_at(&self) -> f64 {
        self.good
    }

    pub(super) fn warn_at(&self) -> f64 {
        self.good + self.bad
    }

    pub(super) fn busy_at(&self) -> f64 {
        self.good + self.bad + self.warn
    }
}

impl EvaluationRow {
    /// `jobs`: those that it reaches, or all that there are.
    pub(super) fn of(evaluation: &Evaluation, jobs: &JobCounts, now: Timestamp) -> Self {
        Self {
            page: evaluation_path(&evaluation.project, evaluation.id),
            id: evaluation.id.0,
            project: evaluation.project.clone(),
            badge: format::evaluation(evaluation, jobs),
            title: evaluation.title.clone(),
            author: evaluation.author.clone(),
            branch: evaluation.branch.clone(),
            commit: evaluation.commit.as_deref().map(format::short_commit),
            dirty: evaluation.dirty,
            counts: counts(&evaluation.counts),
            bar: Bar::of(&evaluation.counts),
            created: format::when(evaluation.created_at, now),
            took: evaluation.finished_at.zip(evaluation.started_at).map(|(end, start)| format::between(start, end)),
        }
    }
}

/// `38/42, 2 failed, 2 building`.
pub(super) fn counts(counts: &AttrCounts) -> String {
    if counts.total == 0 {
        return String::new();
    }
    let mut text = format!("{}/{}", counts.succeeded, counts.total);
    for (number, word) in [
        (counts.failed, "failed"),
        (counts.dep_failed, "with failed dependency"),
        (counts.eval_errors, "not evaluated"),
        (counts.building, "building"),
        (counts.pending, "waiting"),
        (counts.cancelled, "cancelled"),
    ] {
        if number > 0 {
            let _ = write!(text, ", {number} {word}");
        }
    }
    text
}

struct ProjectRow {
    name: String,
    kind: String,
    last: Option<EvaluationRow>,
}

#[derive(Template)]
#[template(path = "home.html")]
struct HomePage {
    frame: Frame,
    projects: Vec<ProjectRow>,
    evaluations: Vec<EvaluationRow>,
    jobs: JobCounts,
    nodes_online: usize,
    nodes_known: usize,
    slots: u32,
    slots_used: u32,
}

pub(crate) async fn show(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    headers: HeaderMap,
) -> Result<Response, WebError> {
    let now = state.options().clock.now();
    let overview = state.overview(viewer).await?;
    let (projects, evaluations) = (&overview.projects, &overview.evaluations);
    let (jobs, nodes) = tokio::try_join!(state.job_counts(viewer), state.nodes())?;
    let is_moving = jobs.building + jobs.uploading > 0 || evaluations.iter().any(|e| e.verdict == Verdict::Running);
    let mut frame = state.frame("Projects");
    frame.refresh_s = is_moving.then_some(REFRESH_S);
    let online: Vec<&Node> = nodes.iter().filter(|node| node.online).collect();
    let (slots, slots_used) =
        (online.iter().map(|node| node.max_jobs).sum(), online.iter().map(|node| node.running).sum());
    let counted: (usize, usize, u32, u32) = (online.len(), nodes.len(), slots, slots_used);
    page_if_changed(&headers, frame, tag(&state, &(projects, evaluations, jobs, counted)), |frame| HomePage {
        frame,
        projects: projects
            .iter()
            .map(|project| ProjectRow {
                last: project.last_evaluation.as_ref().map(|last| EvaluationRow::of(last, &jobs, now)),
                name: project.name.clone(),
                kind: project.kind.clone(),
            })
            .collect(),
        evaluations: evaluations.iter().map(|evaluation| EvaluationRow::of(evaluation, &jobs, now)).collect(),
        jobs,
        nodes_online: online.len(),
        nodes_known: nodes.len(),
        slots,
        slots_used,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_name_what_is_there() {
        let all = AttrCounts {
            total: 9,
            succeeded: 3,
            failed: 1,
            dep_failed: 1,
            eval_errors: 1,
            building: 1,
            pending: 1,
            cancelled: 1,
        };
        assert_eq!(
            counts(&all),
            "3/9, 1 failed, 1 with failed dependency, 1 not evaluated, 1 building, 1 waiting, 1 cancelled"
        );
        assert_eq!(counts(&AttrCounts { total: 2, succeeded: 2, ..AttrCounts::default() }), "2/2");
        assert_eq!(counts(&AttrCounts::default()), "");
        let bar = Bar::of(&all);
        assert_eq!((bar.good, bar.bad, bar.busy), (33.33, 22.22, 11.11));
        assert!((bar.busy_at() - 66.66).abs() < 0.01);
    }
}
