//! `/ci/nodes`: who does the work, and how the plugins are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use harmonia_core::Timestamp;
use harmonia_core::api::Node;
use harmonia_core::plugin::{PluginKind, PluginStatus};

use super::format::{self, Badge, When};
use super::{Frame, page};
use crate::error::WebError;
use crate::refusals::Lately;
use crate::state::AppState;

const REFRESH_S: u32 = 10;
/// Characters of a digest that tell two components apart.
const DIGEST_CHARS: usize = 12;

struct NodeRow {
    id: String,
    badge: Badge,
    capabilities: Vec<String>,
    systems: Vec<String>,
    features: Vec<String>,
    is_builder: bool,
    running: u32,
    max_jobs: u32,
    version: String,
    paused: Option<String>,
    policy_error: Option<String>,
    /// Upstream caches that give it nothing: which, and why.
    upstreams: Vec<(String, String)>,
    last_seen: When,
}

struct PluginRow {
    name: String,
    badge: Badge,
    kind: &'static str,
    program: String,
    digest: String,
    full_digest: String,
    calls: u64,
    failures: u64,
    /// What is wrong and what follows from it, in sentences.
    notes: Vec<String>,
}

#[derive(Template)]
#[template(path = "nodes.html")]
struct NodesPage {
    frame: Frame,
    nodes: Vec<NodeRow>,
    plugins: Vec<PluginRow>,
    /// Why what is configured now is not in force.
    refused_configuration: Option<String>,
}

pub(crate) async fn show(State(state): State<AppState>) -> Result<Response, WebError> {
    let now = state.options().clock.now();
    let nodes = state.nodes().await?;
    let mut upstreams: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for trouble in state.db().upstream_troubles().await? {
        upstreams.entry(trouble.node.0).or_default().push((trouble.cache, trouble.trouble));
    }
    let plugins = state.plugins();
    let mut frame = state.frame("Nodes");
    frame.refresh_s = Some(REFRESH_S);
    page(&NodesPage {
        frame,
        nodes: nodes
            .iter()
            .map(|node| {
                let upstreams = upstreams.remove(&node.id).unwrap_or_default();
                row(node.clone(), upstreams, now)
            })
            .collect(),
        plugins: plugins
            .statuses()
            .into_iter()
            .map(|plugin| {
                let refused = state.refusals().lately(&plugin.name, Instant::now());
                plugin_row(plugin, refused)
            })
            .collect(),
        refused_configuration: plugins.refused_configuration(),
    })
}

fn row(node: Node, upstreams: Vec<(String, String)>, now: Timestamp) -> NodeRow {
    let (class, symbol, word) = match &node {
        Node { online: false, .. } => ("bad", "✖", "offline"),
        Node { draining: true, .. } => ("warn", "⇣", "draining"),
        Node { paused: Some(_), .. } => ("warn", "‖", "paused"),
        Node { policy_error: Some(_), .. } => ("warn", "!", "policy fails"),
        _ => ("good", "●", "online"),
    };
    NodeRow {
        badge: Badge { class, symbol, word },
        is_builder: node.capabilities.iter().any(|capability| capability == "builder"),
        id: node.id,
        capabilities: node.capabilities,
        systems: node.systems,
        features: node.features,
        running: node.running,
        max_jobs: node.max_jobs,
        version: node.version,
        paused: node.paused,
        policy_error: node.policy_error,
        upstreams,
        last_seen: format::when(node.last_seen, now),
    }
}

/// Everybody may read the page, so it shows no more of an error than what every plugin could have done.
fn plugin_row(plugin: PluginStatus, refused: Option<Lately>) -> PluginRow {
    let (class, symbol, word) = match &plugin {
        PluginStatus { kind: None, .. } => ("bad", "✖", "not loaded"),
        PluginStatus { broken_for_s: Some(_), .. } => ("bad", "✖", "not called"),
        PluginStatus { unusable_secrets, .. } if unusable_secrets.iter().any(|secret| secret.required) => {
            ("bad", "✖", "cannot work")
        }
        PluginStatus { refused: Some(_), .. } => ("warn", "!", "older one runs"),
        PluginStatus { unusable_secrets, .. } if !unusable_secrets.is_empty() => ("warn", "!", "works in part"),
        _ => ("good", "●", "works"),
    };
    PluginRow {
        badge: Badge { class, symbol, word },
        kind: match plugin.kind {
            Some(PluginKind::Forge) => "forge",
            Some(PluginKind::Reporter) => "reporter",
            Some(PluginKind::Scheduler) => "scheduling policy",
            None => "",
        },
        digest: plugin.sha256.chars().take(DIGEST_CHARS).collect(),
        notes: notes(&plugin, refused),
        name: plugin.name,
        program: plugin.program,
        full_digest: plugin.sha256,
        calls: plugin.calls,
        failures: plugin.failures,
    }
}

