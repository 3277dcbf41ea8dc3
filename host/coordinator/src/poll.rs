//! Polling: asks for heads where webhooks do not reach us. Start at [`step`]. What a poll finds at a forge goes the way of
//! webhooks, as a delivery that we write ourselves; a plain git project has no forge to ask more of, so its evaluation is
//! asked for here.

use std::time::Duration;

use harmonia_core::chain;
use harmonia_core::forge::{
    Delivery, Event, ForgeError, PullRequest, PullRequestAction, PullRequestEvent, Push, Reference, RepositoryRef,
};
use harmonia_core::intake::Wanted;
use harmonia_core::ports::Forge;
use harmonia_db::{DbError, EvaluationRequest, NewDelivery, PollSource, PollTarget, Requested};
use tracing::{info, warn};

use crate::in_flight::{self, Due, InFlight};
use crate::projects::{ProjectsOptions, call, wait_after};

/// What stands for the forge of a plain git project: no forge has an empty name.
const GIT: &str = "";
/// How long they are ours.
const LEASE: Duration = Duration::from_mins(10);
/// Longest that one poll takes: shorter than the lease, so that nobody else begins while we still act.
const TIME_MAX: Duration = Duration::from_mins(8);
/// Most pages of pull requests of one poll; what is behind them is not looked at.
const PAGES_MAX: usize = 20;
/// Most pull requests of one poll that are looked at because they are not open any more.
const CLOSED_MAX: usize = 50;

/// Why a poll did not come to its end.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("could not {what}")]
    Forge {
        /// Completes the sentence.
        what: &'static str,
        #[source]
        source: ForgeError,
    },
    #[error("{0}")]
    Git(String),
    #[error("it took longer than {TIME_MAX:?}")]
    Time,
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Polls all projects that are due. Returns how many.
pub async fn step(options: &ProjectsOptions) -> Result<u64, DbError> {
    in_flight::process_due(&Polls(options)).await
}

/// Projects whose poll is due.
pub(crate) struct Polls<'a>(pub(crate) &'a ProjectsOptions);

impl Due for Polls<'_> {
    const ALL_MAX: usize = 32;
    const OF_FORGE_MAX: usize = 8;

    async fn begin(&self, in_flight: &mut InFlight) -> Result<(), DbError> {
        let options = self.0;
        loop {
            let room = in_flight.room();
            let forges: Vec<String> =
                options.plugins.forges().into_iter().filter(|forge| !in_flight.is_full(forge)).collect();
            let git = !in_flight.is_full(GIT);
            if room == 0 || (forges.is_empty() && !git) {
                return Ok(());
            }
            let targets = options.db.due_polls(&options.node, &forges, git, room as u32, LEASE).await?;
            if targets.is_empty() {
                return Ok(());
            }
            for target in targets {
                let forge = match &target.source {
                    PollSource::Git { .. } => GIT.to_owned(),
                    PollSource::Forge { forge, .. } => forge.clone(),
                };
                let options = options.clone();
                in_flight.begin(forge, async move { poll(&options, &target).await.map(|()| 1) });
            }
        }
    }
}

async fn poll(options: &ProjectsOptions, target: &PollTarget) -> Result<(), DbError> {
    let polled = tokio::time::timeout(TIME_MAX, async {
        match &target.source {
            PollSource::Git { url, branch } => poll_git(options, target, url, branch.clone()).await,
            PollSource::Forge { .. } => poll_forge(options, target).await,
        }
    });
    let (error, wait) = match polled.await.unwrap_or(Err(PollError::Time)) {
        Ok(()) => (None, None),
        // Not the project's fault: it is due again when its lease is over.
        Err(PollError::Db(error)) => return Err(error),
        Err(error) => {
            let wait = match &error {
                PollError::Forge { source: source @ ForgeError::RetryAfter(_), .. } => {
                    Some(wait_after(source, 0, Duration::ZERO))
                }
                _ => None,
            };
            (Some(chain(&error)), wait)
        }
    };
    if let Some(error) = &error {
        warn!(project = target.name, error, "Could not poll {}", target.name);
    }
    options.db.poll_done(target, error.as_deref(), wait).await?;
    Ok(())
}

async fn poll_git(
    options: &ProjectsOptions,
    target: &PollTarget,
    url: &str,
    branch: Option<String>,
) -> Result<(), PollError> {
    let head = options.remote_heads.head(url.to_owned(), branch).await.map_err(PollError::Git)?;
    let reference = branch_reference(&head.branch);
    if target.seen.get(&reference).is_some_and(|(seen, _)| *seen == head.commit) {
        return Ok(());
    }
    let request = EvaluationRequest {
        project: target.project,
        url: url.to_owned(),
        wanted: Wanted {
            branch: head.branch.clone(),
            commit: head.commit.clone(),
            title: None,
            author: None,
            is_tag: false,
            supersede: true,
            pull_request: None,
        },
        tree_hash: None,
        reuse_key: None,
        delivery: None,
        new_attempt: false,
        asked: None,
    };
    match options.db.request_evaluation(&request).await? {
        Requested::Existing(id) | Requested::Reused { id, .. } | Requested::Queued { id, .. } => {
            info!(eval.id = %id, project = target.name, commit = head.commit, "A poll found a new head");
            options.db.save_poll_head(target, &reference, Some(&head.commit)).await?;
        }
        // Asked again by the next poll.
        Requested::Moved | Requested::Late | Requested::Inactive => {}
    }
    Ok(())
}

