//! Processes what forges delivered: start at [`Intake::step`]. For each event it fetches facts, decides by
//! `harmonia_core::intake`, and stores. Any frontend may do it, several at once: a delivery is leased, and whatever
//! follows from it does no harm when done twice.
//!
//! What fails for a while is tried again, for more than a day: a forge that is away, and one that refuses us, since an operator
//! may replace a token that expired. What cannot succeed is a dead letter that says why.

mod asking;
mod backoff;
mod branches;
mod pull_requests;
mod reruns;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::branches::BranchRules;
use harmonia_core::forge::{Event, ForgeError, RepositoryRef};
use harmonia_core::intake::ProjectRules;
use harmonia_core::ports::{Forge, Plugins};
use harmonia_core::retry::RetryPolicy;
use harmonia_core::{NodeId, chain};
use harmonia_db::{Channel, ClaimedDelivery, Db, DbError, ForgeProject, Requested};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::backoff::ForgeBackoff;
use crate::in_flight::{self, Due, InFlight};

/// How long what is in flight may take to end when the node stops. What is cut off is processed by another node.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a delivery is ours. Longer than [`TIME_MAX`], so that nobody else begins while we still act.
const LEASE: Duration = Duration::from_mins(5);
/// Longest that one delivery is worked on before it is put off.
const TIME_MAX: Duration = Duration::from_mins(4);
/// How often a forge is asked again because its answer was overtaken.
const ROUNDS_MAX: u32 = 5;
/// Shortest time between two looks for work, as far as being told of it goes: one that comes alone is taken at once.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest that a forge can make us wait, whatever it says.
const WAIT_MAX: Duration = Duration::from_hours(2);
/// How often a delivery is tried: after 5 s, growing to a quarter of an hour, for more than a day altogether.
pub const INTAKE_RETRIES: RetryPolicy =
    RetryPolicy { tries_max: 150, first_delay: Duration::from_secs(5), delay_max: Duration::from_mins(15) };

/// What the loop needs.
#[derive(Clone)]
pub struct IntakeOptions {
    /// The database.
    pub db: Db,
    /// The forges.
    pub plugins: Arc<dyn Plugins>,
    /// This node's name: who holds a delivery.
    pub node: NodeId,
    /// Globs of branches that merge queues write: their states never supersede each other.
    pub merge_branches: Vec<String>,
    /// Results are shown for another commit with the same tree, where the evaluators and builders that were heard of within
    /// this time would come to them again; `None`: never.
    pub reuse_silent_after: Option<Duration>,
    /// When a delivery is tried again ([`INTAKE_RETRIES`]).
    pub retries: RetryPolicy,
    /// Time between two looks when nothing tells of work.
    pub every: Duration,
}

/// Processes deliveries.
#[derive(Clone)]
pub struct Intake {
    options: Arc<IntakeOptions>,
    /// `None`: whatever fails is asked again as soon as it is due.
    backoff: Option<Arc<Mutex<ForgeBackoff>>>,
}

/// Why an event could not be processed.
#[derive(Debug, thiserror::Error)]
enum EventError {
    /// A forge did not answer as it should.
    #[error("could not {what}")]
    Forge {
        /// Completes the sentence.
        what: String,
        #[source]
        source: ForgeError,
    },
    /// The plugin may come back.
    #[error("the forge '{0}' is not configured on this node, or its plugin did not load")]
    NoForge(String),
    /// Others were faster, again and again.
    #[error("{0} changed each time that the forge was asked about it")]
    Restless(String),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl EventError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Forge { source, .. } => source.may_pass(),
            Self::NoForge(_) | Self::Restless(_) => true,
            Self::Db(error) => error.is_transient(),
        }
    }

    /// The forge could not be asked at all, whatever about.
    fn is_outage(&self) -> bool {
        matches!(self, Self::Forge { source: ForgeError::Unavailable(_), .. })
    }

    /// How long the forge wants us to wait.
    fn asked_wait(&self) -> Duration {
        match self {
            Self::Forge { source: ForgeError::RetryAfter(seconds), .. } => {
                Duration::from_secs(u64::from(*seconds)).min(WAIT_MAX)
            }
            _ => Duration::ZERO,
        }
    }
}

