//! A node that plays evaluators and builders through the statements that real ones use: tests of what follows from
//! evaluations and builds need neither Nix nor a store. Start at [`FakeNode::register`].

use harmonia_core::api::Source;
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{Capability, ClaimToken, FailureKind, Incarnation, NodeId, ProjectId};
use harmonia_nix::store_path::StorePath;

use super::{insert_graph, random_token};
use crate::connection::Db;
use crate::error::DbError;
use crate::{
    AskedLimits, AttrResult, ClaimedEvaluation, ClaimedJob, GraphAttr, GraphBatch, GraphDerivation, GraphOutput,
    NewEvaluationRow, NewPath, NewProject, NodeRegistration, ProjectKind, Walk,
};

/// The system of everything played.
pub const SYSTEM: &str = "x86_64-linux";

/// A registered node with all capabilities.
#[derive(Debug)]
pub struct FakeNode {
    db: Db,
    node: NodeId,
}

/// What an evaluator holds.
#[derive(Debug)]
pub struct PlayedEvaluation {
    /// What is to be evaluated.
    pub claimed: ClaimedEvaluation,
    /// The right to say what came of it.
    pub token: ClaimToken,
}

impl FakeNode {
    /// Registers the node.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn register(db: &Db) -> Self {
        let registration = registration("played", Incarnation(1));
        db.register_node(&registration).await.expect("register the played node");
        Self { db: db.clone(), node: registration.id }
    }

    /// Queues an evaluation of the local project of that name, which is made if it is not there.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn queue(&self, project: &str) -> ProjectId {
        let project = NewProject { name: project.to_owned(), kind: ProjectKind::Local };
        let project = self.db.ensure_project(&project).await.expect("make a project");
        let evaluation = NewEvaluationRow {
            project,
            source: Source::Git { url: "https://git.invalid/x".to_owned() },
            commit: Some("0".repeat(40)),
            branch: "main".to_owned(),
            attrs: None,
            dirty: false,
            title: None,
            author: None,
        };
        self.db.create_evaluation(&evaluation).await.expect("queue an evaluation");
        project
    }

    /// Queues an evaluation of a local project and takes its jobs, one for each number, into the queue.
    ///
    /// # Panics
    /// When the database does not answer, or another evaluation is queued.
    pub async fn enqueue(&self, project: &str, numbers: &[usize]) -> ProjectId {
        let project = self.queue(project).await;
        let evaluation = self.claim_evaluation().await.expect("one is queued");
        assert_eq!(evaluation.claimed.project, project, "another evaluation was queued");
        self.insert(&evaluation, numbers, |number| format!("d{number}")).await.expect("insert");
        project
    }

    /// Takes the next queued evaluation.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn claim_evaluation(&self) -> Option<PlayedEvaluation> {
        let token = random_token();
        let claimed =
            self.db.claim_evaluation(&self.node, Incarnation(1), &token).await.expect("claim an evaluation")?;
        Some(PlayedEvaluation { claimed, token })
    }

    /// Inserts an attribute for each number, named by `attr`, of independent derivations.
    pub async fn insert(
        &self,
        evaluation: &PlayedEvaluation,
        numbers: &[usize],
        attr: impl Fn(usize) -> String,
    ) -> Result<(), DbError> {
        let (id, token) = (evaluation.claimed.id, &evaluation.token);
        let paths: Vec<StorePath> = numbers.iter().map(|number| drv_path(*number)).collect();
        let walks = self.db.classify_derivations(id, token, &paths, &[]).await?;
        let attrs = numbers.iter().map(|number| GraphAttr {
            attr: attr(*number),
            result: AttrResult::Derivation { drv_path: drv_path(*number), limits: AskedLimits::default() },
        });
        let unknown =
            |number: &&usize| walks.iter().any(|(path, walk)| *path == drv_path(**number) && *walk == Walk::Descend);
        let batch = GraphBatch {
            derivations: numbers.iter().filter(unknown).map(|number| derivation(*number)).collect(),
            attrs: attrs.collect(),
            ..GraphBatch::default()
        };
        insert_graph(&self.db, id, token, &batch).await.map(|_| ())
    }

    /// Takes up to `count` ready jobs.
    ///
    /// # Panics
    /// When the database does not answer.
    pub async fn claim(&self, count: usize) -> Vec<ClaimedJob> {
        let classes = self.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("resolve classes");
        let heads = self.db.queue_heads(&classes, 100).await.expect("look at heads");
        let order: Vec<_> = heads.candidates.iter().map(|candidate| candidate.job).collect();
        let tokens: Vec<ClaimToken> = (0..count).map(|_| random_token()).collect();
        self.db.claim_jobs(&self.node, Incarnation(1), &order, &tokens).await.expect("claim jobs")
    }

    /// A build that ends well.
    ///
    /// # Panics
    /// When the job is not of a derivation that was played.
    pub async fn complete(&self, job: &ClaimedJob) -> Result<(), DbError> {
        self.db.attempt_uploading(job.attempt, &job.token).await?;
        let number = job.name[1..].parse().expect("a number");
        let outputs = [new_path(path(number, ""))];
        self.db.claim_outputs(job.attempt, &job.token, &outputs, &crate::Alongside::default()).await?;
        let paths = outputs.map(|output| output.path);
        self.db.publish_outputs(job.job, &paths, &AttemptUsage::default(), None).await.map(|_| ())
    }

    /// A build that breaks.
    pub async fn fail(&self, job: &ClaimedJob) -> Result<(), DbError> {
        let failure = Failure { kind: Some(FailureKind::Build), message: "it broke".to_owned(), exit_code: Some(1) };
        self.db.fail_attempt(job.attempt, &job.token, &failure, &AttemptUsage::default(), None).await.map(|_| ())
    }
}

/// What a node of that name with all capabilities registers as.
pub fn registration(name: &str, incarnation: Incarnation) -> NodeRegistration {
    NodeRegistration {
        id: NodeId(name.to_owned()),
        incarnation,
        secret: harmonia_core::NodeSecret([0; 32]),
        capabilities: Capability::ALL.to_vec(),
        endpoint: None,
        systems: vec![SYSTEM.to_owned()],
        features: Vec::new(),
        max_jobs: 99,
        max_evals: 9,
        version: "0.1.0".to_owned(),
    }
}

/// The derivation of a number.
///
/// # Panics
/// Never: its name is valid.
pub fn drv_path(number: usize) -> StorePath {
    path(number, ".drv")
}

fn path(number: usize, suffix: &str) -> StorePath {
    let mut hash = [suffix.len() as u8; 20];
    hash[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    StorePath::from_parts(&hash, &format!("d{number}{suffix}")).expect("a valid name")
}

fn derivation(number: usize) -> GraphDerivation {
    GraphDerivation {
        drv_path: drv_path(number),
        name: format!("d{number}"),
        system: SYSTEM.to_owned(),
        required_features: Vec::new(),
        outputs: vec![GraphOutput { name: "out".to_owned(), path: Some(path(number, "")), fixed_hash: None }],
        inputs: Vec::new(),
        sources: Vec::new(),
        available: false,
        path_length: 1,
    }
}

fn new_path(path: StorePath) -> NewPath {
    NewPath {
        path,
        nar_hash: format!("sha256:{:052}", 1),
        nar_size: 100,
        file_hash: format!("sha256:{:052}", 1),
        file_size: 50,
        references: Vec::new(),
        ca: None,
        deriver: None,
    }
}
