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
use harmonia_core::{EvalId, NodeId, ProjectId};
use harmonia_db::testing::fake_node::{FakeNode, PlayedEvaluation};
use harmonia_db::testing::{TestDatabase, desired_statuses, time_passes};
use harmonia_db::{ClaimedJob, Db, DbError, NewEvaluationRow};
use tokio::sync::Notify;

pub(crate) const COMMIT: &str = "0123456789012345678901234567890123456789";

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
    worker: FakeNode,
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
        let worker = FakeNode::register(&db).await;
        let forge = Arc::new(Scripted {
            seen: Mutex::default(),
            script: Mutex::default(),
            otherwise: Mutex::new(Act::Well),
            reporters: Mutex::default(),
            reached: Notify::new(),
        });
        Self { test, db, project, forge, worker }
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

    pub(crate) async fn claim_evaluation(&self) -> Option<PlayedEvaluation> {
        self.worker.claim_evaluation().await
    }

    /// Attributes `a{n}` of independent derivations.
    pub(crate) async fn insert(&self, taken: &PlayedEvaluation, numbers: &[usize]) -> Result<(), DbError> {
        self.worker.insert(taken, numbers, |number| format!("a{number}")).await
    }

    /// An evaluation of these attributes, finished.
    pub(crate) async fn evaluated(&self, branch: &str, numbers: &[usize]) -> EvalId {
        let id = self.request(branch).await;
        let taken = self.claim_evaluation().await.expect("queued");
        assert_eq!(taken.claimed.id, id);
        self.insert(&taken, numbers).await.expect("insert");
        self.db.finish_evaluation(id, &taken.token).await.expect("finish");
        id
    }

    pub(crate) async fn claim(&self, count: usize) -> Vec<ClaimedJob> {
        self.worker.claim(count).await
    }

    pub(crate) async fn complete(&self, job: &ClaimedJob) -> Result<(), DbError> {
        self.worker.complete(job).await
    }

    pub(crate) async fn fail(&self, job: &ClaimedJob) -> Result<(), DbError> {
        self.worker.fail(job).await
    }
}
