//! Two stores in a temporary folder: one that our store and stock Nix work on together, and one of stock Nix alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_daemon::store::{Layout, Store, StoreSettings};
use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::{Client, ClientGreeting, LogTarget, PathInfo};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for dir in ["conf", "root", "other", "tmp"] {
            fs::create_dir(folder.path().join(dir)).expect("made");
        }
        let settings = "build-users-group =\nsubstituters =\nexperimental-features = nix-command\n";
        fs::write(folder.path().join("conf/nix.conf"), settings).expect("written");
        Self { folder }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        Store::open(Layout::below(Some(&self.path("root"))), StoreSettings::default()).expect("a store")
    }

    /// `nix-store` on the common store.
    pub(crate) fn stock_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("nix-store", "root");
        command.args(args);
        command
    }

    pub(crate) fn stock(&self, args: &[&str]) -> String {
        output(&mut self.stock_command(args))
    }

    /// `nix-store` on its own store.
    pub(crate) fn other_stock(&self, args: &[&str]) -> String {
        output(self.command("nix-store", "other").args(args))
    }

    /// Adds a tree there under another name.
    pub(crate) fn other_stock_named(&self, tree: &Path, name: &str) {
        let mut command = self.command("nix", "other");
        output(command.args(["store", "add-path", "--name", name]).arg(tree));
    }

    /// Writes a derivation there; its path.
    pub(crate) fn instantiate(&self, expression: &str) -> String {
        output(self.command("nix-instantiate", "other").args(["-E", expression])).trim().to_owned()
    }

    /// What a path there needs, what is needed first.
    pub(crate) fn other_closure(&self, path: &StorePath) -> Vec<(StorePath, PathInfo)> {
        let store = Store::open(Layout::below(Some(&self.path("other"))), StoreSettings::default()).expect("a store");
        let text = self.other_stock(&["--query", "--requisites", path.as_str()]);
        let paths = text.lines().map(|line| line.parse::<StorePath>().expect("a path"));
        paths.map(|path| (path.clone(), store.valid_path_info(&path).expect("valid"))).collect()
    }

    pub(crate) fn other_real(&self, path: &StorePath) -> PathBuf {
        self.path(&format!("other{path}"))
    }

    fn command(&self, program: &str, root: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("HOME", self.folder.path())
            .env_remove("NIX_REMOTE")
            .env_remove("NIX_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.arg("--store").arg(format!("local?root={}", self.path(root).display()));
        command
    }

    /// All rows but times and numbers, as text.
    pub(crate) fn rows(&self) -> Vec<String> {
        rows(&self.path("root"))
    }

    pub(crate) fn other_rows(&self) -> Vec<String> {
        rows(&self.path("other"))
    }

    /// Mode, time, owner and size of each file.
    pub(crate) fn metadata(&self, below: &str) -> BTreeMap<PathBuf, (u32, i64, u32, u32, u64)> {
        metadata(&self.path("root").join(below))
    }

    pub(crate) fn other_metadata(&self, below: &str) -> BTreeMap<PathBuf, (u32, i64, u32, u32, u64)> {
        metadata(&self.path("other").join(below))
    }

    pub(crate) fn link_counts(&self) -> BTreeMap<PathBuf, u64> {
        link_counts(&self.path("root/nix/store"))
    }

    pub(crate) fn other_link_counts(&self) -> BTreeMap<PathBuf, u64> {
        link_counts(&self.path("other/nix/store"))
    }

    pub(crate) fn names_in_store(&self) -> Vec<String> {
        let dir = fs::read_dir(self.path("root/nix/store")).expect("listed");
        dir.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }

    /// A daemon of stock Nix on the common store.
    pub(crate) fn stock_daemon(&self) -> StockDaemon {
        let socket = self.path("stock-socket");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "nix-daemon", "--store"])
            .arg(format!("local?root={}", self.path("root").display()))
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .env_remove("NIX_REMOTE")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv and nix-daemon are installed");
        let daemon = StockDaemon { child, socket };
        until("nix-daemon listens", || std::os::unix::net::UnixStream::connect(&daemon.socket).is_ok());
        daemon
    }

    /// A collection of stock Nix that has looked for roots and waits.
    pub(crate) fn paused_collection(&self) -> PausedCollection {
        let pipe = self.path("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("coreutils");
        assert!(made.success());
        let child = self.stock_command(&["--gc"]).env("_NIX_TEST_GC_SYNC", &pipe).spawn().expect("started");
        // It can only be opened once it is read from.
        let pipe = fs::OpenOptions::new().write(true).open(&pipe).expect("opened");
        PausedCollection { child, pipe: Some(pipe) }
    }
}

