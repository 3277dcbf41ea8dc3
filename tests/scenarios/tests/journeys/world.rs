//! The world of a scenario. Start at [`World::start`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use harmonia_coordinator::report::{self, ReportOptions};
use harmonia_coordinator::{INTAKE_RETRIES, Intake, IntakeOptions, ProjectsOptions, sync};
use harmonia_core::ports::{Plugins, PortFuture, RemoteHead, RemoteHeads};
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{Capability, ClaimToken, Clock, EvalId, FailureKind, Incarnation, NodeId, Timestamp};
use harmonia_db::testing::{TestDatabase, projects_time_passes, random_token, time_passes};
use harmonia_db::{
    AttrResult, ClaimedEvaluation, ClaimedJob, Db, GraphAttr, GraphBatch, GraphDerivation, GraphOutput, NewPath,
    NodeRegistration, Walk,
};
use harmonia_fake_forges::{Delivery, Event, FakeGithub};
use harmonia_nix::StorePath;
use harmonia_plugin_harness::component;
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, PluginHost, PluginSpec, SecretGrant};
use harmonia_web::{AppOptions, AppState, Gate};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The repository of every scenario.
pub(crate) const REPOSITORY: &str = "acme/site";
const SYSTEM: &str = "x86_64-linux";
/// The name under which the forge is configured.
const FORGE: &str = "hub";

/// A clock that the scenario moves, the same for our host and for the forge.
#[derive(Clone, Default)]
struct MovedClock(Arc<AtomicI64>);

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        harmonia_core::SystemClock.now() + Duration::from_secs(self.0.load(Ordering::Relaxed).unsigned_abs())
    }
}

struct NoRemotes;

impl RemoteHeads for NoRemotes {
    fn head(&self, url: String, _: Option<String>) -> PortFuture<'_, Result<RemoteHead, String>> {
        Box::pin(async move { Err(format!("no scenario asks {url}")) })
    }
}

/// One frontend's loops.
pub(crate) struct Frontend {
    pub(crate) intake: Intake,
    pub(crate) report: ReportOptions,
    projects: ProjectsOptions,
}

