//! Stock Nix as the judge: a client with a store of its own that trusts one key and requires signatures.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::server::text;

/// An empty store and a configuration that nothing on the machine can influence.
pub struct StockNix {
    folder: TempDir,
}

impl StockNix {
    /// Trusts `public_key` and no other.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn trusting(public_key: &str) -> Self {
        let folder = crate::server::folder();
        let configuration = format!(
            "substituters =\nbuild-users-group =\nexperimental-features = nix-command flakes\nrequire-sigs = true\n\
             trusted-public-keys = {public_key}\nsandbox = false\n"
        );
        std::fs::create_dir(folder.path().join("conf")).expect("made");
        std::fs::write(folder.path().join("conf/nix.conf"), configuration).expect("written");
        Self { folder }
    }

    /// Adds a line to its configuration.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, line: &str) {
        let path = self.folder.path().join("conf/nix.conf");
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, format!("{text}{line}\n")).expect("written");
    }

    /// Uses the cache at `url`, and builds nothing itself. What it was told is not there is asked for again each time.
    ///
    /// # Panics
    /// When its configuration cannot be written.
    pub fn only_substitute_from(&self, url: &str) {
        self.configure(&format!("substituters = {url}\nmax-jobs = 0\nnarinfo-cache-negative-ttl = 0"));
    }

    /// Sends `token` as the password to every server on this machine, by netrc.
    ///
    /// # Panics
    /// When its configuration cannot be written.
    pub fn send_token(&self, token: &str) {
        let netrc = self.folder.path().join("netrc");
        std::fs::write(&netrc, format!("machine 127.0.0.1 login any password {token}\n")).expect("written");
        self.configure(&format!("netrc-file = {}", netrc.display()));
    }

    /// A command of Nix with this store.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("NIX_CONF_DIR", self.folder.path().join("conf"))
            .env("NIX_USER_CONF_FILES", "")
            .env("NIX_REMOTE", format!("local?root={}", self.folder.path().join("root").display()))
            .env("HOME", self.folder.path())
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command
    }

    /// Runs a command.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().unwrap_or_else(|error| panic!("{program} does not start: {error}"))
    }

    /// Copies `path` and its closure out of the cache at `url`.
    ///
    /// # Panics
    /// When Nix refuses.
    pub fn copy_from(&self, url: &str, path: &str) {
        let output = self.run("nix", &["copy", "--from", url, path]);
        assert!(output.status.success(), "nix copy --from {url} {path}: {}", text(&output));
    }

    /// Where a store path's files are.
    pub fn physical(&self, path: &str) -> PathBuf {
        physical(&self.folder.path().join("root"), path)
    }

    /// Paths that `path` refers to, with itself.
    ///
    /// # Panics
    /// When Nix does not know the path.
    pub fn closure(&self, path: &str) -> Vec<String> {
        let output = self.run("nix-store", &["--query", "--requisites", path]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

/// Where a store path's files are when the store's root is `root`.
pub fn physical(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The NAR of a path in the file system, as `nix-store --dump` prints it.
///
/// # Panics
/// When there is no such path.
pub fn dump(path: &Path) -> Vec<u8> {
    let output = Command::new("nix-store").arg("--dump").arg(path).output().expect("nix-store starts");
    assert!(output.status.success(), "dump of {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    output.stdout
}
