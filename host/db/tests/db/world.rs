//! A database with a project, a node that does everything, and numbered derivations.

use std::collections::BTreeMap;

use harmonia_core::api::{JobCounts, Source};
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{
    Capability, ClaimToken, EvalId, FailureKind, Incarnation, JobId, JobStatus, NodeId, ProjectId, Viewer,
};
use harmonia_db::testing::{TestDatabase, insert_graph, pool, random_token};
use harmonia_db::{
    AskedLimits, AttrResult, BatchOutcome, ClaimedJob, Db, DbError, FailOutcome, GraphAttr, GraphBatch,
    GraphDerivation, GraphOutput, NewEvaluationRow, NewPath, NewProject, NodeRegistration, ProjectKind, RetryPolicy,
    Walk,
};
use harmonia_nix::store_path::StorePath;

pub(crate) const SYSTEM: &str = "x86_64-linux";

/// Numbered derivations: what each depends on, its outputs, its system.
#[derive(Debug, Clone)]
pub(crate) struct Drv {
    pub(crate) deps: Vec<usize>,
    /// Numbers of output paths; two derivations may share one.
    pub(crate) outputs: Vec<usize>,
    pub(crate) system: &'static str,
    pub(crate) features: Vec<String>,
}

impl Drv {
    pub(crate) fn new(number: usize, deps: &[usize]) -> Self {
        Self { deps: deps.to_vec(), outputs: vec![number], system: SYSTEM, features: Vec::new() }
    }
}

/// A linear chain, a diamond, … as (dependencies) by number.
pub(crate) fn graph(deps: &[&[usize]]) -> Vec<Drv> {
    deps.iter().enumerate().map(|(number, deps)| Drv::new(number, deps)).collect()
}

