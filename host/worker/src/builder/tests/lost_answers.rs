//! Answers that get lost, and objects that do: the builder does not believe that nothing happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use harmonia_core::api::ApiError;
use harmonia_core::signer_api::BuildCompleteAnswer;
use harmonia_core::{Capability, JobStatus};
use harmonia_db::testing::forbid;
use harmonia_db::testing::way::Way;
use tokio_util::sync::CancellationToken;

use super::super::{Builder, Slot, job};
use super::whole::Running;
use super::world::World;
use super::*;
use crate::test_parts::{Answer, Request};

#[tokio::test]
async fn jobs_of_a_claim_whose_answer_was_lost_are_given_back_and_built() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("claimed-twice", "echo > $out"));
    let jobs = world.queue(&[&drv]).await;
    let lossy = Way::losing_answers(&world.database, "FROM claim_jobs(", 2).await;
    let running = Running::start_with(&world, |options| options.db = lossy.db.clone()).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    running.drain().await.expect("drains");
    assert_eq!(lossy.lost(), 2);
    let build = world.database.db.view_build(jobs[0], time::OffsetDateTime::now_utc()).await.expect("reads");
    let build = build.expect("a job");
    let outcomes: Vec<&str> = build.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "aborted").count(), 2, "{outcomes:?}");
    assert_eq!((outcomes.len(), build.status), (3, JobStatus::Building), "what follows is the signer's: {outcomes:?}");
}

/// The signer's word that it does not find something in the store.
fn not_uploaded() -> Answer {
    let error = ApiError { code: "not-uploaded".into(), message: "nar/x: missing".into(), request_id: None };
    Answer { status: 409, ..Answer::json(&error) }
}

fn is_call(request: &Request, call: &str) -> bool {
    request.path == ["/api/", call].concat()
}

#[tokio::test]
async fn what_the_store_lost_is_uploaded_again() {
    let world = World::new().await;
    let extra = world.daemon.store.build(&derivation("extra", "echo extra > $out"));
    let drv = world.daemon.store.instantiate(&derivation("main", "echo a line; echo main > $out"));
    let jobs = world.queue(&[&drv]).await;
    let asks = extra.to_string();
    let losses = AtomicU32::new(0);
    world.script(move |request, _| {
        if !is_call(request, "build-complete") {
            return None;
        }
        let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
        match losses.fetch_add(1, Ordering::AcqRel) {
            1 => Some(Answer::json(&BuildCompleteAnswer::MissingReferences { paths: vec![asks.clone()] })),
            0 | 2 | 3 => Some(not_uploaded()),
            _ => {
                assert_eq!(body["extra_paths"].as_array().map(Vec::len), Some(1));
                None
            }
        }
    });
    let running = Running::start(&world).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    running.drain().await.expect("drains");
    let (slots, complete) = {
        let recorded = world.recorded();
        assert!(recorded.failed.is_empty());
        (recorded.slots.clone(), recorded.completed[0].clone())
    };
    let asked: Vec<(usize, bool)> = slots.iter().map(|slots| (slots.paths.len(), slots.log.is_some())).collect();
    // The log is small: it comes along with the completion.
    let (outputs, extra_paths) = ((1, false), (1, false));
    assert_eq!(asked, [outputs, outputs, extra_paths, outputs, extra_paths, outputs, extra_paths]);
    assert!(String::from_utf8_lossy(&world.object(&complete.outputs[0].info.file_hash)).contains("main\n"));
    assert!(String::from_utf8_lossy(&world.object(&complete.extra_paths[0].file_hash)).contains("extra\n"));
    assert_eq!(world.status(jobs[0]).await, JobStatus::Building, "what follows is the signer's");
}

#[tokio::test]
async fn a_store_that_keeps_nothing_is_no_fault_of_the_build() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("main", "echo main > $out"));
    world.queue(&[&drv]).await;
    world.script(|request, _| is_call(request, "build-complete").then(not_uploaded));
    let running = Running::start(&world).await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let recorded = world.recorded();
    let failure = &recorded.failed[0].failure;
    assert_eq!(failure.kind, None, "tried again later: {failure:?}");
    assert!(failure.message.contains("nar/x: missing"), "{failure:?}");
    assert_eq!(recorded.slots.iter().filter(|slots| !slots.paths.is_empty()).count(), 4, "once, and three times again");
}

#[tokio::test]
async fn a_log_that_the_store_lost_is_uploaded_again() {
    let world = World::new().await;
    // Too much to come along with the report.
    let prints =
        "i=0; while [ $i -lt 500 ]; do read x < /proc/sys/kernel/random/uuid; echo $x; i=$((i + 1)); done; exit 1";
    let drv = world.daemon.store.instantiate(&derivation("fails", prints));
    world.queue(&[&drv]).await;
    let is_lost = AtomicU32::new(1);
    world.script(move |request, _| {
        (is_call(request, "build-failed") && is_lost.swap(0, Ordering::AcqRel) == 1).then(not_uploaded)
    });
    let running = Running::start(&world).await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let recorded = world.recorded();
    let log = recorded.failed[0].log.as_ref().expect("a log");
    assert_eq!((recorded.slots.len(), log.bytes_base64.is_some()), (2, false), "{} bytes", log.file_size);
}

/// No signer is there to hear of a failure, and the database refuses to hear of it: nobody works on the job any more, so
/// nobody may hold it.
#[tokio::test]
async fn a_job_whose_end_cannot_be_recorded_is_given_back() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("fails", "exit 1"));
    let jobs = world.queue(&[&drv]).await;
    world.script(|_, _| Some(Answer::new(503, "")));
    let mut options = world.options(Vec::new());
    world.register(&options).await;
    options.signer = world.impatient_signer();
    options.db = world.database.connect_as(Capability::Builder).await;
    forbid(&world.database.db, Capability::Builder, "fail_attempt").await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let job = world.claim(&node).await;
    let slot = Slot::take(&node.slots);
    job::run(Arc::clone(&node), job, slot, CancellationToken::new()).await;

    let build = world.database.db.view_build(jobs[0], time::OffsetDateTime::now_utc()).await.expect("reads");
    let build = build.expect("a job");
    assert_eq!(build.status, JobStatus::Pending);
    let ends: Vec<(&str, Option<&str>)> =
        build.attempts.iter().map(|attempt| (attempt.outcome.as_str(), attempt.message.as_deref())).collect();
    assert_eq!(ends, [("aborted", Some("its end could not be recorded"))]);
}
