//! One engine process, in its sandbox. Start at [`Process::start`]; dropping it kills it and everything it started.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use harmonia_egress::{Egress, Refusal, Session};
use harmonia_sandbox::{Bind, Limits, Network, PrivateDirectory, SETUP_FAILED_EXIT_CODE, SandboxSpec, TextFile, User};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::{Engine, EngineError};

/// Longest line that is read as one; what lies beyond is dropped.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Where the daemon's socket is inside.
const SOCKET_INSIDE: &str = "/run/harmonia/daemon.socket";
const HOME_INSIDE: &str = "/home/engine";
/// Where the egress proxy listens inside, in a network that has nothing else.
const EGRESS_PORT: u16 = 3_128;
/// Where temporary files go, in memory: fetched archives are unpacked there.
const PRIVATE: [&str; 2] = [HOME_INSIDE, "/tmp"];
/// Real user and group of the engine when we are root: ids that no distribution hands out, so that limits of processes
/// are ours alone and the daemon does not trust it.
const ENGINE_ID: u32 = 29_999;

/// Where the engine runs.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    /// Command of a sandbox helper (`harmonia-ci sandbox-exec`). `None`: no sandbox, for machines that cannot and
    /// operators who said so; the store must be at `/nix/store` then.
    pub(crate) helper: Option<Vec<OsString>>,
    /// Socket of the store daemon on the host.
    pub(crate) daemon_socket: PathBuf,
    /// Where the files of `/nix/store` are on the host.
    pub(crate) store_dir: PathBuf,
    /// How the engine reaches the network (flake inputs that are not in the store). `None`: not at all.
    pub(crate) egress: Option<Egress>,
    /// Working directory and home when there is no sandbox.
    pub(crate) scratch_dir: PathBuf,
}

/// A running engine process.
pub(super) struct Process {
    child: Child,
    group: Option<rustix::process::Pid>,
    /// Where the sandbox says how much memory was used.
    usage: Option<tempfile::NamedTempFile>,
    /// Its way to the network; that ends with it.
    session: Option<Session>,
    pub(super) stdout: Lines<ChildStdout>,
    pub(super) stderr: Lines<ChildStderr>,
}

/// How a process ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) how: HowEnded,
    /// What it used of memory at most, in bytes, by the kernel's account; known of processes in a sandbox.
    pub(super) peak_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HowEnded {
    Exited(i32),
    Signal(i32),
}