pub(crate) struct World {
    pub(crate) github: FakeGithub,
    pub(crate) db: Db,
    pub(crate) frontend: Frontend,
    plugins: Arc<dyn Plugins>,
    clock: MovedClock,
    url: String,
    client: reqwest::Client,
    worker: NodeId,
    shutdown: CancellationToken,
    _folder: TempDir,
    _database: TestDatabase,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What an evaluator holds.
pub(crate) struct Evaluating {
    pub(crate) claimed: ClaimedEvaluation,
    token: ClaimToken,
}

impl World {
    /// A forge with one repository, installed and enabled. `ada` may push, `eve` may not.
    pub(crate) async fn start() -> Self {
        let github = FakeGithub::start().await;
        let clock = MovedClock::default();
        {
            let mut world = github.world();
            let seen = clock.clone();
            world.set_clock(move || seen.now());
            world.add_repository(REPOSITORY);
            for user in ["ada", "eve"] {
                world.add_user(user);
            }
            let repository = world.repository_mut(REPOSITORY);
            repository.collaborators.insert("ada".to_owned(), harmonia_fake_forges::Permission::Write);
            world.install("acme", None);
        }
        let database = TestDatabase::new().await;
        let db = database.db.clone();
        let folder = tempfile::tempdir().expect("a folder");
        let plugins: Arc<dyn Plugins> = Arc::new(host(&github, &db, &clock, folder.path()).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shutdown = CancellationToken::new();
        let state = AppState::new(AppOptions {
            db: db.clone(),
            signer: None,
            reader: None,
            spool: None,
            plugins: Arc::clone(&plugins),
            public_url: url.clone(),
            public_keys: Vec::new(),
            version: "0.1.0-test".to_owned(),
            node_silent_after: Duration::from_mins(2),
            clock: Arc::new(clock.clone()),
            shutdown: shutdown.clone(),
        });
        let gate = Gate::new();
        gate.open(harmonia_web::router(state));
        tokio::spawn(harmonia_web::serve(listener, gate.router(), shutdown.clone()));
        let worker = NodeId("worker".to_owned());
        let registration = NodeRegistration {
            id: worker.clone(),
            incarnation: Incarnation(1),
            capabilities: Capability::ALL.to_vec(),
            endpoint: None,
            systems: vec![SYSTEM.to_owned()],
            features: Vec::new(),
            max_jobs: 99,
            max_evals: 9,
            version: "0.1.0".to_owned(),
        };
        db.register_node(&registration).await.expect("registers");
        let frontend = frontend("frontend-1", &db, &plugins, &url);
        let client = reqwest::Client::new();
        let world = Self {
            github,
            db,
            frontend,
            plugins,
            clock,
            url,
            client,
            worker,
            shutdown,
            _folder: folder,
            _database: database,
        };
        world.db.request_sync(&[FORGE.to_owned()]).await.expect("asks for a sync");
        world.settle().await;
        let id = world.db.repository(FORGE, REPOSITORY).await.expect("looks").expect("discovered");
        world.db.enable_repository(id, &[REPOSITORY.to_owned()], "admin").await.expect("enables");
        world.github.forget();
        world
    }

    /// Another frontend over the same database.
    pub(crate) fn another_frontend(&self, name: &str) -> Frontend {
        frontend(name, &self.db, &self.plugins, &self.url)
    }

    /// Posts a delivery as the forge does; gives the status code.
    pub(crate) async fn deliver(&self, delivery: &Delivery) -> u16 {
        let mut request = self.client.post(format!("{}/webhook/{FORGE}", self.url)).body(delivery.body.clone());
        for (name, value) in &delivery.headers {
            request = request.header(name, value);
        }
        request.send().await.expect("an answer").status().as_u16()
    }

    /// Delivers what happened and works until nothing is left to do.
    pub(crate) async fn happens(&self, event: Event<'_>) {
        assert_eq!(self.deliver(&self.github.delivery(event)).await, 202, "{event:?}");
        self.settle().await;
    }

    /// Pushes to a branch; gives the commits before and after. Nothing is delivered yet.
    pub(crate) fn push(&self, branch: &str) -> (String, String) {
        let mut world = self.github.world();
        let before = world.repository(REPOSITORY).branches.get(branch).cloned().unwrap_or_else(|| "0".repeat(40));
        let after = world.push(REPOSITORY, branch, "A change");
        (before, after)
    }

    /// Pushes to a branch, with its delivery; gives the commit.
    pub(crate) async fn pushed(&self, branch: &str) -> String {
        let (before, after) = self.push(branch);
        self.happens(push_event(&format!("refs/heads/{branch}"), &before, &after)).await;
        after
    }

    /// Lets time pass: ours, the database's, the forge's.
    pub(crate) async fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(i64::try_from(time.as_secs()).expect("small"), Ordering::Relaxed);
        time_passes(&self.db, time).await;
        projects_time_passes(&self.db, time).await;
    }

    /// Everything that is due for one frontend, once.
    pub(crate) async fn step(&self, frontend: &Frontend) -> bool {
        let mut worked = frontend.intake.step().await.expect("intake") > 0;
        worked |= sync::step(&frontend.projects).await.expect("sync") > 0;
        worked |= !report::step(&frontend.report).await.expect("reports").is_idle();
        worked
    }

