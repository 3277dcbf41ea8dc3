//! What evaluators, signers and users do to the database around a builder, through the same calls as they.

use std::path::PathBuf;
use std::time::Duration;

use harmonia_core::api::Source;
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{Capability, ClaimToken, Incarnation, JobId, JobStatus, NodeId, Timestamp};
use harmonia_db::testing::insert_graph;
use harmonia_db::views::LogMark;
use harmonia_db::{
    AskedLimits, AttrResult, ClaimedJob, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, NewEvaluationRow,
    NewPath, NewProject, NodeRegistration, ProjectKind,
};
use harmonia_nix::StorePath;

use super::super::{BuilderOptions, Node};
use super::PATIENCE;
use super::world::World;
use crate::pack::{PackOptions, pack, physical_path};
use crate::signer_client::SignerClient;
use crate::test_parts::TestStore;

fn registration(id: &NodeId, incarnation: Incarnation, capability: Capability) -> NodeRegistration {
    NodeRegistration {
        id: id.clone(),
        incarnation,
        secret: harmonia_core::NodeSecret([0; 32]),
        capabilities: vec![capability],
        endpoint: None,
        systems: vec!["x86_64-linux".into(), "aarch64-linux".into()],
        features: Vec::new(),
        max_jobs: 4,
        max_evals: 4,
        version: "test".into(),
    }
}

impl World {
    pub(crate) async fn register(&self, options: &BuilderOptions) {
        let node = registration(&options.node, options.incarnation, Capability::Builder);
        self.database.db.register_node(&node).await.expect("registers");
    }

    /// An evaluation that wants these derivations. Returns their jobs.
    pub(crate) async fn queue(&self, drvs: &[&StorePath]) -> Vec<JobId> {
        self.queue_available(&[], drvs).await
    }

    /// As [`World::queue`], for derivations whose inputs were queued before.
    pub(crate) async fn queue_above(&self, drvs: &[&StorePath]) -> Vec<JobId> {
        self.queue(drvs).await
    }

    /// An evaluation that wants `drvs` and found `available` in an upstream cache.
    pub(crate) async fn queue_available(&self, available: &[&StorePath], drvs: &[&StorePath]) -> Vec<JobId> {
        let db = &self.database.db;
        let (evaluator, incarnation) = (NodeId("evaluator-1".into()), Incarnation(rand::random_range(1..i64::MAX)));
        db.register_node(&registration(&evaluator, incarnation, Capability::Evaluator)).await.expect("registers");
        let project =
            NewProject { name: "test".into(), kind: ProjectKind::Git { url: "https://example.org/x".into() } };
        let project = db.ensure_project(&project).await.expect("project");
        let new = NewEvaluationRow {
            project,
            source: Source::Git { url: "https://example.org/x".into() },
            commit: Some(format!("{:040x}", rand::random::<u128>())),
            // Branches of their own do not supersede each other.
            branch: format!("branch-{:x}", rand::random::<u64>()),
            attrs: None,
            dirty: false,
            title: None,
            author: None,
        };
        db.create_evaluation(&new).await.expect("evaluation");
        let token = ClaimToken::from_random(rand::random());
        let evaluation =
            db.claim_evaluation(&evaluator, incarnation, &token).await.expect("claims").expect("one is queued");
        let attr = |drv: &StorePath| GraphAttr {
            attr: format!("packages.{}", drv.base_name().replace('.', "-")),
            result: AttrResult::Derivation { drv_path: drv.clone(), limits: AskedLimits::default() },
        };
        let batch = GraphBatch {
            derivations: available
                .iter()
                .map(|drv| self.graph_derivation(drv, true))
                .chain(drvs.iter().map(|drv| self.graph_derivation(drv, false)))
                .collect(),
            attrs: drvs.iter().map(|drv| attr(drv)).collect(),
            ..GraphBatch::default()
        };
        let outcome = insert_graph(db, evaluation.id, &token, &batch).await.expect("inserts");
        assert_eq!(outcome.missing, []);
        let names: Vec<String> = batch.attrs.iter().map(|attr| attr.attr.clone()).collect();
        db.expect_attrs(evaluation.id, &token, &names).await.expect("names");
        assert!(db.finish_evaluation(evaluation.id, &token).await.expect("finishes").complete);
        let mut jobs = Vec::new();
        for drv in drvs {
            let build = db.find_build(drv.as_str(), now()).await.expect("finds").expect("a job");
            jobs.push(build.id);
        }
        jobs
    }

    fn graph_derivation(&self, drv_path: &StorePath, available: bool) -> GraphDerivation {
        let derivation = self.read_derivation(drv_path);
        GraphDerivation {
            drv_path: drv_path.clone(),
            name: derivation.name.clone(),
            system: derivation.platform.clone(),
            required_features: Vec::new(),
            outputs: derivation
                .output_paths()
                .map(|(name, path)| GraphOutput { name: name.to_owned(), path: path.cloned(), fixed_hash: None })
                .collect(),
            inputs: derivation
                .input_drvs
                .iter()
                .map(|(drv, names)| (drv.clone(), names.iter().cloned().collect()))
                .collect(),
            sources: derivation.input_srcs.iter().cloned().collect(),
            available,
            path_length: 1,
        }
    }

