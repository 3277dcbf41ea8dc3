//! Start, readiness, errors of the database, and the end.

use harmonia_core::Capability;
use harmonia_core::api::ApiError;
use harmonia_web::{Gate, ListenerLimits};
use reqwest::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::world::{Drv, Nar, World, routes};

#[tokio::test]
async fn the_listener_answers_before_anything_is_ready() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let (gate, shutdown) = (Gate::new(), CancellationToken::new());
    let server =
        tokio::spawn(harmonia_web::serve(listener, gate.router(), ListenerLimits::default(), shutdown.clone()));
    for path in ["/", "/ready", "/nix-cache-info", "/api/v1/queue", "/ci/"] {
        let response = reqwest::get(format!("{url}{path}")).await.expect("answered");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(response.headers().contains_key("retry-after"));
        let error: ApiError = response.json().await.expect("JSON");
        assert_eq!(error.code, "starting");
    }
    assert!(reqwest::get(format!("{url}/health")).await.expect("answered").status().is_success());
    let world = World::start().await;
    gate.open(harmonia_web::router(world.state.clone()));
    let response = reqwest::get(format!("{url}/nix-cache-info")).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    shutdown.cancel();
    server.await.expect("no panic");
    world.stop().await;
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let world = World::start().await;
    let ready = world.get("/ready").await;
    let status = ready.status();
    let text = ready.text().await.expect("text");
    assert_eq!(status, StatusCode::OK, "{text}");
    world.register(&[Capability::Builder]).await;
    let ready = world.get("/ready").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let report: serde_json::Value = ready.json().await.expect("JSON");
    let bad: Vec<&str> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter(|check| check["ok"] == false)
        .map(|check| check["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(bad, ["signer", "evaluator"]);
    let health: serde_json::Value = world.json("/health").await;
    assert_eq!(health["status"], "ok");
    world.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_in_every_form() {
    let world = World::start().await;
    let nobody = "/nar/0000000000000000000000000000000000000000000000000000.nar.zst";
    world.db().close().await;
    for (path, kind) in
        [("/api/v1/queue", "application/json"), ("/ci/", "text/html; charset=utf-8"), ("/ready", "application/json")]
    {
        let response = world.get(path).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(response.headers()["content-type"], kind);
        assert!(response.headers().contains_key("retry-after"), "{path}");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let text = response.text().await.expect("text");
        assert!(path == "/ready" || text.contains(&id), "{path}: {text}");
        assert!(!text.contains("pool") && !text.contains("postgres://"), "nothing of the inside: {text}");
    }
    assert_eq!(world.get(nobody).await.status(), StatusCode::NOT_FOUND, "needs no database");
    assert_eq!(world.state.error_counts().snapshot().get("database-unavailable"), Some(&2));
    assert!(world.get("/health").await.status().is_success());
    world.stop().await;
}

/// An answer under way when the end is asked for is given in full.
#[tokio::test]
async fn stopping_cuts_nothing_off() {
    let world = World::start().await;
    let drv = Drv::new("large", &[]);
    world.evaluate(&[&drv]).await;
    let mut seed = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    })
    .take(24 << 20)
    .collect();
    let nar = Nar::file(&content);
    world.build(&drv, &nar, &[], "").await;
    let mut response = world.get(&format!("/nar/{}", nar.file_name())).await;
    let first = response.chunk().await.expect("a piece").expect("not the end");
    world.shutdown.cancel();
    // While this answer is under way, others are still given.
    assert!(world.get("/health").await.status().is_success());
    let mut received = first.len();
    while let Some(piece) = response.chunk().await.expect("no cut") {
        received += piece.len();
    }
    assert_eq!(received, nar.compressed.len());
    let url = world.url.clone();
    world.stop().await;
    assert!(reqwest::get(format!("{url}/health")).await.is_err(), "the listener is closed");
}

/// Every address there is answers something that is neither a 500 nor a hang, to every method.
#[tokio::test]
async fn every_route_answers_every_method() {
    let world = World::start().await;
    let paths: Vec<String> = routes()
        .into_iter()
        .map(|path| path.replace("{id}", "1").replace("{file}", "x").replace("{drv}", "x").replace("{*path}", "a/b/"))
        .collect();
    for path in &paths {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = world.request(method.clone(), path).body("{}").send().await.expect("answered");
            let status = response.status();
            assert!(!status.is_server_error(), "{method} {path}: {status}");
            assert!(response.headers().contains_key("x-request-id"), "{method} {path}");
            if method == Method::HEAD {
                assert_eq!(response.bytes().await.expect("body").len(), 0, "{path}");
            }
        }
    }
    assert_eq!(world.state.error_counts().snapshot().len(), 0);
    world.stop().await;
}
