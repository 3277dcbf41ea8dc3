//! `/ci/settings/projects`: what is built of which repository. Read only, and public projects only, whoever asks: what went
//! wrong in detail is for those with a token (`GET /api/v1/project-settings`).

use askama::Template;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use harmonia_core::api::ProjectSettings;
use serde::Deserialize;

use super::format::Badge;
use super::{Frame, page};
use crate::error::WebError;
use crate::state::AppState;

/// Projects on one page.
const PAGE: u32 = 100;

#[derive(Debug, Default, Deserialize)]
struct Query {
    after: Option<String>,
}

struct Row {
    name: String,
    source: String,
    /// Page of the repository at its forge.
    link: Option<String>,
    badge: Badge,
    pull_requests: &'static str,
    branches: Vec<String>,
    poll_interval_s: u32,
    shares: u32,
}

#[derive(Template)]
#[template(path = "settings_projects.html")]
struct ProjectsPage {
    frame: Frame,
    rows: Vec<Row>,
    /// Name after which the next page begins.
    next: Option<String>,
}

pub(crate) async fn projects(State(state): State<AppState>, uri: Uri) -> Result<Response, WebError> {
    let query: Query = super::query(uri.query().unwrap_or_default());
    let projects = state.db().projects_settings(None, query.after.as_deref(), true, PAGE).await?;
    let next = (projects.len() == PAGE as usize).then(|| projects.last().map(|last| last.name.clone())).flatten();
    let rows = projects.into_iter().map(row).collect();
    page(&ProjectsPage { frame: state.frame("Projects and their settings"), rows, next })
}

fn row(project: ProjectSettings) -> Row {
    let hook_fails = project.hook.as_ref().is_some_and(|hook| hook.error.is_some());
    let (class, symbol, word) = if !project.enabled {
        ("idle", "○", "disabled")
    } else if project.repository_removed {
        ("bad", "✖", "repository gone")
    } else if project.poll_error.is_some() {
        ("warn", "!", "polling fails")
    } else if hook_fails {
        ("warn", "!", "webhook missing")
    } else {
        ("good", "●", "enabled")
    };
    let source = match (&project.forge, &project.repository, &project.url) {
        (Some(forge), Some(repository), _) => format!("{forge}:{repository}"),
        (_, _, Some(url)) => url.clone(),
        _ => "commits are sent".to_owned(),
    };
    // Whatever a forge says: only a link that a browser may follow.
    let link = project.repository_url.filter(|url| url.starts_with("https://") || url.starts_with("http://"));
    Row {
        source,
        link,
        badge: Badge { class, symbol, word },
        pull_requests: if project.pr_enabled { project.pr_trust.as_str() } else { "none are built" },
        branches: project
            .default_branch
            .into_iter()
            .chain(project.branch_patterns)
            .chain(project.tree_branch_patterns)
            .collect(),
        poll_interval_s: project.poll_interval_s,
        shares: project.scheduling_shares,
        name: project.name,
    }
}
