//! Frontends that say yes, no, and not now.

use std::sync::{Arc, Mutex};

use harmonia_core::frontend_api::WireCredential;
use harmonia_core::{Capability, Incarnation, NodeId};
use harmonia_db::NodeRegistration;
use harmonia_db::testing::{TestDatabase, random_token};

use super::*;
use crate::test_parts::{Answer, TestServer};

const SILENT_AFTER: Duration = Duration::from_mins(10);

fn refusal(status: u16, code: &str) -> Answer {
    Answer {
        status,
        ..Answer::json(&ApiError { code: code.to_owned(), message: format!("says {code}"), request_id: None })
    }
}

async fn register(db: &Db, id: &str, endpoint: &str) {
    let node = NodeRegistration {
        id: NodeId(id.to_owned()),
        incarnation: Incarnation(1),
        secret: harmonia_core::NodeSecret([0; 32]),
        capabilities: vec![Capability::Frontend],
        endpoint: Some(endpoint.to_owned()),
        systems: Vec::new(),
        features: Vec::new(),
        max_jobs: 0,
        max_evals: 0,
        version: "test".to_owned(),
    };
    db.register_node(&node).await.expect("registers");
}

#[tokio::test]
async fn answers_for_good_are_told_from_those_that_may_pass() {
    let database = TestDatabase::new().await;
    let db = &database.db;
    let (http, token) = (reqwest::Client::new(), random_token());
    let ask = async || clone_credential(&http, db, EvalId(1), &token, SILENT_AFTER).await;
    let nobody = ask().await.expect_err("no frontend");
    assert!(nobody.is_temporary(), "{nobody}");

    let script = Arc::new(Mutex::new(Answer::new(200, "{")));
    let scripted = Arc::clone(&script);
    let frontend = TestServer::start(move |request| {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/internal/clone-credential"));
        assert!(request.header("authorization").is_some_and(|value| value.starts_with("Bearer ")));
        scripted.lock().expect("lock").clone()
    })
    .await;
    register(db, "one", frontend.url.as_str()).await;
    for (answer, passes) in [
        (Answer::new(200, "{"), Some(true)), // cut off
        (Answer::new(502, "<html>"), Some(true)),
        (refusal(503, "forge-unavailable"), Some(true)),
        (refusal(503, "plugin-failed"), Some(true)),
        (refusal(429, "busy"), Some(true)),
        (refusal(404, "no-such-service"), Some(true)), // no frontend lives there
        (Answer::new(404, "nginx"), Some(true)),
        (refusal(422, "refused"), Some(false)),
        (refusal(401, "unauthorized"), Some(false)),
        (refusal(409, "stale-claim"), None),
    ] {
        *script.lock().expect("lock") = answer.clone();
        let error = ask().await.expect_err("no credential");
        match passes {
            None => assert!(matches!(error, CredentialError::Lost), "{answer:?}: {error}"),
            Some(passes) => assert_eq!(error.is_temporary(), passes, "{answer:?}: {error}"),
        }
        let said = serde_json::from_slice::<ApiError>(&answer.body).ok();
        if let Some(said) = said.filter(|_| passes.is_some()) {
            assert!(error.to_string().ends_with(&said.message), "{error}");
        }
    }
    *script.lock().expect("lock") = refusal(404, "not-found");
    assert!(ask().await.expect("answered").is_none(), "a project without forge needs none");

    // Another frontend that is away changes nothing about a "no", nor about a "yes".
    register(db, "two", "http://127.0.0.1:1").await;
    *script.lock().expect("lock") = refusal(422, "refused");
    let error = ask().await.expect_err("refused");
    assert!(matches!(error, CredentialError::Refused { .. }), "{error}");
    let credential = WireCredential { user: "u".to_owned(), password: "p".to_owned(), hosts: Vec::new() };
    *script.lock().expect("lock") = Answer::json(&CloneCredentialAnswer { credential: Some(credential) });
    assert_eq!(ask().await.expect("answered").expect("one").user, "u");
    drop(frontend);
    let error = ask().await.expect_err("both are away");
    assert!(matches!(error, CredentialError::Unreachable { .. }) && error.is_temporary(), "{error}");
}