async fn poll_forge(options: &ProjectsOptions, target: &PollTarget) -> Result<(), PollError> {
    let PollSource::Forge { forge: name, repository, default_branch, pull_requests } = &target.source else {
        return Ok(());
    };
    let failed = |what| move |source| PollError::Forge { what, source };
    let forge = options.forge(name).map_err(failed("find the forge"))?;
    let poll = ForgePoll { options, target, name, repository, forge: forge.as_ref() };

    let asked = call(forge.branch_head(repository.clone(), default_branch.clone())).await;
    let head = asked.map_err(failed("ask for the head of the default branch"))?;
    let event = Event::Push(Push {
        repository: repository.clone(),
        reference: Reference::Branch(default_branch.clone()),
        commit: head.commit.clone(),
        deleted: false,
        author: head.author,
        message: head.message,
    });
    poll.tell(&branch_reference(default_branch), Some(&head.commit), &head.commit, event).await?;
    if *pull_requests { poll.pull_requests().await } else { Ok(()) }
}

/// One poll of a forge's project.
struct ForgePoll<'a> {
    options: &'a ProjectsOptions,
    target: &'a PollTarget,
    name: &'a str,
    repository: &'a RepositoryRef,
    forge: &'a dyn Forge,
}

impl ForgePoll<'_> {
    /// Records a delivery when `state` is not what was seen last, then remembers it (`None`: forgets it).
    async fn tell(&self, reference: &str, state: Option<&str>, commit: &str, event: Event) -> Result<(), PollError> {
        let seen = self.target.seen.get(reference).map(|(seen, _)| seen.as_str());
        if seen == state {
            return Ok(());
        }
        let delivery = Delivery { id: self.target.delivery_id(reference, commit), events: vec![event] };
        let new = NewDelivery { forge: self.name, delivery: &delivery, duration_ms: 0 };
        self.options.db.record_delivery(&new).await?;
        self.options.db.save_poll_head(self.target, reference, state).await?;
        Ok(())
    }

    async fn pull_requests(&self) -> Result<(), PollError> {
        let failed = |what| move |source| PollError::Forge { what, source };
        let (mut open, mut cursor, mut is_complete) = (Vec::new(), None, false);
        for _ in 0..PAGES_MAX {
            let page = call(self.forge.open_pull_requests(self.repository.clone(), cursor.clone())).await;
            let page = page.map_err(failed("list the open pull requests"))?;
            open.extend(page.items);
            if page.next.is_none() || page.next == cursor {
                is_complete = page.next.is_none();
                break;
            }
            cursor = page.next;
        }
        let mut references = Vec::with_capacity(open.len());
        // Oldest first, as webhooks would have told.
        open.sort_by_key(|pull| pull.number);
        for pull in open {
            let reference = format!("pull/{}", pull.number);
            let state = state_of(&pull);
            let action = self.action(&reference, &pull);
            let commit = pull.head_commit.clone();
            self.tell(&reference, Some(&state), &commit, self.event(action, pull)).await?;
            references.push(reference);
        }
        if !is_complete {
            return Ok(());
        }
        let gone = self.target.seen.keys().filter(|known| !references.contains(known));
        let numbers = gone.filter_map(|known| known.strip_prefix("pull/")?.parse::<u64>().ok());
        for number in numbers.take(CLOSED_MAX) {
            let pull = match call(self.forge.pull_request(self.repository.clone(), number)).await {
                Ok(pull) if pull.is_open => continue,
                Ok(pull) => pull,
                Err(source) => return Err(PollError::Forge { what: "ask for a pull request", source }),
            };
            let commit = pull.head_commit.clone();
            let event = self.event(PullRequestAction::Closed, pull);
            self.tell(&format!("pull/{number}"), None, &commit, event).await?;
        }
        Ok(())
    }

    fn event(&self, action: PullRequestAction, pull_request: PullRequest) -> Event {
        Event::PullRequest(PullRequestEvent { repository: self.repository.clone(), action, pull_request })
    }

    /// What must have happened since it was seen last.
    fn action(&self, reference: &str, pull: &PullRequest) -> PullRequestAction {
        let Some((seen, _)) = self.target.seen.get(reference) else { return PullRequestAction::Opened };
        let was_draft = seen.split(' ').nth(1) == Some(DRAFT);
        match seen.split(' ').next() {
            Some(head) if head != pull.head_commit => PullRequestAction::Pushed,
            _ if was_draft && !pull.is_draft => PullRequestAction::Ready,
            _ => PullRequestAction::Edited,
        }
    }
}

const DRAFT: &str = "draft";

/// What of a pull request decides whether and what is evaluated.
fn state_of(pull: &PullRequest) -> String {
    let draft = if pull.is_draft { DRAFT } else { "ready" };
    format!("{} {draft} {}", pull.head_commit, pull.base_branch)
}

fn branch_reference(branch: &str) -> String {
    format!("branch/{branch}")
}
