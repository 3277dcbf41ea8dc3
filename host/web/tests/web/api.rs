//! `/api/v1`: every call, its answer, and its refusals.

use harmonia_core::api::{
    ApiError, AttrState, Build, BundleStored, Changed, Evaluation, EvaluationCreated, EvaluationDetail,
    EvaluationWaits, Node, Project, Queue, ServerStatus, Verdict,
};
use harmonia_core::{EvalStatus, JobStatus};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Drv, Nar, NewEvaluation, TOKEN, World};

const COMMIT: &str = "0123456789012345678901234567890123456789";

impl World {
    async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).bearer_auth(TOKEN).json(body).send().await.expect("answered")
    }
}

async fn error(response: Response) -> (u16, ApiError) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    (status, response.json().await.expect("an ApiError"))
}

#[tokio::test]
async fn reading_calls() {
    let world = World::start().await;
    let evaluation = world.begin(NewEvaluation::default()).await;
    let (good, bad, above) = (Drv::new("good", &[]), Drv::new("bad", &[]), Drv::new("above", &[]));
    world.insert(&evaluation, &[&good, &bad, &above], &[("checks.wrong", "error: undefined variable 'x'")]).await;
    world.db().append_evaluation_log(evaluation.id, &evaluation.token, "engine says <hi>\n").await.expect("logged");
    world.finish(&evaluation).await;
    let done = world.build(&good, &Nar::file(b"good"), &[], "log of good\n").await;

    let id = evaluation.id;
    let detail: EvaluationDetail = world.json(&format!("/api/v1/evaluations/{id}")).await;
    assert_eq!((detail.evaluation.status, detail.evaluation.verdict), (EvalStatus::Succeeded, Verdict::Running));
    let states: Vec<AttrState> = detail.attrs.iter().map(|attr| attr.state).collect();
    assert_eq!(states, [AttrState::Pending, AttrState::Pending, AttrState::Succeeded, AttrState::Error]);
    assert_eq!(world.text(&format!("/api/v1/evaluations/{id}/log")).await, "engine says <hi>\n");
    let list: Vec<Evaluation> = world.json("/api/v1/evaluations?project=local/demo&limit=5").await;
    assert_eq!(list.iter().map(|evaluation| evaluation.id).collect::<Vec<_>>(), [id]);
    let none: Vec<Evaluation> = world.json(&format!("/api/v1/evaluations?before={id}")).await;
    assert_eq!(none, []);

    let build: Build = world.json(&format!("/api/v1/builds/{}", done.job)).await;
    assert_eq!((build.status, build.attempts.len()), (JobStatus::Succeeded, 1));
    for query in [done.job.to_string(), build.drv_path.clone(), "checks.good".to_owned(), "good".to_owned()] {
        let found: Build = world.json(&format!("/api/v1/builds/find?q={query}")).await;
        assert_eq!(found.id, done.job, "{query}");
    }
    let log = world.get(&format!("/api/v1/builds/{}/log", done.job)).await;
    assert_eq!(log.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(log.text().await.expect("text"), "log of good\n");
    assert_eq!(world.text(&format!("/api/v1/builds/{}/log?attempt={}", done.job, done.id)).await, "log of good\n");

    let waits: EvaluationWaits = world.json(&format!("/api/v1/evaluations/{id}/waits?limit=1")).await;
    assert_eq!((waits.evaluation.as_slice(), waits.jobs.len()), (&[][..], 1));
    assert!(!waits.jobs[0].why.is_empty());
    let queue: Queue = world.json("/api/v1/queue?limit=1").await;
    assert_eq!((queue.counts.pending, queue.waiting.len()), (2, 1));
    assert!(!queue.waiting[0].why.is_empty());
    let status: ServerStatus = world.json("/api/v1/status").await;
    assert_eq!((status.jobs.succeeded, status.cache_url.as_str()), (1, world.url.as_str()));
    assert_eq!(status.public_keys.len(), 1);
    let nodes: Vec<Node> = world.json("/api/v1/nodes").await;
    assert_eq!(nodes.iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["node-1"]);
    let projects: Vec<Project> = world.json("/api/v1/projects").await;
    assert_eq!(projects[0].last_evaluation.as_ref().map(|last| last.id), Some(id));
    world.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_and_what_is_malformed() {
    let world = World::start().await;
    for path in [
        "/api/v1/evaluations/1",
        "/api/v1/evaluations/x",
        "/api/v1/evaluations/0",
        "/api/v1/evaluations/1/log",
        "/api/v1/evaluations/1/head",
        "/api/v1/builds/1",
        "/api/v1/builds/99999999999999999999",
        "/api/v1/builds/1/log",
        "/api/v1/builds/find?q=nothing",
        "/api/v1/nothing",
        "/api/v2/queue",
        "/api",
    ] {
        let (status, error) = error(world.get(path).await).await;
        assert_eq!((status, error.code.as_str()), (404, "not-found"), "{path}");
    }
    for path in [
        "/api/v1/queue?limit=x",
        "/api/v1/evaluations?before=-",
        "/api/v1/evaluations/1/head?since=x",
        "/api/v1/builds/find",
        "/api/v1/builds/1/log?attempt=x",
    ] {
        let (status, error) = error(world.get(path).await).await;
        assert_eq!((status, error.code.as_str()), (400, "bad-request"), "{path}");
    }
    let (status, _) = error(world.post("/api/v1/queue", &json!({})).await).await;
    assert_eq!(status, 405);
    world.stop().await;
}

#[tokio::test]
async fn changing_calls_need_a_known_token() {
    let world = World::start().await;
    for path in [
        "/api/v1/bundles",
        "/api/v1/evaluations",
        "/api/v1/evaluations/1/cancel",
        "/api/v1/evaluations/1/rebuild-failed",
        "/api/v1/builds/1/rebuild",
        "/api/v1/builds/1/cancel",
    ] {
        let bare = world.request(Method::POST, path).body("{}").send().await.expect("answered");
        assert_eq!(bare.headers()["www-authenticate"], "Bearer");
        assert_eq!(error(bare).await.0, 401, "{path}");
        let unknown = world.request(Method::POST, path).bearer_auth("guess").body("{}").send().await.expect("answered");
        let (status, error) = error(unknown).await;
        assert_eq!((status, error.code.as_str()), (401, "unauthorized"), "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_bundle_becomes_an_evaluation() {
    let world = World::start().await;
    let mut bundle = b"# v2 git bundle\n".to_vec();
    bundle.extend((0..(5 << 19)).map(|n: u32| n as u8));
    let send = |body: Vec<u8>| world.request(Method::POST, "/api/v1/bundles").bearer_auth(TOKEN).body(body).send();
    let stored: BundleStored = send(bundle.clone()).await.expect("answered").json().await.expect("JSON");
    let mut read = Vec::new();
    for seq in 0.. {
        let Some(chunk) = world.db().read_bundle(stored.bundle, seq).await.expect("reads") else { break };
        assert!(chunk.len() <= 1 << 20);
        read.extend(chunk);
    }
    assert_eq!(read, bundle);
    for bad in [vec![], b"# v9 git bundle\n".to_vec(), b"hello".to_vec()] {
        assert_eq!(error(send(bad).await.expect("answered")).await.0, 422);
    }

    let new = json!({ "project": "local/demo", "source": { "kind": "bundle", "bundle": stored.bundle }, "commit": COMMIT,
        "branch": "main", "title": "One\nTwo", "dirty": true });
    let created = world.post("/api/v1/evaluations", &new).await;
    assert_eq!(created.status(), StatusCode::OK);
    let first: EvaluationCreated = created.json().await.expect("JSON");
    assert_eq!(first.page, format!("/ci/local/demo/eval/{}", first.id));
    assert!(world.text(&first.page).await.contains("One"));
    let second: EvaluationCreated = world.post("/api/v1/evaluations", &new).await.json().await.expect("JSON");
    assert_eq!(second.superseded, [first.id]);
    let detail: EvaluationDetail = world.json(&format!("/api/v1/evaluations/{}", first.id)).await;
    assert_eq!((detail.evaluation.verdict, detail.evaluation.superseded_by), (Verdict::Cancelled, Some(second.id)));
    assert_eq!(detail.evaluation.title.as_deref(), Some("One"));

    let missing = json!({ "project": "local/demo", "source": { "kind": "bundle", "bundle": 999 }, "commit": COMMIT, "branch": "main" });
    assert_eq!(error(world.post("/api/v1/evaluations", &missing).await).await.0, 404);
    for (field, value) in [
        ("project", json!("../x")),
        ("project", json!("queue")),
        ("branch", json!("a..b")),
        ("commit", json!("main")),
        ("attrs", json!([])),
        ("source", json!({ "kind": "git", "url": "ext::sh -c id" })),
    ] {
        let mut bad = new.clone();
        bad[field] = value;
        let (status, error) = error(world.post("/api/v1/evaluations", &bad).await).await;
        assert_eq!((status, error.code.as_str()), (422, "refused"), "{field}: {}", error.message);
    }
    let (status, _) = error(world.post("/api/v1/evaluations", &json!({ "project": 7 })).await).await;
    assert_eq!(status, 400);
    world.stop().await;
}

#[tokio::test]
async fn a_bundle_that_says_it_is_too_large_is_not_read() {
    let world = World::start().await;
    let address = world.url.strip_prefix("http://").expect("http").to_owned();
    let request = format!(
        "POST /api/v1/bundles HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 99999999999\r\n\r\n"
    );
    let mut stream = tokio::net::TcpStream::connect(&address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 64];
    stream.read_exact(&mut answer).await.expect("answered");
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    drop(stream);
    world.stop().await;
}

#[tokio::test]
async fn cancel_and_rebuild() {
    let world = World::start().await;
    let (drv, above) = {
        let drv = Drv::new("thing", &[]);
        let above = Drv::new("above", &[&drv]);
        (drv, above)
    };
    let id = world.evaluate(&[&drv, &above]).await;
    let changed: Changed =
        world.post(&format!("/api/v1/evaluations/{id}/cancel"), &json!({})).await.json().await.expect("JSON");
    assert!(changed.changed > 0);
    let detail: EvaluationDetail = world.json(&format!("/api/v1/evaluations/{id}")).await;
    assert_eq!(detail.evaluation.verdict, Verdict::Cancelled);
    let build: Build = world.json("/api/v1/builds/find?q=checks.thing").await;
    assert_eq!(build.status, JobStatus::Cancelled);
    let changed: Changed =
        world.post(&format!("/api/v1/builds/{}/rebuild", build.id), &json!({})).await.json().await.expect("JSON");
    assert!(changed.changed > 0);
    let build: Build = world.json(&format!("/api/v1/builds/{}", build.id)).await;
    assert_eq!((build.status, build.priority), (JobStatus::Pending, 100));
    let changed: Changed =
        world.post(&format!("/api/v1/builds/{}/cancel", build.id), &json!({})).await.json().await.expect("JSON");
    assert_eq!(changed.changed, 1);
    world.stop().await;
}
