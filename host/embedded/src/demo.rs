//! A small repository to build before somebody's eyes. Start at [`write`]; [`EXPECTED`] says how each part must end.
//!
//! Its derivations are real, but need neither network nor nixpkgs: their builder is `/bin/sh`, which in a sandbox is a
//! static busybox and brings its tools along. Some take a second so that there is something to watch.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::process::find_program;

const FLAKE: &str = include_str!("demo/flake.nix");
const PROJECT_CONFIG: &str = include_str!("demo/harmonia-ci.toml");
const README: &str = include_str!("demo/README.md");
const PAGE: &str = include_str!("demo/page.txt");
const SYSTEM_PLACEHOLDER: &str = "@system@";
/// Fixed, so that the commit is the same everywhere.
const COMMIT_DATE: &str = "2026-01-01T00:00:00Z";
const GIT_TIMEOUT: Duration = Duration::from_secs(30);
const WORDS_BYTES_MAX: usize = 2_000;

/// How a part of the demonstration must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its build succeeds.
    Succeeds,
    /// Its own build fails, after having written to its log.
    Fails,
    /// It is never built, as something that it needs fails.
    DependencyFails,
    /// It has no derivation, as evaluating it throws.
    EvaluationFails,
}

/// One attribute below `checks.SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The attribute's name.
    pub name: &'static str,
    /// How it ends.
    pub outcome: Outcome,
    /// The names of its outputs, in the order of the derivation.
    pub outputs: &'static [&'static str],
}

const fn expect(name: &'static str, outcome: Outcome) -> Expected {
    Expected { name, outcome, outputs: &["out"] }
}

/// All attributes of the demonstration, sorted by name.
pub const EXPECTED: &[Expected] = &[
    expect("blue", Outcome::Succeeds),
    expect("book", Outcome::Succeeds),
    expect("bouquet", Outcome::Succeeds),
    expect("broken", Outcome::Fails),
    expect("fixed", Outcome::Succeeds),
    expect("green", Outcome::Succeeds),
    Expected { name: "impossible", outcome: Outcome::EvaluationFails, outputs: &[] },
    expect("needs-broken", Outcome::DependencyFails),
    expect("page", Outcome::Succeeds),
    expect("poem", Outcome::Succeeds),
    expect("red", Outcome::Succeeds),
    Expected { name: "split", outcome: Outcome::Succeeds, outputs: &["out", "doc", "dev"] },
    expect("verse", Outcome::Succeeds),
];

/// Derivations that are needed, but are no attributes: they are built all the same.
pub const EXPECTED_INTERNAL: &[&str] = &["soil"];

/// What `broken` writes to its log before it fails.
pub const BROKEN_LOG_LINE: &str = "about to fail, on purpose";

/// What `impossible` throws.
pub const IMPOSSIBLE_MESSAGE: &str = "this attribute cannot be evaluated, on purpose";

/// The repository as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoRepo {
    /// The working tree.
    pub path: PathBuf,
    /// Its HEAD, 40 hexadecimal digits.
    pub commit: String,
}

/// Why there is no demonstration.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Git is missing.
    #[error("no git found in PATH: install it (Debian: apt install git; NixOS: pkgs.git)")]
    NoGit,
    /// Something else lies where the repository would be.
    #[error("{path} is there, but is no git repository with a commit: remove it")]
    InTheWay {
        /// What lies there.
        path: PathBuf,
    },
    /// Not the name of a system.
    #[error("{system:?} is no system such as x86_64-linux")]
    System {
        /// The name given.
        system: String,
    },
    /// A file operation failed.
    #[error("could not {doing} {path}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Git failed.
    #[error("git {command} failed: {output}")]
    Git {
        /// The subcommand.
        command: String,
        /// The end of what it wrote.
        output: String,
    },
}

/// Creates the repository for a system such as `x86_64-linux`, or leaves the one that is there as it is: whoever has
/// changed something to see what is built again keeps that change.
pub async fn write(directory: &Path, system: &str) -> Result<DemoRepo, DemoError> {
    if system.is_empty() || !system.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(DemoError::System { system: system.to_owned() });
    }
    let git = find_program("git").ok_or(DemoError::NoGit)?;
    let is_empty = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => true,
        Err(cause) => return Err(failed("read", directory)(cause)),
    };
    if is_empty {
        create(&git, directory, system).await?;
    } else if !directory.join(".git").exists() {
        return Err(DemoError::InTheWay { path: directory.to_owned() });
    }
    match run(&git, directory, &["rev-parse", "--verify", "HEAD^{commit}"]).await {
        Ok(commit) => Ok(DemoRepo { path: directory.to_owned(), commit: commit.trim().to_owned() }),
        Err(DemoError::Git { .. }) if !is_empty => Err(DemoError::InTheWay { path: directory.to_owned() }),
        Err(error) => Err(error),
    }
}

/// Builds the repository beside its place and moves it there when it is complete.
async fn create(git: &Path, directory: &Path, system: &str) -> Result<(), DemoError> {
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed("create", parent))?;
    let fresh = tempfile::Builder::new().prefix(".demo-").tempdir_in(parent).map_err(failed("create", parent))?;
    let root = fresh.path();
    for (name, text) in [
        ("flake.nix", FLAKE.replace(SYSTEM_PLACEHOLDER, system)),
        (harmonia_core::project_config::FILE_NAME, PROJECT_CONFIG.to_owned()),
        ("README.md", README.to_owned()),
        ("src/page.txt", PAGE.to_owned()),
    ] {
        let path = root.join(name);
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        fs::write(&path, text).map_err(failed("write", &path))?;
    }
    run(git, root, &["init", "--quiet", "--template=", "--initial-branch=main"]).await?;
    run(git, root, &["add", "--all"]).await?;
    run(git, root, &["commit", "--quiet", "--no-verify", "--message", "A dozen derivations to build"]).await?;
    // The directories of tempfile are closed to others, whom a repository may well be shown to.
    fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(failed("open", root))?;
    fs::rename(root, directory).map_err(failed("create", directory))
}

/// Runs git without the settings of the machine and its user, which could sign, hook or convert.
async fn run(git: &Path, directory: &Path, arguments: &[&str]) -> Result<String, DemoError> {
    let mut command = Command::new(git);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"GIT_")) {
        command.env_remove(name);
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Harmonia CI").env(format!("GIT_{role}_EMAIL"), "demo@localhost");
        command.env(format!("GIT_{role}_DATE"), COMMIT_DATE);
    }
    command.args(["-c", "core.autocrlf=false", "-c", "core.fileMode=true"]).args(arguments);
    command.current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(GIT_TIMEOUT, command.output()).await {
        Ok(output) => output.map_err(failed("run", git))?,
        Err(_) => return Err(failed("run", git)(io::ErrorKind::TimedOut.into())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = &output.stderr[output.stderr.len().saturating_sub(WORDS_BYTES_MAX)..];
    let command = arguments.first().copied().unwrap_or_default().to_owned();
    Err(DemoError::Git { command, output: String::from_utf8_lossy(errors).trim().to_owned() })
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DemoError + 'a {
    move |cause| DemoError::Io { doing, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
