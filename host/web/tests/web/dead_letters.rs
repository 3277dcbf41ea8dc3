//! `/api/v1/dead-letters`: who may see and replay what could not be delivered.

use std::time::Duration;

use harmonia_core::NodeId;
use harmonia_core::api::{ApiError, Changed};
use harmonia_core::forge::{ForgeRepository, StatusState};
use harmonia_core::status::delivery::Next;
use harmonia_core::status::{DeadLetter, DeadLetterKind, DesiredStatus};
use harmonia_db::{Answer, ComputedReport, NewEvaluationRow};
use reqwest::{Method, StatusCode};

use crate::world::{TOKEN, World};

const LEASE: Duration = Duration::from_mins(1);

/// A status that a forge refused for good.
pub(crate) async fn refused(world: &World, is_private: bool) {
    let db = world.db();
    let repository = ForgeRepository {
        id: "17".to_owned(),
        owner: "o".to_owned(),
        name: "r".to_owned(),
        full_name: "o/r".to_owned(),
        clone_url: "https://forge.invalid/o/r".to_owned(),
        html_url: "https://forge.invalid/o/r".to_owned(),
        default_branch: "main".to_owned(),
        is_private,
        is_archived: false,
        topics: Vec::new(),
    };
    db.upsert_repositories("forge", &[repository]).await.expect("a repository");
    let id = db.repository("forge", "o/r").await.expect("look").expect("there");
    let (project, _) = db.enable_repository(id, &["r".to_owned()], "me").await.expect("enable");
    let evaluation = NewEvaluationRow {
        project,
        source: harmonia_core::api::Source::Git { url: "https://forge.invalid/o/r".to_owned() },
        commit: Some("1".repeat(40)),
        branch: "main".to_owned(),
        attrs: None,
        dirty: false,
        title: None,
        author: None,
    };
    db.create_evaluation(&evaluation).await.expect("queue");
    let status = DesiredStatus {
        context: "ci/nix-eval".to_owned(),
        attr: None,
        state: StatusState::Pending,
        description: "waits".to_owned(),
        target_url: None,
        summary: String::new(),
        annotations: Vec::new(),
        started_at: None,
        finished_at: None,
    };
    let computed = ComputedReport { statuses: vec![status], ..ComputedReport::default() };
    for target in db.due_reports(Duration::ZERO, 10).await.expect("due") {
        db.compute_report(&target, &[], LEASE, |_| computed.clone()).await.expect("compute");
    }
    let due = db.claim_statuses(&NodeId("n".to_owned()), "forge", 1, LEASE).await.expect("claim");
    db.status_failed(&due[0], Answer { next: Next::Dead, error: "no such commit" }).await.expect("store");
}

#[tokio::test]
async fn dead_letters_are_listed_and_replayed_with_a_token() {
    let world = World::start().await;
    refused(&world, true).await;
    let ask = |method, path: &str| world.request(method, path).bearer_auth(TOKEN).send();
    let letters = ask(Method::GET, "/api/v1/dead-letters?limit=5").await.expect("answered");
    let letters: Vec<DeadLetter> = letters.json().await.expect("letters");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.kind, letter.target.as_str()), (DeadLetterKind::Status, "forge"));
    assert_eq!(
        (letter.subject.as_str(), letter.error.as_deref()),
        ("o/r 111111111111 ci/nix-eval", Some("no such commit"))
    );

    let replay = format!("/api/v1/dead-letters/status/{}/replay", letter.id);
    for (method, path) in [(Method::GET, "/api/v1/dead-letters"), (Method::POST, replay.as_str())] {
        let refused = world.request(method, path).send().await.expect("answered");
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/api/v1/dead-letters/status/999/replay", "/api/v1/dead-letters/letter/1/replay"] {
        let absent = ask(Method::POST, path).await.expect("answered");
        assert_eq!(absent.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(absent.json::<ApiError>().await.expect("an error").code, "not-found");
    }
    let changed: Changed = ask(Method::POST, &replay).await.expect("answered").json().await.expect("changed");
    assert_eq!(changed.changed, 1);
    let left = ask(Method::GET, "/api/v1/dead-letters").await.expect("answered");
    assert_eq!(left.json::<Vec<DeadLetter>>().await.expect("letters"), []);
    let due = world.db().claim_statuses(&NodeId("n".to_owned()), "forge", 1, LEASE).await.expect("claim");
    assert_eq!(due.len(), 1);
    world.stop().await;
}
