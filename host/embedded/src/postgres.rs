//! A private PostgreSQL cluster from the installed server programs. Start at [`PrivatePostgres::start`].
//!
//! It listens on a Unix socket only, in a directory that nobody but the server's account (and root) can enter, which
//! is why connections need no password. It is as durable as any PostgreSQL, unless asked not to be.

mod account;
mod cluster;
mod discover;
mod sizing;
mod supervise;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use discover::{Looked, Majors};

/// The superuser of a private cluster: whoever can reach its socket owns it anyway.
const ROLE: &str = "postgres";

/// What to run and where.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Holds everything of the cluster: data, logs, and the socket where the path is short enough.
    pub data_dir: PathBuf,
    /// The directory with `postgres`, `initdb` and `psql`; looked for in the usual places when absent.
    pub bin_dir: Option<PathBuf>,
    /// `false` gives up safety against power loss for speed: only for data that may be thrown away.
    pub durable: bool,
    /// Account of the server when we are root; `postgres`, else `nobody`, when absent.
    pub account: Option<String>,
    /// Created when missing. Names of lower-case letters, digits and underscores.
    pub databases: Vec<String>,
    /// How long the server may take until it answers; recovery after a crash is part of it.
    pub start_timeout: Duration,
}

impl PostgresOptions {
    /// A durable cluster in `data_dir` with the database `harmonia`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bin_dir: None,
            durable: true,
            account: None,
            databases: vec!["harmonia".to_owned()],
            start_timeout: Duration::from_mins(5),
        }
    }
}

/// Why there is no private cluster.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No complete server in any of the directories.
    #[error(
        "no PostgreSQL server found (looked in {looked_in}): install one (Debian: apt install postgresql; NixOS: pkgs.postgresql) or configure its bin directory"
    )]
    NotInstalled {
        /// All directories that were tried.
        looked_in: Looked,
    },
    /// Only a server older than we support.
    #[error("PostgreSQL {major} in {bin_dir} is too old: install version 15 or newer")]
    TooOld {
        /// Its major version.
        major: u32,
        /// Where it is.
        bin_dir: PathBuf,
    },
    /// The data directory is of another major version than every installed server.
    #[error(
        "the data was written by PostgreSQL version {data}, installed are {installed}: install version {data} again, or move the data with pg_upgrade"
    )]
    VersionMismatch {
        /// Major version of the data.
        data: u32,
        /// Major versions found.
        installed: Majors,
    },
    /// We are root and there is nobody else to be.
    #[error("PostgreSQL does not run as root and there is no account {wanted}: create it or configure another one")]
    NoAccount {
        /// The names tried.
        wanted: String,
    },
    /// The server's account cannot reach its own data directory.
    #[error(
        "account {account} may not pass {directory} on the way to the data directory {data_dir}: run chmod o+x {directory}, or choose a data directory elsewhere"
    )]
    NotTraversable {
        /// The server's account.
        account: String,
        /// The directory that stops it.
        directory: PathBuf,
        /// Where it has to get.
        data_dir: PathBuf,
    },
    /// Another process of ours has the cluster.
    #[error("the PostgreSQL cluster in {data_dir} is in use by another process: stop that one first")]
    InUse {
        /// The shared data directory.
        data_dir: PathBuf,
    },
    /// Something of another owner lies where the socket would be.
    #[error("{path} belongs to somebody else or is not a directory: remove it, or choose a shorter data directory")]
    SocketDirectory {
        /// What lies in the way.
        path: PathBuf,
    },
    /// A path that cannot stand in a configuration or URL.
    #[error("the data directory {path} is not absolute or holds characters other than printable Unicode")]
    UnusablePath {
        /// The path given.
        path: PathBuf,
    },
    /// A database name that would need quoting.
    #[error("{name:?} is no usable database name: take lower-case letters, digits and underscores, at most 63")]
    DatabaseName {
        /// The name given.
        name: String,
    },
    /// A file operation failed.
    #[error("could not {doing} {path}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// A program of the server ended with an error.
    #[error("{program} failed: {output}")]
    Program {
        /// Which one.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// The server ended instead of starting.
    #[error("the PostgreSQL server ended while starting ({status}): {output}")]
    EndedAtStart {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// The server did not answer in time.
    #[error("the PostgreSQL server did not answer within {waited:?}: {output}")]
    StartTimeout {
        /// The time it had.
        waited: Duration,
        /// The end of what it wrote.
        output: String,
    },
    /// A server of an earlier run could not be stopped.
    #[error("the PostgreSQL server of an earlier run (process {pid}) does not end: stop it by hand")]
    LeftOver {
        /// Its process id.
        pid: i32,
    },
}

/// A running cluster. It is started again when its server dies, and ends with this process however that ends.
///
/// Dropping it stops the server without waiting; [`PrivatePostgres::stop`] waits.
#[derive(Debug)]
pub struct PrivatePostgres {
    socket_dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    supervisor: JoinHandle<()>,
    running: watch::Receiver<Option<i32>>,
    /// Held so that no second process takes the cluster; the kernel lets go of it when we die.
    _lock: File,
}

impl PrivatePostgres {
    /// Creates the cluster if there is none, stops what an earlier run left, starts the server and waits for it.
    pub async fn start(options: PostgresOptions) -> Result<Self, PostgresError> {
        for name in &options.databases {
            cluster::check_database_name(name)?;
        }
        let account = account::choose(options.account.as_deref())?;
        let place = cluster::Place::prepare(&options.data_dir, account)?;
        let lock = place.lock()?;
        let server = discover::discover(options.bin_dir.as_deref(), place.data_major()?).await?;
        place.check_reachable(&server.bin_dir).await?;
        place.stop_left_over().await?;
        place.initialise(&server.bin_dir, options.durable).await?;
        let launcher = supervise::Launcher { place, bin_dir: server.bin_dir, options };
        let child = launcher.launch().await?;
        let socket_dir = launcher.place.socket_dir.clone();
        let (stop, stop_asked) = oneshot::channel();
        let (running_now, running) = watch::channel(child.pid());
        tracing::info!(
            postgres.version = server.major,
            "PostgreSQL {} answers in {}",
            server.major,
            socket_dir.display()
        );
        let supervisor = tokio::spawn(supervise::supervise(launcher, child, stop_asked, running_now));
        Ok(Self { socket_dir, stop: Some(stop), supervisor, running, _lock: lock })
    }

    /// The connection URL of one database, in the form that libpq and sqlx read.
    pub fn url(&self, database: &str) -> String {
        cluster::url(&self.socket_dir, database)
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The server's process, absent while it is being started again.
    pub fn pid(&self) -> Option<i32> {
        *self.running.borrow()
    }

    /// Waits until the server runs under another process id than `old`: after a crash, that is.
    pub async fn restarted_since(&self, old: i32) -> Option<i32> {
        let mut running = self.running.clone();
        let now = running.wait_for(|pid| pid.is_some_and(|pid| pid != old)).await.ok()?;
        *now
    }

    /// Ends the server in an orderly way: sessions are cut off, everything is written, the process is gone.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _already_gone = stop.send(());
        }
        if let Err(error) = (&mut self.supervisor).await {
            tracing::error!(%error, "The supervisor of PostgreSQL did not end in order");
        }
    }
}

#[cfg(test)]
mod tests;
