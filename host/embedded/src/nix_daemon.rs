//! A store daemon on a private socket, with a store of its own: harmonia-daemon, or the distribution's nix-daemon. Start at
//! [`NixDaemon::start`].
//!
//! Its store has the usual names (`/nix/store/…`) but lies below another root, so it never meets the machine's store.
//! Clients name it `unix://SOCKET`; they find the files of `/nix/store/x` at `ROOT/nix/store/x`.

mod process_tree;
mod settings;
mod shell;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::process;

/// First words of the two sides of the worker protocol, 64 bits little endian (nix, `worker-protocol.hh`).
const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;
/// `sun_path` of unix(7) has 108 bytes with the final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(10);
const PROBE_TIMEOUT: Duration = Duration::from_mins(1);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const LOG_CHECK_PERIOD: Duration = Duration::from_mins(1);
const LOG_BYTES_MAX: u64 = 16 << 20;
const WORDS_BYTES_MAX: usize = 2_000;

/// Which daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonProgram {
    /// harmonia-daemon: this file.
    Harmonia(PathBuf),
    /// The nix-daemon of an installed Nix.
    Nix,
}

/// What to run and where.
#[derive(Debug, Clone)]
pub struct NixDaemonOptions {
    /// Which daemon. Both understand the same configuration and the same store.
    pub program: DaemonProgram,
    /// Store files go to `root/nix/store`, its database and build logs to `root/nix/var`.
    pub root: PathBuf,
    /// Configuration, log and the directories of running builds.
    pub state_dir: PathBuf,
    /// Where clients connect; its directory is created closed to others when missing. At most 107 bytes.
    pub socket: PathBuf,
    /// Whether builds see nothing but their inputs. Without it they can do whatever we can.
    pub sandbox: bool,
    /// A statically linked shell that is `/bin/sh` in the sandbox; busybox is looked for when absent.
    pub shell: Option<PathBuf>,
    /// Builds at the same time, for one client.
    pub max_jobs: u32,
    /// What a build is told to use; 0 is all.
    pub cores: u32,
    /// Further settings for `nix.conf`, after ours.
    pub settings: Vec<(String, String)>,
}

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum NixDaemonError {
    /// The programs of Nix are missing.
    #[error(
        "no {program} found in PATH: install Nix (Debian: apt install nix-bin; others: https://nixos.org/download)"
    )]
    NotInstalled {
        /// The program that was looked for.
        program: &'static str,
    },
    /// There is no harmonia-daemon.
    #[error(
        "{file} is no program: harmonia-daemon belongs beside harmonia-ci (or set store.daemon = \"nix\", for the nix-daemon of an installed Nix)"
    )]
    NoProgram {
        /// What was looked for.
        file: PathBuf,
    },
    /// No shell for the sandbox.
    #[error(
        "builds in a sandbox need a statically linked shell as /bin/sh, and {looked_at} is none: install one (Debian: apt install busybox-static), name one, or turn the sandbox off"
    )]
    NoStaticShell {
        /// What was looked at.
        looked_at: String,
    },
    /// Another process of ours has the store.
    #[error("the Nix store of {state_dir} is in use by another process: stop that one first")]
    InUse {
        /// The shared state directory.
        state_dir: PathBuf,
    },
    /// The kernel's bound on socket paths.
    #[error("the socket path {socket} has {length} bytes, and at most 107 are possible: choose a shorter one")]
    SocketTooLong {
        /// The path.
        socket: PathBuf,
        /// Its length.
        length: usize,
    },
    /// A path or setting that cannot stand in `nix.conf` or a store URL.
    #[error("{what} cannot be used for nix-daemon: it must be absolute, and without spaces or the characters ?&%#=")]
    Unusable {
        /// The path or setting.
        what: String,
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
        cause: io::Error,
    },
    /// The daemon ended instead of answering.
    #[error("nix-daemon ended while starting ({status}): {output}")]
    EndedAtStart {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// The daemon did not answer in time.
    #[error("nix-daemon did not answer within {waited:?}: {output}")]
    StartTimeout {
        /// The time it had.
        waited: Duration,
        /// The end of what it wrote.
        output: String,
    },
    /// A trial build in the sandbox failed.
    #[error(
        "builds in a sandbox do not work here: {output}. Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces), or turn the sandbox off"
    )]
    SandboxDoesNotWork {
        /// What nix said.
        output: String,
    },
}

/// A running daemon. It is started again when it dies, and ends with this process however that ends.
///
/// Dropping it ends it and its builds in the background; [`NixDaemon::stop`] waits.
#[derive(Debug)]
pub struct NixDaemon {
    socket: PathBuf,
    root: PathBuf,
    /// Where directories of builds are.
    builds: PathBuf,
    conf_dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    supervisor: JoinHandle<()>,
    running: watch::Receiver<Option<i32>>,
}

