//! A stock `nix-daemon` with a private store, socket and configuration in a temporary folder. It ends with its handle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::{Client, ClientGreeting, LogTarget};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let conf = folder.path().join("conf");
        fs::create_dir(&conf).expect("a folder");
        // A store below another root is always built in Nix's sandbox, which has nothing but this shell.
        let settings = "build-users-group =\nsubstituters =\nsandbox-paths = /bin/sh=/bin/busybox\n\
                        experimental-features = nix-command\ncores = 1\nmax-jobs = 2\n";
        fs::write(conf.join("nix.conf"), settings).expect("a file");
        // Made now, since the first connections of a daemon would race to make it.
        let store = format!("local?root={}", folder.path().join("root").display());
        let made = command("nix-store", folder.path()).args(["--store", &store, "--init"]).status();
        assert!(made.expect("Nix is installed").success());
        // setpriv: should this process be killed, the daemon goes with it.
        let child = command("setpriv", folder.path())
            .args(["--pdeathsig", "KILL", "--", "nix-daemon", "--store", &store])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("daemon.log")).expect("a file"))
            .spawn()
            .expect("setpriv (util-linux) and nix-daemon are installed");
        let daemon = Self { child, folder };
        let socket = daemon.socket();
        until(Duration::from_secs(20), "the daemon listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await;
        daemon
    }

    pub(crate) async fn connect(&self, log: LogTarget) -> Client<OwnedReadHalf, OwnedWriteHalf> {
        let stream = UnixStream::connect(self.socket()).await.expect("the daemon listens");
        let (reader, writer) = stream.into_split();
        Client::connect_with(reader, writer, &ClientGreeting::default(), log).await.expect("a greeting")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a path of the store really is.
    pub(crate) fn real(&self, path: &StorePath) -> PathBuf {
        self.folder.path().join(format!("root{path}"))
    }

    /// What the stock client says, asking the same daemon.
    pub(crate) fn nix_store(&self, args: &[&str]) -> String {
        ask(command("nix-store", self.folder.path()).args(args))
    }

    pub(crate) fn instantiate(&self, expression: &str) -> String {
        ask(command("nix-instantiate", self.folder.path()).args(["-E", expression]))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its children, one a connection, end with their connections.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(command: &mut Command) -> String {
    let output = command.env("NIX_REMOTE", "daemon").output().expect("Nix is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
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
pub(crate) async fn until(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {time:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
