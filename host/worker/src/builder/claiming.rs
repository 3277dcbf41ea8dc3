//! The claim loop: when to ask for jobs, and how many (which, and in what order: `claimer.rs`). Start at [`claim_loop`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::ClassId;
use harmonia_db::{Channel, ClaimedJob, DbError, Listener, Notice};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::capacity::{Capacity, Room, capacity, free_bytes};
use super::claimer::{Claimer, Claims};
use super::failure::chain;
use super::held::VOID_CHECK_PERIOD;
use super::{BuilderError, BuilderOptions, Node, Slot, job, persist, store_dir};

/// How often the queue is looked at without a hint.
const POLL_PERIOD: Duration = Duration::from_secs(10);
/// Pause after a claim that failed because the database is away.
const CLAIM_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why the loop looks at the queue again.
enum Wake {
    Look,
    /// Hints were lost: the classes, too, may be others.
    Rescan,
    /// A class that we have not heard of.
    NewClass(ClassId),
    CheckClaims,
    Nothing,
    Stop,
}

/// Classes of jobs.
struct Classes {
    /// That this node can run.
    ours: Vec<ClassId>,
    /// That it cannot: their hints are not for us.
    foreign: HashSet<ClassId>,
}

/// Claims and starts jobs until told to stop; then waits for those that run.
pub(super) async fn claim_loop(
    node: Arc<Node>,
    drain: CancellationToken,
    abort: CancellationToken,
) -> Result<(), BuilderError> {
    // Ours, since we may have to abort although nobody told us to.
    let abort = abort.child_token();
    let mut jobs = JoinSet::new();
    let result = claim_until_stopped(&node, &mut jobs, &drain, &abort).await;
    if result.is_err() {
        // Most likely another process took this node's name: what we build is not ours any more.
        abort.cancel();
    }
    // Claims that are void must be noticed while draining, too.
    let mut checks = tokio::time::interval(VOID_CHECK_PERIOD);
    loop {
        tokio::select! {
            ended = jobs.join_next() => match ended {
                Some(ended) => log_if_lost(ended),
                None => return result,
            },
            _ = checks.tick() => {
                check_claims(&node).await;
                if let Err(error) = revoke_unacknowledged(&node).await {
                    tracing::warn!(error = %chain(&error), "Could not give back a claim whose answer was lost");
                }
            }
        }
    }
}

async fn claim_until_stopped(
    node: &Arc<Node>,
    jobs: &mut JoinSet<()>,
    drain: &CancellationToken,
    abort: &CancellationToken,
) -> Result<(), BuilderError> {
    let stopped = || async {
        tokio::select! {
            () = drain.cancelled() => {}
            () = abort.cancelled() => {}
        }
    };
    let start = async {
        let listener = persist(|| node.options.db.listen(&[Channel::BuildJobs, Channel::Claims])).await?;
        // Whatever a former process of this node had to say of its policy.
        persist(|| node.options.db.report_policy_error(&node.options.node, node.options.incarnation, None)).await?;
        Ok::<_, DbError>((listener, Classes { ours: classes(node).await?, foreign: HashSet::new() }))
    };
    let (mut listener, mut known) = tokio::select! {
        started = start => started.map_err(BuilderError::Database)?,
        () = stopped() => return Ok(()),
    };
    let BuilderOptions { db, node: id, incarnation, policy, .. } = &node.options;
    let mut claimer = Claimer::new(db.clone(), id.clone(), *incarnation, Arc::clone(policy));
    let mut poll = tokio::time::interval(POLL_PERIOD);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut checks = tokio::time::interval(VOID_CHECK_PERIOD);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let wake = tokio::select! {
            biased;
            () = stopped() => Wake::Stop,
            ended = jobs.join_next(), if !jobs.is_empty() => {
                ended.into_iter().for_each(log_if_lost);
                Wake::Nothing
            }
            () = node.slots.freed() => Wake::Look,
            _ = checks.tick() => Wake::CheckClaims,
            notice = next_notice(&mut listener) => wake_of(node, &known, &notice),
            _ = poll.tick() => Wake::Look,
        };
        match wake {
            Wake::Stop => return Ok(()),
            Wake::Nothing => {}
            Wake::CheckClaims => check_claims(node).await,
            Wake::Look => claim(node, &mut claimer, &known, jobs, abort).await?,
            Wake::Rescan | Wake::NewClass(_) => {
                check_claims(node).await;
                match classes(node).await {
                    Ok(classes) => known.ours = classes,
                    Err(error) => tracing::warn!(error = %chain(&error), "Could not read the job classes"),
                }
                if let Wake::NewClass(class) = wake
                    && !known.ours.contains(&class)
                {
                    known.foreign.insert(class);
                }
                claim(node, &mut claimer, &known, jobs, abort).await?;
            }
        }
    }
}

async fn next_notice(listener: &mut Listener) -> Notice {
    listener.next().await
}

