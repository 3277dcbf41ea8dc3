//! Projects and the repositories they are made of: `/api/v1/repositories`, `/api/v1/projects`, `/api/v1/project-settings`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use harmonia_core::api::{AddProject, ProjectAdded, ProjectChanges, ProjectSettings, RepositoryInfo};
use harmonia_core::project_name;
use harmonia_db::RepositoryFilter;
use serde::Deserialize;

use crate::bodies::Room;
use crate::error::WebError;
use crate::extract::{ApiUser, Params, PathPart, Reader};
use crate::state::AppState;
use crate::validate::{self, projects as rules};

/// Largest body of these calls.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Rows in a list when nobody says how many.
const LIST_LIMIT: u32 = 100;
/// Seconds between two looks at a plain git repository when nobody says how many.
const POLL_INTERVAL_S: u32 = 60;

#[derive(Deserialize)]
pub(crate) struct RepositoriesQuery {
    forge: Option<String>,
    search: Option<String>,
    /// `forge:owner/name`, the last of the page before.
    after: Option<String>,
    limit: Option<u32>,
}

pub(crate) async fn repositories(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<RepositoriesQuery>,
) -> Result<Json<Vec<RepositoryInfo>>, WebError> {
    let after = match query.after.as_deref().map(|after| after.split_once(':')) {
        Some(None) => return Err(WebError::bad_request("'after' is not forge:owner/name")),
        Some(after) => after,
        None => None,
    };
    let filter = RepositoryFilter {
        forge: query.forge.as_deref(),
        search: query.search.as_deref(),
        public_only: !viewer.sees_all(),
        after,
        limit: query.limit.unwrap_or(LIST_LIMIT),
    };
    Ok(Json(state.db().repositories(filter).await?))
}

#[derive(Deserialize)]
pub(crate) struct SettingsQuery {
    project: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    Params(query): Params<SettingsQuery>,
) -> Result<Json<Vec<ProjectSettings>>, WebError> {
    let limit = query.limit.unwrap_or(LIST_LIMIT);
    let (only, after) = (query.project.as_deref(), query.after.as_deref());
    let mut projects = state.db().projects_settings(only, after, !viewer.sees_all(), limit).await?;
    if !viewer.sees_all() {
        // They may name servers and files that are nobody's business.
        for project in &mut projects {
            project.poll_error = None;
            if let Some(hook) = &mut project.hook {
                hook.error = None;
            }
        }
    }
    Ok(Json(projects))
}

/// Makes a project of a plain git repository, or enables a forge's.
pub(crate) async fn add(
    State(state): State<AppState>,
    user: ApiUser,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ProjectAdded>, WebError> {
    let db = state.db();
    let (asked, _room): (AddProject, Room) = state.call_body(&headers, body, BODY_BYTES_MAX).await?;
    let name = match asked {
        AddProject::Repository { forge, repository } => {
            let row = db.repository(&forge, &repository).await?.ok_or_else(|| {
                WebError::not_found(format!(
                    "the forge '{forge}' told of no repository '{repository}': `harmonia-ci project repositories` lists those it \
                     told of; what is new there is discovered within a quarter of an hour"
                ))
            })?;
            let names = project_name::for_repository(&forge, &repository);
            if names.is_empty() {
                return Err(WebError::refused(format!("'{repository}' cannot become the name of a project")));
            }
            db.enable_repository(row, &names, &user.name).await?.1
        }
        AddProject::Git { url, name, branch, poll_interval_s } => {
            let parsed = validate::check_git_url(&url)?;
            let name = name.unwrap_or_else(|| project_name::for_git_url(&parsed));
            validate::check_project(&name)?;
            if let Some(branch) = &branch {
                rules::check_branch(branch)?;
            }
            let poll_s = poll_interval_s.unwrap_or(POLL_INTERVAL_S);
            rules::check_poll_interval(poll_s)?;
            db.add_git_project(&name, &url, branch.as_deref(), poll_s, &user.name).await?;
            name
        }
    };
    let page = format!("/ci/{name}/");
    Ok(Json(ProjectAdded { name, page }))
}

/// Changes settings; answers with all of them.
pub(crate) async fn set(
    State(state): State<AppState>,
    user: ApiUser,
    PathPart(name): PathPart<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ProjectSettings>, WebError> {
    let (changes, _room): (ProjectChanges, Room) = state.call_body(&headers, body, BODY_BYTES_MAX).await?;
    rules::check_changes(&changes)?;
    let db = state.db();
    db.set_project(&name, &changes, &user.name).await?;
    let settings = db.projects_settings(Some(&name), None, false, 1).await?.pop();
    settings.map(Json).ok_or_else(|| WebError::not_found(format!("there is no project {name}")))
}
