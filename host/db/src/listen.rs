//! `LISTEN`: hints that something changed. Never the truth: who listens also polls slowly, and looks at everything again
//! after [`Notice::Rescan`]. One connection a process, however many listen: start at [`Db::listen`].

use std::collections::HashSet;
use std::time::Duration;

use harmonia_core::retry::Backoff;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Mutex, broadcast, mpsc, oneshot};

use crate::connection::{Db, Patience, in_time};
use crate::error::DbError;

/// Notices that one listener may be behind; beyond it, it is told to look at everything again.
const BEHIND_MAX: usize = 1_024;

/// Pauses before the connection is made again: quick after a restart, gentle while PostgreSQL is away.
const RECONNECT: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_millis(12_800));

/// What one may listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// An evaluation was queued or changed; payload: its id, or empty.
    Evaluations,
    /// `class:<id>`: work became ready for that class. `done:<job>` or `done`: jobs reached a terminal state.
    BuildJobs,
    /// Log tails were written; payload: the node.
    BuildLog,
    /// A node registered, left, or was told to drain; payload: the node.
    Nodes,
    /// A claim was voided; payload: the node that held it. Call `void_claims`.
    Claims,
    /// A builder found an input in no cache; payload: the path. For signers.
    MissingPaths,
    /// A delivery of a forge was recorded; payload: its row's id.
    Deliveries,
    /// A project was enabled, disabled or changed, or a sync was asked for.
    Projects,
    /// There are jobs that perhaps nobody wants any more. Call `finish_withdrawals`.
    Withdrawals,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 9] = [
        Self::Evaluations,
        Self::BuildJobs,
        Self::BuildLog,
        Self::Nodes,
        Self::Claims,
        Self::MissingPaths,
        Self::Deliveries,
        Self::Projects,
        Self::Withdrawals,
    ];

    /// The name in PostgreSQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evaluations => "evaluations",
            Self::BuildJobs => "build_jobs",
            Self::BuildLog => "build_log",
            Self::Nodes => "nodes",
            Self::Claims => "claims",
            Self::MissingPaths => "missing_paths",
            Self::Deliveries => "deliveries",
            Self::Projects => "projects",
            Self::Withdrawals => "withdrawals",
        }
    }
}

/// What [`Listener::next`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something changed.
    Hint {
        /// Where.
        channel: Channel,
        /// What; see [`Channel`].
        payload: String,
    },
    /// Hints were lost (the connection was gone for a while, or this listener fell behind): look at everything again.
    Rescan,
}

/// Hears of some channels.
#[derive(Debug)]
pub struct Listener {
    channels: Vec<Channel>,
    notices: broadcast::Receiver<Notice>,
}

/// The process's listening connection: there while anybody listens.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    running: Mutex<Option<Running>>,
}

/// Tells the task that has the connection of a further listener.
#[derive(Debug)]
struct Running {
    notices: broadcast::Sender<Notice>,
    wanted: mpsc::Sender<Wanted>,
}

/// Channels that somebody wants to hear of, and where to say that they are heard.
type Wanted = (Vec<Channel>, oneshot::Sender<Result<(), sqlx::Error>>);

impl Db {
    /// Hears of these channels from now on. All listeners of a process share one connection.
    pub async fn listen(&self, channels: &[Channel]) -> Result<Listener, DbError> {
        let failed = |source| DbError::from_sqlx("listen", source);
        loop {
            let mut running = self.hub.running.lock().await;
            // The task ends when nobody subscribes, so there is a first subscription before it begins.
            let mut first = None;
            if running.as_ref().is_none_or(|hub| hub.wanted.is_closed()) {
                let (hub, notices) = Box::pin(Running::start(&self.connect, self.patience)).await.map_err(failed)?;
                (*running, first) = (Some(hub), Some(notices));
            }
            let Some(hub) = running.as_ref() else { continue };
            // Subscribed before the answer, so that nothing is missed after it.
            let notices = first.unwrap_or_else(|| hub.notices.subscribe());
            let (answer, heard) = oneshot::channel();
            if hub.wanted.send((channels.to_vec(), answer)).await.is_err() {
                continue; // it has just ended, since nobody listened any more
            }
            drop(running);
            match heard.await {
                Ok(Ok(())) => return Ok(Listener { channels: channels.to_vec(), notices }),
                Ok(Err(source)) => return Err(failed(source)),
                Err(_) => {}
            }
        }
    }
}

