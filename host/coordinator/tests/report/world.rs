//! A database with a project of a forge, the forge and a reporter. Both do what a script says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use harmonia_coordinator::report::{self, ReportOptions, Stepped};
use harmonia_core::api::Source;
use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::plugin::PluginStatus;
use harmonia_core::ports::{Forge, Plugins, PortFuture, Reporter};
use harmonia_core::reporter::{Notification, ReportError};
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{Capability, ClaimToken, EvalId, FailureKind, Incarnation, NodeId, ProjectId};
use harmonia_db::testing::{TestDatabase, desired_statuses, random_token, time_passes};
use harmonia_db::{
    AttrResult, ClaimedJob, Db, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, NewEvaluationRow, NewPath,
    NodeRegistration, Walk,
};
use harmonia_nix::store_path::StorePath;
use tokio::sync::Notify;

pub(crate) const COMMIT: &str = "0123456789012345678901234567890123456789";
const SYSTEM: &str = "x86_64-linux";

/// What a forge does with one call.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Well,
    /// Nothing happens, and it says so.
    Refuse(ForgeError),
    /// It happens, and the answer is lost.
    LoseAnswer,
    /// It happens, and no answer ever comes.
    Hang,
    /// The plugin breaks.
    Panic,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// What the forge shows: (commit, context) and the last word.
    pub(crate) shown: BTreeMap<(String, String), CommitStatus>,
    /// Every status that reached it, in order: (context, state, description).
    pub(crate) calls: Vec<(String, String, String)>,
    /// Comments by key.
    pub(crate) comments: BTreeMap<String, String>,
    /// Keys of notifications in the order of arrival.
    pub(crate) told: Vec<String>,
    /// Calls of any kind, refused ones too.
    pub(crate) attempts: usize,
}

/// The forge, the reporter and the table of plugins in one.
#[derive(Debug)]
pub(crate) struct Scripted {
    seen: Mutex<Seen>,
    script: Mutex<VecDeque<Act>>,
    otherwise: Mutex<Act>,
    reporters: Mutex<Vec<String>>,
    /// Whenever a call reached it.
    pub(crate) reached: Notify,
}

impl Scripted {
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("not poisoned")
    }

    /// The next calls do this, one after the other.
    pub(crate) fn next(&self, acts: impl IntoIterator<Item = Act>) {
        self.script.lock().expect("not poisoned").extend(acts);
    }

    /// From now on it does well.
    pub(crate) fn calm(&self) {
        self.script.lock().expect("not poisoned").clear();
        self.otherwise(Act::Well);
    }

    /// And all after those.
    pub(crate) fn otherwise(&self, act: Act) {
        *self.otherwise.lock().expect("not poisoned") = act;
    }

    pub(crate) fn reporters(&self, names: &[&str]) {
        *self.reporters.lock().expect("not poisoned") = names.iter().map(|name| (*name).to_owned()).collect();
    }

    fn act(&self) -> Act {
        self.seen().attempts += 1;
        let scripted = self.script.lock().expect("not poisoned").pop_front();
        scripted.unwrap_or_else(|| self.otherwise.lock().expect("not poisoned").clone())
    }

    async fn perform(&self, effect: impl FnOnce(&mut Seen)) -> Result<(), ForgeError> {
        let act = self.act();
        if !matches!(act, Act::Refuse(_)) {
            effect(&mut self.seen());
        }
        self.reached.notify_waiters();
        self.reached.notify_one();
        match act {
            Act::Well => Ok(()),
            Act::Refuse(error) => Err(error),
            Act::LoseAnswer => Err(ForgeError::Unavailable("the answer was lost".to_owned())),
            Act::Hang => std::future::pending().await,
            Act::Panic => panic!("as scripted"),
        }
    }

    /// `context: state`, in order.
    pub(crate) fn states(&self) -> Vec<String> {
        let seen = self.seen();
        let states = seen.shown.iter().map(|((_, context), status)| format!("{context}: {}", status.state.as_str()));
        states.map(|line| line.replace("harmonia-ci/", "")).collect()
    }
}

