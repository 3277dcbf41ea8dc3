//! Webhooks that we install in repositories. Their secret is put in by the host; the instance signs with it.

use harmonia_plugin::forge::{Error, RepositoryRef};
use harmonia_plugin::http::{self, Request};
use harmonia_plugin::secrets;
use harmonia_plugin::serde_json::{Value, json};
use serde::Deserialize;

use crate::PER_PAGE;
use crate::api::Api;

/// Stands in the body where the host puts the webhook's secret.
const PLACEHOLDER: &str = "WEBHOOK_SECRET";
/// What we want to hear of.
const EVENTS: [&str; 7] =
    ["push", "delete", "pull_request", "pull_request_sync", "pull_request_label", "pull_request_comment", "repository"];
/// Most pages of hooks that are looked through.
const PAGES_MAX: u32 = 10;

#[derive(Deserialize)]
struct Hook {
    id: u64,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    url: Option<String>,
}

/// Installs it, or puts right what is there: whether its secret is still ours cannot be read.
pub(crate) fn install(api: &Api, repository: &RepositoryRef, url: &str) -> Result<(), Error> {
    let secret = secrets::open("webhook")?;
    let hooks = api.repository_url(repository, &["hooks"])?;
    let body = body(url);
    let mut there = ours(api, repository, url)?.into_iter();
    let first = there.next();
    // Two with one address: an answer was lost, or somebody installed one by hand.
    remove_these(api, &hooks, there)?;
    let request = if let Some(id) = first {
        Request::patch(http::url(&hooks, &[&id.to_string()])).json(&body)
    } else {
        let mut body = body;
        body["type"] = json!("gitea");
        Request::post(hooks).json(&body)
    };
    api.call(request.secret_in_body(&secret, PLACEHOLDER)).map(drop)
}

/// Removes it.
pub(crate) fn remove(api: &Api, repository: &RepositoryRef, url: &str) -> Result<(), Error> {
    let hooks = api.repository_url(repository, &["hooks"])?;
    let found = match ours(api, repository, url) {
        Err(Error::NotFound) => return Ok(()),
        found => found?,
    };
    remove_these(api, &hooks, found.into_iter())
}

fn remove_these(api: &Api, hooks: &str, ids: impl Iterator<Item = u64>) -> Result<(), Error> {
    for id in ids {
        match api.delete(&http::url(hooks, &[&id.to_string()])) {
            Ok(_) | Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn body(url: &str) -> Value {
    json!({
        "active": true,
        "events": EVENTS,
        "config": { "url": url, "content_type": "json", "secret": PLACEHOLDER },
    })
}

fn ours(api: &Api, repository: &RepositoryRef, url: &str) -> Result<Vec<u64>, Error> {
    let hooks = api.repository_url(repository, &["hooks"])?;
    let mut ours = Vec::new();
    let mut seen = 0;
    for page in 1..=PAGES_MAX {
        let answer = api.get(&http::query(&hooks, &[("limit", PER_PAGE), ("page", &page.to_string())]))?;
        // This list has no links to its next page, and a page may be shorter than was asked for.
        let total = answer.header("x-total-count").and_then(|total| total.parse::<usize>().ok());
        let found: Vec<Hook> = answer.json()?;
        seen += found.len();
        ours.extend(found.iter().filter(|hook| hook.config.url.as_deref() == Some(url)).map(|hook| hook.id));
        if found.is_empty() || total.is_some_and(|total| seen >= total) {
            break;
        }
    }
    Ok(ours)
}
