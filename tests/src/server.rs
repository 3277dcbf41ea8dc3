//! The built binary: `up` as a server with a data directory of its own, and commands against it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take until it is ready; builds of the demo are part of it.
const READY_WITHIN: Duration = Duration::from_mins(3);
/// How long it may take to say what it does.
const DESCRIBED_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take to end.
const END_WITHIN: Duration = Duration::from_mins(1);

/// The binary under test.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("HARMONIA_CI_BIN")
        .map_or_else(|| crate::workspace::root().join("target/debug/harmonia-ci"), PathBuf::from);
    assert!(path.exists(), "{} is not built: run `./dev test`, or `cargo build -p harmonia-ci` first", path.display());
    path
}

/// The environment of an `up` that builds with harmonia-daemon.
pub const HARMONIA_DAEMON: &[(&str, &str)] = &[("HARMONIA_CI__STORE__DAEMON", "harmonia")];

/// A folder that the database's account can reach, gone at the end.
///
/// # Panics
/// When no folder can be made.
pub fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::Builder::new().prefix("hci-").tempdir().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    folder
}

/// A running `harmonia-ci up`.
pub struct Server {
    child: Child,
    data_dir: PathBuf,
    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub url: String,
    /// What it printed to standard error so far.
    stderr: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Server {
    /// Starts `up` with its data in `data_dir` and waits for its ready line.
    ///
    /// # Panics
    /// When it ends or takes too long.
    pub fn up(data_dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(args);
        // On a machine that is nearly full a test is to pass or to fail for its own reasons.
        command.env("HARMONIA_CI__BUILDER__MIN_FREE", "64MiB");
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stderr = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let copy = stderr.clone();
        let lines = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                eprintln!("up: {line}");
                let mut text = copy.lock().expect("not poisoned");
                text.push_str(&line);
                text.push('\n');
            }
        });
        let stdout = lines_of(child.stdout.take().expect("piped"));
        let mut server = Self { child, data_dir: data_dir.to_owned(), url: String::new(), stderr };
        server.url = server.wait_until_ready(&stdout);
        // Keeps the pipe open and empty for as long as the server lives.
        std::thread::spawn(move || while stdout.recv().is_ok() {});
        server
    }

    fn wait_until_ready(&mut self, stdout: &Receiver<String>) -> String {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    println!("up: {line}");
                    if let Some(url) = line.strip_prefix("ready ").and_then(|url| url.strip_suffix("/ci/")) {
                        return url.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("not ready within {READY_WITHIN:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("up ended with {:?}", self.child.wait()),
            }
        }
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What it printed to standard error so far.
    ///
    /// # Panics
    /// Never in practice.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("not poisoned").clone()
    }

    /// URL of its private database cluster's database, for looking inside.
    ///
    /// # Panics
    /// When it wrote no configuration.
    pub fn database_url(&self) -> String {
        let text = std::fs::read_to_string(self.data_dir.join("config.toml")).expect("up wrote its configuration");
        let line = text.lines().find(|line| line.starts_with("url = ")).expect("a database URL");
        line.trim_start_matches("url = ").trim_matches('"').to_owned()
    }

    /// Public key of its cache.
    ///
    /// # Panics
    /// When the server does not say.
    pub fn public_key(&self) -> String {
        let status = self.json(&["status", "--json"]);
        status["public_keys"][0].as_str().expect("a public key").to_owned()
    }

    /// A command of the CLI against this server.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env("HARMONIA_CI_DATA_DIR", &self.data_dir)
            .env_remove("HARMONIA_CI_SERVER")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command and gives its output, whatever its exit code.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary starts")
    }

    /// Runs a command that must succeed and print JSON.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?} failed: {}", text(&output));
        parse(&output)
    }

    /// SIGKILL to the process itself: nothing of it can tidy up.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// SIGTERM, and its exit status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.terminate().expect("it ends when asked to")
    }

    fn terminate(&mut self) -> Option<std::process::ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).ok()?)?;
        kill_process(pid, Signal::TERM).ok()?;
        wait_for(END_WITHIN, || self.child.try_wait().ok().flatten())
    }
}

impl Server {
    /// For the report of a test that fails: what the server does, and what waits for what.
    fn describe(&self) {
        for args in [["status"].as_slice(), &["queue"], &["evals"]] {
            let Ok(mut child) = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
                continue;
            };
            if wait_for(DESCRIBED_WITHIN, || child.try_wait().ok().flatten()).is_none() {
                let _ = child.kill();
            }
            let Ok(output) = child.wait_with_output() else { continue };
            let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            eprintln!("{} says:\n{out}{error}", args.join(" "));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.url.is_empty() {
            self.describe();
        }
        if self.terminate().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Asks `condition` again and again until it gives something, for at most `within`.
pub fn wait_for<T>(within: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    let (_keep, tick) = channel::<()>();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        // A pause between two looks at a condition, not a wait for time to pass.
        let _ = tick.recv_timeout(Duration::from_millis(50));
    }
}

/// Lines of a pipe as they come.
pub fn lines_of(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Both streams of a finished command, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Standard output as JSON.
///
/// # Panics
/// When it is something else.
pub fn parse(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {}", text(output)))
}
