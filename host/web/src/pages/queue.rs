//! `/ci/queue`: what runs, what waits and why.

use askama::Template;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use harmonia_core::Timestamp;
use harmonia_core::api::{JobCounts, QueuedJob};

use super::format::{self, Badge, When};
use super::{Frame, build_path, page_if_changed, tag};
use crate::error::WebError;
use crate::extract::Reader;
use crate::state::AppState;

/// Jobs of each kind on the page.
const JOBS: u32 = 200;
const REFRESH_S: u32 = 5;

struct JobRow {
    page: String,
    name: String,
    project: String,
    system: String,
    badge: Badge,
    node: Option<String>,
    why: Vec<String>,
    since: When,
}

#[derive(Template)]
#[template(path = "queue.html")]
struct QueuePage {
    frame: Frame,
    counts: JobCounts,
    running: Vec<JobRow>,
    waiting: Vec<JobRow>,
    more_waiting: u64,
}

pub(crate) async fn show(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    headers: HeaderMap,
) -> Result<Response, WebError> {
    let now = state.options().clock.now();
    let queue = state.queue(viewer, JOBS).await?;
    let mut frame = state.frame("Queue");
    frame.refresh_s = Some(REFRESH_S);
    page_if_changed(&headers, frame, tag(&state, &*queue), |frame| QueuePage {
        frame,
        more_waiting: queue.counts.pending.saturating_sub(queue.waiting.len() as u64),
        counts: queue.counts,
        running: queue.running.iter().map(|job| row(job, now)).collect(),
        waiting: queue.waiting.iter().map(|job| row(job, now)).collect(),
    })
}

fn row(job: &QueuedJob, now: Timestamp) -> JobRow {
    JobRow {
        page: build_path(&job.project, job.id),
        badge: format::job(job.status),
        since: format::when(job.started_at.unwrap_or(job.queued_at), now),
        name: job.name.clone(),
        project: job.project.clone(),
        system: job.system.clone(),
        node: job.node.clone(),
        why: job.why.clone(),
    }
}