pub(crate) struct Port(pub(crate) Arc<Scripted>);

type Answer<'a, T> = PortFuture<'a, Result<T, ForgeError>>;

fn lacking<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(ForgeError::Unsupported("this")) })
}

impl Forge for Port {
    fn has(&self, feature: ForgeFeature) -> bool {
        matches!(feature, ForgeFeature::Statuses | ForgeFeature::Comments)
    }
    fn report(&self, status: CommitStatus) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0
                .perform(|seen| {
                    seen.calls.push((
                        status.context.clone(),
                        status.state.as_str().to_owned(),
                        status.description.clone(),
                    ));
                    seen.shown.insert((status.commit.clone(), status.context.clone()), status);
                })
                .await
        })
    }
    fn comment(&self, _: RepositoryRef, _: u64, key: String, body: String) -> Answer<'_, ()> {
        Box::pin(async move { self.0.perform(|seen| drop(seen.comments.insert(key, body))).await })
    }
    fn webhook(&self, _: WebhookRequest) -> Answer<'_, Delivery> {
        lacking()
    }
    fn repositories(&self, _: Option<String>) -> Answer<'_, Page<ForgeRepository>> {
        lacking()
    }
    fn branch_head(&self, _: RepositoryRef, _: String) -> Answer<'_, BranchHead> {
        lacking()
    }
    fn tree_hash(&self, _: RepositoryRef, _: String) -> Answer<'_, String> {
        lacking()
    }
    fn pull_request(&self, _: RepositoryRef, _: u64) -> Answer<'_, PullRequest> {
        lacking()
    }
    fn open_pull_requests(&self, _: RepositoryRef, _: Option<String>) -> Answer<'_, Page<PullRequest>> {
        lacking()
    }
    fn permission(&self, _: RepositoryRef, _: String) -> Answer<'_, Permission> {
        lacking()
    }
    fn clone_credential(&self, _: RepositoryRef) -> Answer<'_, Option<CloneCredential>> {
        lacking()
    }
    fn install_hook(&self, _: RepositoryRef, _: String) -> Answer<'_, ()> {
        lacking()
    }
    fn remove_hook(&self, _: RepositoryRef, _: String) -> Answer<'_, ()> {
        lacking()
    }
    fn login_url(&self, _: LoginStart) -> Answer<'_, String> {
        lacking()
    }
    fn login_complete(&self, _: LoginCompletion) -> Answer<'_, ForgeUser> {
        lacking()
    }
}

impl Reporter for Port {
    fn report(&self, notification: Notification) -> PortFuture<'_, Result<(), ReportError>> {
        Box::pin(async move {
            let told = self.0.perform(|seen| seen.told.push(notification.key)).await;
            told.map_err(|error| match error {
                ForgeError::Invalid(text) => ReportError::Invalid(text),
                ForgeError::RetryAfter(seconds) => ReportError::RetryAfter(seconds),
                error => ReportError::Unavailable(error.to_string()),
            })
        })
    }
}

impl Plugins for Port {
    fn forges(&self) -> Vec<String> {
        vec!["forge".to_owned()]
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        (name == "forge").then(|| Arc::new(Port(self.0.clone())) as Arc<dyn Forge>)
    }
    fn reporters(&self) -> Vec<String> {
        self.0.reporters.lock().expect("not poisoned").clone()
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        Some(Arc::new(Port(self.0.clone())))
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        Vec::new()
    }
}

pub(crate) struct World {
    /// Dropped last, and with it the database.
    #[expect(dead_code, reason = "holds the database")]
    test: TestDatabase,
    pub(crate) db: Db,
    pub(crate) project: ProjectId,
    pub(crate) forge: Arc<Scripted>,
    node: NodeId,
}