impl Listener {
    /// What it hears of.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// The next hint; [`Notice::Rescan`] after every reconnection. Waits as long as it takes, also for PostgreSQL to come
    /// back, so it belongs into a `select!` with the caller's shutdown. Cancel-safe: a hint is lost only with a `Rescan`.
    pub async fn next(&mut self) -> Notice {
        loop {
            match self.notices.recv().await {
                Ok(Notice::Hint { channel, .. }) if !self.channels.contains(&channel) => {}
                Ok(notice) => return notice,
                Err(broadcast::error::RecvError::Lagged(_)) => return Notice::Rescan,
                // The runtime ends.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Running {
    async fn start(
        connect: &PgConnectOptions,
        patience: Patience,
    ) -> Result<(Self, broadcast::Receiver<Notice>), sqlx::Error> {
        let connection = connected(connect, patience, &HashSet::new()).await?;
        let (notices, first) = broadcast::channel(BEHIND_MAX);
        let (wanted, requests) = mpsc::channel(16);
        tokio::spawn(serve(connect.clone(), patience, connection, notices.clone(), requests));
        Ok((Self { notices, wanted }, first))
    }
}

/// Has the connection, and brings it back, until nobody listens any more.
async fn serve(
    connect: PgConnectOptions,
    patience: Patience,
    connection: PgListener,
    notices: broadcast::Sender<Notice>,
    mut requests: mpsc::Receiver<Wanted>,
) {
    let mut channels = HashSet::new();
    let mut connection = Some(connection);
    let mut failures = 0;
    loop {
        let Some(listening) = &mut connection else {
            tokio::select! {
                () = notices.closed(), if requests.is_empty() => return,
                Some((_, answer)) = requests.recv() => {
                    let _ = answer.send(Err(sqlx::Error::Io(std::io::ErrorKind::NotConnected.into())));
                }
                () = tokio::time::sleep(RECONNECT.after(failures + 1, 1.0)) => match connected(&connect, patience, &channels).await {
                    Ok(new) => {
                        (connection, failures) = (Some(new), 0);
                        let _ = notices.send(Notice::Rescan);
                    }
                    Err(error) => {
                        failures = (failures + 1).min(30);
                        tracing::debug!(%error, failures, "Cannot listen again yet");
                    }
                },
            }
            continue;
        };
        tokio::select! {
            request = requests.recv() => {
                let Some((wanted, answer)) = request else { return };
                let heard = in_time(patience.ping, listen(listening, &mut channels, &wanted)).await;
                if heard.is_err() {
                    connection = None;
                }
                let _ = answer.send(heard);
            }
            heard = listening.try_recv() => match heard {
                Ok(Some(heard)) => {
                    if let Some(channel) = Channel::ALL.into_iter().find(|c| c.as_str() == heard.channel()) {
                        let _ = notices.send(Notice::Hint { channel, payload: heard.payload().to_owned() });
                    }
                }
                Ok(None) => connection = None,
                Err(error) => {
                    tracing::debug!(%error, "The listening connection was lost");
                    connection = None;
                }
            },
            // Silence, or a server that vanished without a word.
            () = tokio::time::sleep(patience.silence) => {
                let probe = sqlx::query!("SELECT 1 AS one").fetch_one(&mut *listening);
                if let Err(error) = in_time(patience.ping, probe).await {
                    tracing::debug!(%error, "The listening connection is dead");
                    connection = None;
                }
            },
            // Who asks in this very moment asks again.
            () = notices.closed() => return,
        }
    }
}

/// A new connection, of a pool of its own: the driver lets a pool have its place back only when the server has answered for the
/// last one, which a server that vanished never does.
async fn connected(
    connect: &PgConnectOptions,
    patience: Patience,
    channels: &HashSet<Channel>,
) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(patience.connection)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(connect.clone());
    let mut connection = PgListener::connect_with(&pool).await?;
    connection.eager_reconnect(false);
    if !channels.is_empty() {
        in_time(patience.ping, connection.listen_all(channels.iter().map(|channel| channel.as_str()))).await?;
    }
    Ok(connection)
}

/// Listens to what is wanted and not listened to yet.
async fn listen(
    connection: &mut PgListener,
    channels: &mut HashSet<Channel>,
    wanted: &[Channel],
) -> Result<(), sqlx::Error> {
    let new: HashSet<Channel> = wanted.iter().copied().filter(|channel| !channels.contains(channel)).collect();
    if !new.is_empty() {
        connection.listen_all(new.iter().map(|channel| channel.as_str())).await?;
        channels.extend(new);
    }
    Ok(())
}
