//! Comments on pull requests, each once: its key is hidden in it.

use harmonia_plugin::forge::{Error, Marker, RepositoryRef};
use harmonia_plugin::{http, json};
use serde::Deserialize;

use crate::api::Api;

/// Most pages of comments that are looked through.
const PAGES_MAX: u32 = 10;

#[derive(Deserialize)]
struct Comment {
    body: Option<String>,
}

/// Adds a comment unless it is there.
pub(crate) fn post(api: &Api, repository: &RepositoryRef, number: u64, key: &str, body: &str) -> Result<(), Error> {
    let url = api.repository_url(repository, &["issues", &number.to_string(), "comments"])?;
    let (marker, since) = (Marker::of(key), Marker::looked_for_since());
    let mut page = Some("1".to_owned());
    for _ in 0..PAGES_MAX {
        let Some(number) = page else { break };
        let answer = api.get(&http::query(&url, &[("since", &since), ("per_page", "100"), ("page", &number)]))?;
        page = answer.next_page();
        let comments: Vec<Comment> = answer.json()?;
        if comments.iter().any(|comment| comment.body.as_deref().is_some_and(|text| marker.is_in(text))) {
            return Ok(());
        }
    }
    api.post(&url, &json!({ "body": marker.under(body) })).map(drop)
}
