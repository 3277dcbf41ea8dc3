//! Checkouts by the git program. Start at [`checkout`].
//!
//! URL, branch, commit and the repository itself are hostile: git gets an empty environment, no configuration, no hooks,
//! only the transports we allow, and never a value where it could be taken for an option.

mod credential;
mod merge;
mod touched;
mod trouble;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harmonia_core::forge::CloneCredential;
use harmonia_core::project_config::Dialect;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use credential::Scope;
pub(crate) use touched::{ancestors, touches};

/// One git command may take this long; the evaluation's own timeout is usually shorter.
const TIMEOUT: Duration = Duration::from_mins(30);
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Name of the command that fetches submodules.
const SUBMODULE_UPDATE: &str = "submodule update";
const BRANCH_BYTES_MAX: usize = 512;
const URL_BYTES_MAX: usize = 4_096;

/// How git is run.
#[derive(Debug, Clone)]
pub(crate) struct GitSources {
    /// The program.
    pub(crate) git: PathBuf,
    /// Bare mirrors, one a repository, are kept here.
    pub(crate) mirrors_dir: PathBuf,
    /// Checkouts are made (and deleted) here.
    pub(crate) scratch_dir: PathBuf,
    /// Whether `file://` URLs may be fetched (demo, tests, local use).
    pub(crate) allow_file_urls: bool,
    /// To ask servers of which git fetched nothing whether they are there at all.
    pub(crate) http: reqwest::Client,
    /// Who fetches into which mirror.
    pub(crate) locks: MirrorLocks,
}

/// Two fetches into one mirror would trip over each other's locks.
#[derive(Debug, Clone, Default)]
pub(crate) struct MirrorLocks(Arc<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>>);

impl MirrorLocks {
    async fn lock(&self, mirror: &Path) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let lock = self.0.lock().ok().map(|mut locks| Arc::clone(locks.entry(mirror.to_owned()).or_default()))?;
        Some(lock.lock_owned().await)
    }
}

/// Where a commit comes from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// A bundle that was sent to us, on this disk.
    Bundle(PathBuf),
    /// A URL.
    Url(String),
}

/// Which commit is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    /// Full hash; `None`: the head of `branch`.
    pub(crate) commit: Option<&'a str>,
    /// Branch or tag.
    pub(crate) branch: &'a str,
    /// `branch` is a tag.
    pub(crate) is_tag: bool,
    /// The commit is a pull request's head, to be merged onto its base.
    pub(crate) merge: Option<MergeWanted<'a>>,
    /// For fetching over http.
    pub(crate) credential: Option<&'a CloneCredential>,
    /// Submodules of the same owner are fetched with it, too.
    pub(crate) private_submodules: bool,
}

/// Onto what a pull request's head is merged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MergeWanted<'a> {
    /// Where the base repository has the head, should it not hand out commits by their hash.
    pub(crate) head_ref: Option<&'a str>,
    /// Branch to merge into.
    pub(crate) base_branch: &'a str,
    /// Its commit; when it is gone (the base was rewritten), the branch's head is taken.
    pub(crate) base_commit: Option<&'a str>,
}

/// What was merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merged {
    /// The pull request's head.
    pub(crate) head: String,
    /// The commit it was merged onto.
    pub(crate) base: String,
    /// `.harmonia-ci.toml` (or its like) of the base, with the dialect.
    pub(crate) base_config: Option<(Dialect, Vec<u8>)>,
}

/// The files of one commit, and what is known of it. Dropping it deletes them.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) dir: TempDir,
    /// What is checked out; of a pull request the merge.
    pub(crate) commit: String,
    /// Of a pull request.
    pub(crate) merged: Option<Merged>,
    pub(crate) tree_hash: String,
    /// First line of its message.
    pub(crate) title: String,
    pub(crate) author: String,
    /// Committer's date, seconds since 1970.
    pub(crate) committed_at_s: u64,
}