pub(crate) struct Eval {
    pub(crate) id: EvalId,
    pub(crate) token: ClaimToken,
}

impl World {
    pub(crate) async fn new() -> Self {
        let test = TestDatabase::new().await;
        let db = test.db.clone();
        let repository = ForgeRepository {
            id: "17".to_owned(),
            owner: "o".to_owned(),
            name: "r".to_owned(),
            full_name: "o/r".to_owned(),
            clone_url: "https://forge.invalid/o/r".to_owned(),
            html_url: "https://forge.invalid/o/r".to_owned(),
            default_branch: "main".to_owned(),
            is_private: false,
            is_archived: false,
            topics: Vec::new(),
        };
        db.upsert_repositories("forge", &[repository]).await.expect("a repository");
        let id = db.repository("forge", "o/r").await.expect("look").expect("there");
        let (project, _) = db.enable_repository(id, &["r".to_owned()], "me").await.expect("enable");
        let node = NodeId("worker".to_owned());
        let registration = NodeRegistration {
            id: node.clone(),
            incarnation: Incarnation(1),
            capabilities: Capability::ALL.to_vec(),
            endpoint: None,
            systems: vec![SYSTEM.to_owned()],
            features: Vec::new(),
            max_jobs: 99,
            max_evals: 9,
            version: "0.1.0".to_owned(),
        };
        db.register_node(&registration).await.expect("register");
        let forge = Arc::new(Scripted {
            seen: Mutex::default(),
            script: Mutex::default(),
            otherwise: Mutex::new(Act::Well),
            reporters: Mutex::default(),
            reached: Notify::new(),
        });
        Self { test, db, project, forge, node }
    }

    /// A frontend of this name. Calls that hang are given up soon.
    pub(crate) fn frontend(&self, name: &str) -> ReportOptions {
        let plugins = Arc::new(Port(self.forge.clone()));
        let node = NodeId(name.to_owned());
        let mut options = ReportOptions::new(self.db.clone(), plugins, node, "https://ci.invalid");
        options.call_timeout = Duration::from_millis(200);
        options
    }

    /// Everything that is due, the burst being over.
    pub(crate) async fn step(&self, frontend: &ReportOptions) -> Stepped {
        time_passes(&self.db, frontend.burst).await;
        report::step(frontend).await.expect("step")
    }

