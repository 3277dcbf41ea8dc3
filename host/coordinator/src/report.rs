//! Tells forges and people how commits fare. Start at [`step`]: computes what should be shown from rows, then sends what
//! is due. [`run`] does so all the time, on every frontend: rows are leased, nothing needs one node to be chosen.
//!
//! What is shown is decided by `harmonia_core::status`; what was sent, and that nothing is lost or reordered, is kept by
//! the database (`harmonia_db`, `statuses` and `outbox`).

mod send;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::forge::ForgeFeature;
use harmonia_core::ports::Plugins;
use harmonia_core::status::{self, CommitReport, StatusOptions};
use harmonia_core::{NodeId, chain};
use harmonia_db::{Channel, ComputedReport, Db, DbError, Listener, ReportOutcome};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Commits that one step computes.
const COMMITS_PER_STEP: u32 = 500;
/// After a hint, the loop looks every second for so long.
const AWAKE: Duration = Duration::from_secs(15);
/// How often it looks while it is awake.
const AWAKE_EVERY: Duration = Duration::from_secs(1);
/// A stop waits so long for calls that are in flight.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How reports are made.
#[derive(Clone)]
pub struct ReportOptions {
    /// The database.
    pub db: Db,
    /// Forges and reporters.
    pub plugins: Arc<dyn Plugins>,
    /// This node, in the leases of what it sends.
    pub node: NodeId,
    /// Names and limits of statuses.
    pub status: StatusOptions,
    /// Changes that come within this time are one.
    pub burst: Duration,
    /// While builds go on well, a status is renewed at most this often: forges count.
    pub progress_every: Duration,
    /// A call to a plugin that takes longer counts as lost.
    pub call_timeout: Duration,
    /// Calls to one forge or reporter at the same time.
    pub calls_at_once: u32,
    /// A forge that answered nobody is left alone for this long.
    pub pause_after_silence: Duration,
    /// How often to look without any hint.
    pub poll: Duration,
    /// Commits that are not settled are computed again this often, whatever is marked.
    pub sweep_every: Duration,
}

impl ReportOptions {
    /// With the usual times. `public_url` is this server's as people see it.
    pub fn new(db: Db, plugins: Arc<dyn Plugins>, node: NodeId, public_url: &str) -> Self {
        Self {
            db,
            plugins,
            node,
            status: StatusOptions::new(public_url),
            burst: Duration::from_secs(5),
            progress_every: Duration::from_secs(30),
            call_timeout: Duration::from_mins(1),
            calls_at_once: 4,
            pause_after_silence: Duration::from_secs(10),
            poll: Duration::from_secs(5),
            sweep_every: Duration::from_mins(10),
        }
    }

    /// Longer than any call takes: a lease ends only when its holder is gone.
    fn lease(&self) -> Duration {
        self.call_timeout * 2 + Duration::from_secs(10)
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stepped {
    /// Commits that were computed.
    pub computed: u64,
    /// Statuses that are new or changed.
    pub changed: u64,
    /// Notifications that are new.
    pub notified: u64,
    /// Calls to forges that showed a status.
    pub statuses: u64,
    /// Comments that were written.
    pub comments: u64,
    /// Notifications that reporters took.
    pub notifications: u64,
    /// Calls that failed.
    pub failed: u64,
}

impl Stepped {
    /// Whether anything happened.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, other: Self) {
        self.computed += other.computed;
        self.changed += other.changed;
        self.notified += other.notified;
        self.statuses += other.statuses;
        self.comments += other.comments;
        self.notifications += other.notifications;
        self.failed += other.failed;
    }
}

/// Does everything that is due, once: computes, then sends statuses, comments and notifications.
pub async fn step(options: &ReportOptions) -> Result<Stepped, DbError> {
    let mut done = compute(options).await?;
    for outlet in outlets(options) {
        done.add(send::everything(options, &outlet).await?);
    }
    Ok(done)
}

/// Computes what is due, and sends nothing.
pub async fn compute(options: &ReportOptions) -> Result<Stepped, DbError> {
    let db = &options.db;
    while db.take_job_marks().await? > 0 {}
    let reporters = options.plugins.reporters();
    let decide = |report: &CommitReport| ComputedReport {
        statuses: status::desired(report, &options.status),
        told: status::notifications(report, &options.status),
        settled: status::is_settled(report),
    };
    let mut done = Stepped::default();
    for target in db.due_reports(options.burst, COMMITS_PER_STEP).await? {
        match db.compute_report(&target, &reporters, options.progress_every, decide).await {
            Ok(ReportOutcome::Done { changed, notified }) => {
                debug!(project = %target.project, commit = %target.commit, changed, notified, "Computed a report");
                done.add(Stepped { computed: 1, changed, notified, ..Stepped::default() });
            }
            Ok(ReportOutcome::Busy | ReportOutcome::Nothing) => {}
            Err(error @ DbError::Unavailable { .. }) => return Err(error),
            // Its marks stay: it is tried again, and the others go on.
            Err(error) => warn!(
                project = %target.project, commit = %target.commit, error = %chain(&error),
                "Could not compute what forges should show of a commit"
            ),
        }
    }
    Ok(done)
}

/// Computes again what is not settled and was not looked at for long. Returns how many commits it marked.
pub async fn sweep(options: &ReportOptions) -> Result<u64, DbError> {
    options.db.sweep_reports(options.sweep_every).await
}

/// Something that is sent to, in order or not, but never by two tasks of this node at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Outlet {
    /// Statuses of a forge.
    Statuses(String),
    /// Comments of a forge.
    Comments(String),
    /// A reporter.
    Reporter(String),
}

