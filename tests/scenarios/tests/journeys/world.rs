//! The world of a scenario. Start at [`World::start`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use harmonia_coordinator::report::{self, ReportOptions};
use harmonia_coordinator::{INTAKE_RETRIES, Intake, IntakeOptions, ProjectsOptions, hooks, sync};
use harmonia_core::ports::{Plugins, PortFuture, RemoteHead, RemoteHeads};
use harmonia_core::{Clock, EvalId, NodeId, Timestamp};
use harmonia_db::testing::fake_node::{FakeNode, PlayedEvaluation, SYSTEM, drv_path};
use harmonia_db::testing::{TestDatabase, desired_statuses, projects_time_passes, time_passes};
use harmonia_db::{ClaimedJob, Db};
use harmonia_fake_forges::{Delivery, Event};
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, PluginHost};
use harmonia_web::{AppLimits, AppOptions, AppState, Gate, ListenerLimits};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::forge::{FORGE, Forge, Kind, REPOSITORY};

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
    pub(crate) forge: Forge,
    pub(crate) db: Db,
    pub(crate) frontend: Frontend,
    plugins: Arc<dyn Plugins>,
    clock: MovedClock,
    url: String,
    client: reqwest::Client,
    worker: FakeNode,
    shutdown: CancellationToken,
    _folder: TempDir,
    _database: TestDatabase,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// One journey on one forge, from its beginning to the look at what the forge had to bear.
pub(crate) async fn travel(kind: Kind, journey: impl AsyncFnOnce(&World)) {
    let world = World::start(kind).await;
    journey(&world).await;
    assert_eq!(world.forge.violations(), Vec::<String>::new());
}

impl World {
    /// A forge with one repository, discovered and enabled; where the forge needs a webhook, it is installed.
    async fn start(kind: Kind) -> Self {
        let forge = Forge::start(kind).await;
        let clock = MovedClock::default();
        let seen = clock.clone();
        forge.world().set_clock(move || seen.now());
        let database = TestDatabase::new().await;
        let db = database.db.clone();
        let folder = tempfile::tempdir().expect("a folder");
        let plugins: Arc<dyn Plugins> = Arc::new(host(&forge, &db, &clock, &folder).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shutdown = CancellationToken::new();
        let state = AppState::new(AppOptions {
            db: db.clone(),
            signer: None,
            reader: None,
            spool: None,
            plugins: Arc::clone(&plugins),
            remote_heads: None,
            public_url: url.clone(),
            public_keys: Vec::new(),
            version: "0.1.0-test".to_owned(),
            node_silent_after: Duration::from_mins(2),
            clock: Arc::new(clock.clone()),
            trusted_proxies: Vec::new(),
            limits: AppLimits::default(),
            shutdown: shutdown.clone(),
        });
        let gate = Gate::new();
        gate.open(harmonia_web::router(state));
        tokio::spawn(harmonia_web::serve(listener, gate.router(), ListenerLimits::default(), shutdown.clone()));
        let world = Self {
            worker: FakeNode::register(&db).await,
            frontend: frontend("frontend-1", &db, &plugins, &url),
            client: reqwest::Client::new(),
            forge,
            db,
            plugins,
            clock,
            url,
            shutdown,
            _folder: folder,
            _database: database,
        };
        world.discovered().await;
        let id = world.db.repository(FORGE, REPOSITORY).await.expect("looks").expect("discovered");
        world.db.enable_repository(id, &[REPOSITORY.to_owned()], "admin").await.expect("enables");
        world.settle().await;
        assert_eq!(world.forge.violations(), Vec::<String>::new(), "discovering and enabling");
        world.forge.forget();
        world
    }

    /// What operators see of the forge's plugin: its last error, and what of it everybody may read.
    pub(crate) fn plugin_error(&self) -> (String, String) {
        let status = self.plugins.statuses().into_iter().find(|status| status.name == FORGE).expect("it is loaded");
        (status.last_error.unwrap_or_default(), status.last_failure.unwrap_or_default())
    }

    /// Another frontend over the same database.
    pub(crate) fn another_frontend(&self, name: &str) -> Frontend {
        frontend(name, &self.db, &self.plugins, &self.url)
    }

    /// The regular discovery comes round.
    pub(crate) async fn discovered(&self) {
        self.db.request_sync(&[FORGE.to_owned()]).await.expect("asks for a sync");
        self.settle().await;
    }

    /// Posts a delivery as the forge does; gives the status code.
    pub(crate) async fn deliver(&self, delivery: &Delivery) -> u16 {
        let url = delivery.url.clone().unwrap_or_else(|| format!("{}/webhook/{FORGE}", self.url));
        let mut request = self.client.post(url).body(delivery.body.clone());
        for (name, value) in &delivery.headers {
            request = request.header(name, value);
        }
        request.send().await.expect("an answer").status().as_u16()
    }

    /// Delivers these and works until nothing is left to do.
    pub(crate) async fn delivered(&self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            assert_eq!(self.deliver(delivery).await, 202, "{:?}", delivery.headers);
        }
        self.settle().await;
    }

