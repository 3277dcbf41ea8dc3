use harmonia_core::JobId;
use harmonia_core::policy::{AskingNode, Candidate, FirstInFirstOut, ProjectLoad};
use harmonia_db::ClaimedJob;
use harmonia_db::testing::TestDatabase;
use harmonia_db::testing::fake_node::FakeNode;

use super::*;

/// A database with a project that runs two builds.
async fn two_running() -> (TestDatabase, ProjectId, Vec<ClaimedJob>) {
    let test = TestDatabase::new().await;
    let played = FakeNode::register(&test.db).await;
    let project = played.enqueue("local/p", &[0, 1]).await;
    let claimed = played.claim(2).await;
    assert_eq!(claimed.len(), 2);
    (test, project, claimed)
}

/// What the project consumed, and what its attempts were charged.
async fn books(db: &Db, project: ProjectId) -> (f64, f64) {
    let consumed = db.project_loads(&[project]).await.expect("loads")[0].consumed_seconds;
    let attempts = db.uncharged_attempts(AttemptId(0), 10).await.expect("attempts");
    (consumed, attempts.iter().map(|attempt| attempt.charged_seconds).sum())
}

/// Charges double, and cannot say how that fades.
struct Double;
impl Policy for Double {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        Ok(Vec::new())
    }
    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        Ok(charges.iter().map(|(load, seconds)| load.consumed_seconds + 2.0 * seconds).collect())
    }
    fn decay(&self, _: &[f64], _: f64) -> Result<Vec<f64>, PolicyError> {
        Err(PolicyError { reason: "it trapped".to_owned() })
    }
}

struct Panics;
impl Policy for Panics {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        panic!("a policy that panics")
    }
    fn charge(&self, _: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        panic!("a policy that panics")
    }
    fn decay(&self, _: &[f64], _: f64) -> Result<Vec<f64>, PolicyError> {
        panic!("a policy that panics")
    }
}

#[tokio::test]
async fn running_builds_are_charged_as_the_policy_says() {
    let (test, project, _claimed) = two_running().await;
    let policy: Arc<dyn Policy> = Arc::new(Double);
    for round in 1..=3 {
        assert_eq!(charge(&test.db, &policy).await.expect("charge"), None);
        let (consumed, charged) = books(&test.db, project).await;
        assert!(charged > 0.0, "round {round}: builds count while they run");
        assert!((consumed - 2.0 * charged).abs() < 1e-9, "round {round}: {consumed} of {charged}");
    }
}

#[tokio::test]
async fn a_policy_that_panics_leaves_right_books_and_is_told_of() {
    let (test, project, claimed) = two_running().await;
    let policy: Arc<dyn Policy> = Arc::new(Panics);
    let error = charge(&test.db, &policy).await.expect("charge").expect("it failed");
    assert_eq!(error.reason, "it panicked");
    let (consumed, charged) = books(&test.db, project).await;
    assert!(charged > 0.0 && (consumed - charged).abs() < 1e-9, "{consumed} of {charged}");
    // They end: charged to the end, then no more.
    for job in &claimed {
        test.db.release_attempt(job.attempt, &job.token, "stopped").await.expect("release");
    }
    charge(&test.db, &policy).await.expect("charge");
    assert_eq!(test.db.uncharged_attempts(AttemptId(0), 10).await.expect("attempts"), []);
    let (end, _) = books(&test.db, project).await;
    charge(&test.db, &policy).await.expect("charge");
    assert_eq!(books(&test.db, project).await.0.to_bits(), end.to_bits());
}

#[tokio::test]
async fn several_frontends_at_once_charge_each_second_once() {
    let (test, project, _claimed) = two_running().await;
    let policy: Arc<dyn Policy> = Arc::new(FirstInFirstOut);
    let mut frontends = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (db, policy) = (test.db.clone(), Arc::clone(&policy));
        frontends.spawn(async move {
            for _ in 0..10 {
                charge(&db, &policy).await.expect("charge");
            }
        });
    }
    frontends.join_all().await;
    let (consumed, charged) = books(&test.db, project).await;
    assert!(charged > 0.0 && (consumed - charged).abs() < 1e-9, "{consumed} of {charged}");
}