impl Process {
    /// Starts `program` with this on its standard input.
    pub(super) async fn start(
        engine: &Engine,
        program: &Path,
        arguments: Vec<OsString>,
        input: String,
    ) -> Result<Self, EngineError> {
        let failed = |program: &Path| {
            let program = program.to_owned();
            |cause: io::Error| EngineError::Start { program, cause }
        };
        let mut header = Vec::new();
        let mut usage = None;
        let mut session = engine.confinement.egress.as_ref().map(|egress| egress.session(Vec::new()));
        let mut command = if let Some(helper) = &engine.confinement.helper {
            let mut spec = specification(engine, program, &arguments);
            let file = tempfile::NamedTempFile::new_in(&engine.confinement.scratch_dir).map_err(failed(program))?;
            spec.usage_file = Some(file.path().to_owned());
            usage = Some(file);
            header = spec.header().map_err(|error| EngineError::Sandbox(error.to_string()))?;
            let mut command = Command::new(&helper[0]);
            command.args(&helper[1..]).env_clear();
            command
        } else {
            let mut command = Command::new(program);
            let (scratch, socket) = (&engine.confinement.scratch_dir, &engine.confinement.daemon_socket);
            // Nothing holds it to the proxy here, but what asks the proxy is held to the rules.
            let proxy = match &mut session {
                Some(session) => Some(session.serve_here().await.map_err(failed(program))?),
                None => None,
            };
            let (socket, home) = (socket.to_string_lossy(), scratch.to_string_lossy());
            let environment = environment(engine, program, &socket, &home, proxy.as_deref());
            command.args(&arguments).env_clear().current_dir(scratch).envs(environment);
            command
        };
        // A socket, so that the sandbox can hand its listener to us.
        let (mut stdin, theirs) = std::os::unix::net::UnixStream::pair()
            .and_then(|(ours, theirs)| {
                ours.set_nonblocking(true)?;
                Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
            })
            .map_err(failed(program))?;
        command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let started = engine.confinement.helper.as_ref().map_or(program, |helper| Path::new(&helper[0]));
        let mut child = command.spawn().map_err(failed(started))?;
        // It holds the other end of the standard input, whose end would not show otherwise.
        drop(command);
        let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(started)(io::Error::other("its standard streams are missing")));
        };
        let mut process = Self { child, group, usage, session, stdout: Lines::new(stdout), stderr: Lines::new(stderr) };
        if let (Some(session), Some(_)) = (&mut process.session, &engine.confinement.helper) {
            // A sandbox that cannot be set up says why in how it ends.
            if stdin.write_all(&std::mem::take(&mut header)).await.is_ok()
                && let Some(listener) = receive_listener(&stdin).await.map_err(failed(started))?
            {
                session.serve(listener).map_err(failed(started))?;
            }
        }
        // Beside reading, or a process that prints before it has read everything would wait for us, and we for it. That
        // it ends without reading everything shows in how it ends.
        tokio::spawn(async move {
            if stdin.write_all(&header).await.is_ok() && stdin.write_all(input.as_bytes()).await.is_ok() {
                drop(stdin.shutdown().await);
            }
        });
        Ok(process)
    }

    /// What it was refused of the network.
    pub(super) fn refused(&self) -> Vec<Refusal> {
        self.session.as_ref().map(Session::refused).unwrap_or_default()
    }

    /// What it used of memory at most so far, as [`Ended::peak_bytes`].
    pub(super) async fn peak_bytes(&mut self) -> Result<Option<u64>, EngineError> {
        if self.usage.is_none() {
            return Ok(None);
        }
        let running = self.child.id().and_then(peak_below);
        if running.is_some() {
            return Ok(running);
        }
        // It ended, with what it printed unread.
        Ok(self.ended("").await?.peak_bytes)
    }

    /// Waits for its end. A sandbox that could not be set up is an error, for which `last_words` is the reason.
    pub(super) async fn ended(&mut self, last_words: &str) -> Result<Ended, EngineError> {
        let status: ExitStatus = self.child.wait().await.map_err(EngineError::Pipe)?;
        let peak_bytes = self.usage.as_ref().and_then(|file| harmonia_sandbox::read_usage(file.path()));
        match (status.code(), status.signal()) {
            (Some(SETUP_FAILED_EXIT_CODE), _) if last_words.contains("sandbox: ") => {
                Err(EngineError::Sandbox(last_words.replace("sandbox: ", "").trim().to_owned()))
            }
            (Some(code), _) => Ok(Ended { how: HowEnded::Exited(code), peak_bytes }),
            (None, signal) => Ok(Ended { how: HowEnded::Signal(signal.unwrap_or_default()), peak_bytes }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // While the leader is not reaped its id, and so the group's, is its own.
        if let (Some(group), Some(_)) = (self.group, self.child.id()) {
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Whether the kernel says which processes are below another, so that what a running one used can be told.
pub(crate) fn tells_what_runs() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

/// The largest resident set of any process below this one, in bytes; `None` when there is none.
fn peak_below(process: u32) -> Option<u64> {
    let mut peak = None;
    let mut open = children(process);
    while let Some(process) = open.pop() {
        open.extend(children(process));
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.map(|kib: u64| kib << 10));
    }
    peak
}

fn children(process: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}

async fn receive_listener(socket: &UnixStream) -> io::Result<Option<std::net::TcpListener>> {
    loop {
        socket.readable().await?;
        let receive = || harmonia_sandbox::proxied::receive_listener(socket.as_fd());
        match socket.try_io(tokio::io::Interest::READABLE, receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It ended before it had read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => return received,
        }
    }
}

fn environment(
    engine: &Engine,
    program: &Path,
    socket: &str,
    home: &str,
    proxy: Option<&str>,
) -> Vec<(String, String)> {
    let mut path = "/usr/local/bin:/usr/bin:/bin".to_owned();
    if let Some(directory) = program.parent() {
        path = format!("{}:{path}", directory.display());
    }
    let config = format!(
        "experimental-features = nix-command flakes\nuse-registries = false\naccept-flake-config = false\n\
         pure-eval = true\nconnect-timeout = 15\nallow-import-from-derivation = {}\n",
        engine.allow_ifd
    );
    // What libcurl reads: Nix and git fetch with it.
    let proxies = ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let proxies = proxy.into_iter().flat_map(|proxy| proxies.map(|name| (name, proxy)));
    [
        ("PATH", path.as_str()),
        ("HOME", home),
        ("TMPDIR", if engine.confinement.helper.is_some() { "/tmp" } else { home }),
        ("LANG", "C.UTF-8"),
        ("NIX_REMOTE", "daemon"),
        ("NIX_DAEMON_SOCKET_PATH", socket),
        ("NIX_CONFIG", config.as_str()),
        // Neither the host's nor a user's settings (which may hold access tokens).
        ("NIX_CONF_DIR", "/nonexistent"),
        ("NIX_USER_CONF_FILES", ""),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
    ]
    .into_iter()
    .chain(proxies)
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

fn specification(engine: &Engine, program: &Path, arguments: &[OsString]) -> SandboxSpec {
    let confinement = &engine.confinement;
    let proxy = confinement.egress.as_ref().map(|_| format!("http://127.0.0.1:{EGRESS_PORT}"));
    let environment = environment(engine, program, SOCKET_INSIDE, HOME_INSIDE, proxy.as_deref());
    // Together as much as the process itself: what an operator allows is doubled, whatever it is.
    let private_bytes = engine.memory_bytes_max / PRIVATE.len() as u64;
    let mut spec = SandboxSpec {
        binds: vec![
            Bind::at(&confinement.store_dir, harmonia_nix::STORE_DIR),
            Bind::at(&confinement.daemon_socket, SOCKET_INSIDE),
        ],
        files: vec![TextFile { path: "/etc/hostname".into(), text: "localhost\n".to_owned() }],
        private: PRIVATE.map(|path| PrivateDirectory { path: path.into(), size_bytes: private_bytes }).to_vec(),
        dev: true,
        proc: true,
        env: environment.into_iter().collect(),
        argv: std::iter::once(program.as_os_str())
            .chain(arguments.iter().map(OsString::as_os_str))
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect(),
        cwd: HOME_INSIDE.into(),
        network: proxy.map_or(Network::None, |_| Network::Proxied { port: EGRESS_PORT }),
        limits: Limits {
            memory_bytes: Some(engine.memory_bytes_max),
            processes: Some(1_024),
            open_files: Some(4_096),
            file_bytes: Some(private_bytes),
            ..Limits::default()
        },
        user: User { uid: ENGINE_ID, gid: ENGINE_ID },
        ..SandboxSpec::default()
    };
    spec.add_system();
    // An engine outside the system directories and the store (an own build, say): its directory.
    let known = ["/usr", "/bin", harmonia_nix::STORE_DIR].iter().any(|place| program.starts_with(place));
    if let (false, Some(directory)) = (known, program.parent()) {
        spec.binds.push(Bind::same(directory));
    }
    spec
}

/// Lines of a stream, each of bounded length.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    /// What has come of the next one. Here, not in the future that reads: that is dropped wherever another is ready first.
    line: Vec<u8>,
    bytes_max: usize,
}

impl<R: tokio::io::AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, stream), line: Vec::new(), bytes_max: LINE_BYTES_MAX }
    }

    /// The next line without its end; `None` at the end of the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        loop {
            let available = self.reader.fill_buf().await.map_err(EngineError::Pipe)?;
            if available.is_empty() {
                return Ok((!self.line.is_empty()).then(|| std::mem::take(&mut self.line)));
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let piece = &available[..end.unwrap_or(available.len())];
            let room = self.bytes_max.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            let used = piece.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded() {
        let reader = BufReader::with_capacity(3, &b"ab\n\ncdefghij\nkl"[..]);
        let mut lines = Lines { reader, line: Vec::new(), bytes_max: 4 };
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.expect("reads") {
            read.push(String::from_utf8(line).expect("text"));
        }
        assert_eq!(read, ["ab", "", "cdef", "kl"]);
    }

    #[tokio::test]
    async fn a_line_that_comes_in_pieces_is_whole_however_often_others_are_ready_first() {
        let (mut theirs, ours) = tokio::io::duplex(64);
        let mut lines = Lines::new(ours);
        for piece in ["be", "gi"] {
            theirs.write_all(piece.as_bytes()).await.expect("written");
            tokio::select! {
                biased;
                line = lines.next() => panic!("{line:?}"),
                () = std::future::ready(()) => {}
            }
        }
        theirs.write_all(b"ns\nends").await.expect("written");
        drop(theirs);
        assert_eq!(lines.next().await.expect("reads"), Some(b"begins".to_vec()));
        assert_eq!(lines.next().await.expect("reads"), Some(b"ends".to_vec()));
        assert_eq!(lines.next().await.expect("reads"), None);
    }
}
