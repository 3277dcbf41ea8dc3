//! Runs the git program, for the evaluator, for polling and for the command line. Start at [`GitCommand`]; what git's words
//! may be is `harmonia_core::git`.
//!
//! There are two ways to run it. [`GitCommand::server`] is for repositories, URLs and refs of strangers: an empty
//! environment, no configuration, no hooks, no home, no identity of this machine (ssh keys, agents, passwords), and only
//! the transports that are allowed. [`GitCommand::user`] is for somebody's own clone: with that user's configuration, since
//! that decides what is ignored and how files are read, but so that nothing in the clone changes.

pub(crate) mod way;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use harmonia_core::without_credentials;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Most that is kept of what git prints.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Most that is shown of git's own words, in characters.
const MESSAGE_CHARS_MAX: usize = 4_000;
/// Longest record of a long output ([`GitCommand::records`]) that is looked at.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// What tells git which repository to use, and how: of a git that runs us (a hook, an alias), not ours.
const FOREIGN_ENVIRONMENT: [&str; 17] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CEILING_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];
/// An ssh that has nothing to show for itself: no configuration, keys, agent, tickets or passwords of this machine.
const SSH_NOBODY: &str = "ssh -F none -oBatchMode=yes -oIdentityFile=none -oIdentitiesOnly=yes -oIdentityAgent=none \
    -oPubkeyAuthentication=no -oHostbasedAuthentication=no -oGSSAPIAuthentication=no -oPasswordAuthentication=no \
    -oKbdInteractiveAuthentication=no -oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=accept-new \
    -oForwardAgent=no -oPermitLocalCommand=no -oProxyCommand=none -oControlPath=none";

/// How git may reach repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transports {
    /// Not at all.
    None,
    /// https and http.
    Http,
    /// Also ssh and git.
    Servers,
    /// Also repositories of this machine.
    ServersAndFiles,
}

impl Transports {
    const fn as_env(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Http => "https:http",
            Self::Servers => "https:http:ssh:git",
            Self::ServersAndFiles => "https:http:ssh:git:file",
        }
    }
}

/// Why git gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum GitFailure {
    /// The program does not start.
    #[error("could not run {}: is git installed?", program.display())]
    Start {
        /// What was started.
        program: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// It took too long.
    #[error("git {command} did not end within {} s", after.as_secs())]
    Timeout {
        /// Which of git's commands.
        command: &'static str,
        /// Its bound.
        after: Duration,
    },
    /// It failed; the text is its own.
    #[error("git {command} failed: {message}")]
    Failed {
        /// Which of git's commands.
        command: &'static str,
        /// `None`: killed by a signal.
        status: Option<i32>,
        /// Its standard error.
        message: String,
        /// What it had printed.
        stdout: Vec<u8>,
    },
}

/// One run of git.
#[derive(Debug)]
pub struct GitCommand {
    name: &'static str,
    program: PathBuf,
    command: Command,
    time_max: Option<Duration>,
    input: Vec<u8>,
}