fn notes(plugin: &PluginStatus, refused: Option<Lately>) -> Vec<String> {
    let mut notes = Vec::new();
    for secret in &plugin.unusable_secrets {
        let name = &secret.name;
        notes.push(format!(
            "Its secret {name} cannot be used; the log of this node says why. Until it can, calls that need it fail."
        ));
    }
    if let Some(seconds) = plugin.broken_for_s {
        let meanwhile = match plugin.kind {
            Some(PluginKind::Forge) => {
                "its webhooks are answered 503, which forges deliver again; statuses and discovery wait"
            }
            Some(PluginKind::Reporter) => "its notifications wait",
            Some(PluginKind::Scheduler) => "jobs are claimed by priority, then first in, first out",
            None => "nothing of it works",
        };
        let wait = format::duration(i64::try_from(seconds).unwrap_or(i64::MAX));
        notes.push(format!("It failed too often in a row and is called again in {wait}. Until then {meanwhile}."));
    }
    if let Some(Lately { count, began, ended }) = refused {
        let time = |time: Duration| format::duration(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        let which = match count {
            1 => format!("One delivery was refused {} ago: its signature is missing or wrong", time(ended)),
            _ => format!(
                "{count} deliveries were refused in {}, the last one {} ago: their signatures are missing or wrong",
                time(began),
                time(ended)
            ),
        };
        notes.push(format!("{which}. If that was the forge, its secret and the one in this configuration differ."));
    }
    if let Some(reason) = &plugin.refused {
        notes.push(match plugin.kind {
            Some(_) => format!("What is configured now was refused, so what ran before goes on: {reason}"),
            None => format!("It does not run: {reason}"),
        });
    }
    notes.extend(plugin.last_failure.as_ref().map(|failure| format!("Last failure: {failure}")));
    notes
}

#[cfg(test)]
mod tests {
    use harmonia_core::plugin::UnusableSecret;

    use super::*;

    fn status() -> PluginStatus {
        PluginStatus {
            name: "chat".to_owned(),
            kind: Some(PluginKind::Reporter),
            program: "chat-reporter 0.1.0".to_owned(),
            sha256: "ab".repeat(32),
            calls: 7,
            failures: 0,
            broken_for_s: None,
            last_error: None,
            last_failure: None,
            refused: None,
            unusable_secrets: Vec::new(),
            exports: Vec::new(),
        }
    }

    #[test]
    fn a_plugin_that_works_needs_no_words() {
        let row = plugin_row(status(), None);
        assert_eq!((row.badge.word, row.kind, row.digest.as_str()), ("works", "reporter", "abababababab"));
        assert_eq!(row.notes, Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_consequence() {
        let broken = PluginStatus {
            broken_for_s: Some(40),
            failures: 5,
            last_error: Some("plugin chat answered nonsense in report: about acme/secret".to_owned()),
            last_failure: Some("plugin chat answered nonsense in report".to_owned()),
            ..status()
        };
        let row = plugin_row(broken, None);
        assert_eq!((row.badge.class, row.badge.word), ("bad", "not called"));
        let text = row.notes.join("\n");
        assert!(text.contains("called again in 40 s") && text.contains("notifications wait"), "{text}");
        assert!(text.contains("nonsense in report") && !text.contains("secret"), "{text}");

        let stays = PluginStatus { refused: Some("no such file".to_owned()), ..status() };
        let row = plugin_row(stays, None);
        assert_eq!(row.badge.word, "older one runs");
        assert_eq!(row.notes, ["What is configured now was refused, so what ran before goes on: no such file"]);

        let unusable = |required| PluginStatus {
            last_error: Some("the secret `token` cannot be used: its file /etc/hidden/token cannot be read".to_owned()),
            unusable_secrets: vec![UnusableSecret { name: "token".to_owned(), required }],
            ..status()
        };
        let row = plugin_row(unusable(true), None);
        assert_eq!((row.badge.class, row.badge.word), ("bad", "cannot work"));
        let text = row.notes.join("\n");
        assert!(text.contains("secret token cannot be used") && text.contains("calls that need it fail"), "{text}");
        assert!(!text.contains("hidden"), "everybody reads it: {text}");
        let row = plugin_row(unusable(false), None);
        assert_eq!((row.badge.class, row.badge.word), ("warn", "works in part"));
        assert_eq!(row.notes.len(), 1, "{:?}", row.notes);

        let never = PluginStatus { kind: None, refused: Some("no such file".to_owned()), ..status() };
        let row = plugin_row(never, None);
        assert_eq!((row.badge.word, row.notes), ("not loaded", vec!["It does not run: no such file".to_owned()]));
    }
}
