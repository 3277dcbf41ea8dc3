//! Whole evaluations whose forge, or whose way to it, is away for a while.

use harmonia_core::frontend_api::CloneCredentialAnswer;
use harmonia_db::testing::time_passes;

use super::*;
use crate::test_parts::{GitServer, Mood};

fn flake() -> String {
    format!("{{ outputs = {{ self }}: let {MAKE} in {{ checks.x86_64-linux.a = mk \"a\" {{ }}; }}; }}")
}

impl World {
    async fn defer(&self, id: EvalId) -> harmonia_core::api::Waiting {
        let view = self.until(id, |view| view.evaluation.waiting.is_some()).await;
        assert_eq!(view.evaluation.status, EvalStatus::Queued);
        view.evaluation.waiting.expect("just seen")
    }

    /// Queues something small, which also makes the evaluator look at the queue again, and waits for its end.
    async fn another_one(&self, name: &str) {
        let id = self.queue(name, &[("flake.nix", &flake())], None).await;
        let view = self.ended(id).await;
        assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    }
}

#[tokio::test]
async fn a_forge_that_is_down_holds_up_nobody_and_fails_nothing() {
    let world = World::start().await;
    let commit = world.commit_flake("repo", &flake());
    let server = GitServer::start(world.repositories.dir.path(), None).await;
    server.be(Mood::Says(503, "Retry-After: 7200\r\n"));
    let url = format!("http://{}/repo/.git", server.address);
    let id = world.create(Source::Git { url: url.clone() }, Some(commit.clone()), "main", None).await;
    let waiting = world.defer(id).await;
    assert!(waiting.reason.contains(&server.address) && waiting.reason.contains("HTTP 503"), "{waiting:?}");
    // It is the forge that asks for more than our own first pause.
    let pause = waiting.until - waiting.since;
    assert!((7_190..=7_210).contains(&pause.whole_seconds()), "{pause}");
    world.another_one("first").await;

    // Still down when its time has come: a second pause, and the same beginning.
    time_passes(&world.database.db, Duration::from_hours(2)).await;
    world.another_one("second").await;
    let again =
        world.until(id, |view| view.evaluation.waiting.as_ref().is_some_and(|again| again.until > waiting.until)).await;
    let again = again.evaluation.waiting.expect("just seen");
    assert!((again.until - again.since).whole_hours() >= 3, "{again:?}");

    server.be(Mood::Well);
    time_passes(&world.database.db, Duration::from_hours(2)).await;
    world.another_one("third").await;
    let view = world.ended(id).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    assert_eq!((view.evaluation.waiting, view.attrs.len()), (None, 1));

    // Down for longer than anybody waits: it fails, and says what it waited for.
    server.be(Mood::Says(503, ""));
    let other = world.commit_flake("other", &flake());
    let id = world.create(Source::Git { url: url.replace("repo", "other") }, Some(other), "other", None).await;
    world.defer(id).await;
    time_passes(&world.database.db, Duration::from_hours(25)).await;
    world.another_one("fourth").await;
    let view = world.ended(id).await;
    let error = view.evaluation.error.unwrap_or_default();
    assert_eq!(view.evaluation.status, EvalStatus::Failed, "{error}");
    assert!(error.contains("given up after 2 tries") && error.contains("HTTP 503"), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn frontends_that_are_away_or_cannot_ask_the_forge_are_waited_for() {
    let world = World::start().await;
    let commit = world.commit_flake("repo", &flake());
    let server = GitServer::start(world.repositories.dir.path(), None).await;
    let db = &world.database.db;
    let (project, url) = world.forge_project(&server, "repo").await;
    let new = NewEvaluationRow {
        project,
        source: Source::Git { url },
        commit: Some(commit),
        branch: "main".to_owned(),
        attrs: None,
        dirty: false,
        title: None,
        author: None,
    };
    let id = db.create_evaluation(&new).await.expect("queued").id;
    let waiting = world.defer(id).await;
    assert!(waiting.reason.contains("no frontend is online"), "{waiting:?}");

    // One comes, whose forge does not answer.
    let script = Arc::new(Mutex::new(Answer::new(503, "the forge is away")));
    let _frontend = world.frontend(&script).await;
    time_passes(db, Duration::from_mins(1)).await;
    world.another_one("first").await;
    let again = world.until(id, |view| {
        view.evaluation.waiting.as_ref().is_some_and(|waiting| waiting.reason.contains("the forge is away"))
    });
    again.await;

    *script.lock().expect("lock") = Answer::json(&CloneCredentialAnswer { credential: None });
    time_passes(db, Duration::from_mins(10)).await;
    world.another_one("second").await;
    let view = world.ended(id).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);

    // What is refused for good fails at once and says so.
    let body = serde_json::json!({ "code": "refused", "message": "the forge does not let us" }).to_string();
    *script.lock().expect("lock") = Answer::new(422, body);
    let refused =
        db.create_evaluation(&NewEvaluationRow { branch: "topic".to_owned(), ..new }).await.expect("queued").id;
    let view = world.ended(refused).await;
    let error = view.evaluation.error.unwrap_or_default();
    assert_eq!(view.evaluation.status, EvalStatus::Failed, "{error}");
    assert!(error.contains("the forge does not let us"), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn a_server_that_is_too_slow_gives_the_evaluator_back_to_others() {
    let way = async |database: &TestDatabase| database.db.clone();
    let world = World::start_as(way, |options| options.fetch_timeout = Duration::from_secs(3)).await;
    // Takes connections (by its backlog), and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}/x.git", silent.local_addr().expect("address"));
    let id = world.create(Source::Git { url }, Some("0".repeat(40)), "main", None).await;
    let waiting = world.defer(id).await;
    assert!(waiting.reason.contains("could not be fetched within 3 s"), "{waiting:?}");
    world.another_one("first").await;
    world.stop().await;
}
