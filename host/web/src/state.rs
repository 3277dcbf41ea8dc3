//! What every handler may use. Start at [`AppOptions`]: what `ci` hands over.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use harmonia_cache::{Reader, Signer};
use harmonia_core::api::{Evaluation, EvaluationWaits, JobCounts, Node, Queue};
use harmonia_core::ports::{LogSpool, Plugins, RemoteHeads};
use harmonia_core::{Clock, EvalId, Viewer};
use harmonia_db::Db;
use harmonia_nix::PublicKey;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::auth::Tokens;
use crate::bodies::{Allowed, Bodies, BodyLimits, Room};
use crate::error::{ErrorCounts, WebError};
use crate::live::Hub;
use crate::look::Look;
use crate::memory::{Memory, Terms};
use crate::overview::Overview;
use crate::pages::Frame;
use crate::pages::evaluation::{Asked, Shown};
use crate::recorder::Recorder;
use crate::refusals::Refusals;

/// What a node serves over HTTP. A part that is `None` makes its routes answer 404 with a reason.
pub struct AppOptions {
    /// The database.
    pub db: Db,
    /// On signer nodes: answers the upload protocol.
    pub signer: Option<Signer>,
    /// The binary cache and stored logs.
    pub reader: Option<Reader>,
    /// Logs of builds that run on this node, older than what the database keeps.
    pub spool: Option<Arc<dyn LogSpool>>,
    /// The forges, on frontends.
    pub plugins: Arc<dyn Plugins>,
    /// Asks plain git repositories for their default branch, on frontends.
    pub remote_heads: Option<Arc<dyn RemoteHeads>>,
    /// URL of this server as clients see it, without a slash at the end. Also that of the binary cache.
    pub public_url: String,
    /// Keys that sign what the cache serves, newest first.
    pub public_keys: Vec<PublicKey>,
    /// Version of the binary.
    pub version: String,
    /// A node that was not heard of for this long counts as offline.
    pub node_silent_after: Duration,
    /// Now, for ages on pages.
    pub clock: Arc<dyn Clock>,
    /// Proxies, beside those on this machine, whose `X-Forwarded-For` names the client.
    pub trusted_proxies: Vec<IpAddr>,
    /// What requests may cost.
    pub limits: AppLimits,
    /// Ends live streams, so that a stop does not wait for browsers. The same token as [`crate::serve`]'s.
    pub shutdown: CancellationToken,
}

/// Bounds on what requests cost together.
#[derive(Debug, Clone)]
pub struct AppLimits {
    /// Bodies in memory, and their time.
    pub bodies: BodyLimits,
    /// Live logs at once.
    pub streams_max: usize,
    /// Live logs of one client at once.
    pub streams_per_client_max: usize,
    /// Answers at once that cost much (all attributes of an evaluation, the end of a long log, a search by name, all projects), of those
    /// who showed no token; with one, as many again.
    pub costly_max: usize,
    /// How long such a question waits for its turn.
    pub costly_patience: Duration,
    /// What the home page lists may have been read so long ago, for somebody else.
    pub overview_age_max: Duration,
    /// And everything else that pages and the API read again and again: an evaluation, the queue, nodes. Longer, when it takes
    /// long to read.
    pub look_age_max: Duration,
}

impl Default for AppLimits {
    fn default() -> Self {
        Self {
            bodies: BodyLimits::default(),
            streams_max: 2_000,
            streams_per_client_max: 200,
            costly_max: 8,
            costly_patience: Duration::from_secs(5),
            overview_age_max: Duration::from_secs(2),
            look_age_max: Duration::from_millis(300),
        }
    }
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    options: AppOptions,
    hub: Hub,
    recorder: Recorder,
    refusals: Refusals,
    bodies: Bodies,
    costly: Costly,
    memories: Memories,
    tokens: Tokens,
    error_counts: ErrorCounts,
    /// Random, so that ids of two runs of the process differ in logs.
    process: u32,
    requests: AtomicU64,
}