impl GitCommand {
    /// For what strangers wrote. `name` is git's command, `folder` where it runs.
    pub fn server(program: &Path, folder: &Path, name: &'static str, transports: Transports) -> Self {
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_SSH_COMMAND", SSH_NOBODY)
            .env("GIT_SSH_VARIANT", "ssh")
            .env("GIT_ALLOW_PROTOCOL", transports.as_env())
            .env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder))
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            // Its helpers (git-remote-https, ssh, index-pack) end with it.
            .process_group(0);
        let settings = [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.autocrlf=false",
            "core.symlinks=true",
            "core.attributesFile=/dev/null",
            "credential.helper=",
            "gc.auto=0",
            "maintenance.auto=false",
            "fetch.fsckObjects=false",
            "fetch.recurseSubmodules=false",
            "protocol.ext.allow=never",
            "safe.directory=*",
            "advice.detachedHead=false",
            "http.followRedirects=initial",
            // Where there is a proxy it is ours; it need not be asked first.
            "http.proxyAuthMethod=basic",
            "http.lowSpeedLimit=1000",
            "http.lowSpeedTime=60",
        ];
        Self::with(program, command, name, &settings)
    }

    /// For a user's own clone.
    pub fn user(folder: &Path, name: &'static str) -> Self {
        let program = Path::new("git");
        let mut command = Command::new(program);
        command.current_dir(folder).env("GIT_OPTIONAL_LOCKS", "0");
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        let settings = [
            "core.hooksPath=/dev/null",
            // Nothing is left running or rewritten in the clone.
            "core.fsmonitor=false",
            "core.splitIndex=false",
            "gc.auto=0",
            "maintenance.auto=false",
            "advice.addEmbeddedRepo=false",
        ];
        Self::with(program, command, name, &settings)
    }

    fn with(program: &Path, mut command: Command, name: &'static str, settings: &[&str]) -> Self {
        for setting in settings {
            command.args(["-c", setting]);
        }
        Self { name, program: program.to_owned(), command, time_max: None, input: Vec::new() }
    }

    /// Git's command and its arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Bounds its time.
    #[must_use]
    pub const fn time_max(mut self, time_max: Duration) -> Self {
        self.time_max = Some(time_max);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn input(mut self, bytes: Vec<u8>) -> Self {
        self.input = bytes;
        self
    }

    /// Runs it; returns what it printed, up to a bound.
    pub async fn output(self) -> Result<Vec<u8>, GitFailure> {
        self.run(Stdio::piped(), async |stdout| read_bounded(stdout).await).await
    }

    /// Runs it; returns what it printed as text.
    pub async fn text(self) -> Result<String, GitFailure> {
        Ok(String::from_utf8_lossy(&self.output().await?).into_owned())
    }

    /// Runs it; what it prints goes to a file.
    pub async fn into_file(self, file: std::fs::File) -> Result<(), GitFailure> {
        self.run(file.into(), async |_| Vec::new()).await.map(drop)
    }

    /// Runs it, and shows each record of its output (those end with `end`); of those that `keep` wants, what it makes of them
    /// is returned, up to `count_max`. The output may be of any length.
    pub async fn records<T>(
        self,
        end: u8,
        count_max: usize,
        keep: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, GitFailure> {
        let mut kept = Vec::new();
        let read = async |stdout: Option<ChildStdout>| {
            let Some(stdout) = stdout else { return Vec::new() };
            let mut reader = BufReader::with_capacity(64 << 10, stdout);
            let mut record = Vec::new();
            // What cannot be read is the end; then git fails, or has ended.
            while (&mut reader).take(RECORD_BYTES_MAX).read_until(end, &mut record).await.is_ok_and(|read| read > 0) {
                if kept.len() < count_max {
                    kept.extend(keep(record.strip_suffix(&[end]).unwrap_or(&record)));
                }
                record.clear();
            }
            Vec::new()
        };
        self.run(Stdio::piped(), read).await?;
        Ok(kept)
    }

    async fn run(
        mut self,
        stdout: Stdio,
        read: impl AsyncFnOnce(Option<ChildStdout>) -> Vec<u8>,
    ) -> Result<Vec<u8>, GitFailure> {
        let stdin = if self.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(stdin).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true);
        let child = self.command.spawn().map_err(|cause| GitFailure::Start { program: self.program.clone(), cause })?;
        let mut running = Running(child);
        let child = &mut running.0;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = std::mem::take(&mut self.input);
        let write = async {
            let Some(mut stdin) = stdin else { return };
            // That it ends without reading everything shows in how it ends.
            drop(stdin.write_all(&input).await);
        };
        let work = async { tokio::join!(write, read(stdout), read_bounded(stderr), child.wait()) };
        let ((), stdout, stderr, status) = match self.time_max {
            None => work.await,
            Some(after) => tokio::time::timeout(after, work)
                .await
                .map_err(|_| GitFailure::Timeout { command: self.name, after })?,
        };
        if status.as_ref().is_ok_and(ExitStatus::success) {
            return Ok(stdout);
        }
        let message = without_credentials(String::from_utf8_lossy(&stderr).trim());
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        let status = status.ok().and_then(|status| status.code());
        Err(GitFailure::Failed { command: self.name, status, message, stdout })
    }
}

/// Ends with everything that it started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // While the leader is not reaped its id, and so the group's, is its own. A user's git leads no group: nothing happens.
        if let Some(group) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut bytes = Vec::new();
    // The rest is read and dropped, so that git does not wait for us; what cannot be read is empty.
    drop((&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await);
    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
    bytes
}

#[cfg(test)]
mod tests;
