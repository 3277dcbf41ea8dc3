//! Comments on pull requests, each once: its key is hidden in it.

use harmonia_plugin::forge::{Error, RepositoryRef};
use harmonia_plugin::{http, json, time};
use serde::Deserialize;

use crate::api::Api;
use crate::model::page_of;

/// How far back we look for a comment of ours: it is looked for because an answer was lost a moment ago.
const LOOK_BACK_MS: u64 = 7 * 24 * 3600 * 1000;
/// Most pages of comments that are looked through.
const PAGES_MAX: u32 = 10;

#[derive(Deserialize)]
struct Comment {
    body: Option<String>,
}

/// Adds a comment unless it is there.
pub(crate) fn post(api: &Api, repository: &RepositoryRef, number: u64, key: &str, body: &str) -> Result<(), Error> {
    let url = api.repository_url(repository, &["issues", &number.to_string(), "comments"])?;
    let marker = marker(key);
    let since = time::format_rfc3339(time::now_ms().saturating_sub(LOOK_BACK_MS));
    let mut page = Some("1".to_owned());
    for _ in 0..PAGES_MAX {
        let Some(number) = page else { break };
        let answer = api.get(&http::query(&url, &[("since", &since), ("per_page", "100"), ("page", &number)]))?;
        page = answer.link("next").and_then(page_of);
        let comments: Vec<Comment> = answer.json()?;
        if comments.iter().any(|comment| comment.body.as_deref().is_some_and(|text| text.contains(&marker))) {
            return Ok(());
        }
    }
    api.post(&url, &json!({ "body": format!("{body}\n\n{marker}") })).map(drop)
}

/// Invisible in what people read; a key cannot end it.
fn marker(key: &str) -> String {
    let safe: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() || "-_./:".contains(c) { c } else { '_' }).collect();
    format!("<!-- harmonia-ci {} -->", safe.replace("--", "-_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_hidden() {
        assert_eq!(marker("head-changed/abc"), "<!-- harmonia-ci head-changed/abc -->");
        let hostile = marker("a --> <b>");
        assert!(hostile.ends_with("-->") && hostile.matches("-->").count() == 1, "{hostile}");
    }
}
