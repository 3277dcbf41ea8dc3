//! The chores, on a true database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_coordinator::{CoordinatorOptions, run};
use harmonia_core::JobStatus;
use harmonia_core::policy::FirstInFirstOut;
use harmonia_db::Db;
use harmonia_db::testing::fake_node::FakeNode;
use harmonia_db::testing::{TestDatabase, cancel_and_crash, falls_silent, hold_up_sweeps};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// Chores that run every few milliseconds, until the token is cancelled.
fn chores(db: &Db, node_dead_after: Duration) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let stop = CancellationToken::new();
    let options = CoordinatorOptions {
        db: db.clone(),
        every: Duration::from_millis(20),
        node_dead_after,
        unsupported_after: Duration::from_hours(1),
        policy: Arc::new(FirstInFirstOut),
    };
    let running = tokio::spawn(run(options, stop.clone()));
    (stop, running)
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_sweep_that_takes_long_keeps_no_silent_node_alive() {
    let test = TestDatabase::new().await;
    let node = FakeNode::register(&test.db).await;
    node.queue("local/p").await;
    let evaluation = node.claim_evaluation().await.expect("one is queued");
    node.insert(&evaluation, &[1], |number| format!("d{number}")).await.expect("insert");
    test.db.finish_evaluation(evaluation.claimed.id, &evaluation.token).await.expect("finish");
    let job = node.claim(1).await.pop().expect("one is ready").job;
    let held_up = hold_up_sweeps(&test.db).await;
    let (stop, running) = chores(&test.db, Duration::from_millis(200));
    falls_silent(&test.db, "played", Duration::from_mins(5)).await;
    let now = || async { test.db.view_job_counts().await.expect("count") };
    until("its job goes back to the queue", async || now().await.pending == 1).await;
    let build = test.db.view_build(job, time::OffsetDateTime::now_utc()).await.expect("read").expect("there");
    assert_eq!(build.status, JobStatus::Pending);
    drop(held_up);
    stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_cancelled_without_any_violation() {
    let test = TestDatabase::new().await;
    let node = FakeNode::register(&test.db).await;
    node.enqueue("local/p", &[1]).await;
    let claimed = node.claim(1).await.pop().expect("one is ready");
    // Its evaluation is superseded while it builds; then it comes back to the queue.
    node.queue("local/p").await;
    test.db.release_attempt(claimed.attempt, &claimed.token, "a test").await.expect("release");
    assert_eq!(test.db.sweep_invariants().await.expect("sweep"), []);
    assert_eq!(test.db.view_job_counts().await.expect("count").pending, 1);
    let (stop, running) = chores(&test.db, Duration::from_hours(1));
    until("it is cancelled", async || test.db.view_job_counts().await.expect("count").cancelled == 1).await;
    stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn what_somebody_began_to_cancel_and_crashed_goes_while_a_sweep_takes_long() {
    let test = TestDatabase::new().await;
    let node = FakeNode::register(&test.db).await;
    node.queue("local/p").await;
    let evaluation = node.claim_evaluation().await.expect("one is queued");
    node.insert(&evaluation, &[1, 2], |number| format!("d{number}")).await.expect("insert");
    cancel_and_crash(&test.db, evaluation.claimed.id).await;
    let held_up = hold_up_sweeps(&test.db).await;
    let now = || async { test.db.view_job_counts().await.expect("count") };
    assert_eq!(now().await.pending, 2);
    let (stop, running) = chores(&test.db, Duration::from_hours(1));
    until("its jobs are cancelled", async || now().await.cancelled == 2).await;
    drop(held_up);
    stop.cancel();
    running.await.expect("no panic");
}