/// An event that concerns a project, and what is needed to deal with it.
struct Concern<'a> {
    delivery: &'a ClaimedDelivery,
    project: ForgeProject,
    rules: ProjectRules,
    forge: Arc<dyn Forge>,
    /// As the event calls it: after a rename the forge may know it by that name only.
    repository: &'a RepositoryRef,
}

/// Processes deliveries until `shutdown`: at once when one is recorded, else every [`IntakeOptions::every`].
pub async fn run(options: IntakeOptions, shutdown: CancellationToken) {
    let intake = Intake { backoff: Some(Arc::default()), ..Intake::new(options) };
    let mut in_flight = InFlight::of::<Intake>();
    let mut listener = None;
    loop {
        if listener.is_none() {
            // Before looking, so that nothing is recorded unseen in between. A database that is away is asked again later.
            listener = intake.options.db.listen(&[Channel::Deliveries]).await.ok();
        }
        if let Err(error) = intake.begin(&mut in_flight).await {
            warn!(error = %chain(&error), "Could not claim deliveries; next try in {:?}", intake.options.every);
        }
        let looked = Instant::now();
        let told = async {
            let Some(listener) = &mut listener else { return std::future::pending().await };
            listener.next().await;
            // A burst tells of each delivery; one look finds them all.
            tokio::time::sleep_until(looked + LOOK_PAUSE).await;
            while tokio::time::timeout(Duration::ZERO, listener.next()).await.is_ok() {}
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = told => {}
            () = tokio::time::sleep(intake.options.every.min(intake.pause_left())) => {}
            Some(ended) = in_flight.next() => {
                if let Err(error) = ended {
                    warn!(error = %chain(&error), "Could not say how a delivery ended; it is processed again");
                }
            }
        }
    }
    let end = async { while in_flight.next().await.is_some() {} };
    if tokio::time::timeout(STOP_PATIENCE, end).await.is_err() {
        warn!("Deliveries were still processed at the end; others do them again");
    }
}

impl Due for Intake {
    const ALL_MAX: usize = 32;
    /// One that hangs must leave room for the others.
    const OF_FORGE_MAX: usize = 8;

    async fn begin(&self, in_flight: &mut InFlight) -> Result<(), DbError> {
        loop {
            let room = in_flight.room();
            let (full, free): (Vec<String>, Vec<String>) = self
                .options
                .plugins
                .forges()
                .into_iter()
                .partition(|forge| in_flight.is_full(forge) || self.is_paused(forge));
            if room == 0 || (free.is_empty() && !full.is_empty()) {
                return Ok(());
            }
            let (db, node) = (&self.options.db, &self.options.node);
            let claimed = db.claim_deliveries_except(node, room as u32, LEASE, &full).await?;
            if claimed.is_empty() {
                return Ok(());
            }
            for delivery in claimed {
                let intake = self.clone();
                in_flight.begin(delivery.forge.clone(), async move { intake.process_due(&delivery).await.map(|()| 1) });
            }
        }
    }
}

impl Intake {
    /// Nothing is done until [`Self::step`].
    pub fn new(options: IntakeOptions) -> Self {
        Self { options: Arc::new(options), backoff: None }
    }

    /// Processes all deliveries that are due, and returns how many there were.
    pub async fn step(&self) -> Result<u64, DbError> {
        in_flight::process_due(self).await
    }

