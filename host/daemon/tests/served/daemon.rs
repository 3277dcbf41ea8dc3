//! A store daemon, Nix's or ours, with a store, a socket and a configuration of its own in a temporary folder. It ends with
//! its handle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::{Client, ClientGreeting, LogTarget};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Whose daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    Nix,
    Ours,
}

pub(crate) type Connection = Client<OwnedReadHalf, OwnedWriteHalf>;

pub(crate) struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

const SETTINGS: &str = "build-users-group =\nsubstituters =\nsandbox = true\nsandbox-paths = /bin/sh=/bin/busybox\n\
                        cores = 1\nmax-jobs = 2\nfsync-metadata = false\n";

impl Daemon {
    pub(crate) async fn start(maker: Maker) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let conf = folder.path().join("conf");
        fs::create_dir(&conf).expect("a folder");
        fs::write(conf.join("nix.conf"), SETTINGS).expect("a file");
        let root = folder.path().join("root");
        // setpriv: should this process be killed, the daemon goes with it.
        let mut daemon = command("setpriv", folder.path());
        daemon.args(["--pdeathsig", "KILL", "--"]);
        match maker {
            Maker::Nix => {
                let store = format!("local?root={}", root.display());
                // Made now, since the first connections of a daemon would race to make it.
                let made = command("nix-store", folder.path()).args(["--store", &store, "--init"]).status();
                assert!(made.expect("Nix is installed").success());
                daemon.args(["nix-daemon", "--store", &store]);
            }
            Maker::Ours => {
                daemon.arg(env!("CARGO_BIN_EXE_harmonia-daemon")).env("NIX_ROOT_DIR", &root);
            }
        }
        let child = daemon
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("daemon.log")).expect("a file"))
            .spawn()
            .expect("setpriv (util-linux) and nix-daemon are installed");
        let daemon = Self { child, folder };
        let (socket, deadline) = (daemon.socket(), Instant::now() + Duration::from_secs(20));
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not listen: {}", daemon.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.connect_with(LogTarget::Discard).await
    }

    pub(crate) async fn connect_with(&self, log: LogTarget) -> Connection {
        let stream = UnixStream::connect(self.socket()).await.expect("the daemon listens");
        let (reader, writer) = stream.into_split();
        Client::connect_with(reader, writer, &ClientGreeting::default(), log).await.expect("a greeting")
    }

    /// Where a path of the store really is.
    pub(crate) fn real(&self, path: &StorePath) -> PathBuf {
        self.folder.path().join(format!("root{path}"))
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("root/nix/var/nix/db/db.sqlite")
    }

    /// Writes the derivations that a file evaluates to into the store.
    pub(crate) fn instantiate(&self, file: &Path) -> Vec<StorePath> {
        let mut instantiate = command("nix-instantiate", self.folder.path());
        let output = instantiate.arg(file).env("NIX_REMOTE", "daemon").output().expect("Nix is installed");
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| line.parse().expect("a store path")).collect()
    }

    /// The same for an expression, of derivations by name.
    pub(crate) fn instantiate_text(&self, expression: &str) -> Vec<StorePath> {
        let file = self.folder.path().join("expression.nix");
        fs::write(&file, expression).expect("a file");
        self.instantiate(&file)
    }

    /// Kills it without a word.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// What the daemon had to say.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("NIX_CONF_DIR", folder.join("conf"))
        .env("NIX_DAEMON_SOCKET_PATH", folder.join("socket"))
        .env("HOME", folder)
        .env_remove("NIX_REMOTE")
        .env_remove("NIX_PATH");
    command
}

/// How many processes have this in their command line.
pub(crate) fn processes_with(marker: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
    let command_lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    command_lines.filter(|line| line.windows(marker.len()).any(|part| part == marker.as_bytes())).count()
}

/// Waits for a condition that nobody announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