pub(crate) fn drv_path(number: usize) -> StorePath {
    let mut hash = [0; 20];
    hash[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    StorePath::from_parts(&hash, &format!("d{number}.drv")).expect("a valid name")
}

pub(crate) fn out_path(number: usize) -> StorePath {
    let mut hash = [7; 20];
    hash[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    StorePath::from_parts(&hash, &format!("d{number}")).expect("a valid name")
}

pub(crate) fn number_of(drv: &str) -> usize {
    let name = drv.rsplit_once("-d").expect("one of ours").1;
    name.trim_end_matches(".drv").parse().expect("a number")
}

#[derive(Debug, Clone)]
pub(crate) struct Eval {
    pub(crate) id: EvalId,
    pub(crate) token: ClaimToken,
}

/// A row of `build_jobs`, as tests compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) status: JobStatus,
    pub(crate) kind: Option<FailureKind>,
    pub(crate) unmet: i32,
    pub(crate) priority: i32,
    pub(crate) retries: i32,
    pub(crate) cause: Option<JobId>,
}

pub(crate) struct World {
    pub(crate) test: TestDatabase,
    pub(crate) db: Db,
    pub(crate) project: ProjectId,
    pub(crate) node: NodeId,
    pub(crate) run: Incarnation,
}

pub(crate) fn registration(id: &str, run: i64) -> NodeRegistration {
    NodeRegistration {
        id: NodeId(id.to_owned()),
        incarnation: Incarnation(run),
        secret: harmonia_core::NodeSecret([0; 32]),
        capabilities: Capability::ALL.to_vec(),
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        systems: vec![SYSTEM.to_owned()],
        features: vec!["kvm".to_owned()],
        max_jobs: 8,
        max_evals: 2,
        version: "0.1.0".to_owned(),
    }
}

pub(crate) fn failure(kind: Option<FailureKind>) -> Failure {
    Failure { kind, message: "it broke".to_owned(), exit_code: Some(1) }
}

impl World {
    /// Retries come at once, so that tests need not wait.
    pub(crate) async fn new() -> Self {
        let test = TestDatabase::new().await;
        let policy =
            RetryPolicy { tries_max: 3, first_delay: std::time::Duration::ZERO, delay_max: std::time::Duration::ZERO };
        let db = test.db.clone().with_retry_policy(policy);
        let project = db
            .ensure_project(&NewProject { name: "local/p".to_owned(), kind: ProjectKind::Local })
            .await
            .expect("a project");
        db.register_node(&registration("n", 1)).await.expect("register");
        Self { test, db, project, node: NodeId("n".to_owned()), run: Incarnation(1) }
    }

    /// Queues and claims an evaluation of a branch.
    pub(crate) async fn evaluation(&self, branch: &str) -> Eval {
        self.evaluation_of(self.project, branch).await
    }

    pub(crate) async fn evaluation_of(&self, project: ProjectId, branch: &str) -> Eval {
        let created = self.db.create_evaluation(&new_evaluation(project, branch)).await.expect("queue an evaluation");
        let token = random_token();
        let claimed =
            self.db.claim_evaluation(&self.node, self.run, &token).await.expect("claim").expect("one is queued");
        assert_eq!(claimed.id, created.id, "nothing else was queued");
        Eval { id: claimed.id, token }
    }

    /// Walks from `roots` as an evaluator does and inserts what it finds as one batch, with an attribute a root.
    pub(crate) async fn insert(&self, eval: &Eval, graph: &[Drv], roots: &[usize]) -> Result<BatchOutcome, DbError> {
        let batch = self.walk(eval, graph, roots).await?;
        self.insert_batch(eval, &batch).await
    }

    /// As a signer and an evaluator do one after the other.
    pub(crate) async fn insert_batch(&self, eval: &Eval, batch: &GraphBatch) -> Result<BatchOutcome, DbError> {
        insert_graph(&self.db, eval.id, &eval.token, batch).await
    }

    pub(crate) async fn walk(&self, eval: &Eval, graph: &[Drv], roots: &[usize]) -> Result<GraphBatch, DbError> {
        let asked: Vec<_> = roots.iter().map(|root| (drv_path(*root), AskedLimits::default())).collect();
        let mut descend = BTreeMap::new();
        let mut frontier: Vec<usize> = roots.to_vec();
        while !frontier.is_empty() {
            let paths: Vec<StorePath> = frontier.iter().map(|n| drv_path(*n)).collect();
            let walks = self.db.classify_derivations(eval.id, &eval.token, &paths, &asked).await?;
            let mut next = Vec::new();
            for (path, walk) in walks {
                let number = number_of(path.as_str());
                if descend.insert(number, walk == Walk::Descend).is_none() && walk == Walk::Descend {
                    next.extend(graph[number].deps.iter().copied().filter(|dep| !descend.contains_key(dep)));
                }
            }
            next.sort_unstable();
            next.dedup();
            frontier = next;
        }
        // Dependencies have smaller numbers, so this is dependencies first.
        let numbers: Vec<usize> =
            descend.into_iter().filter(|(_, descend)| *descend).map(|(number, _)| number).collect();
        Ok(batch(graph, &numbers, roots))
    }

    /// Claims up to `count` jobs, first in, first out.
    pub(crate) async fn claim(&self, count: usize) -> Vec<ClaimedJob> {
        let registration = registration("n", 1);
        let classes = self.db.resolve_classes(&registration.systems, &registration.features).await.expect("classes");
        let heads = self.db.queue_heads(&classes, 100).await.expect("heads");
        let (order, _) = harmonia_core::policy::order_candidates(
            &harmonia_core::policy::FirstInFirstOut,
            &harmonia_core::policy::AskingNode { node: self.node.clone(), slots: count as u32, speed_factor: 1.0 },
            &heads.projects,
            &heads.candidates,
        );
        let tokens: Vec<ClaimToken> = (0..count).map(|_| random_token()).collect();
        self.db.claim_jobs(&self.node, self.run, &order, &tokens).await.expect("claim")
    }

    /// Claims the one job that is ready.
    pub(crate) async fn claim_only(&self, number: usize) -> ClaimedJob {
        let mut claimed = self.claim(10).await;
        assert_eq!(claimed.iter().map(|c| number_of(c.drv_path.as_str())).collect::<Vec<_>>(), [number]);
        claimed.pop().expect("one")
    }

    pub(crate) async fn complete(&self, claimed: &ClaimedJob) -> Result<u64, DbError> {
        self.db.attempt_uploading(claimed.attempt, &claimed.token).await?;
        let outputs = new_paths(&self.db, claimed, 1).await;
        self.db.claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default()).await?;
        let paths: Vec<StorePath> = outputs.into_iter().map(|output| output.path).collect();
        let finished = self.db.publish_outputs(claimed.job, &paths, &AttemptUsage::default(), Some("log/x")).await?;
        self.db.finish_withdrawals().await?; // as the chores do
        Ok(finished.readied)
    }

    pub(crate) async fn fail(&self, claimed: &ClaimedJob, kind: Option<FailureKind>) -> Result<FailOutcome, DbError> {
        self.db.fail_attempt(claimed.attempt, &claimed.token, &failure(kind), &AttemptUsage::default(), None).await
    }

    /// All jobs by number of their derivation.
    pub(crate) async fn jobs(&self) -> BTreeMap<usize, Job> {
        let rows = sqlx::query!(
            "SELECT id, drv_path, status, failure_kind, unmet_deps, priority, retry_count, root_cause FROM build_jobs"
        )
        .fetch_all(pool(&self.db))
        .await
        .expect("read jobs");
        rows.into_iter()
            .map(|row| {
                let job = Job {
                    id: JobId(row.id),
                    status: row.status.parse().expect("a status"),
                    kind: row.failure_kind.map(|kind| kind.parse().expect("a kind")),
                    unmet: row.unmet_deps,
                    priority: row.priority,
                    retries: row.retry_count,
                    cause: row.root_cause.map(JobId),
                };
                (number_of(&row.drv_path), job)
            })
            .collect()
    }

    /// The statuses of all jobs, by number.
    pub(crate) async fn statuses(&self) -> Vec<(usize, JobStatus)> {
        self.jobs().await.into_iter().map(|(number, job)| (number, job.status)).collect()
    }

    pub(crate) async fn status(&self, number: usize) -> JobStatus {
        self.jobs().await.get(&number).unwrap_or_else(|| panic!("no job {number}")).status
    }

    pub(crate) async fn job_id(&self, number: usize) -> JobId {
        self.jobs().await[&number].id
    }

    pub(crate) async fn assert_sound(&self) {
        assert_eq!(self.db.sweep_invariants().await.expect("sweep"), []);
        assert_totals(&self.db).await;
        // Lists that store what they counted, and then read it, say what counting says.
        let db = self.db.seen_by(Viewer::Token);
        for _ in 0..2 {
            for listed in db.view_evaluations(None, None, 10).await.expect("list") {
                assert_eq!(db.view_evaluation_head(listed.id).await.expect("read"), Some(listed));
            }
        }
    }
}

