//! The builder's connections to the store daemon, which outlive jobs: one a slot is enough. Start at [`Connections::take`].
//!
//! A daemon starts a process for each connection, and that remembers things: it keeps from the garbage collector what was built
//! over it (until it ends), and settings (until they are set again). So a connection is renewed after some jobs, closed
//! when nobody needs it, and asked with the options of each job; and all are closed before something is deleted.
//! One that something went wrong with is never given back: dropping it stops what the daemon does for it.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harmonia_nix::worker_protocol::LogTarget;
use harmonia_nix::worker_protocol::types::ClientOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::store_daemon::{ConnectError, Connection, StoreDaemon};

/// After so many jobs a connection is closed, and what it kept from the garbage collector is kept no longer.
const JOBS_MAX: u32 = 50;
/// For so long a connection may wait for its next job.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);
/// A daemon that does not answer for so long to a connection that was kept gets a new one.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it is waited for the daemon's end of a connection to be gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that wait for a job.
#[derive(Debug)]
pub(super) struct Connections {
    daemon: StoreDaemon,
    idle: Mutex<Vec<Kept>>,
    /// Raised when none of those that are open now may be used again.
    era: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    connection: Connection,
    /// Jobs that had it.
    jobs: u32,
    era: u64,
    since: Instant,
}

/// A connection that one job has. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    connections: &'a Connections,
    kept: Kept,
}

impl Connections {
    pub(super) fn new(daemon: StoreDaemon) -> Self {
        Self { daemon, idle: Mutex::default(), era: AtomicU64::new(0) }
    }

    /// A connection with these options: one that is there and alive, or a new one.
    pub(super) async fn take(&self, options: &ClientOptions) -> Result<Lent<'_>, ConnectError> {
        loop {
            let kept = self.idle().pop();
            let Some(mut kept) = kept else { break };
            let told = tokio::time::timeout(ALIVE_TIMEOUT, kept.connection.set_options(options)).await;
            if matches!(told, Ok(Ok(()))) {
                kept.jobs += 1;
                return Ok(Lent { connections: self, kept });
            }
            // The daemon was started anew, most likely.
            tracing::debug!("A connection to the store daemon broke while nobody used it");
        }
        let era = self.era.load(Ordering::Acquire);
        let connection = self.daemon.connect_with(options).await?;
        Ok(Lent { connections: self, kept: Kept { connection, jobs: 1, era, since: Instant::now() } })
    }

    /// Closes those that nobody needed for a while.
    pub(super) fn close_idle(&self) {
        self.idle().retain(|kept| kept.since.elapsed() < IDLE_MAX);
    }

    /// Closes those that nobody uses, and waits until the daemon let go of what they kept; the others are closed when their
    /// jobs have done with them.
    pub(super) async fn close_all(&self) {
        self.era.fetch_add(1, Ordering::AcqRel);
        let idle = std::mem::take(&mut *self.idle());
        for kept in idle {
            kept.close().await;
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The daemon closes its end last, after all that it kept.
    async fn close(self) {
        let (mut reader, mut writer) = self.connection.into_parts();
        let ended = async {
            writer.shutdown().await?;
            let mut rest = [0; 256];
            while reader.read(&mut rest).await? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        // Broken is closed, too.
        let _either = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
    }
}

impl Lent<'_> {
    /// For the next job. Only after an answer: what the daemon still works on ends with the connection.
    pub(super) fn give_back(mut self) {
        let kept = &mut self.kept;
        if kept.jobs >= JOBS_MAX || !kept.connection.is_ready() {
            return;
        }
        kept.connection.set_log(LogTarget::Discard);
        kept.since = Instant::now();
        let Self { connections, kept } = self;
        let mut idle = connections.idle();
        if kept.era == connections.era.load(Ordering::Acquire) {
            idle.push(kept);
        }
    }

    /// Closes it and waits until the daemon let go of what it kept.
    pub(super) async fn close(self) {
        self.kept.close().await;
    }
}

impl Deref for Lent<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.kept.connection
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.kept.connection
    }
}