impl AppState {
    /// Must be called within a tokio runtime: starts the task that follows live logs (it ends with `shutdown`), and
    /// the one that records deliveries (it ends with the state).
    pub fn new(options: AppOptions) -> Self {
        let hub = Hub::start(options.db.clone(), &options.limits, options.shutdown.clone());
        let bodies = Bodies::new(options.limits.bodies.clone());
        let costly = Costly::new(options.limits.costly_max);
        let recorder = Recorder::start(options.db.clone());
        Self(Arc::new(Inner {
            options,
            hub,
            recorder,
            refusals: Refusals::default(),
            bodies,
            costly,
            memories: Memories::default(),
            tokens: Tokens::default(),
            error_counts: ErrorCounts::default(),
            process: rand::random(),
            requests: AtomicU64::new(1),
        }))
    }

    /// 5xx answers by cause.
    pub fn error_counts(&self) -> &ErrorCounts {
        &self.0.error_counts
    }

    pub(crate) fn next_request_id(&self) -> String {
        format!("{:08x}-{}", self.0.process, self.0.requests.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn options(&self) -> &AppOptions {
        &self.0.options
    }

    pub(crate) fn db(&self) -> &Db {
        &self.0.options.db
    }

    pub(crate) fn plugins(&self) -> &dyn Plugins {
        self.0.options.plugins.as_ref()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.0.hub
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// The database as this viewer sees it.
    pub(crate) fn db_for(&self, viewer: Viewer) -> Db {
        self.db().seen_by(viewer)
    }

    /// Projects and newest evaluations, as the home page shows them.
    pub(crate) async fn overview(&self, viewer: Viewer) -> Result<Arc<Overview>, WebError> {
        let terms = Terms { age: self.options().limits.overview_age_max, ..self.terms() };
        let read = async |_| Ok(Some(Overview::read(&self.db_for(viewer)).await?));
        known(self.0.memories.overviews.get(viewer, terms, read).await)
    }

    /// An evaluation as it is; `None` when there is none that this viewer may see.
    pub(crate) async fn look(&self, viewer: Viewer, id: EvalId) -> Result<Option<Arc<Look>>, WebError> {
        let (db, terms) = (self.db_for(viewer), self.terms());
        let read = |last: Option<Arc<Look>>| {
            self.costly(viewer, async move { Ok(Look::read(&db, id, last.as_deref(), terms.age).await?) })
        };
        self.0.memories.looks.get((viewer, id), terms, read).await
    }

    /// What a page of an evaluation shows beside its head.
    pub(crate) async fn shown(&self, viewer: Viewer, asked: &Asked, look: &Arc<Look>) -> Result<Arc<Shown>, WebError> {
        let id = look.evaluation.id;
        let read = async |_| Ok(Some(Shown::read(self, viewer, asked, look).await?));
        known(self.0.memories.shown.get((viewer, id, asked.clone()), self.terms(), read).await)
    }

    /// Why an evaluation waits, and so many of its jobs.
    pub(crate) async fn waits(
        &self,
        viewer: Viewer,
        id: EvalId,
        limit: u32,
    ) -> Result<Option<Arc<EvaluationWaits>>, WebError> {
        let (db, now) = (self.db_for(viewer), self.options().clock.now());
        let read = |_| self.costly(viewer, async move { Ok(db.view_waits(id, limit, now).await?) });
        self.0.memories.waits.get((viewer, id, limit), self.terms(), read).await
    }

    /// What runs and what waits.
    pub(crate) async fn queue(&self, viewer: Viewer, limit: u32) -> Result<Arc<Queue>, WebError> {
        let (db, now) = (self.db_for(viewer), self.options().clock.now());
        let read = async |_| Ok(Some(db.view_queue(limit, now).await?));
        known(self.0.memories.queues.get((viewer, limit), self.terms(), read).await)
    }

    /// All jobs by status.
    pub(crate) async fn job_counts(&self, viewer: Viewer) -> Result<JobCounts, WebError> {
        let read = async |_| Ok(Some(self.db_for(viewer).view_job_counts().await?));
        Ok(*known(self.0.memories.jobs.get(viewer, self.terms(), read).await)?)
    }

    /// All nodes: everybody may know them.
    pub(crate) async fn nodes(&self) -> Result<Arc<Vec<Node>>, WebError> {
        let read = async |_| Ok(Some(self.db().nodes(self.options().node_silent_after).await?));
        known(self.0.memories.nodes.get((), self.terms(), read).await)
    }

    /// Evaluations, newest first, as the database lists them.
    pub(crate) async fn evaluations(
        &self,
        viewer: Viewer,
        project: Option<&str>,
        before: Option<EvalId>,
        limit: u32,
    ) -> Result<Arc<Vec<Evaluation>>, WebError> {
        let key = (viewer, (project.map(str::to_owned), before, limit));
        let read = async |_| Ok(Some(self.db_for(viewer).view_evaluations(project, before, limit).await?));
        known(self.0.memories.evaluations.get(key, self.terms(), read).await)
    }

    /// Somebody changed something here, and is going to look at it.
    pub(crate) fn forget(&self) {
        let Memories { overviews, looks, shown, waits, queues, jobs, nodes, evaluations } = &self.0.memories;
        overviews.forget();
        looks.forget();
        shown.forget();
        waits.forget();
        queues.forget();
        jobs.forget();
        nodes.forget();
        evaluations.forget();
    }

    fn terms(&self) -> Terms {
        let limits = &self.options().limits;
        Terms { age: limits.look_age_max, patience: limits.costly_patience }
    }

    pub(crate) fn bodies(&self) -> &Bodies {
        &self.0.bodies
    }

    /// The JSON body of an API call.
    pub(crate) async fn call_body<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
        bytes_max: usize,
    ) -> Result<(T, Room), WebError> {
        let bodies = self.bodies();
        bodies.json(headers, body, Allowed { bytes_max, time: bodies.limits().call }).await
    }

    /// Does what costs much when it is its turn.
    pub(crate) async fn costly<T>(
        &self,
        viewer: Viewer,
        work: impl Future<Output = Result<T, WebError>>,
    ) -> Result<T, WebError> {
        let turns = match viewer {
            Viewer::Public => &self.0.costly.anybody,
            Viewer::Token => &self.0.costly.known,
        };
        match timeout(self.options().limits.costly_patience, turns.acquire()).await {
            Ok(Ok(_turn)) => work.await,
            Ok(Err(_)) | Err(_) => Err(WebError::busy()),
        }
    }

    /// What surrounds a page with this title.
    pub(crate) fn frame(&self, title: &str) -> Frame {
        Frame { title: title.to_owned(), version: self.0.options.version.clone(), refresh_s: None, tag: None }
    }
}

/// Which evaluations: of a project, before one, how many.
type ListAsked = (Option<String>, Option<EvalId>, u32);

/// What is read once for all who ask within a moment. Each key begins with who asks, but where everybody sees the same.
struct Memories {
    overviews: Memory<Viewer, Overview>,
    looks: Memory<(Viewer, EvalId), Look>,
    shown: Memory<(Viewer, EvalId, Asked), Shown>,
    waits: Memory<(Viewer, EvalId, u32), EvaluationWaits>,
    queues: Memory<(Viewer, u32), Queue>,
    jobs: Memory<Viewer, JobCounts>,
    nodes: Memory<(), Vec<Node>>,
    evaluations: Memory<(Viewer, ListAsked), Vec<Evaluation>>,
}

/// Answers of each kind that are kept.
const KEPT_MAX: usize = 64;

impl Default for Memories {
    fn default() -> Self {
        Self {
            overviews: Memory::new(KEPT_MAX),
            looks: Memory::new(KEPT_MAX),
            shown: Memory::new(KEPT_MAX),
            waits: Memory::new(KEPT_MAX),
            queues: Memory::new(KEPT_MAX),
            jobs: Memory::new(KEPT_MAX),
            nodes: Memory::new(KEPT_MAX),
            evaluations: Memory::new(KEPT_MAX),
        }
    }
}

/// Of what is always there.
fn known<T>(read: Result<Option<Arc<T>>, WebError>) -> Result<Arc<T>, WebError> {
    read?.ok_or_else(|| WebError::internal("nothing-read"))
}

/// Turns of what costs much: anybody's crowd does not stand in the way of those whom we know.
struct Costly {
    anybody: Semaphore,
    known: Semaphore,
}

impl Costly {
    fn new(max: usize) -> Self {
        Self { anybody: Semaphore::new(max.max(1)), known: Semaphore::new(max.max(1)) }
    }
}