fn wake_of(node: &Node, known: &Classes, notice: &Notice) -> Wake {
    match notice {
        Notice::Rescan => Wake::Rescan,
        Notice::Hint { channel: Channel::Claims, payload } if *payload == node.options.node.0 => Wake::CheckClaims,
        Notice::Hint { channel: Channel::BuildJobs, payload } => match payload.strip_prefix("class:") {
            Some(class) => match class.parse::<ClassId>() {
                Ok(class) if known.foreign.contains(&class) => Wake::Nothing,
                Ok(class) if !known.ours.contains(&class) => Wake::NewClass(class),
                _ => Wake::Look,
            },
            None => Wake::Nothing,
        },
        Notice::Hint { .. } => Wake::Nothing,
    }
}

async fn classes(node: &Node) -> Result<Vec<ClassId>, DbError> {
    persist(|| node.options.db.resolve_classes(&node.options.systems, &node.options.features)).await
}

async fn check_claims(node: &Node) {
    node.connections.close_idle();
    if let Err(error) = node.held.stop_void(&node.options.db).await {
        tracing::debug!(%error, "Could not check the held claims");
    }
}

/// Claims as much as there is room for, as long as there is something.
async fn claim(
    node: &Arc<Node>,
    claimer: &mut Claimer,
    known: &Classes,
    jobs: &mut JoinSet<()>,
    abort: &CancellationToken,
) -> Result<(), BuilderError> {
    loop {
        match revoke_unacknowledged(node).await {
            Ok(()) => {}
            Err(error @ DbError::Refused { .. }) => return Err(BuilderError::Refused(error)),
            // Nothing is claimed before that is settled, or jobs would wait for a node that does not know of them.
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Could not give back a claim whose answer was lost, trying again");
                node.slots.wake_after(CLAIM_RETRY_PAUSE);
                return Ok(());
            }
        }
        let wanted = match capacity(room(node)) {
            Capacity::Claim(wanted) => {
                node.set_paused(None);
                wanted
            }
            Capacity::Paused(reason) => {
                node.set_paused(Some(reason));
                return Ok(());
            }
        };
        if wanted == 0 || known.ours.is_empty() {
            return Ok(());
        }
        let claimed = match claim_some(node, claimer, known, wanted).await {
            Ok(claimed) => claimed,
            Err(error @ (DbError::Refused { .. } | DbError::StaleClaim)) => return Err(BuilderError::Refused(error)),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Could not claim jobs");
                node.slots.wake_after(CLAIM_RETRY_PAUSE);
                return Ok(());
            }
        };
        let count = claimed.len();
        for claimed in claimed {
            let slot = Slot::take(&node.slots);
            jobs.spawn(job::run(Arc::clone(node), claimed, slot, abort.clone()));
        }
        // Others may have been quicker with some of the candidates; more may be ready all the same.
        if count == 0 || count >= wanted as usize {
            return Ok(());
        }
    }
}

/// As many jobs as are wanted, if there are as many. An error only when nothing was claimed.
async fn claim_some(
    node: &Arc<Node>,
    claimer: &mut Claimer,
    known: &Classes,
    wanted: u32,
) -> Result<Vec<ClaimedJob>, DbError> {
    let Claims { jobs, unacknowledged, error, policy, .. } = claimer.claim(&known.ours, wanted, Instant::now()).await;
    node.unacknowledged().extend(unacknowledged);
    if let Some(verdict) = policy {
        node.note_policy_error(verdict).await;
    }
    match error {
        Some(error) if jobs.is_empty() => return Err(error),
        Some(error) => {
            tracing::warn!(error = %chain(&error), "Could not claim jobs");
            node.slots.wake_after(CLAIM_RETRY_PAUSE);
        }
        None => {}
    }
    Ok(jobs)
}

/// Gives back what a claim took whose answer was lost.
async fn revoke_unacknowledged(node: &Node) -> Result<(), DbError> {
    let tokens = node.unacknowledged().clone();
    if tokens.is_empty() {
        return Ok(());
    }
    let BuilderOptions { db, node: id, incarnation, .. } = &node.options;
    let jobs = db.revoke_claims(id, *incarnation, &tokens).await?;
    if jobs > 0 {
        tracing::info!(jobs, "Gave back jobs that were claimed by a call whose answer was lost");
    }
    node.unacknowledged().clear();
    Ok(())
}

fn room(node: &Node) -> Room {
    let store = store_dir(&node.options);
    let free = |path: &std::path::Path| {
        free_bytes(path).unwrap_or_else(|error| {
            tracing::warn!(%error, "Could not see how much is free on the file system of {}", path.display());
            0
        })
    };
    Room {
        slots: node.options.max_jobs,
        building: node.slots.building(),
        uploading: node.slots.uploading(),
        uploading_max: node.options.max_jobs.saturating_mul(2).max(4 * node.options.parallel_uploads),
        free_bytes: free(&store).min(free(node.spool.dir())),
        free_bytes_min: node.options.min_free_bytes,
    }
}

fn log_if_lost(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // Its own net caught every panic of the work; this is one in the reporting itself.
        tracing::error!(%error, "A build task ended without a report; its job is given back when this node restarts");
    }
}
