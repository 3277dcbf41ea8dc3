use harmonia_core::api::Source;
use harmonia_core::policy::{AskingNode, Candidate, FirstInFirstOut, ProjectLoad};
use harmonia_core::{Capability, Incarnation, JobId, NodeId};
use harmonia_db::testing::{TestDatabase, random_token};
use harmonia_db::{
    ClaimedJob, GraphBatch, GraphDerivation, GraphOutput, NewEvaluationRow, NewProject, NodeRegistration, ProjectKind,
};

use super::*;

/// A database with a project that runs two builds.
async fn two_running() -> (TestDatabase, ProjectId, Vec<ClaimedJob>) {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let node = NodeId("n".to_owned());
    let run = Incarnation(1);
    db.register_node(&NodeRegistration {
        id: node.clone(),
        incarnation: run,
        capabilities: Capability::ALL.to_vec(),
        endpoint: None,
        systems: vec!["x86_64-linux".to_owned()],
        features: Vec::new(),
        max_jobs: 2,
        max_evals: 1,
        version: "0.1.0".to_owned(),
    })
    .await
    .expect("register");
    let project = NewProject { name: "local/p".to_owned(), kind: ProjectKind::Local };
    let project = db.ensure_project(&project).await.expect("a project");
    db.create_evaluation(&NewEvaluationRow {
        project,
        source: Source::Git { url: "https://git.invalid/x".to_owned() },
        commit: Some("0".repeat(40)),
        branch: "main".to_owned(),
        attrs: None,
        dirty: false,
        title: None,
        author: None,
    })
    .await
    .expect("queue");
    let token = random_token();
    let eval = db.claim_evaluation(&node, run, &token).await.expect("claim").expect("one is queued").id;
    let path = |name: &str| format!("/nix/store/{}-{name}", "0".repeat(32)).parse();
    let derivations = ["a", "b"].map(|name| GraphDerivation {
        drv_path: path(&format!("{name}.drv")).expect("a path"),
        name: name.to_owned(),
        system: "x86_64-linux".to_owned(),
        required_features: Vec::new(),
        outputs: vec![GraphOutput {
            name: "out".to_owned(),
            path: Some(path(name).expect("a path")),
            fixed_hash: None,
        }],
        inputs: Vec::new(),
        sources: Vec::new(),
        available: false,
        modulo: None,
        timeout_s: None,
        max_silent_s: None,
        path_length: 1,
    });
    let batch = GraphBatch { derivations: derivations.into(), ..GraphBatch::default() };
    db.insert_batch(eval, &token, &batch).await.expect("insert");
    let classes = db.resolve_classes(&["x86_64-linux".to_owned()], &[]).await.expect("classes");
    let heads = db.queue_heads(&classes, 2).await.expect("heads");
    let jobs: Vec<JobId> = heads.candidates.iter().map(|candidate| candidate.job).collect();
    let claimed = db.claim_jobs(&node, run, &jobs, &[random_token(), random_token()]).await.expect("claim");
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
