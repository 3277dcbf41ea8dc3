//! The server's life: launch, wait until it answers, start again after a crash, stop.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

use super::cluster::{self, Place, failed};
use super::{PostgresError, PostgresOptions, ROLE};
use crate::process;

const READY_POLL: Duration = Duration::from_millis(20);
/// A fast shutdown writes a checkpoint, which takes as long as the disk needs; an immediate one does not.
const STOP_PATIENCE: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_mins(1)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(10)),
];
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
const LOG_CHECK_PERIOD: Duration = Duration::from_mins(1);
/// Seven files at most exist, one a weekday.
const LOG_FILE_BYTES_MAX: u64 = 16 << 20;

/// Everything that is needed to start the server, the first time and again.
pub(crate) struct Launcher {
    pub(crate) place: Place,
    pub(crate) bin_dir: PathBuf,
    pub(crate) options: PostgresOptions,
}

/// The server's process. Dropped without having been stopped, it is asked to end.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.id().map(u32::cast_signed)
    }

    fn signal(&self, signal: Signal) {
        // While the child is not reaped, its id is its own.
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            let _ended = rustix::process::kill_process(pid, signal);
        }
    }

    async fn stop(&mut self) {
        for (signal, patience) in STOP_PATIENCE {
            self.signal(signal);
            if tokio::time::timeout(patience, self.child.wait()).await.is_ok() {
                return;
            }
            tracing::warn!("PostgreSQL did not end within {patience:?}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::INT);
    }
}

impl Launcher {
    /// Starts the server and waits until it answers and has its databases.
    pub(crate) async fn launch(&self) -> Result<Server, PostgresError> {
        let notes = self.place.log.join("start.log");
        let output = File::create(&notes).map_err(|cause| failed("create", &notes, cause))?;
        let errors = output.try_clone().map_err(|cause| failed("open", &notes, cause))?;
        let mut command = process::dying_with_us(&self.bin_dir.join("postgres"), "INT").await;
        self.place.adopt(&mut command);
        command.arg("-D").arg(&self.place.data);
        for setting in self.place.fixed_settings(self.options.durable) {
            command.arg("-c").arg(setting);
        }
        // A group of its own: Ctrl-C at the terminal is for us, the server is stopped in its turn.
        command.process_group(0).stdin(Stdio::null()).stdout(output).stderr(errors);
        let child =
            process::spawn(command).await.map_err(|cause| failed("start", &self.bin_dir.join("postgres"), cause))?;
        let mut server = Server { child };
        if let Err(error) = self.until_ready(&mut server).await {
            server.stop().await;
            return Err(error);
        }
        Ok(server)
    }

    async fn until_ready(&self, server: &mut Server) -> Result<(), PostgresError> {
        let deadline = Instant::now() + self.options.start_timeout;
        let pid = server.pid().unwrap_or_default();
        while !self.place.is_ready(pid) {
            if let Ok(status) = tokio::time::timeout(READY_POLL, server.child.wait()).await {
                let status = status.unwrap_or_else(|_| ExitStatus::default());
                return Err(PostgresError::EndedAtStart { status, output: self.last_words() });
            }
            if Instant::now() >= deadline {
                return Err(PostgresError::StartTimeout {
                    waited: self.options.start_timeout,
                    output: self.last_words(),
                });
            }
        }
        for database in &self.options.databases {
            self.ensure_database(database).await?;
        }
        Ok(())
    }

    async fn ensure_database(&self, name: &str) -> Result<(), PostgresError> {
        // The name was checked to need no quoting.
        let exists = self.psql(&format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await?;
        if exists.trim().is_empty() {
            self.psql(&format!("CREATE DATABASE {name}")).await?;
        }
        Ok(())
    }

    async fn psql(&self, statement: &str) -> Result<String, PostgresError> {
        let mut psql = Command::new(self.bin_dir.join("psql"));
        self.place.adopt(&mut psql);
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password", "--host"]);
        psql.arg(&self.place.socket_dir).args(["--username", ROLE, "--dbname", "postgres", "--command", statement]);
        cluster::run("psql", &mut psql).await
    }

    /// What the server said last: before its log file is open it writes to our file.
    fn last_words(&self) -> String {
        let read = |path: PathBuf| std::fs::read(path).map(|bytes| cluster::tail(&bytes)).unwrap_or_default();
        let newest = std::fs::read_dir(&self.place.log)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"postgresql-"))
            .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok());
        let log = newest.map(|entry| read(entry.path())).unwrap_or_default();
        format!("{}\n{log}", read(self.place.log.join("start.log"))).trim().to_owned()
    }

    /// Empties a log file that grew beyond its bound; the server appends, so it goes on at the new end.
    fn bound_logs(&self) {
        for entry in std::fs::read_dir(&self.place.log).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > LOG_FILE_BYTES_MAX)
                && let Err(error) = File::options().write(true).open(entry.path()).and_then(|file| file.set_len(0))
            {
                tracing::warn!(%error, "Could not empty {}", entry.path().display());
            }
        }
    }
}

/// Runs until it is asked to stop, or its handle is dropped.
pub(crate) async fn supervise(
    launcher: Launcher,
    mut server: Server,
    mut stop_asked: oneshot::Receiver<()>,
    running: watch::Sender<Option<i32>>,
) {
    let mut log_check = tokio::time::interval(LOG_CHECK_PERIOD);
    loop {
        let status = tokio::select! {
            _ = &mut stop_asked => {
                server.stop().await;
                return;
            }
            _ = log_check.tick() => {
                launcher.bound_logs();
                continue;
            }
            status = server.child.wait() => status,
        };
        running.send_replace(None);
        tracing::error!(status = %status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            "PostgreSQL ended by itself, starting it again");
        server = tokio::select! {
            _ = &mut stop_asked => return,
            server = launch_again(&launcher) => server,
        };
        running.send_replace(server.pid());
    }
}

/// Tries until it works: sessions of a killed server hold its memory for a moment, a full disk may be emptied.
async fn launch_again(launcher: &Launcher) -> Server {
    let mut pause = RESTART_PAUSE_MIN;
    loop {
        match launcher.launch().await {
            Ok(server) => return server,
            Err(error) => tracing::error!(%error, "PostgreSQL did not start, next try in {pause:?}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
    }
}