impl NixDaemon {
    /// Ends what an earlier run left, starts the daemon, waits until it answers, and tries one build in the sandbox.
    pub async fn start(options: NixDaemonOptions) -> Result<Self, NixDaemonError> {
        settings::check(&options)?;
        let program = match &options.program {
            DaemonProgram::Harmonia(file) if process::is_executable(file) => file.clone(),
            DaemonProgram::Harmonia(file) => return Err(NixDaemonError::NoProgram { file: file.clone() }),
            DaemonProgram::Nix => {
                process::find_program("nix-daemon").ok_or(NixDaemonError::NotInstalled { program: "nix-daemon" })?
            }
        };
        let shell = if options.sandbox { Some(shell::find(options.shell.as_deref())?) } else { None };
        let launcher = Launcher { program, conf_dir: options.state_dir.join("conf"), options };
        let lock = launcher.prepare(shell.as_deref()).await?;
        let child = launcher.launch().await?;
        let (stop, stop_asked) = oneshot::channel();
        let NixDaemonOptions { program, socket, root, sandbox, .. } = launcher.options.clone();
        let builds = launcher.builds();
        let conf_dir = launcher.conf_dir.clone();
        let (running_now, running) = watch::channel(id(&child));
        let supervisor = tokio::spawn(supervise(launcher, child, stop_asked, running_now, lock));
        let daemon = Self { socket, root, builds, conf_dir, stop: Some(stop), supervisor, running };
        if sandbox && let Err(error) = daemon.probe_sandbox(&program).await {
            daemon.stop().await;
            return Err(error);
        }
        tracing::info!("The store daemon answers at {}", daemon.socket.display());
        Ok(daemon)
    }

    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The store URL for clients, as in `NIX_REMOTE` and `--store`.
    pub fn store_url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The directory of `nix.conf`: clients that share it (`NIX_CONF_DIR`) do not ask substituters of the machine.
    pub fn conf_dir(&self) -> &Path {
        &self.conf_dir
    }

    /// The daemon's process, absent while it is being started again.
    pub fn pid(&self) -> Option<i32> {
        *self.running.borrow()
    }

    /// Waits until the daemon runs under another process id than `old`: after a crash, that is.
    pub async fn restarted_since(&self, old: i32) -> Option<i32> {
        let mut running = self.running.clone();
        let now = running.wait_for(|pid| pid.is_some_and(|pid| pid != old)).await.ok()?;
        *now
    }

    /// Ends the daemon with all its connections and builds, and waits until they are gone.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _already_gone = stop.send(());
        }
        if let Err(error) = (&mut self.supervisor).await {
            tracing::error!(%error, "The supervisor of nix-daemon did not end in order");
        }
    }

    /// One trivial build. It is there afterwards, so that later starts need not build it again.
    ///
    /// With the daemon's configuration and store, but in the client itself: since Nix 2.19 or so a client that builds through
    /// a daemon reads the `.drv` file afterwards, and looks for it in the machine's own `/nix/store`.
    ///
    /// harmonia-daemon tries its walls itself.
    async fn probe_sandbox(&self, program: &DaemonProgram) -> Result<(), NixDaemonError> {
        const PROBE: &str = r#"derivation { name = "harmonia-sandbox-probe"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo works > $out" ]; }"#;
        let file = match program {
            DaemonProgram::Harmonia(file) => file.clone(),
            DaemonProgram::Nix => {
                process::find_program("nix-build").ok_or(NixDaemonError::NotInstalled { program: "nix-build" })?
            }
        };
        let mut command = Command::new(&file);
        settings::isolate(&mut command, &self.conf_dir);
        match program {
            DaemonProgram::Harmonia(_) => {
                command.env("NIX_ROOT_DIR", &self.root).env("TMPDIR", &self.builds).arg("check")
            }
            DaemonProgram::Nix => {
                command.env("NIX_REMOTE", settings::local_store(&self.root)).args(["--no-out-link", "--expr", PROBE])
            }
        };
        command.stdin(Stdio::null()).kill_on_drop(true);
        let failed = |output: String| NixDaemonError::SandboxDoesNotWork { output };
        match tokio::time::timeout(PROBE_TIMEOUT, command.output()).await {
            Err(_) => Err(failed(format!("the trial build did not end within {PROBE_TIMEOUT:?}"))),
            Ok(Err(cause)) => Err(NixDaemonError::Io { doing: "run", path: file, cause }),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(failed(tail(&[output.stdout, output.stderr].concat()))),
        }
    }
}

struct Launcher {
    program: PathBuf,
    conf_dir: PathBuf,
    options: NixDaemonOptions,
}

impl Launcher {
    fn log(&self) -> PathBuf {
        self.options.state_dir.join("daemon.log")
    }

    fn builds(&self) -> PathBuf {
        self.options.state_dir.join("builds")
    }