fn outlets(options: &ReportOptions) -> Vec<Outlet> {
    let plugins = &options.plugins;
    let mut outlets = Vec::new();
    for name in plugins.forges() {
        let Some(forge) = plugins.forge(&name) else { continue };
        if forge.has(ForgeFeature::Statuses) {
            outlets.push(Outlet::Statuses(name.clone()));
        }
        if forge.has(ForgeFeature::Comments) {
            outlets.push(Outlet::Comments(name));
        }
    }
    outlets.extend(plugins.reporters().into_iter().map(Outlet::Reporter));
    outlets
}

/// Steps until `shutdown`, soon after a hint and slowly without. A forge that is slow holds up only itself.
pub async fn run(options: ReportOptions, shutdown: CancellationToken) {
    let options = Arc::new(options);
    let mut state = Running { listener: None, awake_until: Instant::now() + AWAKE, in_flight: HashSet::new() };
    let mut sends: JoinSet<(Outlet, Result<Stepped, DbError>)> = JoinSet::new();
    let mut swept = Instant::now();
    loop {
        let wait = if Instant::now() < state.awake_until { AWAKE_EVERY } else { options.poll };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = state.hint(&options.db) => {
                // Hints come in bursts; one look a second is enough.
                state.awake_until = Instant::now() + AWAKE;
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(AWAKE_EVERY) => {}
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(ended) = sends.try_join_next() {
            state.ended(ended);
        }
        match compute(&options).await {
            Ok(done) if done.is_idle() => {}
            Ok(_) => state.awake_until = Instant::now() + AWAKE,
            Err(error) => {
                warn!(error = %chain(&error), "Could not compute reports; next try in {wait:?}");
                continue;
            }
        }
        for outlet in outlets(&options) {
            if state.in_flight.insert(outlet.clone()) {
                let options = Arc::clone(&options);
                sends.spawn(async move {
                    let sent = send::everything(&options, &outlet).await;
                    (outlet, sent)
                });
            }
        }
        if swept.elapsed() >= options.sweep_every {
            swept = Instant::now();
            if let Err(error) = sweep(&options).await {
                warn!(error = %chain(&error), "Could not sweep unsettled reports");
            }
        }
    }
    // What is in flight has a lease; ended now it would be asserted twice.
    let ended = async { while sends.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
        debug!("Calls to forges were still in flight at the end; others assert their statuses again");
    }
}

struct Running {
    listener: Option<Listener>,
    awake_until: Instant,
    in_flight: HashSet<Outlet>,
}

impl Running {
    /// Until something changed. Never, while nobody can be listened to: polling goes on.
    async fn hint(&mut self, db: &Db) {
        if self.listener.is_none() {
            match db.listen(&[Channel::Evaluations, Channel::BuildJobs]).await {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => debug!(error = %chain(&error), "Cannot listen now"),
            }
        }
        match &mut self.listener {
            Some(listener) => drop(listener.next().await),
            None => std::future::pending().await,
        }
    }

    fn ended(&mut self, ended: Result<(Outlet, Result<Stepped, DbError>), tokio::task::JoinError>) {
        match ended {
            Ok((outlet, sent)) => {
                match sent {
                    Ok(done) if done.is_idle() => {}
                    Ok(_) => self.awake_until = Instant::now() + AWAKE,
                    Err(error) => warn!(?outlet, error = %chain(&error), "Could not send what is due"),
                }
                self.in_flight.remove(&outlet);
            }
            Err(error) => {
                // Which outlet it was is unknown: all may start again, leases keep them apart.
                warn!(error = %chain(&error), "Sending broke");
                self.in_flight.clear();
            }
        }
    }
}
