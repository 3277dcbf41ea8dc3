//! The connection pool and how statements run on it.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::retry::RetryPolicy;
use harmonia_core::{ClaimToken, Incarnation, SecretUrl, Viewer};
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgPool};

use crate::error::{DbError, lost_to_another_transaction};
use crate::listen::Hub;

/// How long a statement may take.
const STATEMENT_TIMEOUT: &str = "300s";

/// How often a statement that lost against others is tried before the caller hears of it.
const TRIES: u32 = 12;

/// How to reach PostgreSQL.
#[derive(Debug, Clone)]
pub struct DbOptions {
    /// `postgres://user:password@host/database`; a socket directory goes into `?host=`.
    pub url: SecretUrl,
    /// Most connections that this process opens for statements. Beside them: one that listens, one for each held chore lock.
    pub max_connections: u32,
}

/// How long is waited for a server that may have vanished without a word. `docs/limits.md` has the values of `default`; tests
/// have shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an answer: of a server that is there, the longest statement, and the wait for a connection.
    pub answer: Duration,
    /// For a connection, a new one or one that others use.
    pub connection: Duration,
    /// For a server that is there to say so.
    pub ping: Duration,
    /// A connection that was idle for so long is asked whether it still works before it is used.
    pub idle: Duration,
    /// A listening connection on which nothing came for so long is asked, too.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(330),
            connection: Duration::from_secs(10),
            ping: Duration::from_secs(10),
            idle: Duration::from_secs(1),
            silence: Duration::from_mins(1),
        }
    }
}

/// The database. Cheap to clone: all clones share one pool.
#[derive(Clone)]
pub struct Db {
    pub(crate) pool: PgPool,
    pub(crate) connect: PgConnectOptions,
    pub(crate) retry: RetryPolicy,
    pub(crate) patience: Patience,
    pub(crate) hub: Arc<Hub>,
    /// Whom the views are for.
    pub(crate) viewer: Viewer,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("database", &self.connect.get_database()).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the pool and one connection, so that a wrong URL shows at once. Does not retry.
    pub async fn connect(options: &DbOptions) -> Result<Self, DbError> {
        let connect =
            PgConnectOptions::from_str(options.url.expose().as_str()).map_err(|source| DbError::Url { source })?;
        let pool = PgPoolOptions::new().max_connections(options.max_connections.max(1));
        Self::connect_with(connect, pool, Patience::default()).await
    }

    pub(crate) async fn connect_with(
        connect: PgConnectOptions,
        pool: PgPoolOptions,
        patience: Patience,
    ) -> Result<Self, DbError> {
        // A stuck transaction keeps dead rows at the head of the ready queue, and every claim walks over them. Compiling
        // statements that run for a millisecond costs thirty. What a statement is asked about it finds by an index, however few
        // rows the planner believes a table to have; functions that look at everything, or compare lists, say so
        // (decision 0016).
        let connect = connect.application_name("harmonia-ci").options([
            ("idle_in_transaction_session_timeout", "60s"),
            ("lock_timeout", "30s"),
            // Nothing of ours takes as long; what does holds a connection, and locks.
            ("statement_timeout", STATEMENT_TIMEOUT),
            // So that the server lets go of what a node held that vanished.
            ("tcp_keepalives_idle", "60"),
            ("tcp_keepalives_interval", "15"),
            ("tcp_keepalives_count", "4"),
            ("tcp_user_timeout", "120s"),
            ("timezone", "UTC"),
            ("jit", "off"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
        ]);
        // One connection by hand first: a pool would retry a wrong address until its time is up.
        let first = in_time(patience.connection, Box::pin(sqlx::PgConnection::connect_with(&connect)));
        let first = first.await.map_err(|source| match DbError::from_sqlx("connect", source) {
            DbError::Query { source, .. } => DbError::Unavailable { source },
            other => other,
        })?;
        first.close().await.map_err(|source| DbError::Unavailable { source })?;
        // A connection that was used a moment ago is not asked whether it still works: that is a round trip more for every
        // statement.
        let pool = pool.test_before_acquire(false).before_acquire(move |connection, meta| {
            Box::pin(async move {
                if meta.idle_for >= patience.idle {
                    in_time(patience.ping, connection.ping()).await?;
                }
                Ok(true)
            })
        });
        // Of a statement that was given up, the driver waits for the answer before another one may have the connection's place: for
        // a server that vanished, without an end. (A server that vanishes just when a connection that worked is given back is asked
        // by the driver itself, which waits for as long as the kernel does.)
        let pool = pool.after_release(move |connection, _| {
            Box::pin(async move { in_time(patience.answer, connection.flush()).await.map(|()| true) })
        });
        let pool = pool.acquire_timeout(patience.connection).connect_lazy_with(connect.clone());
        let (retry, hub) = (RetryPolicy::default(), Arc::default());
        Ok(Self { pool, connect, retry, patience, hub, viewer: Viewer::Public })
    }

    /// The same database with another policy for transient build failures.
    #[must_use]
    pub fn with_retry_policy(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The same database as this viewer sees it ([`crate::views`]); otherwise it shows what everybody may see.
    #[must_use]
    pub fn seen_by(&self, viewer: Viewer) -> Self {
        Self { viewer, ..self.clone() }
    }

    /// What statements of views ask.
    pub(crate) const fn sees_all(&self) -> bool {
        self.viewer.sees_all()
    }

    /// One round trip, to see that the database answers.
    pub async fn ping(&self) -> Result<(), DbError> {
        self.run("ping", || sqlx::query_scalar!(r#"SELECT 1 AS "one!""#).fetch_one(&self.pool)).await.map(|_| ())
    }

    /// Closes all connections and waits until they are.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs one statement (one transaction), again when it lost against another one. `what` completes "could not …".
    pub(crate) async fn run<T, F, Fut>(&self, what: &'static str, statement: F) -> Result<T, DbError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, sqlx::Error>>,
    {
        let mut tries = 1;
        loop {
            match in_time(self.patience.answer, statement()).await {
                Ok(value) => return Ok(value),
                Err(error) if tries < TRIES && lost_to_another_transaction(&error) => {
                    tracing::debug!(what, tries, "statement lost against a concurrent one, trying again");
                    // Jitter, so that those who met do not meet again.
                    let bound_ms = 4_u64 << tries.min(7);
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=bound_ms))).await;
                    tries += 1;
                }
                Err(error) => return Err(DbError::from_sqlx(what, error)),
            }
        }
    }
}

/// Gives up a server that may have vanished without a word.
pub(crate) async fn in_time<T>(
    time: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(time, answer).await.map_err(|_| vanished())?
}

/// What is said when no answer came.
pub(crate) fn vanished() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer came"))
}

/// The hash of a token as a statement's argument.
pub(crate) fn hash(token: &ClaimToken) -> Vec<u8> {
    token.hash().0.to_vec()
}

/// An incarnation as a statement's argument.
pub(crate) const fn incarnation(value: Incarnation) -> i64 {
    value.0
}

/// A duration as a statement's argument.
pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