    /// Until nothing is left to do, letting bursts and retries pass.
    pub(crate) async fn settle(&self) {
        let mut idle = 0;
        for _ in 0..60 {
            self.pass(Duration::from_secs(40)).await;
            idle = if self.step(&self.frontend).await { 0 } else { idle + 1 };
            // Once for what is due, once for what it leads to.
            if idle == 3 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Takes the next evaluation, as an evaluator.
    pub(crate) async fn claim_evaluation(&self) -> Option<Evaluating> {
        let token = random_token();
        let claimed = self.db.claim_evaluation(&self.worker, Incarnation(1), &token).await.expect("claims")?;
        Some(Evaluating { claimed, token })
    }

    /// Commits of the queued evaluations, which are taken and failed: what would be evaluated.
    pub(crate) async fn queued_commits(&self) -> Vec<String> {
        let mut commits = Vec::new();
        while let Some(taken) = self.claim_evaluation().await {
            commits.push(taken.claimed.commit.clone().unwrap_or_default());
            self.db.fail_evaluation(taken.claimed.id, &taken.token, "only looked at").await.expect("fails");
        }
        commits
    }

    /// Finishes an evaluation with these attributes (numbers of independent derivations).
    pub(crate) async fn finish(&self, taken: &Evaluating, numbers: &[usize]) -> EvalId {
        let (id, token) = (taken.claimed.id, &taken.token);
        let paths: Vec<StorePath> = numbers.iter().map(|number| path(*number, ".drv")).collect();
        let walks = self.db.classify_derivations(id, token, &paths).await.expect("classifies");
        let derivations = walks.into_iter().filter(|(_, walk)| *walk == Walk::Descend).map(|(drv, _)| derivation(drv));
        let attr = |number: &usize| GraphAttr {
            attr: format!("checks.{SYSTEM}.a{number}"),
            result: AttrResult::Derivation { drv_path: path(*number, ".drv") },
        };
        let batch = GraphBatch {
            derivations: derivations.collect(),
            attrs: numbers.iter().map(attr).collect(),
            holds: Vec::new(),
        };
        self.db.insert_batch(id, token, &batch).await.expect("inserts");
        self.db.finish_evaluation(id, token).await.expect("finishes");
        id
    }

    /// Evaluates whatever is queued next, with these attributes.
    pub(crate) async fn evaluated(&self, numbers: &[usize]) -> Evaluating {
        let taken = self.claim_evaluation().await.expect("something is queued");
        self.finish(&taken, numbers).await;
        taken
    }

    /// Builds everything that is ready; `fails` says which numbers break.
    pub(crate) async fn built(&self, fails: &[usize]) {
        let classes = self.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("classes");
        loop {
            let heads = self.db.queue_heads(&classes, 100).await.expect("heads");
            let order: Vec<_> = heads.candidates.iter().map(|candidate| candidate.job).collect();
            let tokens: Vec<ClaimToken> = order.iter().map(|_| random_token()).collect();
            let jobs = self.db.claim_jobs(&self.worker, Incarnation(1), &order, &tokens).await.expect("claims");
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                self.build(&job, fails.iter().any(|number| job.drv_path == path(*number, ".drv"))).await;
            }
        }
    }

    async fn build(&self, job: &ClaimedJob, fails: bool) {
        let (db, usage) = (&self.db, AttemptUsage::default());
        if fails {
            let failure =
                Failure { kind: Some(FailureKind::Build), message: "it broke".to_owned(), exit_code: Some(1) };
            db.fail_attempt(job.attempt, &job.token, &failure, &usage, None).await.expect("fails");
            return;
        }
        db.attempt_uploading(job.attempt, &job.token).await.expect("uploads");
        let outputs: Vec<NewPath> = job.outputs.values().flatten().map(|path| new_path(path.clone())).collect();
        db.claim_outputs(job.attempt, &job.token, &outputs).await.expect("claims outputs");
        let paths: Vec<StorePath> = outputs.into_iter().map(|output| output.path).collect();
        db.publish_outputs(job.job, &paths, &usage, None).await.expect("publishes");
    }

    /// What the forge shows of a commit: context without its prefix, and the state.
    pub(crate) fn shown(&self, commit: &str) -> BTreeMap<String, String> {
        let runs = self.github.check_runs(REPOSITORY, commit);
        let state = |run: &harmonia_fake_forges::CheckRun| run.conclusion.clone().unwrap_or_else(|| run.status.clone());
        runs.iter().map(|(name, run)| (name.trim_start_matches("harmonia-ci/").to_owned(), state(run))).collect()
    }

    /// What should be shown of a commit, and what was asked of the forge: for failures.
    pub(crate) async fn explain(&self, commit: &str) -> String {
        let desired = harmonia_db::testing::desired_statuses(&self.db).await;
        let asked = self.github.requests();
        let asked: Vec<String> =
            asked.iter().map(|request| format!("{} {} {:?}", request.method, request.path, request.status)).collect();
        format!("commit {commit}\ndesired {desired:#?}\nviolations {:#?}\nasked {asked:#?}", self.github.violations())
    }

    /// How many check runs of a name there are: the forge keeps every one that was made.
    pub(crate) fn runs(&self, commit: &str, name: &str) -> usize {
        let world = self.github.world();
        let runs = &world.repository(REPOSITORY).check_runs;
        runs.iter().filter(|run| run.head_sha == commit && run.name.ends_with(name)).count()
    }

    /// Texts of the comments on a pull request.
    pub(crate) fn comments(&self, number: u64) -> Vec<String> {
        let world = self.github.world();
        let comments = world.repository(REPOSITORY).comments.iter().filter(|comment| comment.number == number);
        comments.map(|comment| comment.body.clone()).collect()
    }

    /// Everything that was asked of the forge was as it has published.
    pub(crate) fn assert_well_behaved(&self) {
        assert_eq!(self.github.violations(), Vec::<String>::new());
    }
}

pub(crate) fn push_event<'a>(reference: &'a str, before: &'a str, after: &'a str) -> Event<'a> {
    Event::Push { repository: REPOSITORY, reference, before, after, pusher: "ada" }
}

