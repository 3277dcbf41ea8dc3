//! `/ci/nodes`: who does the work.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use harmonia_core::Timestamp;
use harmonia_core::api::Node;

use super::format::{self, Badge, When};
use super::{Frame, page};
use crate::error::WebError;
use crate::state::AppState;

const REFRESH_S: u32 = 10;

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
    last_seen: When,
}

#[derive(Template)]
#[template(path = "nodes.html")]
struct NodesPage {
    frame: Frame,
    nodes: Vec<NodeRow>,
}

pub(crate) async fn show(State(state): State<AppState>) -> Result<Response, WebError> {
    let now = state.options().clock.now();
    let nodes = state.db().nodes(state.options().node_silent_after).await?;
    let mut frame = state.frame("Nodes");
    frame.refresh_s = Some(REFRESH_S);
    page(&NodesPage { frame, nodes: nodes.into_iter().map(|node| row(node, now)).collect() })
}

fn row(node: Node, now: Timestamp) -> NodeRow {
    let (class, symbol, word) = match &node {
        Node { online: false, .. } => ("bad", "✖", "offline"),
        Node { draining: true, .. } => ("warn", "⇣", "draining"),
        Node { paused: Some(_), .. } => ("warn", "‖", "paused"),
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
        last_seen: format::when(node.last_seen, now),
    }
}
