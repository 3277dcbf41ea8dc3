//! Real parts for tests: a private store with its own stock daemon, derivations and binary caches made by stock Nix, and a
//! small HTTP server on the loopback interface that serves, records, and misbehaves on demand.

mod git_server;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use harmonia_nix::{PublicKey, StorePath};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::Url;

use crate::binary_cache::BinaryCache;
use crate::store_daemon::StoreDaemon;

pub(crate) use git_server::{GitServer, Mood};

/// A store below a temporary folder, used in process by stock Nix commands.
pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::create_dir(dir.path().join("conf")).expect("folder");
        let conf = "build-users-group =\nsandbox = true\nsandbox-fallback = false\n\
            sandbox-paths = /bin/sh=/bin/busybox\nsubstituters =\nexperimental-features = nix-command\n\
            trusted-users = root\nmax-jobs = 2\n";
        std::fs::write(dir.path().join("conf/nix.conf"), conf).expect("file");
        Self { dir }
    }

    /// Where `/nix` of this store is.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn store_uri(&self) -> String {
        format!("local?root={}", self.root().display())
    }

    /// A stock command that knows nothing of the machine's own store.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("TMPDIR", "/tmp")
            .env("NIX_CONF_DIR", self.dir.path().join("conf"))
            .env("NIX_USER_CONF_FILES", "")
            .env("NIX_REMOTE", self.store_uri());
        command
    }

    /// Runs it and returns what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().expect("the command runs");
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Evaluates `expression` to a `.drv` in this store.
    pub(crate) fn instantiate(&self, expression: &str) -> StorePath {
        let printed = self.run("nix-instantiate", &["-E", expression]);
        // With the output that is meant behind it, when that is not called `out`.
        StorePath::parse(printed.split('!').next().unwrap_or_default()).expect("store path")
    }

    /// Builds `expression`.
    pub(crate) fn build(&self, expression: &str) -> StorePath {
        StorePath::parse(&self.run("nix-build", &["--no-out-link", "-E", expression])).expect("store path")
    }

    /// Writes a binary cache with the closure of `paths`, signed; returns the public key.
    pub(crate) fn copy_to_cache(
        &self,
        cache: &Path,
        compression: &str,
        key_name: &str,
        paths: &[&StorePath],
    ) -> String {
        let secret = self.dir.path().join(format!("{key_name}.sec"));
        let public = self.dir.path().join(format!("{key_name}.pub"));
        if !secret.exists() {
            let (secret, public) = (secret.to_str().expect("text"), public.to_str().expect("text"));
            self.run("nix-store", &["--generate-binary-cache-key", key_name, secret, public]);
        }
        let to = format!("file://{}?compression={compression}&secret-key={}", cache.display(), secret.display());
        let mut args = vec!["copy", "--to", to.as_str()];
        args.extend(paths.iter().map(|path| path.as_str()));
        self.run("nix", &args);
        std::fs::read_to_string(public).expect("key")
    }
}

/// A store with a stock daemon in front. Dropping it stops the daemon.
pub(crate) struct TestDaemon {
    pub(crate) store: TestStore,
    child: Child,
}

impl TestDaemon {
    pub(crate) async fn start() -> Self {
        let store = TestStore::new();
        let socket = store.dir.path().join("socket");
        // Two first connections to a store that is not there yet would trip over each other while making it.
        store.run("nix-store", &["--init"]);
        let child = store
            .command("nix-daemon")
            .env_remove("NIX_REMOTE")
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .args(["--store", &store.store_uri()])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(store.dir.path().join("daemon.log")).expect("a log"))
            .spawn()
            .expect("nix-daemon runs");
        let daemon = Self { store, child };
        // Answers as soon as it can be connected to; there is nothing else to wait for.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "nix-daemon did not start");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        daemon
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.store.dir.path().join("socket")
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many connections it accepted so far.
    pub(crate) fn connections(&self) -> usize {
        let log = std::fs::read_to_string(self.store.dir.path().join("daemon.log")).expect("the daemon's log");
        log.lines().filter(|line| line.contains("accepted connection")).count()
    }

    /// Kills the processes that the daemon forked for its connections, as a crash would.
    pub(crate) fn kill_connections(&self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = std::fs::read_to_string(children).expect("children of the daemon");
        for pid in
            children.split_whitespace().filter_map(|text| text.parse().ok()).filter_map(rustix::process::Pid::from_raw)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        }
    }

    pub(crate) fn client(&self) -> StoreDaemon {
        StoreDaemon::new(self.socket())
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server got.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Hang up after so many bytes of the body, although more were announced.
    pub(crate) cut_at: Option<usize>,
    /// Say nothing, and do not hang up.
    pub(crate) is_silent: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), cut_at: None, is_silent: false }
    }

    /// None, however long it is waited for.
    pub(crate) fn silence() -> Self {
        Self { is_silent: true, ..Self::new(200, "") }
    }

    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        Self::new(200, serde_json::to_vec(value).expect("JSON"))
    }
}

/// An HTTP server on the loopback interface. Dropping it stops it.
pub(crate) struct TestServer {
    pub(crate) url: Url,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start(handler: impl Fn(Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_slow(move |request| std::future::ready(handler(request))).await
    }

    /// Whose answers have to be waited for.
    pub(crate) async fn start_slow<F, Fut>(handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send,
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}/", listener.local_addr().expect("address")).parse().expect("URL");
        let handler = Arc::new(handler);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let _ = serve(stream, &*handler).await;
                });
            }
        });
        Self { url, task }
    }

    /// As a binary cache in which signatures of these keys count.
    pub(crate) fn cache(&self, keys: &[PublicKey]) -> BinaryCache {
        BinaryCache::new(&self.url.clone().into(), keys.to_vec()).expect("a cache")
    }

    /// Serves the files of a folder; `change` may replace each answer.
    pub(crate) async fn of_folder(
        folder: &Path,
        change: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let folder = folder.to_owned();
        Self::start(move |request| {
            let file = folder.join(request.path.split('?').next().unwrap_or_default().trim_start_matches('/'));
            let answer = match std::fs::read(file) {
                Ok(bytes) => Answer::new(200, bytes),
                Err(_) => Answer::new(404, "no such file"),
            };
            change(&request, answer)
        })
        .await
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<Fut: Future<Output = Answer> + Send>(
    mut stream: tokio::net::TcpStream,
    handler: &(impl Fn(Request) -> Fut + Send + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default().to_owned(), first.next().unwrap_or_default().to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, path, headers, body: bytes.split_off(end + 4) };
    let length: usize = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await? == 0 {
            return Ok(());
        }
    }
    let answer = handler(request).await;
    if answer.is_silent {
        return std::future::pending().await;
    }
    let head =
        format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.status, answer.body.len());
    stream.write_all(head.as_bytes()).await?;
    let sent = answer.cut_at.map_or(answer.body.len(), |cut| cut.min(answer.body.len()));
    stream.write_all(&answer.body[..sent]).await?;
    stream.shutdown().await
}