    /// Processes one delivery and says how it ended, unless its lease was lost.
    async fn process_due(&self, delivery: &ClaimedDelivery) -> Result<(), DbError> {
        let db = &self.options.db;
        let Ok((outcomes, errors)) = tokio::time::timeout(TIME_MAX, self.events(delivery)).await else {
            self.forge_failed(&delivery.forge);
            let error = format!("took longer than {TIME_MAX:?}");
            return self.defer(delivery, &error, Duration::ZERO).await;
        };
        if errors.iter().any(EventError::is_outage) {
            self.forge_failed(&delivery.forge);
        } else {
            self.backoff(|backoff| backoff.answered(&delivery.forge));
        }
        let texts: Vec<String> = errors.iter().map(|error| chain(error)).collect();
        let text = texts.join("; ");
        if errors.is_empty() {
            let outcome = outcomes.join("; ");
            if db.delivery_done(delivery, &outcome).await? {
                info!(forge.name = delivery.forge, delivery.id = delivery.delivery.id, "{outcome}");
            }
            return Ok(());
        }
        if errors.iter().any(EventError::may_pass) {
            // The other events are done again then, to no effect.
            let wait = errors.iter().map(EventError::asked_wait).max().unwrap_or_default();
            return self.defer(delivery, &text, wait).await;
        }
        self.give_up(delivery, &text).await
    }

