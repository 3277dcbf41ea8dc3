//! `/`: what this cache is and how to use it, to be copied.

use askama::Template;
use axum::response::Response;

use super::{Frame, page};
use crate::error::WebError;
use crate::state::AppState;

#[derive(Template)]
#[template(path = "landing.html")]
struct LandingPage {
    frame: Frame,
    url: String,
    keys: Vec<String>,
    has_cache: bool,
}

pub(crate) fn show(state: &AppState) -> Result<Response, WebError> {
    let options = state.options();
    page(&LandingPage {
        frame: state.frame("Binary cache"),
        url: options.public_url.clone(),
        keys: options.public_keys.iter().map(ToString::to_string).collect(),
        has_cache: options.reader.is_some(),
    })
}