    /// A derivation with one input derivation: the input, then the whole.
    pub(crate) fn instantiate_pair(&self, expression: &str) -> (StorePath, StorePath) {
        let whole = self.daemon.store.instantiate(expression);
        let input = self.read_derivation(&whole).input_drvs.keys().next().expect("an input").clone();
        (input, whole)
    }

    /// Makes the output `path` of `drv`, as `store` has it, what the cache published: queued, built by another node,
    /// accepted by a signer.
    pub(crate) async fn publish(&self, drv: &StorePath, store: &TestStore, path: &StorePath) {
        let elsewhere = self.claim_elsewhere(drv).await;
        self.publish_from(&elsewhere, store, path).await;
    }

    /// Queues `drv` and has another node claim it.
    pub(crate) async fn claim_elsewhere(&self, drv: &StorePath) -> ClaimedJob {
        let job = self.queue(&[drv]).await[0];
        let db = &self.database.db;
        let (node, incarnation) = (NodeId("builder-0".into()), Incarnation(1));
        db.register_node(&registration(&node, incarnation, Capability::Builder)).await.expect("registers");
        let token = ClaimToken::from_random(rand::random());
        let claimed = db.claim_jobs(&node, incarnation, &[job], std::slice::from_ref(&token)).await.expect("claims");
        claimed.into_iter().next().expect("a job")
    }

    /// That node built it, and a signer accepted `path` as `store` has it.
    pub(crate) async fn publish_from(&self, claimed: &ClaimedJob, store: &TestStore, path: &StorePath) {
        let (db, job, attempt, token) = (&self.database.db, claimed.job, claimed.attempt, &claimed.token);
        db.attempt_uploading(attempt, token).await.expect("uploads");
        let spool = tempfile::tempdir().expect("folder");
        let physical = physical_path(Some(&store.root()), path);
        let packed = pack(physical, PackOptions::new(spool.path().to_owned(), 1 << 30)).await.expect("packs");
        let new = NewPath {
            path: path.clone(),
            nar_hash: packed.nar_hash.to_string(),
            nar_size: packed.nar_size,
            file_hash: packed.file_hash.to_string(),
            file_size: packed.file_size,
            references: Vec::new(),
            ca: None,
            deriver: Some(claimed.drv_path.clone()),
        };
        db.claim_outputs(attempt, token, &[new], &harmonia_db::Alongside::default()).await.expect("claims");
        db.publish_outputs(job, std::slice::from_ref(path), &AttemptUsage::default(), None).await.expect("publishes");
    }

    /// Claims the one job that is ready, as the claim loop does.
    pub(crate) async fn claim(&self, node: &Node) -> ClaimedJob {
        let (db, options) = (&self.database.db, &node.options);
        let classes = db.resolve_classes(&options.systems, &options.features).await.expect("classes");
        let heads = db.queue_heads(&classes, 1).await.expect("heads");
        let order: Vec<JobId> = heads.candidates.iter().map(|candidate| candidate.job).collect();
        let tokens = [ClaimToken::from_random(rand::random())];
        let claimed = db.claim_jobs(&options.node, options.incarnation, &order, &tokens).await.expect("claims");
        claimed.into_iter().next().expect("a job")
    }

    pub(crate) async fn status(&self, job: JobId) -> JobStatus {
        self.database.db.view_build(job, now()).await.expect("reads").expect("a job").status
    }

    pub(crate) async fn until_status(&self, job: JobId, status: JobStatus) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.status(job).await != status {
            assert!(tokio::time::Instant::now() < deadline, "job {job} never became {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the database has this as the tail of the job's log.
    pub(crate) async fn until_tail(&self, job: JobId, bytes: &[u8]) {
        self.until_tail_is(job, |tail| tail == bytes).await;
    }

    /// Waits until the tail of the job's log has this in it.
    pub(crate) async fn until_tail_has(&self, job: JobId, bytes: &[u8]) {
        self.until_tail_is(job, |tail| tail.windows(bytes.len()).any(|part| part == bytes)).await;
    }

    async fn until_tail_is(&self, job: JobId, is_met: impl Fn(&[u8]) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let states = self.database.db.log_states(&[LogMark::unread(job)]).await.expect("reads");
            let tail = states.first().and_then(|state| state.tail.as_ref());
            if tail.is_some_and(|tail| tail.start_offset == 0 && is_met(&tail.bytes)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the tail is {tail:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client that gives up at once.
    pub(crate) fn impatient_signer(&self) -> SignerClient {
        self.signer_client(Duration::from_millis(50))
    }

    /// Where this node's garbage collector roots are.
    pub(crate) fn roots_dir(&self) -> PathBuf {
        self.daemon.store.root().join("nix/var/nix/gcroots/harmonia-ci/node-builder-1")
    }
}

fn now() -> Timestamp {
    Timestamp::now_utc()
}