    fn backoff<T>(&self, act: impl FnOnce(&mut ForgeBackoff) -> T) -> Option<T> {
        self.backoff.as_ref().map(|backoff| act(&mut backoff.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn forge_failed(&self, forge: &str) {
        if let Some(pause) = self.backoff(|backoff| backoff.failed(forge, Instant::now())).flatten() {
            warn!(forge.name = forge, "{forge} fails again and again; its deliveries wait for {pause:?}");
        }
    }

    fn is_paused(&self, forge: &str) -> bool {
        self.backoff(|backoff| backoff.is_paused(forge, Instant::now())).unwrap_or(false)
    }

    /// Time until the next pause ends.
    fn pause_left(&self) -> Duration {
        self.backoff(|backoff| backoff.next_end(Instant::now())).flatten().unwrap_or(Duration::MAX)
    }

    async fn defer(&self, delivery: &ClaimedDelivery, error: &str, wait_min: Duration) -> Result<(), DbError> {
        // Spread by the row's id: those that failed together do not come back together.
        let jitter = f64::from((delivery.id.0.unsigned_abs() % 16) as u32) / 16.0;
        let Some(wait) = self.options.retries.after_failure(delivery.attempts, jitter) else {
            let error = format!("given up after {} tries: {error}", delivery.attempts);
            return self.give_up(delivery, &error).await;
        };
        let wait = wait.max(wait_min);
        if self.options.db.delivery_retry(delivery, error, wait).await? {
            warn!(
                forge.name = delivery.forge,
                delivery.id = delivery.delivery.id,
                attempt = delivery.attempts,
                error,
                "Could not process a delivery, next try in {wait:?}"
            );
        }
        Ok(())
    }

    async fn give_up(&self, delivery: &ClaimedDelivery, error: &str) -> Result<(), DbError> {
        if self.options.db.delivery_dead(delivery, error).await? {
            warn!(
                forge.name = delivery.forge,
                delivery.id = delivery.delivery.id,
                error,
                "A delivery became a dead letter; replay it when its cause is gone (`deliveries --replay ID`, or `--replay --dead` for all)"
            );
        }
        Ok(())
    }

    /// What came of each event, and what went wrong. One that fails does not keep the others.
    async fn events(&self, delivery: &ClaimedDelivery) -> (Vec<String>, Vec<EventError>) {
        let (mut outcomes, mut errors) = (Vec::new(), Vec::new());
        for event in &delivery.delivery.events {
            match self.event(delivery, event).await {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => errors.push(error),
            }
        }
        if outcomes.is_empty() && errors.is_empty() {
            outcomes.push("nothing that concerns us".to_owned());
        }
        (outcomes, errors)
    }

    async fn event(&self, delivery: &ClaimedDelivery, event: &Event) -> Result<String, EventError> {
        let (db, forge) = (&self.options.db, &delivery.forge);
        let repository = match event {
            Event::Push(push) => &push.repository,
            Event::PullRequest(event) => &event.repository,
            Event::MergeGroup(group) => &group.repository,
            Event::Comment(comment) => &comment.repository,
            Event::Rerun(rerun) => &rerun.repository,
            Event::RepositoriesChanged(repositories) => {
                db.upsert_repositories(forge, repositories).await?;
                // What follows for projects (enabling by pattern) is discovery's.
                db.request_sync(std::slice::from_ref(forge)).await?;
                return Ok(format!("{} repositories noted", repositories.len()));
            }
            Event::RepositoriesRemoved(repositories) => {
                let removed = db.repositories_removed(forge, repositories).await?;
                return Ok(format!("{removed} repositories are gone"));
            }
            Event::Discover => {
                db.request_sync(std::slice::from_ref(forge)).await?;
                return Ok("discovery asked for".to_owned());
            }
            // They were forgotten when the delivery was recorded.
            Event::PermissionsChanged(_) => return Ok("permissions will be asked again".to_owned()),
            Event::Ping => return Ok("a sign of life".to_owned()),
        };
        let Some(concern) = self.concern(delivery, repository).await? else {
            return Ok([&repository.full_name, " is no enabled project, or its repository is gone"].concat());
        };
        match event {
            Event::Push(push) => self.push(&concern, push).await,
            Event::PullRequest(event) => self.pull_request_event(&concern, event).await,
            Event::MergeGroup(group) => self.merge_group(&concern, group).await,
            Event::Comment(comment) => self.comment(&concern, comment).await,
            Event::Rerun(rerun) => self.rerun(&concern, rerun).await,
            _ => Ok(String::new()),
        }
    }

    /// The enabled project that an event is about.
    async fn concern<'a>(
        &self,
        delivery: &'a ClaimedDelivery,
        repository: &'a RepositoryRef,
    ) -> Result<Option<Concern<'a>>, EventError> {
        let db = &self.options.db;
        let Some(project) = db.forge_project(&delivery.forge, repository).await? else { return Ok(None) };
        // Nobody is asked about what is gone, whoever still tells of it.
        if !project.enabled || project.is_gone {
            return Ok(None);
        }
        if project.repository.full_name != repository.full_name {
            db.request_sync(std::slice::from_ref(&delivery.forge)).await?;
        }
        let forge =
            self.options.plugins.forge(&delivery.forge).ok_or_else(|| EventError::NoForge(delivery.forge.clone()))?;
        let patterns = project.branch_patterns.iter().chain(&project.tree_branch_patterns).cloned().collect();
        let rules = ProjectRules {
            branches: BranchRules {
                default_branch: project.default_branch.clone(),
                patterns,
                merge_branches: self.options.merge_branches.clone(),
            },
            build_tags: project.build_tags,
            build_drafts: project.build_drafts,
            pr_enabled: project.pr_enabled,
            pr_trust: project.pr_trust,
        };
        Ok(Some(Concern { delivery, project, rules, forge, repository }))
    }
}

/// A sentence about what became of a request.
fn describe(reason: &str, requested: &Requested) -> String {
    let ids = |ids: &[harmonia_core::EvalId]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        if ids.is_empty() { String::new() } else { [", in place of ", &ids.join(", ")].concat() }
    };
    match requested {
        Requested::Existing(id) => format!("{reason}: there is evaluation {id}"),
        Requested::Reused { id, unfinished } => {
            format!("{reason}: evaluation {id} shows the results of the same tree{}", ids(unfinished))
        }
        Requested::Queued { id, unfinished } => format!("{reason}: evaluation {id} is queued{}", ids(unfinished)),
        Requested::Moved => format!("{reason}: it moved meanwhile"),
        Requested::Late => format!("{reason}: a later delivery was evaluated already"),
        Requested::Inactive => format!("{reason}: the project is disabled, or its repository is gone"),
    }
}

#[cfg(test)]
mod tests;