/// Why there is no checkout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// A value that git must not see.
    #[error("'{value}' is not {what}")]
    Value { value: String, what: &'static str },
    /// The program does not start.
    #[error("could not run {program}: is git installed?")]
    Start {
        program: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// It took too long.
    #[error("git {command} did not end within {} minutes", TIMEOUT.as_secs() / 60)]
    Timeout { command: &'static str },
    /// It failed; the text is its own.
    #[error("git {command} failed: {message}")]
    Failed { command: &'static str, status: Option<i32>, message: String },
    /// The server is away or asks to be left alone: it may be there later.
    #[error("{server} cannot be fetched from now: {message}")]
    Unavailable { server: String, message: String, retry_after: Option<Duration> },
    /// The server says no.
    #[error("{server} does not give out the repository: {message}. {advice}")]
    Refused { server: String, message: String, advice: &'static str },
    /// The directories.
    #[error("could not prepare {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// The repository does not have the commit.
    #[error("the repository has no commit {commit} (branch {branch})")]
    NoCommit { commit: String, branch: String },
    /// A pull request that its author has to rebase or merge.
    #[error("the pull request cannot be merged into {base_branch}: {}", describe_conflicts(conflicts))]
    Unmergeable { base_branch: String, conflicts: Vec<String> },
}

fn describe_conflicts(conflicts: &[String]) -> String {
    const SHOWN: usize = 20;
    match conflicts {
        [] => "its history has nothing in common with the branch".to_owned(),
        files if files.len() > SHOWN => {
            format!("conflicts in {} and {} more files", files[..SHOWN].join(", "), files.len() - SHOWN)
        }
        files => format!("conflicts in {}", files.join(", ")),
    }
}

/// Fetches one commit (the head of the branch when none is named), merges it where that is wanted, and checks it out with
/// its submodules.
pub(crate) async fn checkout(sources: &GitSources, origin: &Origin, wanted: &Wanted<'_>) -> Result<Checkout, GitError> {
    check_wanted(wanted)?;
    let dir = temporary(&sources.scratch_dir, "checkout-")?;
    // A bundle comes once; a URL is fetched again and again.
    let (repository, kept) = match origin {
        Origin::Bundle(_) => {
            let kept = temporary(&sources.scratch_dir, "bundle-")?;
            (kept.path().to_owned(), Some(kept))
        }
        Origin::Url(url) => {
            check_url(url, sources.allow_file_urls)?;
            (sources.mirrors_dir.join(mirror_name(url)), None)
        }
    };
    let authorization = |scope| match (origin, wanted.credential) {
        (Origin::Url(url), Some(credential)) => credential::authorization(url, credential, scope),
        _ => None,
    };
    let of_owner = if wanted.private_submodules { authorization(Scope::Owner) } else { None };
    let authorization = authorization(Scope::Server);
    let git = Git {
        program: &sources.git,
        repository: &repository,
        allow_file: sources.allow_file_urls,
        authorization: authorization.as_ref(),
        http: &sources.http,
    };
    let guard = sources.locks.lock(&repository).await;
    git.make_bare().await?;
    let (commit, merged) = match origin {
        Origin::Bundle(bundle) => (git.fetch_bundle(bundle, wanted.commit, wanted.branch).await?, None),
        Origin::Url(url) => {
            // A fetch that was killed left them behind; nobody else is here.
            remove_locks(&repository).map_err(|cause| GitError::Directory { path: repository.clone(), cause })?;
            git.fetch_wanted(url, wanted).await?
        }
    };
    drop(guard);
    // People look for the commit that was pushed, not for our merge of it.
    let described = merged.as_ref().map_or(&commit, |merged| &merged.head);
    let facts =
        git.run("show", ["show", "--no-patch", "--no-show-signature", "--format=%T%n%ct%n%an%n%s", described]).await?;
    let mut facts = facts.lines().map(str::to_owned);
    let mut next = || facts.next().unwrap_or_default();
    let (mut tree_hash, committed_at_s, author, title) = (next(), next().parse().unwrap_or(0), next(), next());
    if merged.is_some() {
        let tree = format!("{commit}^{{tree}}");
        let of_merge = git.run("rev-parse", ["rev-parse", "--verify", "--end-of-options", &tree]).await?;
        of_merge.trim().clone_into(&mut tree_hash);
    }
    git.check_out(dir.path(), &commit, origin, of_owner.as_ref()).await?;
    drop(kept);
    Ok(Checkout { dir, commit, merged, tree_hash, title, author, committed_at_s })
}

fn check_wanted(wanted: &Wanted<'_>) -> Result<(), GitError> {
    wanted.commit.map_or(Ok(()), check_commit)?;
    check_branch(wanted.branch)?;
    if let Some(merge) = &wanted.merge {
        check_branch(merge.base_branch)?;
        merge.base_commit.map_or(Ok(()), check_commit)?;
        merge.head_ref.map_or(Ok(()), check_branch)?;
    }
    Ok(())
}

struct Git<'a> {
    program: &'a Path,
    /// The bare repository.
    repository: &'a Path,
    allow_file: bool,
    authorization: Option<&'a credential::Authorization>,
    http: &'a reqwest::Client,
}

impl Git<'_> {
    /// What is wanted, merged where that is wanted.
    async fn fetch_wanted(&self, url: &str, wanted: &Wanted<'_>) -> Result<(String, Option<Merged>), GitError> {
        let Some(merge) = &wanted.merge else {
            let place = if wanted.is_tag { "refs/tags" } else { "refs/heads" };
            let from = format!("{place}/{}", wanted.branch);
            return Ok((self.fetch_url(url, wanted.commit, &from, wanted.branch).await?, None));
        };
        let (commit, merged) = self.fetch_and_merge(url, wanted, merge).await?;
        Ok((commit, Some(merged)))
    }

    async fn make_bare(&self) -> Result<(), GitError> {
        if !self.repository.join("HEAD").exists() {
            make_directory(self.repository)?;
            self.run("init", ["init", "--bare", "--quiet", "."]).await?;
        }
        Ok(())
    }

    async fn fetch_bundle(&self, bundle: &Path, commit: Option<&str>, branch: &str) -> Result<String, GitError> {
        let bundle = bundle.as_os_str();
        let everything = OsStr::new("+refs/*:refs/bundle/*");
        // A bundle of a detached HEAD has no ref but that.
        let head = OsStr::new("+HEAD:refs/bundle/HEAD");
        let fetch = [OsStr::new("fetch"), OsStr::new("--quiet"), OsStr::new("--no-tags"), OsStr::new("--")];
        let all: Vec<&OsStr> = fetch.iter().copied().chain([bundle, everything]).collect();
        let tip: Vec<&OsStr> = fetch.iter().copied().chain([bundle, head]).collect();
        let (all, tip) = (self.run_file("fetch", all).await, self.run_file("fetch", tip).await);
        if let (Err(error), Err(_)) = (all, tip) {
            return Err(error);
        }
        let wanted = match commit {
            Some(commit) => commit.to_owned(),
            None => format!("refs/bundle/heads/{branch}"),
        };
        self.resolve(&wanted, commit.unwrap_or("HEAD"), branch).await
    }

    /// A commit by its hash, or else out of the ref `from`.
    async fn fetch_url(&self, url: &str, commit: Option<&str>, from: &str, branch: &str) -> Result<String, GitError> {
        if let Some(commit) = commit
            && self.resolve(commit, commit, branch).await.is_ok()
        {
            return Ok(commit.to_owned());
        }
        let fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--"];
        if let Some(commit) = commit {
            // Forges and newer gits hand out any commit by its hash.
            let exact = format!("+{commit}:refs/commits/{commit}");
            let arguments: Vec<&str> = fetch.iter().copied().chain([url, &exact]).collect();
            match self.run("fetch", arguments).await {
                Ok(_) => return self.resolve(commit, commit, branch).await,
                // Others do not know the commit, or give out branches only.
                Err(error) if !trouble::is_clearly_away(&error) => {}
                Err(error) => return Err(self.diagnosed(url, None, error).await),
            }
        }
        let head = format!("+{from}:{from}");
        let arguments: Vec<&str> = fetch.iter().copied().chain([url, &head]).collect();
        if let Err(error) = self.run("fetch", arguments).await {
            let missing = GitError::NoCommit { commit: commit.unwrap_or("HEAD").to_owned(), branch: branch.to_owned() };
            return Err(self.diagnosed(url, Some((from, missing)), error).await);
        }
        let wanted = commit.map_or_else(|| from.to_owned(), str::to_owned);
        self.resolve(&wanted, commit.unwrap_or("HEAD"), branch).await
    }

    /// The full hash of a commit that is here.
    async fn resolve(&self, wanted: &str, commit: &str, branch: &str) -> Result<String, GitError> {
        let name = format!("{wanted}^{{commit}}");
        let found = self.run("rev-parse", ["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).await;
        match found.map(|text| text.trim().to_owned()) {
            Ok(hash) if check_commit(&hash).is_ok() => Ok(hash),
            _ => Err(GitError::NoCommit { commit: commit.to_owned(), branch: branch.to_owned() }),
        }
    }

    async fn check_out(
        &self,
        dir: &Path,
        commit: &str,
        origin: &Origin,
        for_submodules: Option<&credential::Authorization>,
    ) -> Result<(), GitError> {
        let work = Git { repository: dir, authorization: for_submodules, ..*self };
        work.run("init", ["init", "--quiet", "."]).await?;
        let failed = |path: PathBuf| |cause| GitError::Directory { path, cause };
        let alternates = dir.join(".git/objects/info/alternates");
        let objects =
            std::fs::canonicalize(self.repository.join("objects")).map_err(failed(self.repository.to_owned()))?;
        std::fs::write(&alternates, format!("{}\n", objects.display())).map_err(failed(alternates.clone()))?;
        work.run("checkout", ["checkout", "--quiet", "--force", "--detach", commit]).await?;
        if std::fs::symlink_metadata(dir.join(".gitmodules")).is_ok_and(|file| file.is_file()) {
            if let Origin::Url(url) = origin {
                // Relative submodule URLs are relative to this.
                work.run("config", ["config", "remote.origin.url", url]).await?;
            }
            // Whatever the main repository may: a submodule never reads files of this machine.
            let submodules = Git { allow_file: false, ..work };
            let update = ["submodule", "--quiet", "update", "--init", "--recursive", "--force"];
            if let Err(error) = submodules.run(SUBMODULE_UPDATE, update).await {
                return Err(submodules.diagnosed_submodules(error).await);
            }
        }
        let dir = dir.to_owned();
        let place = dir.clone();
        tokio::task::spawn_blocking(move || remove_git_directories(&dir))
            .await
            .map_err(|error| GitError::Directory { path: place.clone(), cause: std::io::Error::other(error) })?
            .map_err(failed(place))
    }

    async fn run<I, S>(&self, command: &'static str, arguments: I) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.run_with(command, arguments, self.allow_file).await
    }

    /// For a bundle, which git takes for the transport of local files.
    async fn run_file<I, S>(&self, command: &'static str, arguments: I) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.run_with(command, arguments, true).await
    }

    /// With an identity and a date that are the same for everybody, so that the commit is.
    async fn run_as_ci<I, S>(&self, command: &'static str, arguments: I, date: &str) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        const IDENTITY: [(&str, &str); 4] = [
            ("GIT_AUTHOR_NAME", "Harmonia CI"),
            ("GIT_AUTHOR_EMAIL", "harmonia-ci@localhost"),
            ("GIT_COMMITTER_NAME", "Harmonia CI"),
            ("GIT_COMMITTER_EMAIL", "harmonia-ci@localhost"),
        ];
        let dates = [("GIT_AUTHOR_DATE", date), ("GIT_COMMITTER_DATE", date)];
        self.run_in(command, arguments, false, &[&IDENTITY[..], &dates].concat()).await
    }

    async fn run_with<I, S>(&self, name: &'static str, arguments: I, allow_file: bool) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.run_in(name, arguments, allow_file, &[]).await
    }

    async fn run_in<I, S>(
        &self,
        name: &'static str,
        arguments: I,
        allow_file: bool,
        environment: &[(&str, &str)],
    ) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let protocols = if allow_file { "https:http:ssh:git:file" } else { "https:http:ssh:git" };
        let mut command = Command::new(self.program);
        command
            .current_dir(self.repository)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", self.repository)
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .env("GIT_CEILING_DIRECTORIES", self.repository.parent().unwrap_or(self.repository))
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .envs(environment.iter().copied());
        if matches!(name, "fetch" | trouble::LS_REMOTE | SUBMODULE_UPDATE)
            && let Some(authorization) = self.authorization
        {
            authorization.apply(&mut command);
        }
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.autocrlf=false",
            "core.symlinks=true",
            "gc.auto=0",
            "maintenance.auto=false",
            "fetch.fsckObjects=false",
            "protocol.ext.allow=never",
            "safe.directory=*",
            "advice.detachedHead=false",
            "http.lowSpeedLimit=1000",
            "http.lowSpeedTime=60",
        ] {
            command.args(["-c", setting]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut child = command.spawn().map_err(|cause| GitError::Start { program: self.program.to_owned(), cause })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(TIMEOUT, async {
            tokio::join!(read_bounded(stdout), read_bounded(stderr), child.wait())
        });
        let (stdout, stderr, status) = ended.await.map_err(|_| GitError::Timeout { command: name })?;
        match status {
            Ok(status) if status.success() => Ok(stdout),
            Ok(status) if name == merge::COMMAND && status.code() == Some(merge::CONFLICTS) => {
                Err(GitError::Failed { command: name, status: status.code(), message: stdout })
            }
            status => {
                let message: String = stderr.trim().chars().take(4_000).collect();
                Err(GitError::Failed { command: name, status: status.ok().and_then(|status| status.code()), message })
            }
        }
    }
}

async fn read_bounded(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut bytes = Vec::new();
    // The rest is read and dropped, so that git does not wait for us; what cannot be read is empty.
    drop((&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await);
    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn check_commit(commit: &str) -> Result<(), GitError> {
    let is_hash =
        matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hash { Ok(()) } else { Err(refuse(commit, "a full commit hash (40 hexadecimal digits)")) }
}

/// The rules of git-check-ref-format(1), as far as they matter, and no option.
fn check_branch(branch: &str) -> Result<(), GitError> {
    let is_name = !branch.is_empty()
        && branch.len() <= BRANCH_BYTES_MAX
        && !branch.starts_with(['-', '/', '.'])
        && !branch.ends_with(['/', '.'])
        && branch.rsplit_once('.').is_none_or(|(_, end)| end != "lock")
        && !["..", "//", "@{", "/."].iter().any(|bad| branch.contains(bad))
        && !branch.contains(|character: char| character.is_control() || " ~^:?*[\\".contains(character));
    if is_name { Ok(()) } else { Err(refuse(branch, "a branch name")) }
}

fn check_url(url: &str, allow_file: bool) -> Result<(), GitError> {
    let parsed = url::Url::parse(url).ok().filter(|_| url.len() <= URL_BYTES_MAX && !url.contains(char::is_control));
    let schemes: &[&str] =
        if allow_file { &["https", "http", "ssh", "git", "file"] } else { &["https", "http", "ssh", "git"] };
    match parsed {
        Some(parsed)
            if schemes.contains(&parsed.scheme()) && !parsed.host_str().unwrap_or_default().starts_with('-') =>
        {
            Ok(())
        }
        Some(_) if url.starts_with("file:") => {
            Err(refuse(url, "a repository that may be fetched: file:// is not allowed here"))
        }
        _ => Err(refuse(url, "a git URL (https://, http://, ssh:// or git://)")),
    }
}

fn refuse(value: &str, what: &'static str) -> GitError {
    GitError::Value { value: value.chars().take(200).collect(), what }
}

/// One directory a URL, without a character that a URL could put there.
fn mirror_name(url: &str) -> String {
    let hash = harmonia_nix::Sha256Hash::of(url.as_bytes());
    format!("{}.git", hash.to_base16().trim_start_matches("sha256:"))
}

fn temporary(place: &Path, prefix: &str) -> Result<TempDir, GitError> {
    make_directory(place)?;
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(place)
        .map_err(|cause| GitError::Directory { path: place.to_owned(), cause })
}

fn make_directory(path: &Path) -> Result<(), GitError> {
    std::fs::create_dir_all(path).map_err(|cause| GitError::Directory { path: path.to_owned(), cause })
}

/// Removes the lock files of refs from a bare repository.
fn remove_locks(repository: &Path) -> std::io::Result<()> {
    let mut directories = vec![repository.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                if directory != repository || entry.file_name() == "refs" {
                    directories.push(entry.path());
                }
            } else if entry.path().extension().is_some_and(|extension| extension == "lock") {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// `.git` directories (and the files that stand for them in submodules) are no part of a source tree.
fn remove_git_directories(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        match (entry.file_name() == ".git", kind.is_dir()) {
            (true, true) => std::fs::remove_dir_all(entry.path())?,
            (true, false) => std::fs::remove_file(entry.path())?,
            (false, true) => remove_git_directories(&entry.path())?,
            (false, false) => {}
        }
    }
    Ok(())
}
