//! `/health` (the process answers) and `/ready` (so does everything it needs).

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use harmonia_core::{Capability, Viewer};
use serde::Serialize;

use crate::error;
use crate::state::AppState;

/// A dependency that needs longer to answer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn health(State(state): State<AppState>) -> Response {
    error::readiness(true, format!("{{\"status\":\"ok\",\"version\":{}}}\n", json(&state.options().version)))
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    checks: Vec<Check>,
}

/// One dependency.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// What is wrong and what to do; of a good one, what was seen.
    reason: String,
}

pub(crate) async fn ready(State(state): State<AppState>) -> Response {
    let (database, store) = tokio::join!(database(&state), object_store(&state));
    let mut checks = vec![database, store];
    checks.extend(nodes(&state).await);
    let readiness = Readiness { ready: checks.iter().all(|check| check.ok), checks };
    error::readiness(readiness.ready, serde_json::to_string(&readiness).unwrap_or_default() + "\n")
}

async fn database(state: &AppState) -> Check {
    let result = tokio::time::timeout(PATIENCE, state.db().ping()).await;
    match result {
        Ok(Ok(())) => good("database", "answers"),
        Ok(Err(error)) => bad("database", error.to_string()),
        Err(_) => bad("database", "does not answer within 5 seconds"),
    }
}

async fn object_store(state: &AppState) -> Check {
    let Some(reader) = &state.options().reader else {
        return bad("object-store", "this node serves no binary cache: configure the bucket");
    };
    // A name that no object has: the store must say that it has none, and that the bucket is there.
    let nothing = format!("{}.nar.zst", "0".repeat(52));
    match tokio::time::timeout(PATIENCE, reader.nar_head(Viewer::Public, &nothing)).await {
        Ok(Ok(_)) => good("object-store", "answers"),
        Ok(Err(error)) => bad("object-store", error.to_string()),
        Err(_) => bad("object-store", "does not answer within 5 seconds"),
    }
}

async fn nodes(state: &AppState) -> Vec<Check> {
    let wanted = [Capability::Signer, Capability::Builder, Capability::Evaluator];
    let found = tokio::time::timeout(PATIENCE, state.db().nodes(state.options().node_silent_after)).await;
    let Ok(Ok(nodes)) = found else {
        return wanted.map(|capability| bad(capability.as_str(), "unknown: the database does not say")).into();
    };
    wanted
        .map(|capability| {
            let name = capability.as_str();
            let live = nodes.iter().filter(|node| node.online && node.capabilities.iter().any(|c| c == name)).count();
            let known = nodes.iter().filter(|node| node.capabilities.iter().any(|c| c == name)).count();
            match (live, known) {
                (0, 0) => bad(name, format!("no node has the capability `{name}`: start one")),
                (0, known) => {
                    bad(name, format!("none of {known} nodes with the capability `{name}` was heard of lately"))
                }
                (live, _) => good(name, format!("{live} online")),
            }
        })
        .into()
}

fn good(name: &'static str, reason: impl Into<String>) -> Check {
    Check { name, ok: true, reason: reason.into() }
}

fn bad(name: &'static str, reason: impl Into<String>) -> Check {
    Check { name, ok: false, reason: reason.into() }
}

fn json(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
