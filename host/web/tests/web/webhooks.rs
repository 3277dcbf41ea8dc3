//! `/webhook/{forge}`, the list of deliveries, and `/internal/clone-credential`.

use std::time::Duration;

use harmonia_core::EvalId;
use harmonia_core::api::{ApiError, Changed, DeliveryInfo, Source};
use harmonia_core::forge::{Delivery, Event, ForgeError, Push, Reference, RepositoryRef};
use harmonia_core::frontend_api::{CloneCredentialAnswer, CloneCredentialRequest};
use harmonia_core::plugin::{PluginKind, PluginStatus};
use harmonia_core::{ClaimToken, Incarnation, NodeId};
use harmonia_db::NewEvaluationRow;
use harmonia_db::testing::random_token;
use reqwest::{Method, Response};

use crate::forge::{FORGE, PASSWORD, SIGNATURE, repository};
use crate::world::{NewEvaluation, TOKEN, World};

fn push(id: &str, repository: &str) -> Delivery {
    let repository = RepositoryRef { id: repository.to_owned(), full_name: format!("o/{repository}") };
    let push = Push {
        repository,
        reference: Reference::Branch("main".to_owned()),
        commit: "c".repeat(40),
        deleted: false,
        author: "a".to_owned(),
        message: "m".to_owned(),
    };
    Delivery { id: id.to_owned(), events: vec![Event::Push(push)] }
}

impl World {
    /// Makes a project `o/<id>` of a repository.
    pub(crate) async fn enable(&self, id: &str) {
        let name = format!("o/{id}");
        self.db().upsert_repositories(FORGE, &[repository(id, &name)]).await.expect("upsert");
        let row = self.db().repository(FORGE, &name).await.expect("asked").expect("there");
        self.db().enable_repository(row, &[name], "me").await.expect("enabled");
    }

    async fn deliver(&self, forge: &str, signature: Option<&str>, body: Vec<u8>) -> Response {
        let mut request = self.request(Method::POST, &format!("/webhook/{forge}")).body(body);
        if let Some(signature) = signature {
            request = request.header(SIGNATURE.0, signature);
        }
        request.send().await.expect("answered")
    }

    async fn delivered(&self, delivery: &Delivery) -> u16 {
        let body = serde_json::to_vec(delivery).expect("JSON");
        self.deliver(FORGE, Some(SIGNATURE.1), body).await.status().as_u16()
    }

    async fn deliveries(&self, query: &str) -> Vec<DeliveryInfo> {
        let answer = self.request(Method::GET, &format!("/api/v1/deliveries{query}")).bearer_auth(TOKEN).send().await;
        answer.expect("answered").json().await.expect("JSON")
    }
}

async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let error: ApiError = response.json().await.expect("an ApiError");
    (status, error.code)
}