    /// Until nothing is left to do, letting time pass.
    pub(crate) async fn settle(&self, frontend: &ReportOptions) {
        let mut idle = 0;
        for _ in 0..100 {
            time_passes(&self.db, Duration::from_mins(11)).await;
            let done = report::step(frontend).await.expect("step");
            idle = if done.is_idle() { idle + 1 } else { 0 };
            // Once for what is due, once for what it leads to.
            if idle == 2 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// The forge shows what it should.
    pub(crate) async fn assert_agreed(&self, what: &str) {
        let desired = desired_statuses(&self.db).await;
        let shown: Vec<_> = self
            .forge
            .seen()
            .shown
            .iter()
            .map(|((commit, context), status)| {
                (commit.clone(), context.clone(), status.state.as_str().to_owned(), status.description.clone())
            })
            .collect();
        assert_eq!(shown, desired, "{what}");
    }

    pub(crate) async fn request(&self, branch: &str) -> EvalId {
        let new = NewEvaluationRow {
            project: self.project,
            source: Source::Git { url: "https://forge.invalid/o/r".to_owned() },
            commit: Some(COMMIT.to_owned()),
            branch: branch.to_owned(),
            attrs: None,
            dirty: false,
            title: Some("a title".to_owned()),
            author: None,
        };
        self.db.create_evaluation(&new).await.expect("queue").id
    }

    pub(crate) async fn claim_evaluation(&self) -> Option<Eval> {
        let token = random_token();
        let claimed = self.db.claim_evaluation(&self.node, Incarnation(1), &token).await.expect("claim")?;
        Some(Eval { id: claimed.id, token })
    }

    /// Attributes `a{n}` of independent derivations.
    pub(crate) async fn insert(&self, eval: &Eval, numbers: &[usize]) -> Result<(), harmonia_db::DbError> {
        let paths: Vec<StorePath> = numbers.iter().map(|n| path(*n, ".drv")).collect();
        let walks = self.db.classify_derivations(eval.id, &eval.token, &paths).await?;
        let batch = GraphBatch {
            derivations: walks
                .into_iter()
                .filter(|(_, walk)| *walk == Walk::Descend)
                .map(|(path, _)| derivation(number_of(path.as_str())))
                .collect(),
            attrs: numbers
                .iter()
                .map(|n| GraphAttr {
                    attr: format!("a{n}"),
                    result: AttrResult::Derivation { drv_path: path(*n, ".drv") },
                })
                .collect(),
            holds: Vec::new(),
        };
        self.db.insert_batch(eval.id, &eval.token, &batch).await.map(|_| ())
    }

    /// An evaluation of these attributes, finished.
    pub(crate) async fn evaluated(&self, branch: &str, numbers: &[usize]) -> EvalId {
        let id = self.request(branch).await;
        let eval = self.claim_evaluation().await.expect("queued");
        assert_eq!(eval.id, id);
        self.insert(&eval, numbers).await.expect("insert");
        self.db.finish_evaluation(eval.id, &eval.token).await.expect("finish");
        id
    }

    pub(crate) async fn claim(&self, count: usize) -> Vec<ClaimedJob> {
        let classes = self.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("classes");
        let heads = self.db.queue_heads(&classes, 100).await.expect("heads");
        let order: Vec<_> = heads.candidates.iter().map(|candidate| candidate.job).collect();
        let tokens: Vec<ClaimToken> = (0..count).map(|_| random_token()).collect();
        self.db.claim_jobs(&self.node, Incarnation(1), &order, &tokens).await.expect("claim")
    }

    pub(crate) async fn complete(&self, job: &ClaimedJob) -> Result<(), harmonia_db::DbError> {
        self.db.attempt_uploading(job.attempt, &job.token).await?;
        let outputs: Vec<NewPath> = job.outputs.values().flatten().map(|path| new_path(path.clone())).collect();
        self.db.claim_outputs(job.attempt, &job.token, &outputs).await?;
        let paths: Vec<StorePath> = outputs.into_iter().map(|output| output.path).collect();
        self.db.publish_outputs(job.job, &paths, &AttemptUsage::default(), None).await.map(|_| ())
    }

    pub(crate) async fn fail(&self, job: &ClaimedJob) -> Result<(), harmonia_db::DbError> {
        let failure = Failure { kind: Some(FailureKind::Build), message: "it broke".to_owned(), exit_code: Some(1) };
        self.db.fail_attempt(job.attempt, &job.token, &failure, &AttemptUsage::default(), None).await.map(|_| ())
    }
}

fn path(number: usize, suffix: &str) -> StorePath {
    let mut hash = [suffix.len() as u8; 20];
    hash[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    StorePath::from_parts(&hash, &format!("d{number}{suffix}")).expect("a valid name")
}

fn number_of(drv: &str) -> usize {
    let name = drv.rsplit_once("-d").expect("one of ours").1;
    name.trim_end_matches(".drv").parse().expect("a number")
}

fn derivation(number: usize) -> GraphDerivation {
    GraphDerivation {
        drv_path: path(number, ".drv"),
        name: format!("d{number}"),
        system: SYSTEM.to_owned(),
        required_features: Vec::new(),
        outputs: vec![GraphOutput { name: "out".to_owned(), path: Some(path(number, "")), fixed_hash: None }],
        inputs: Vec::new(),
        sources: Vec::new(),
        available: false,
        modulo: None,
        timeout_s: None,
        max_silent_s: None,
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
