//! The upload protocol's refusals; its success is what every other test is built on.

use harmonia_core::api::ApiError;
use harmonia_core::signer_api::{
    BuildFailed, BuildFailedAnswer, Failure, Holder, SlotsRequest, SourcesComplete, SourcesCompleteAnswer,
};
use harmonia_core::{AttemptId, FailureKind, JobStatus};
use harmonia_db::testing::random_token;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{Drv, Nar, Parts, World};

const CALLS: [&str; 5] =
    ["/api/upload-slots", "/api/drv-upload", "/api/sources-complete", "/api/build-complete", "/api/build-failed"];

#[tokio::test]
async fn tokens_bodies_and_claims_are_checked() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let attempt = world.claim(&drv).await;
    for path in CALLS {
        let bare = world.request(Method::POST, path).body("{}").send().await.expect("answered");
        assert_eq!(bare.status(), StatusCode::UNAUTHORIZED, "{path}");
        let odd = world.request(Method::POST, path).bearer_auth("x").body("{}").send().await.expect("answered");
        assert_eq!(odd.status(), StatusCode::UNAUTHORIZED, "{path}");
        let body = world.call(path, &attempt.token, &json!({})).await;
        assert_eq!(body.status(), StatusCode::BAD_REQUEST, "{path}");
        let get = world.get(path).await;
        assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let declared = world.request(Method::POST, path).bearer_auth(attempt.token.to_hex());
        let large = declared.body(vec![b' '; (64 << 20) + 1]).send().await;
        // The answer may come before the body was sent, which some clients report as a broken connection.
        if let Ok(large) = large {
            assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        }
    }
    let request = SlotsRequest { holder: Holder::Attempt(attempt.id), paths: vec![], log: None };
    let stale = world.call("/api/upload-slots", &random_token(), &request).await;
    assert_eq!(stale.status(), StatusCode::CONFLICT);
    let error: ApiError = stale.json().await.expect("JSON");
    assert_eq!((error.code.as_str(), error.request_id), ("stale-claim", None));
    let other = SlotsRequest { holder: Holder::Attempt(AttemptId(attempt.id.0 + 1)), ..request };
    assert_eq!(world.call("/api/upload-slots", &attempt.token, &other).await.status(), StatusCode::CONFLICT);
    let foreign = Drv::new("foreign", &[]);
    let nar = Nar::file(b"x");
    let paths = vec![nar.info(foreign.output("out"), &[])];
    let covered = SlotsRequest { holder: Holder::Attempt(attempt.id), paths, log: None };
    let refused = world.call("/api/upload-slots", &attempt.token, &covered).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let error: ApiError = refused.json().await.expect("JSON");
    assert_eq!(error.code, "refused");
    world.stop().await;
}

#[tokio::test]
async fn outputs_that_are_not_there_are_asked_for_again() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let attempt = world.claim(&drv).await;
    let info = Nar::file(b"never uploaded").info(drv.output("out"), &[]);
    let call = json!({ "attempt": attempt.id, "outputs": [{ "name": "out", "path": info.path, "nar_hash": info.nar_hash,
        "nar_size": info.nar_size, "file_hash": info.file_hash, "file_size": info.file_size, "references": [] }] });
    let answer = world.call("/api/build-complete", &attempt.token, &call).await;
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    let error: ApiError = answer.json().await.expect("JSON");
    assert_eq!(error.code, "not-uploaded", "told apart from a stale claim: {}", error.message);
    world.complete(&attempt, &drv, &Nar::file(b"now it is"), &[], "log\n").await;
    world.stop().await;
}

#[tokio::test]
async fn a_failed_build_is_recorded() {
    let world = World::start().await;
    let drv = Drv::new("broken", &[]);
    world.evaluate(&[&drv]).await;
    let attempt = world.claim(&drv).await;
    let failure = Failure { kind: Some(FailureKind::Build), message: "exit 1".to_owned(), exit_code: Some(1) };
    let call = BuildFailed {
        attempt: attempt.id,
        failure,
        log: None,
        usage: harmonia_core::signer_api::AttemptUsage::default(),
    };
    let answer: BuildFailedAnswer = world.called("/api/build-failed", &attempt.token, &call).await;
    assert!(!answer.retried);
    let build: harmonia_core::api::Build = world.json(&format!("/api/v1/builds/{}", attempt.job)).await;
    assert_eq!((build.status, build.exit_code), (JobStatus::Failed, Some(1)));
    assert_eq!(build.message.as_deref(), Some("exit 1"));
    let again = world.call("/api/build-failed", &attempt.token, &call).await;
    assert!(again.status() == StatusCode::CONFLICT || again.status().is_success(), "{}", again.status());
    world.stop().await;
}

#[tokio::test]
async fn an_evaluation_without_sources_completes_none() {
    let world = World::start().await;
    let evaluation = world.begin(crate::world::NewEvaluation::default()).await;
    let call = SourcesComplete { evaluation: evaluation.id, paths: vec![] };
    let answer: SourcesCompleteAnswer = world.called("/api/sources-complete", &evaluation.token, &call).await;
    assert_eq!(answer.published, 0);
    let stale = world.call("/api/sources-complete", &random_token(), &call).await;
    assert_eq!(stale.status(), StatusCode::CONFLICT);
    world.stop().await;
}

#[tokio::test]
async fn a_node_that_is_no_signer_says_so() {
    let world = World::with(Parts { signer: false, reader: true }).await;
    for path in CALLS {
        let answer = world.call(path, &random_token(), &json!({})).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        let error: ApiError = answer.json().await.expect("JSON");
        assert_eq!(error.code, "no-such-service");
        assert!(error.message.contains("signer"), "{}", error.message);
    }
    world.stop().await;
}