#[tokio::test]
async fn deliveries_are_taken_once() {
    let world = World::start().await;
    world.enable("1").await;
    world.db().upsert_repositories(FORGE, &[repository("2", "o/2")]).await.expect("upsert");
    assert_eq!(world.delivered(&push("d1", "1")).await, 202);
    assert_eq!(world.delivered(&push("d1", "1")).await, 202, "a redelivery is fine, and changes nothing");
    assert_eq!(world.delivered(&push("d2", "2")).await, 200, "not enabled");
    assert_eq!(world.delivered(&push("d3", "9")).await, 200, "unknown");
    assert_eq!(world.delivered(&Delivery { id: "d4".to_owned(), events: vec![] }).await, 200);
    assert_eq!(world.delivered(&Delivery { id: "d5".to_owned(), events: vec![Event::Discover] }).await, 202);
    let listed = world.deliveries("").await;
    let rows: Vec<_> = listed.iter().map(|d| (d.delivery.as_str(), d.state.as_str())).collect();
    assert_eq!(rows, [("d5", "queued"), ("d4", "done"), ("d3", "done"), ("d2", "done"), ("d1", "queued")]);
    assert_eq!(listed[4].repositories, ["o/1"]);
    let claimed = world.db().claim_deliveries(&NodeId("n".to_owned()), 9, Duration::from_mins(1)).await.expect("taken");
    assert_eq!(claimed.len(), 2, "each once");

    // Given up, listed as such, and queued again by an admin.
    world.db().delivery_dead(&claimed[0], "makes no sense").await.expect("dead");
    let dead = world.deliveries("?dead=true").await;
    assert_eq!((dead.len(), dead[0].error.as_deref()), (1, Some("makes no sense")));
    let replay = async |id: i64| {
        let path = format!("/api/v1/deliveries/{id}/replay");
        world.request(Method::POST, &path).bearer_auth(TOKEN).send().await.expect("answered")
    };
    assert_eq!(replay(dead[0].id).await.json::<Changed>().await.expect("JSON"), Changed { changed: 1 });
    assert_eq!(refusal(replay(dead[0].id).await).await, (404, "not-found".to_owned()), "it is queued");
    assert_eq!(world.deliveries("?dead=true").await, []);

    // All at once, with a token only.
    let claimed = world.db().claim_deliveries(&NodeId("n".to_owned()), 9, Duration::from_mins(1)).await.expect("taken");
    world.db().delivery_dead(&claimed[0], "makes no sense").await.expect("dead");
    let all = "/api/v1/deliveries/replay";
    assert_eq!(world.request(Method::POST, all).send().await.expect("answered").status(), 401);
    for (path, changed) in [("?forge=another", 0), ("", 1), ("", 0)] {
        let path = [all, path].concat();
        let answer = world.request(Method::POST, &path).bearer_auth(TOKEN).send().await.expect("answered");
        assert_eq!(answer.json::<Changed>().await.expect("JSON"), Changed { changed }, "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn refusals_have_their_status_and_leave_nothing() {
    let world = World::start().await;
    world.enable("1").await;
    let body = || serde_json::to_vec(&push("d1", "1")).expect("JSON");
    let refused = async |forge: &str, signature: Option<&str>, body: Vec<u8>| {
        refusal(world.deliver(forge, signature, body).await).await
    };
    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused(FORGE, None, body()).await, code(401, "unauthorized"));
    assert_eq!(refused(FORGE, Some("wrong"), body()).await, code(401, "unauthorized"));
    assert_eq!(refused(FORGE, Some("good"), b"hello".to_vec()).await, code(400, "bad-request"));
    assert_eq!(refused("nobody", Some("good"), body()).await, code(404, "not-found"));
    assert_eq!(refused("mute", Some("good"), body()).await, code(404, "not-found"));
    let broken = world.deliver("broken", Some("good"), body()).await;
    assert!(broken.headers().contains_key("retry-after"));
    let told: ApiError = broken.json().await.expect("an ApiError");
    assert_eq!(told.code, "plugin-failed");
    assert!(!told.message.contains("42"), "what it said is for the log: {}", told.message);
    let long = serde_json::to_vec(&push(&"x".repeat(201), "1")).expect("JSON");
    assert_eq!(refused(FORGE, Some("good"), long).await, code(400, "bad-request"));
    let empty = serde_json::to_vec(&push("", "1")).expect("JSON");
    assert_eq!(refused(FORGE, Some("good"), empty).await, code(400, "bad-request"));
    let get = world.get("/webhook/forge").await;
    assert_eq!(refusal(get).await, code(405, "method-not-allowed"));
    assert_eq!(world.deliveries("").await, []);
    // Still there for the next.
    assert_eq!(world.delivered(&push("d1", "1")).await, 202);
    world.stop().await;
}

/// A secret that differs from the forge's is seen on a page, not in the log alone.
#[tokio::test]
async fn the_nodes_page_tells_of_deliveries_with_a_wrong_signature() {
    let world = World::start().await;
    let status = PluginStatus {
        name: FORGE.to_owned(),
        kind: Some(PluginKind::Forge),
        program: "forge 1".to_owned(),
        sha256: String::new(),
        calls: 0,
        failures: 0,
        broken_for_s: None,
        last_error: None,
        last_failure: None,
        refused: None,
        unusable_secrets: Vec::new(),
        exports: Vec::new(),
    };
    *world.forge.statuses.lock().expect("lock") = vec![status];
    let body = || serde_json::to_vec(&push("d1", "1")).expect("JSON");
    world.deliver(FORGE, Some(SIGNATURE.1), body()).await;
    let html = world.text("/ci/nodes").await;
    assert!(html.contains("works") && !html.contains("refused"), "{html}");
    world.deliver(FORGE, Some("wrong"), body()).await;
    let html = world.text("/ci/nodes").await;
    assert!(html.contains("One delivery was refused") && html.contains("signature is missing or wrong"), "{html}");
    world.deliver(FORGE, None, body()).await;
    let html = world.text("/ci/nodes").await;
    assert!(html.contains("2 deliveries were refused in "), "{html}");
    world.stop().await;
}

#[tokio::test]
async fn bodies_and_headers_have_bounds() {
    let world = World::start().await;
    let padded = |bytes: usize| {
        let mut body = serde_json::to_vec(&push("d1", "1")).expect("JSON");
        body.resize(bytes, b' ');
        body
    };
    assert_eq!(world.deliver(FORGE, Some("good"), padded(5 << 20)).await.status().as_u16(), 200, "as large as allowed");
    let refused = refusal(world.deliver(FORGE, Some("good"), padded((5 << 20) + 1)).await).await;
    assert_eq!(refused, (413, "too-large".to_owned()));
    // Without a declared length.
    let stream = futures_util::stream::iter((0..6).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let request = world.request(Method::POST, "/webhook/forge").header(SIGNATURE.0, SIGNATURE.1);
    let answer = request.body(reqwest::Body::wrap_stream(stream)).send().await.expect("answered");
    assert_eq!(refusal(answer).await.0, 413);
    // What is no text, or too long, does not reach the plugin.
    let request = world.request(Method::POST, "/webhook/forge").header(SIGNATURE.0, SIGNATURE.1);
    let request =
        request.header("X-Long", "x".repeat(9_000)).header("X-Odd", &b"\xff\xfe"[..]).header("X-Event", "Push");
    request.body(padded(500)).send().await.expect("answered");
    let seen = world.forge.headers_seen.lock().expect("lock").clone();
    assert!(seen.contains(&("x-event".to_owned(), "Push".to_owned())), "{seen:?}");
    assert!(seen.iter().all(|(name, value)| name != "x-long" && name != "x-odd" && value.len() <= 8 << 10));
    world.stop().await;
}

#[tokio::test]
async fn without_a_database_forges_are_told_to_come_again() {
    let world = World::start().await;
    world.db().close().await;
    let answer = world.deliver(FORGE, Some("good"), serde_json::to_vec(&push("d1", "1")).expect("JSON")).await;
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(refusal(answer).await, (503, "database-unavailable".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_clone_credential_is_for_who_holds_the_evaluation() {
    let world = World::start().await;
    let mut held = Vec::new();
    for id in ["1", "2"] {
        world.enable(id).await;
        let repository = RepositoryRef { id: id.to_owned(), full_name: String::new() };
        let project = world.db().forge_project(FORGE, &repository).await.expect("asked").expect("there").project;
        let row = NewEvaluationRow {
            project,
            source: Source::Git { url: "https://forge.example/x.git".to_owned() },
            commit: Some("c".repeat(40)),
            branch: "main".to_owned(),
            attrs: None,
            dirty: false,
            title: None,
            author: None,
        };
        let created = world.db().create_evaluation(&row).await.expect("created");
        let token = random_token();
        let claimed = world.db().claim_evaluation(&world.node, Incarnation(1), &token).await.expect("asked");
        assert_eq!(claimed.expect("queued").id, created.id);
        held.push((created.id, token));
    }
    let ask = async |eval: EvalId, token: &ClaimToken| {
        world.call("/internal/clone-credential", token, &CloneCredentialRequest { eval }).await
    };
    let answer = ask(held[0].0, &held[0].1).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["cache-control"]),
        (200, &"no-store".parse().expect("header"))
    );
    let answer: CloneCredentialAnswer = answer.json().await.expect("JSON");
    let credential = answer.credential.expect("one");
    assert_eq!((credential.user.as_str(), credential.password.as_str()), ("user of o/1", PASSWORD));
    assert_eq!(credential.hosts, ["forge.example"]);

    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refusal(ask(held[0].0, &held[1].1).await).await, code(409, "stale-claim"), "the token of another");
    assert_eq!(refusal(ask(held[0].0, &random_token()).await).await, code(409, "stale-claim"));
    assert_eq!(refusal(ask(EvalId(999), &held[0].1).await).await, code(409, "stale-claim"));
    let bare = world.request(Method::POST, "/internal/clone-credential").body("{}").send().await.expect("answered");
    assert_eq!(refusal(bare).await.0, 401);
    let api = world.request(Method::POST, "/internal/clone-credential").bearer_auth(TOKEN).body("{}").send().await;
    assert_eq!(refusal(api.expect("answered")).await.0, 401, "an API token is no claim");
    // A project without forge needs none; a forge that fails is not taken for that.
    let local = world.begin(NewEvaluation::default()).await;
    assert_eq!(refusal(ask(local.id, &local.token).await).await, code(404, "not-found"));
    for (error, expected) in [
        (ForgeError::NotFound, code(422, "refused")),
        (ForgeError::Denied("x".to_owned()), code(422, "refused")),
        (ForgeError::RetryAfter(7), code(503, "asked-to-wait")),
        (ForgeError::Unavailable("x".to_owned()), code(503, "forge-unavailable")),
    ] {
        *world.forge.credential_error.lock().expect("lock") = Some(error);
        assert_eq!(refusal(ask(held[0].0, &held[0].1).await).await, expected);
    }
    *world.forge.credential_error.lock().expect("lock") = Some(ForgeError::Unsupported("credentials"));
    let answer: CloneCredentialAnswer = ask(held[0].0, &held[0].1).await.json().await.expect("JSON");
    assert!(answer.credential.is_none());
    world.stop().await;
}