/// Jobs are as many as they are said to be, for those who see all and for strangers.
pub(crate) async fn assert_totals(db: &Db) {
    for viewer in [Viewer::Token, Viewer::Public] {
        let counts = db.seen_by(viewer).view_job_counts().await.expect("count");
        assert_eq!(counts, count_jobs(db, viewer.sees_all()).await, "the totals of jobs for {viewer:?}");
    }
}

/// One by one: all jobs, or those of derivations that are public.
async fn count_jobs(db: &Db, all: bool) -> JobCounts {
    let statuses = sqlx::query_scalar!(
        "SELECT j.status FROM build_jobs j JOIN derivations d USING (drv_path) WHERE d.public OR $1",
        all
    );
    let mut counted = JobCounts::default();
    for status in statuses.fetch_all(pool(db)).await.expect("read jobs") {
        let slot = match status.parse().expect("a status") {
            JobStatus::Pending => &mut counted.pending,
            JobStatus::Building => &mut counted.building,
            JobStatus::Uploading => &mut counted.uploading,
            JobStatus::Succeeded => &mut counted.succeeded,
            JobStatus::Failed => &mut counted.failed,
            JobStatus::DepFailed => &mut counted.dep_failed,
            JobStatus::Cancelled => &mut counted.cancelled,
        };
        *slot += 1;
    }
    counted
}

pub(crate) fn new_evaluation(project: ProjectId, branch: &str) -> NewEvaluationRow {
    NewEvaluationRow {
        project,
        source: Source::Git { url: "https://git.invalid/x".to_owned() },
        commit: Some("0".repeat(40)),
        branch: branch.to_owned(),
        attrs: None,
        dirty: false,
        title: None,
        author: None,
    }
}

/// A batch of these derivations with an attribute for each root.
pub(crate) fn batch(graph: &[Drv], numbers: &[usize], roots: &[usize]) -> GraphBatch {
    GraphBatch {
        derivations: numbers.iter().map(|number| derivation(*number, &graph[*number])).collect(),
        attrs: roots.iter().map(|root| attr(*root)).collect(),
        ..GraphBatch::default()
    }
}

pub(crate) fn attr(number: usize) -> GraphAttr {
    GraphAttr {
        attr: format!("a{number}"),
        result: AttrResult::Derivation { drv_path: drv_path(number), limits: AskedLimits::default() },
    }
}

pub(crate) fn derivation(number: usize, drv: &Drv) -> GraphDerivation {
    GraphDerivation {
        drv_path: drv_path(number),
        name: format!("d{number}"),
        system: drv.system.to_owned(),
        required_features: drv.features.clone(),
        outputs: drv
            .outputs
            .iter()
            .enumerate()
            .map(|(index, out)| GraphOutput {
                name: if index == 0 { "out".to_owned() } else { format!("out{index}") },
                path: Some(out_path(*out)),
                fixed_hash: None,
            })
            .collect(),
        inputs: drv.deps.iter().map(|dep| (drv_path(*dep), vec!["out".to_owned()])).collect(),
        sources: Vec::new(),
        available: false,
        path_length: 1,
    }
}

/// The outputs of a claimed job as a builder uploads them; `variant` makes their content differ.
pub(crate) async fn new_paths(db: &Db, claimed: &ClaimedJob, variant: u64) -> Vec<NewPath> {
    let paths = sqlx::query_scalar!(
        r#"SELECT output_path AS "path!" FROM derivation_outputs WHERE drv_path = $1 ORDER BY output_name"#,
        claimed.drv_path.as_str()
    );
    let paths = paths.fetch_all(pool(db)).await.expect("outputs");
    paths.iter().map(|path| new_path(path.parse().expect("a path"), variant)).collect()
}

pub(crate) fn new_path(path: StorePath, variant: u64) -> NewPath {
    NewPath {
        path,
        nar_hash: format!("sha256:{variant:052}"),
        nar_size: 100,
        file_hash: format!("sha256:{variant:052}"),
        file_size: 50,
        references: Vec::new(),
        ca: None,
        deriver: None,
    }
}