    /// Takes the store for this process and clears away what an earlier one left.
    async fn prepare(&self, shell: Option<&Path>) -> Result<File, NixDaemonError> {
        let state = &self.options.state_dir;
        for directory in [&self.options.root, state, &self.conf_dir] {
            std::fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        if let Some(parent) = self.options.socket.parent().filter(|parent| !parent.exists()) {
            use std::os::unix::fs::DirBuilderExt;
            // Whoever connects is trusted with the whole store.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed("create", parent))?;
        }
        let path = state.join("lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(NixDaemonError::InUse { state_dir: state.clone() }),
            Err(cause) => return Err(failed("lock", &path)(cause.into())),
        }
        if process_tree::stop(state).await {
            tracing::warn!("Stopped the nix-daemon that an earlier run left behind");
        }
        let builds = self.builds();
        if builds.exists() {
            remove_builds(&builds).map_err(failed("remove", &builds))?;
        }
        std::fs::create_dir_all(&builds).map_err(failed("create", &builds))?;
        let conf = self.conf_dir.join("nix.conf");
        std::fs::write(&conf, settings::nix_conf(&self.options, shell)).map_err(failed("write", &conf))?;
        Ok(lock)
    }

    async fn launch(&self) -> Result<Child, NixDaemonError> {
        let socket = &self.options.socket;
        match std::fs::remove_file(socket) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed("remove", socket)(cause)),
            _ => {}
        }
        let log = self.log();
        std::fs::write(&log, "").map_err(failed("empty", &log))?;
        let output = File::options().append(true).open(&log).map_err(failed("open", &log))?;
        let errors = output.try_clone().map_err(failed("open", &log))?;
        let mut command = process::dying_with_us(&self.program, "TERM").await;
        settings::isolate(&mut command, &self.conf_dir);
        command
            .env("NIX_DAEMON_SOCKET_PATH", socket)
            .env("TMPDIR", self.builds())
            .env(process_tree::MARKER, &self.options.state_dir);
        command.env("HOME", &self.options.state_dir);
        match self.options.program {
            DaemonProgram::Harmonia(_) => command.env("NIX_ROOT_DIR", &self.options.root),
            DaemonProgram::Nix => command.arg("--store").arg(settings::local_store(&self.options.root)),
        };
        command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut child = process::spawn(command).await.map_err(failed("start", &self.program))?;
        if let Err(error) = self.until_ready(&mut child).await {
            self.end(&mut child).await;
            return Err(error);
        }
        Ok(child)
    }

    async fn until_ready(&self, child: &mut Child) -> Result<(), NixDaemonError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !answers(&self.options.socket).await {
            if let Ok(status) = tokio::time::timeout(READY_POLL, child.wait()).await {
                let status = status.unwrap_or_default();
                return Err(NixDaemonError::EndedAtStart { status, output: self.last_words() });
            }
            if Instant::now() >= deadline {
                return Err(NixDaemonError::StartTimeout { waited: START_TIMEOUT, output: self.last_words() });
            }
        }
        Ok(())
    }

    /// Ends the daemon and everything it started; the socket goes with it, so that clients see at once.
    async fn end(&self, child: &mut Child) {
        let (_, ended) = tokio::join!(process_tree::stop(&self.options.state_dir), child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, "Could not wait for nix-daemon");
        }
        drop(std::fs::remove_file(&self.options.socket));
    }

    fn last_words(&self) -> String {
        std::fs::read(self.log()).map(|bytes| tail(&bytes)).unwrap_or_default()
    }
}

fn id(child: &Child) -> Option<i32> {
    child.id().map(u32::cast_signed)
}

async fn supervise(
    launcher: Launcher,
    mut child: Child,
    mut stop_asked: oneshot::Receiver<()>,
    running: watch::Sender<Option<i32>>,
    lock: File,
) {
    let mut log_check = tokio::time::interval(LOG_CHECK_PERIOD);
    loop {
        let status = tokio::select! {
            _ = &mut stop_asked => break,
            _ = log_check.tick() => {
                bound_log(&launcher.log());
                continue;
            }
            status = child.wait() => status,
        };
        running.send_replace(None);
        tracing::error!(status = %status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            "nix-daemon ended by itself, starting it again");
        let again = async {
            loop {
                match launcher.launch().await {
                    Ok(child) => return child,
                    Err(error) => tracing::error!(%error, "nix-daemon did not start, next try in {RESTART_PAUSE:?}"),
                }
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        };
        child = tokio::select! {
            _ = &mut stop_asked => break,
            child = again => child,
        };
        running.send_replace(id(&child));
    }
    launcher.end(&mut child).await;
    drop(lock);
}

/// Whether something at the socket speaks the worker protocol.
async fn answers(socket: &Path) -> bool {
    let greeting = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&CLIENT_MAGIC.to_le_bytes()).await?;
        stream.read_u64_le().await
    };
    matches!(tokio::time::timeout(START_TIMEOUT, greeting).await, Ok(Ok(DAEMON_MAGIC)))
}

/// Empties a log that grew beyond its bound; the daemon appends, so it goes on at the new end.
fn bound_log(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX)
        && let Err(error) = File::options().write(true).open(log).and_then(|file| file.set_len(0))
    {
        tracing::warn!(%error, "Could not empty {}", log.display());
    }
}

/// A build may leave directories without the right to change them.
fn remove_builds(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700))?;
            remove_builds(&entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> NixDaemonError + 'a {
    move |cause| NixDaemonError::Io { doing, path: path.to_owned(), cause }
}

fn tail(output: &[u8]) -> String {
    String::from_utf8_lossy(&output[output.len().saturating_sub(WORDS_BYTES_MAX)..]).trim().to_owned()
}

#[cfg(test)]
mod tests;
