//! The newest log state of every watched job, refreshed by one query a tick for all of them. Start at [`Hub::watch`].
//!
//! A watcher holds a `watch` channel: it keeps only the newest state, so a browser that reads slowly costs no memory
//! and misses nothing that the builder's spool or the archive cannot give it later.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harmonia_core::{JobId, Viewer};
use harmonia_db::views::{LogMark, LogState};
use harmonia_db::{Channel, Db, DbError, Listener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::state::AppLimits;

/// Least time between two queries, whatever the number of notifications.
const TICK: Duration = Duration::from_millis(150);
/// Notifications are hints and may be lost: look after this time anyway.
const POLL: Duration = Duration::from_secs(5);
/// First and longest wait before another try to listen.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Fans log states out to the streams of this process.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Shared>);

struct Shared {
    db: Db,
    watched: Mutex<HashMap<JobId, watch::Sender<Arc<LogState>>>>,
    streams: Arc<Semaphore>,
    per_client: PerClient,
}

/// Streams of each client.
struct PerClient {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// One stream that its client is charged for.
struct Share {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
}

impl PerClient {
    /// Nobody is charged for streams to this machine itself.
    fn enter(&self, client: Client) -> Result<Option<Share>, WatchError> {
        let Client::Network(client) = client else { return Ok(None) };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        if *count >= self.max {
            return Err(WatchError::Full);
        }
        *count += 1;
        Ok(Some(Share { counts: self.counts.clone(), client }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// What one stream holds.
pub(crate) struct Watcher {
    /// The newest state; `changed` errors when the hub stops.
    pub(crate) states: watch::Receiver<Arc<LogState>>,
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// Why a stream cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("as many live streams are open as may be")]
    Full,
    #[error("could not read the state of the log")]
    Database(#[from] DbError),
}

impl Hub {
    /// Starts the task that follows the database until `shutdown`.
    pub(crate) fn start(db: Db, limits: &AppLimits, shutdown: CancellationToken) -> Self {
        let streams = Arc::new(Semaphore::new(limits.streams_max));
        let per_client = PerClient { counts: Arc::default(), max: limits.streams_per_client_max };
        let shared = Arc::new(Shared { db, watched: Mutex::default(), streams, per_client });
        let task = shared.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(task.run()).await });
        Self(shared)
    }

    /// Follows a job's log. `None`: no such job that this viewer may see.
    pub(crate) async fn watch(
        &self,
        viewer: Viewer,
        client: Client,
        job: JobId,
    ) -> Result<Option<Watcher>, WatchError> {
        let share = self.0.per_client.enter(client)?;
        let permit = self.0.streams.clone().try_acquire_owned().map_err(|_| WatchError::Full)?;
        // Asked even if others watch the same log: who may see it is a question of who asks.
        let Some(state) = self.0.db.seen_by(viewer).log_states(&[LogMark::unread(job)]).await?.pop() else {
            return Ok(None);
        };
        let mut watched = self.0.lock();
        let sender = watched.entry(job).or_insert_with(|| watch::Sender::new(Arc::new(state)));
        Ok(Some(Watcher { states: sender.subscribe(), _permit: permit, _share: share }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<Arc<LogState>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut listener = None;
        let mut wait = RETRY.0;
        let mut is_failing = false;
        loop {
            if listener.is_none() {
                match self.db.listen(&[Channel::BuildLog, Channel::BuildJobs]).await {
                    Ok(new) => (listener, wait) = (Some(new), RETRY.0),
                    Err(error) => {
                        if wait == RETRY.0 {
                            tracing::warn!(error = %error, "Cannot listen for log lines, looking every few seconds instead");
                        }
                        wait = (wait * 2).min(RETRY.1);
                    }
                }
            }
            let patience = if listener.is_some() { POLL } else { wait.min(POLL) };
            let _ = tokio::time::timeout(patience, next_notice(listener.as_mut())).await;
            match self.refresh().await {
                Ok(()) => is_failing = false,
                Err(error) if is_failing => tracing::debug!(error = %error, "Still cannot read log states"),
                Err(error) => {
                    is_failing = true;
                    tracing::warn!(error = %error, "Cannot read log states, live logs stand still until the database answers");
                }
            }
            // Whatever comes in meanwhile is answered by one query.
            tokio::time::sleep(TICK).await;
        }
    }

    async fn refresh(&self) -> Result<(), DbError> {
        let marks: Vec<LogMark> = {
            let mut watched = self.lock();
            watched.retain(|_, sender| sender.receiver_count() > 0);
            watched.values().map(|sender| sender.borrow().mark()).collect()
        };
        if marks.is_empty() {
            return Ok(());
        }
        for state in self.db.seen_by(Viewer::Token).log_states(&marks).await? {
            if let Some(sender) = self.lock().get(&state.job) {
                sender.send_replace(Arc::new(state));
            }
        }
        Ok(())
    }
}

async fn next_notice(listener: Option<&mut Listener>) {
    match listener {
        // The payload is a hint only; what changed is asked of the tables.
        Some(listener) => drop(listener.next().await),
        None => std::future::pending().await,
    }
}
