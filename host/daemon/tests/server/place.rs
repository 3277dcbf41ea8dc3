//! Our daemon with a store, a socket and a configuration of its own in a temporary folder. It ends with its handle.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use harmonia_nix::nar::NarWriter;
use harmonia_nix::worker_protocol::{Client, ClientGreeting, LogTarget, PathInfo, ValidPathInfo};
use harmonia_nix::{NarHash, StorePath};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) type TestClient = Client<OwnedReadHalf, OwnedWriteHalf>;

pub(crate) struct Place {
    child: Child,
    folder: tempfile::TempDir,
}

/// The archive of one file.
pub(crate) fn archive(contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = NarWriter::new(&mut bytes).expect("memory");
    writer.regular(false, contents.len() as u64, contents, &mut [0; 4096], "x").expect("memory");
    bytes
}

/// A path with an archive of one file.
pub(crate) fn valid(name: &str, contents: &str, references: &[&StorePath]) -> (ValidPathInfo, Vec<u8>) {
    let nar = archive(contents.as_bytes());
    let path = StorePath::make_output(name, "out", NarHash::of(name.as_bytes())).expect("a name");
    let mut info = PathInfo::new(NarHash::of(&nar), nar.len() as u64);
    info.references = references.iter().copied().cloned().collect();
    (ValidPathInfo { path, info }, nar)
}

/// How far a daemon came before it was killed.
pub(crate) struct Killed {
    /// How many of the paths are valid.
    pub(crate) valid: usize,
}

impl Place {
    pub(crate) async fn start() -> Self {
        let folder = folder();
        let child = start(folder.path());
        let place = Self { child, folder };
        place.listens().await;
        place
    }

    /// With a socket that is there before it.
    pub(crate) async fn start_activated() -> Self {
        let folder = folder();
        let script = "import os, socket, sys\n\
                      s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(8); os.dup2(s.fileno(), 3); os.set_inheritable(3, True)\n\
                      os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), NIX_DAEMON_SOCKET_PATH='/absent/x')\n\
                      os.execv(sys.argv[2], [sys.argv[2]])";
        let mut command = Command::new("setpriv");
        environment(&mut command, folder.path());
        command.args(["--pdeathsig", "KILL", "--", "python3", "-c", script]).arg(folder.path().join("socket"));
        let child = command.arg(env!("CARGO_BIN_EXE_harmonia-daemon")).spawn().expect("python3 is installed");
        let place = Self { child, folder };
        place.listens().await;
        place
    }

    pub(crate) async fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = start(self.folder.path());
        self.listens().await;
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    pub(crate) fn uri(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) async fn connect(&self) -> TestClient {
        self.connect_with(&ClientGreeting::default(), LogTarget::Discard).await
    }

    pub(crate) async fn connect_with(&self, greeting: &ClientGreeting, log: LogTarget) -> TestClient {
        let stream = UnixStream::connect(self.socket()).await.expect("the daemon listens");
        let (reader, writer) = stream.into_split();
        Client::connect_with(reader, writer, greeting, log).await.expect("a greeting")
    }

    async fn listens(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not listen: {}", self.log());
            tokio::task::yield_now().await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// What a program of stock Nix says that asks our daemon.
    pub(crate) fn client(&self, program: &str, args: &[&str]) -> String {
        let output = self.environment(Command::new(program).args(args)).env("NIX_REMOTE", self.uri()).output();
        let output = output.expect("Nix is installed");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    pub(crate) fn client_error(&self, program: &str, args: &[&str]) -> String {
        let output = self.environment(Command::new(program).args(args)).env("NIX_REMOTE", self.uri()).output();
        let output = output.expect("Nix is installed");
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What `nix-store` says that works on the files itself, beside our daemon.
    pub(crate) fn stock(&self, args: &[&str]) -> String {
        let store = format!("local?root={}", self.path("root").display());
        let mut command = Command::new("nix-store");
        let output = self.environment(command.args(["--store", &store]).args(args)).output().expect("Nix is installed");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        String::from_utf8(output.stdout).expect("text") + if args.contains(&"--verify") { &told } else { "" }
    }

    pub(crate) fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        environment(command, self.folder.path())
    }

    pub(crate) fn names_in_store(&self) -> Vec<String> {
        let dir = fs::read_dir(self.path("root/nix/store")).expect("listed");
        dir.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }

    pub(crate) fn resident_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// Adds all of these at once; when so many bytes of archives are sent, the daemon is killed.
    pub(crate) async fn add_and_kill(&mut self, paths: &[(ValidPathInfo, Vec<u8>)], after: usize) -> Killed {
        let mut client = self.connect().await;
        let process = rustix::process::Pid::from_child(&self.child);
        let sent = std::rc::Rc::new(std::cell::Cell::new(0));
        let archives =
            paths.iter().map(|(valid, nar)| (valid.clone(), Killer { left: nar, sent: sent.clone(), after, process }));
        let done = client.add_multiple_to_store(archives.collect::<Vec<_>>(), false, true).await;
        let _ = self.child.kill();
        let _ = self.child.wait();
        let database = rusqlite::Connection::open(self.path("root/nix/var/nix/db/db.sqlite")).expect("a database");
        let valid: i64 = database.query_row("select count(*) from ValidPaths", [], |row| row.get(0)).expect("a row");
        let valid = usize::try_from(valid).expect("a count");
        assert!(done.is_err() || valid == paths.len(), "it said that all are added");
        Killed { valid }
    }
}

/// An archive that kills the daemon when enough was sent.
struct Killer<'a> {
    left: &'a [u8],
    sent: std::rc::Rc<std::cell::Cell<usize>>,
    after: usize,
    process: rustix::process::Pid,
}

impl AsyncRead for Killer<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = self.left.len().min(buffer.remaining()).min(8 << 10);
        buffer.put_slice(&self.left[..length]);
        self.left = &self.left[length..];
        let sent = self.sent.get() + length;
        self.sent.set(sent);
        if sent >= self.after {
            let _ = rustix::process::kill_process(self.process, rustix::process::Signal::KILL);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("conf")).expect("made");
    let settings = "build-users-group =\nsubstituters =\nexperimental-features = nix-command\n";
    fs::write(folder.path().join("conf/nix.conf"), settings).expect("written");
    folder
}

fn start(folder: &Path) -> Child {
    // setpriv: should this process be killed, the daemon goes with it.
    let mut command = Command::new("setpriv");
    let command = environment(&mut command, folder)
        .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_harmonia-daemon")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("daemon.log")).expect("a file"));
    command.spawn().expect("setpriv (util-linux) is installed")
}

fn environment<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .current_dir(folder)
        .env("NIX_ROOT_DIR", folder.join("root"))
        .env("NIX_CONF_DIR", folder.join("conf"))
        .env("NIX_DAEMON_SOCKET_PATH", folder.join("socket"))
        .env("HOME", folder)
        .env_remove("NIX_REMOTE")
        .env_remove("NIX_PATH")
}

pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("raised");
}
