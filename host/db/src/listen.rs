//! `LISTEN`: hints that something changed. Never the truth: who listens also polls slowly, and looks at everything again
//! after [`Notice::Rescan`].

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::connection::Db;
use crate::error::DbError;

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
}

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 8] = [
        Self::Evaluations,
        Self::BuildJobs,
        Self::BuildLog,
        Self::Nodes,
        Self::Claims,
        Self::MissingPaths,
        Self::Deliveries,
        Self::Projects,
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
    /// The connection was gone for a while and hints were lost: look at everything again.
    Rescan,
}

/// One connection that listens, and comes back by itself.
#[derive(Debug)]
pub struct Listener {
    pool: PgPool,
    channels: Vec<Channel>,
    connection: Option<PgListener>,
    failures: u32,
}

impl Db {
    /// Listens on a connection of its own. One a process is enough: fan out in memory.
    pub async fn listen(&self, channels: &[Channel]) -> Result<Listener, DbError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.connect.clone());
        let mut listener = Listener { pool, channels: channels.to_vec(), connection: None, failures: 0 };
        let connection = listener.connect().await.map_err(|source| DbError::from_sqlx("listen", source))?;
        listener.connection = Some(connection);
        Ok(listener)
    }
}

impl Listener {
    /// The next hint; [`Notice::Rescan`] after every reconnection. Waits as long as it takes, also for PostgreSQL to come
    /// back, so it belongs into a `select!` with the caller's shutdown. Cancel-safe: a hint is lost only with a `Rescan`.
    pub async fn next(&mut self) -> Notice {
        loop {
            let Some(connection) = &mut self.connection else {
                // 0.1 s, doubling up to 12.8 s: quick after a restart, gentle while PostgreSQL is away.
                let delay = Duration::from_millis(100 << self.failures.min(7));
                tokio::time::sleep(delay).await;
                match self.connect().await {
                    Ok(connection) => {
                        self.connection = Some(connection);
                        self.failures = 0;
                        return Notice::Rescan;
                    }
                    Err(error) => {
                        self.failures += 1;
                        tracing::debug!(%error, failures = self.failures, "listener cannot reconnect yet");
                        continue;
                    }
                }
            };
            match connection.try_recv().await {
                Ok(Some(notification)) => {
                    let channel = Channel::ALL.into_iter().find(|c| c.as_str() == notification.channel());
                    if let Some(channel) = channel {
                        return Notice::Hint { channel, payload: notification.payload().to_owned() };
                    }
                }
                Ok(None) => self.connection = None,
                Err(error) => {
                    tracing::debug!(%error, "listener lost its connection");
                    self.connection = None;
                }
            }
        }
    }

    async fn connect(&self) -> Result<PgListener, sqlx::Error> {
        let mut connection = PgListener::connect_with(&self.pool).await?;
        connection.eager_reconnect(false);
        connection.listen_all(self.channels.iter().map(|channel| channel.as_str())).await?;
        Ok(connection)
    }
}
