//! The installed Nix with a private store. Start at [`Nix::new`].

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use harmonia_nix::StorePath;
use tempfile::TempDir;

/// A private store; its files and its configuration vanish with it.
pub(crate) struct Nix {
    root: TempDir,
}

impl Nix {
    pub(crate) fn new() -> Self {
        let root = TempDir::new().expect("a temporary folder");
        let nix = Self { root };
        fs::create_dir(nix.path("conf")).expect("a folder for the configuration");
        let shell = which("busybox");
        let configuration = format!(
            "substituters =\nbuild-users-group =\nsandbox = true\nsandbox-paths = /bin/sh={}\n\
             experimental-features = nix-command flakes ca-derivations impure-derivations\n",
            shell.display()
        );
        nix.write("conf/nix.conf", configuration.as_bytes());
        nix
    }

    /// A place in the folder that vanishes with the store.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, content: &[u8]) -> PathBuf {
        let path = self.path(relative);
        fs::write(&path, content).expect("a file in the temporary folder");
        path
    }

    /// Where the files of a store path really are.
    pub(crate) fn real(&self, path: &StorePath) -> PathBuf {
        self.path("root/nix/store").join(path.base_name())
    }

    /// A command with the private store; `program` is `nix`, `nix-store` or another one of Nix.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("NIX_USER_CONF_FILES", "")
            .env("NIX_REMOTE", format!("local?root={}", self.path("root").display()))
            .env("HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("NIX_PATH");
        command
    }

    /// What `nix path-info --json` says of each path, which it names under `path`: a list, and since Nix 2.19 an object by
    /// path.
    pub(crate) fn path_infos(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let printed = self.run("nix", &[&["path-info", "--json"], args].concat());
        match serde_json::from_str(&printed).expect("JSON") {
            serde_json::Value::Array(infos) => infos,
            serde_json::Value::Object(infos) => infos
                .into_iter()
                .map(|(path, mut info)| {
                    info["path"] = path.into();
                    info
                })
                .collect(),
            other => panic!("neither a list nor an object: {other}"),
        }
    }

    /// Runs to the end and gives what was printed, without the last line break; fails the test if Nix fails.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(arguments);
        output(command)
    }

    pub(crate) fn eval(&self, expression: &str) -> String {
        let json = self.run("nix-instantiate", &["--eval", "--strict", "--json", "--expr", expression]);
        serde_json::from_str(&json).expect("a string")
    }
}

impl Drop for Nix {
    fn drop(&mut self) {
        // Folders in the store are read-only, and only root could remove what is in them.
        make_writable(self.root.path());
    }
}

/// Does what it can: a test that fails already must not fail again while it cleans up.
fn make_writable(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    let folders = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        make_writable(&entry.path());
    }
}

pub(crate) fn output(mut command: Command) -> String {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?} did not start (install nix-bin): {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed with {}:\n{errors}", output.status);
    String::from_utf8(output.stdout).expect("Nix prints UTF-8").trim_end().to_owned()
}

pub(crate) fn store_path(text: &str) -> StorePath {
    StorePath::parse(text).unwrap_or_else(|error| panic!("'{text}' must be a store path: {error}"))
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("PATH is set");
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| Path::is_file(candidate))
        .unwrap_or_else(|| panic!("{program} is not installed (install busybox-static)"))
}
