//! Pages for people under `/ci/`: rendered here, readable without JavaScript. Start at [`dispatch`].
//!
//! A project's name may contain slashes, so everything below a project is one wildcard route, read from its end:
//! `…/` is the project, `…/eval/7` an evaluation, `…/build/7` a build. `/ci/eval/7` and `/ci/build/7` lead there.

use askama::Template;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use harmonia_core::foreign_text::is_unshown;
use harmonia_core::{EvalId, JobId};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{self, WebError};
use crate::extract::Reader;
use crate::state::AppState;

pub(crate) mod assets;
mod build;
pub(crate) mod evaluation;
pub(crate) mod forges;
mod format;
pub(crate) mod home;
pub(crate) mod landing;
pub(crate) mod nodes;
mod project;
pub(crate) mod queue;
pub(crate) mod settings;

/// What surrounds every page.
pub(crate) struct Frame {
    pub(crate) title: String,
    pub(crate) version: String,
    /// Seconds until the page is fetched again, while something on it moves.
    pub(crate) refresh_s: Option<u32>,
    /// What tells whether it shows anything else by then.
    pub(crate) tag: Option<String>,
}

/// Pages say how long ago something was: after so many seconds they are sent again although nothing changed.
const AGES_S: i64 = 60;

/// The entity tag of a page that shows this. (Of the pages with tags, what they show says whose they are.)
pub(crate) fn tag(state: &AppState, shows: &impl Serialize) -> String {
    let options = state.options();
    let age = options.clock.now().unix_timestamp() / AGES_S;
    let mut hash = Sha256::new();
    // What cannot be written as JSON has the tag of nothing, and cannot be here: these are the types of the API.
    hash.update(serde_json::to_vec(&(&options.version, age, shows)).unwrap_or_default());
    let number = hash.finalize().iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:016x}")
}

/// A page, or nothing but its tag to who has it already.
pub(crate) fn page_if_changed<T: Template>(
    request: &HeaderMap,
    mut frame: Frame,
    tag: String,
    template: impl FnOnce(Frame) -> T,
) -> Result<Response, WebError> {
    let quoted = format!("\"{tag}\"");
    let value = HeaderValue::from_str(&quoted).ok();
    let known = request.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == quoted)) {
        let mut headers = HeaderMap::new();
        headers.extend(value.map(|value| (header::ETAG, value)));
        return Ok(error::not_modified(headers));
    }
    frame.tag = Some(tag);
    let mut response = page(&template(frame))?;
    response.headers_mut().extend(value.map(|value| (header::ETAG, value)));
    Ok(response)
}

/// What an address below `/ci/` names.
#[derive(Debug, PartialEq, Eq)]
enum Address<'a> {
    Project(&'a str),
    Evaluation {
        project: Option<&'a str>,
        id: EvalId,
    },
    Build {
        project: Option<&'a str>,
        id: JobId,
    },
    /// Perhaps a project, written without the slash at its end.
    Unslashed(&'a str),
}

fn parse(path: &str) -> Option<Address<'_>> {
    if let Some(project) = path.strip_suffix('/') {
        return (!project.is_empty()).then_some(Address::Project(project));
    }
    let mut parts = path.rsplitn(3, '/');
    let (last, kind, project) = (parts.next()?, parts.next(), parts.next());
    match kind {
        Some("eval") if last.parse::<EvalId>().is_ok() => Some(Address::Evaluation { project, id: last.parse().ok()? }),
        Some("build") if last.parse::<JobId>().is_ok() => Some(Address::Build { project, id: last.parse().ok()? }),
        _ => Some(Address::Unslashed(path)),
    }
}

/// The page of an evaluation, from the root of the server.
pub(crate) fn evaluation_path(project: &str, id: EvalId) -> String {
    format!("/ci/{project}/eval/{id}")
}

/// The page of a build.
pub(crate) fn build_path(project: &str, id: JobId) -> String {
    format!("/ci/{project}/build/{id}")
}

/// Every page below a project. The raw path is read, not its decoded form: names need no escapes, so an escape is a 404.
pub(crate) async fn dispatch(
    State(state): State<AppState>,
    Reader(viewer): Reader,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, WebError> {
    let path = uri.path().strip_prefix("/ci/").unwrap_or_default();
    let query = uri.query().unwrap_or_default();
    match parse(path) {
        Some(Address::Project(name)) => project::show(&state, viewer, name, query, &headers).await,
        Some(Address::Evaluation { project, id }) => {
            evaluation::show(&state, viewer, project, id, query, &headers).await
        }
        Some(Address::Build { project, id }) => build::show(&state, viewer, project, id).await,
        Some(Address::Unslashed(name)) if state.db_for(viewer).is_project_visible(name).await? => {
            Ok(Redirect::to(&format!("/ci/{name}/")).into_response())
        }
        _ => Err(WebError::not_found("there is no such page")),
    }
}

/// Renders a page. Pages show what is now: nobody keeps them. What others wrote (names of branches and attributes, titles,
/// errors) is text in it, and turns nothing around.
pub(crate) fn page(template: &impl Template) -> Result<Response, WebError> {
    let mut html = template.render().map_err(WebError::from)?;
    let is_hidden = |c: char| is_unshown(c) && !matches!(c, '\n' | '\t' | '\r');
    if html.contains(is_hidden) {
        html.retain(|c| !is_hidden(c));
    }
    let mut response = Html(html).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A form-encoded query string; unknown keys are ignored, since links to pages outlive versions.
pub(crate) fn query<T: serde::de::DeserializeOwned + Default>(text: &str) -> T {
    let uri = format!("/?{text}").parse::<Uri>().ok();
    uri.and_then(|uri| axum::extract::Query::<T>::try_from_uri(&uri).ok()).map(|query| query.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_their_end() {
        let (eval, job) = (EvalId(7), JobId(8));
        for (path, address) in [
            ("local/demo/", Some(Address::Project("local/demo"))),
            ("local/build/", Some(Address::Project("local/build"))),
            ("local/demo", Some(Address::Unslashed("local/demo"))),
            ("local/demo/eval/7", Some(Address::Evaluation { project: Some("local/demo"), id: eval })),
            ("local/eval/eval/7", Some(Address::Evaluation { project: Some("local/eval"), id: eval })),
            ("eval/7", Some(Address::Evaluation { project: None, id: eval })),
            ("a/build/8", Some(Address::Build { project: Some("a"), id: job })),
            ("build/8", Some(Address::Build { project: None, id: job })),
            ("a/build/x", Some(Address::Unslashed("a/build/x"))),
            ("a/eval/0", Some(Address::Unslashed("a/eval/0"))),
            ("", Some(Address::Unslashed(""))),
            ("/", None),
        ] {
            assert_eq!(parse(path), address, "{path}");
        }
    }

    #[test]
    fn queries_never_fail() {
        #[derive(serde::Deserialize, Default, Debug, PartialEq)]
        struct Q {
            a: Option<u32>,
        }
        assert_eq!(query::<Q>("a=1&b=2"), Q { a: Some(1) });
        assert_eq!(query::<Q>("a=x"), Q { a: None });
        assert_eq!(query::<Q>("%%% "), Q { a: None });
    }
}
