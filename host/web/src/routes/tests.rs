//! What surrounds the routes, shown with a handler that does what none of ours may.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use harmonia_core::SystemClock;
use harmonia_core::api::ApiError;
use harmonia_db::testing::TestDatabase;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::*;
use crate::state::{AppLimits, AppOptions};

async fn boom() -> &'static str {
    panic!("the secret is 42")
}

#[tokio::test]
async fn a_panic_is_an_answer_in_the_form_of_its_area() {
    let database = TestDatabase::new().await;
    let shutdown = CancellationToken::new();
    let state = AppState::new(AppOptions {
        db: database.db.clone(),
        signer: None,
        reader: None,
        spool: None,
        plugins: Arc::new(harmonia_core::ports::NoPlugins),
        remote_heads: None,
        public_url: "http://localhost".to_owned(),
        public_keys: vec![],
        version: "0".to_owned(),
        node_silent_after: Duration::from_mins(2),
        clock: Arc::new(SystemClock),
        trusted_proxies: Vec::new(),
        limits: AppLimits::default(),
        shutdown: shutdown.clone(),
    });
    let routes =
        Router::new().route("/api/v1/boom", get(boom)).route("/ci/boom", get(boom)).route("/nar/boom", get(boom));
    let router = surround(routes, state.clone());
    for (path, status, kind) in [
        ("/api/v1/boom", 500, "application/json"),
        ("/ci/boom", 500, "text/html; charset=utf-8"),
        ("/nar/boom", 503, "text/plain; charset=utf-8"),
    ] {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("never fails");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (status, &HeaderValue::from_static(kind))
        );
        assert_eq!(response.headers().contains_key("retry-after"), status == 503, "{path}");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        let text = String::from_utf8(body.into()).expect("text");
        assert!(text.contains(&id) && !text.contains("secret"), "{text}");
        if path.starts_with("/api") {
            let error: ApiError = serde_json::from_str(&text).expect("an ApiError");
            assert_eq!((error.code.as_str(), error.request_id), ("panic", Some(id)));
        }
    }
    assert_eq!(state.error_counts().snapshot().get("panic"), Some(&3));
    shutdown.cancel();
}