    /// Delivers what happened and works until nothing is left to do.
    pub(crate) async fn happens(&self, event: Event<'_>) {
        self.delivered(&[self.forge.delivery(event)]).await;
    }

    /// Pushes to a branch; gives the commits before and after. Nothing is delivered yet.
    pub(crate) fn push(&self, branch: &str) -> (String, String) {
        let mut world = self.forge.world();
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
        worked |= hooks::step(&frontend.projects).await.expect("hooks") > 0;
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
    pub(crate) async fn claim_evaluation(&self) -> Option<PlayedEvaluation> {
        self.worker.claim_evaluation().await
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

    /// Inserts these attributes (numbers of independent derivations) into an evaluation under way.
    pub(crate) async fn insert(&self, taken: &PlayedEvaluation, numbers: &[usize]) {
        let attr = |number| format!("checks.{SYSTEM}.a{number}");
        self.worker.insert(taken, numbers, attr).await.expect("inserts");
    }

    /// Finishes an evaluation with these attributes.
    pub(crate) async fn finish(&self, taken: &PlayedEvaluation, numbers: &[usize]) -> EvalId {
        self.insert(taken, numbers).await;
        self.db.finish_evaluation(taken.claimed.id, &taken.token).await.expect("finishes");
        taken.claimed.id
    }

    /// Evaluates whatever is queued next, with these attributes.
    pub(crate) async fn evaluated(&self, numbers: &[usize]) -> PlayedEvaluation {
        let taken = self.claim_evaluation().await.expect("something is queued");
        self.finish(&taken, numbers).await;
        taken
    }

    /// Takes up to `count` jobs, as a builder.
    pub(crate) async fn claim_jobs(&self, count: usize) -> Vec<ClaimedJob> {
        self.worker.claim(count).await
    }

    /// Builds everything that is ready; `fails` says which numbers break. Gives how many there were.
    pub(crate) async fn built(&self, fails: &[usize]) -> usize {
        let mut count = 0;
        loop {
            let jobs = self.claim_jobs(99).await;
            if jobs.is_empty() {
                return count;
            }
            for job in jobs {
                count += 1;
                let fails = fails.iter().any(|number| job.drv_path == drv_path(*number));
                let ended = if fails { self.worker.fail(&job).await } else { self.worker.complete(&job).await };
                ended.expect("the build ends");
            }
        }
    }

    /// What the forge shows of a commit: context without its prefix, and the state.
    pub(crate) fn shown(&self, commit: &str) -> BTreeMap<String, String> {
        self.forge.shown(commit)
    }

    /// Evaluation and builds are shown like this.
    pub(crate) fn assert_shown(&self, commit: &str, evaluation: &str, builds: &str) {
        let shown = self.shown(commit);
        let state = |name: &str| shown.get(name).map_or("nothing", String::as_str);
        assert_eq!((state("nix-eval"), state("nix-build")), (evaluation, builds), "{commit}: {shown:?}");
    }

    /// What should be shown of a commit, and what was asked of the forge: for failures.
    pub(crate) async fn explain(&self, commit: &str) -> String {
        let desired = desired_statuses(&self.db).await;
        let asked = self.forge.requests();
        let asked: Vec<String> =
            asked.iter().map(|request| format!("{} {} {:?}", request.method, request.path, request.status)).collect();
        format!("commit {commit}\ndesired {desired:#?}\nviolations {:#?}\nasked {asked:#?}", self.forge.violations())
    }

    /// Texts of the comments on a pull request.
    pub(crate) fn comments(&self, number: u64) -> Vec<String> {
        let world = self.forge.world();
        let comments = world.repository(REPOSITORY).comments.iter().filter(|comment| comment.number == number);
        comments.map(|comment| comment.body.clone()).collect()
    }
}

pub(crate) fn push_event<'a>(reference: &'a str, before: &'a str, after: &'a str) -> Event<'a> {
    Event::Push { repository: REPOSITORY, reference, before, after, pusher: "ada" }
}

async fn host(forge: &Forge, db: &Db, clock: &MovedClock, folder: &TempDir) -> PluginHost {
    let host = PluginHost::new(HostOptions {
        cache_folder: harmonia_plugin_harness::cache_folder(),
        scratch_folder: folder.path().join("scratch"),
        store: Arc::new(db.clone()),
        clock: Arc::new(clock.clone()),
        http: HttpClient::new(&HttpClientOptions::default()).expect("a client"),
    })
    .expect("the plugin host starts");
    let report = host.reload(vec![forge.plugin(folder.path())]).await;
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
        reuse_silent_after: Some(Duration::from_mins(2)),
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