async fn host(github: &FakeGithub, db: &Db, clock: &MovedClock, folder: &Path) -> PluginHost {
    let mut spec = PluginSpec::new(FORGE, component("github"));
    spec.allow_hosts = vec![github.url().parse().expect("a host")];
    for (name, value) in [
        ("app_id", github.app_id().to_string().as_str()),
        ("api_url", github.url()),
        ("html_url", github.url()),
        ("client_id", github.client_id()),
    ] {
        spec.settings.insert(name.to_owned(), value.to_owned());
    }
    for (name, value) in [("webhook", github.webhook_secret()), ("key", github.private_key())] {
        let file = folder.join(name);
        std::fs::write(&file, value).expect("a secret's file");
        spec.secrets.insert(name.to_owned(), SecretGrant { file, hosts: None });
    }
    let host = PluginHost::new(HostOptions {
        cache_folder: harmonia_plugin_harness::cache_folder(),
        scratch_folder: folder.join("scratch"),
        store: Arc::new(db.clone()),
        clock: Arc::new(clock.clone()),
        http: HttpClient::new(&HttpClientOptions::default()).expect("a client"),
    })
    .expect("the plugin host starts");
    let report = host.reload(vec![spec]).await;
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    host
}

fn frontend(name: &str, db: &Db, plugins: &Arc<dyn Plugins>, url: &str) -> Frontend {
    let node = NodeId(name.to_owned());
    let intake = Intake::new(IntakeOptions {
        db: db.clone(),
        plugins: Arc::clone(plugins),
        node: node.clone(),
        merge_branches: ["gh-readonly-queue/*", "staging", "trying"].map(str::to_owned).to_vec(),
        reuse_key: None,
        retries: INTAKE_RETRIES,
        every: Duration::from_secs(1),
    });
    let report = ReportOptions::new(db.clone(), Arc::clone(plugins), node.clone(), url);
    let projects = ProjectsOptions {
        db: db.clone(),
        plugins: Arc::clone(plugins),
        node,
        public_url: url.to_owned(),
        remote_heads: Arc::new(NoRemotes),
        auto_enable: std::collections::HashMap::new(),
        discover_every: Duration::from_hours(24 * 365),
        every: Duration::from_secs(1),
    };
    Frontend { intake, report, projects }
}

fn path(number: usize, suffix: &str) -> StorePath {
    let mut hash = [u8::try_from(suffix.len()).expect("short"); 20];
    hash[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    StorePath::from_parts(&hash, &format!("d{number}{suffix}")).expect("a valid name")
}

fn derivation(drv_path: StorePath) -> GraphDerivation {
    let name = drv_path.as_str().rsplit_once('-').expect("a name").1.trim_end_matches(".drv").to_owned();
    let number: usize = name[1..].parse().expect("one of ours");
    GraphDerivation {
        drv_path,
        name,
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