pub(crate) struct PausedCollection {
    child: Child,
    pipe: Option<fs::File>,
}

impl PausedCollection {
    pub(crate) fn go_on(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            pipe.write_all(b"on\n").expect("written");
        }
        assert!(self.child.wait().expect("an end").success());
    }
}

pub(crate) struct StockDaemon {
    child: Child,
    socket: PathBuf,
}

impl StockDaemon {
    pub(crate) async fn connect(&self) -> Client<OwnedReadHalf, OwnedWriteHalf> {
        let (reader, writer) = UnixStream::connect(&self.socket).await.expect("it listens").into_split();
        Client::connect_with(reader, writer, &ClientGreeting::default(), LogTarget::Discard).await.expect("a greeting")
    }
}

impl Drop for StockDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("Nix is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn rows(root: &Path) -> Vec<String> {
    let database = rusqlite::Connection::open(root.join("nix/var/nix/db/db.sqlite")).expect("a database");
    let mut all = Vec::new();
    for sql in [
        "select path || ' ' || hash || ' ' || quote(deriver) || ' ' || quote(narSize) || ' ' || quote(ultimate) || ' ' \
         || quote(sigs) || ' ' || quote(ca) || ' ' || (registrationTime > 1000000000) from ValidPaths",
        "select a.path || ' -> ' || b.path from Refs join ValidPaths a on referrer = a.id \
         join ValidPaths b on reference = b.id",
        "select v.path || '!' || d.id || ' = ' || d.path from DerivationOutputs d join ValidPaths v on d.drv = v.id",
    ] {
        let mut statement = database.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        all.extend(rows.map(|row| row.expect("a row")));
    }
    all.sort();
    all
}

fn each_file(root: &Path, mut visit: impl FnMut(PathBuf, fs::Metadata)) {
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("listed") {
            let path = entry.expect("an entry").path();
            let found = fs::symlink_metadata(&path).expect("there");
            if found.is_dir() {
                todo.push(path.clone());
            }
            visit(path.strip_prefix(root).expect("below").to_owned(), found);
        }
    }
}

fn metadata(root: &Path) -> BTreeMap<PathBuf, (u32, i64, u32, u32, u64)> {
    let mut all = BTreeMap::new();
    each_file(root, |path, found| {
        // Of the directory of links, whose own time and size are nobody's concern.
        if path.as_os_str() != ".links" {
            let size = if found.is_dir() { 0 } else { found.size() };
            all.insert(path, (found.mode(), found.mtime(), found.uid(), found.gid(), size));
        }
    });
    all
}

fn link_counts(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    each_file(root, |path, found| {
        if !found.is_dir() {
            all.insert(path, found.nlink());
        }
    });
    all
}

/// Whether a process waits for somebody's file lock.
pub(crate) fn waits_for_a_lock(process: u32) -> bool {
    let locks = fs::read_to_string("/proc/locks").expect("Linux");
    let wanted = process.to_string();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        words.get(1) == Some(&"->") && words.get(2) == Some(&"FLOCK") && words.get(5) == Some(&wanted.as_str())
    })
}

/// Waits for a condition that nobody announces.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}
