//! Checkouts by the git program. Start at [`checkout`]; `git/mirrors.rs` keeps what was fetched, `git/submodules.rs` fills
//! in submodules, `git/trouble.rs` says what a failed fetch means.
//!
//! URL, branch, commit and the repository itself are hostile: git runs as for strangers (`crate::git`), and never gets a
//! value where it could be taken for an option.

mod credential;
mod merge;
mod mirrors;
mod submodules;
mod touched;
mod trouble;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harmonia_core::forge::CloneCredential;
use harmonia_core::git::{self, FETCHED_SCHEMES, FLAKE_DIR_REF, RefNameFlaw, UrlFlaw};
use harmonia_core::project_config::Dialect;
use harmonia_core::without_credentials;
use harmonia_egress::{Egress, Refusal};
use tempfile::TempDir;
use url::Url;

use crate::git::way::Way;
use crate::git::{GitCommand, GitFailure, Transports};
use credential::Scope;
pub use mirrors::MirrorLimits;
pub(crate) use mirrors::{Mirrors, keep_tidy};
use submodules::Submodules;
pub(crate) use touched::{ancestors, touches};

/// One git command may take this long; what bounds an evaluation is usually shorter.
const TIMEOUT: Duration = Duration::from_mins(30);
/// Where what was fetched last is, until it has a name of its own. What the other side calls it is not used: names of
/// branches come, go, and get into each other's way (`a`, `a/b`).
const FETCHED: &str = "refs/fetched/head";

/// How git is run.
#[derive(Debug, Clone)]
pub(crate) struct GitSources {
    /// The program.
    pub(crate) git: PathBuf,
    /// Bare mirrors, one a repository.
    pub(crate) mirrors: Mirrors,
    /// Checkouts are made (and deleted) here.
    pub(crate) scratch_dir: PathBuf,
    /// Whether `file://` URLs may be fetched (demo, tests, local use).
    pub(crate) allow_file_urls: bool,
    /// What servers may be reached beside a project's own.
    pub(crate) egress: Egress,
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
    /// When a submodule's server is away, the checkout fails, to be tried again later; else it goes on without.
    pub(crate) waits_for_submodules: bool,
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
    /// What is missing in it.
    pub(crate) warnings: Vec<String>,
    /// Folder of the flake, when whoever sent the commit says so.
    pub(crate) flake_dir: Option<String>,
}

/// Why there is no checkout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// A URL that git must not see.
    #[error("'{url}' is not fetched from: {flaw}")]
    Url { url: String, flaw: UrlFlaw },
    /// A name that git must not see.
    #[error(transparent)]
    RefName(#[from] RefNameFlaw),
    /// Not a commit.
    #[error("'{0}' is not a full commit hash (40 or 64 hexadecimal digits)")]
    Commit(String),
    /// The program does not start.
    #[error("could not run {}: is git installed?", program.display())]
    Start {
        program: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// It took too long.
    #[error("git {command} did not end within {} s", after.as_secs())]
    Timeout { command: &'static str, after: Duration },
    /// It failed; the text is its own.
    #[error("git {command} failed: {message}")]
    Failed { command: &'static str, status: Option<i32>, message: String },
    /// The server is away or asks to be left alone: it may be there later.
    #[error("{server} cannot be fetched from now: {message}")]
    Unavailable { server: String, message: String, retry_after: Option<Duration> },
    /// The server says no.
    #[error("{server} does not give out the repository: {message}. {advice}")]
    Refused { server: String, message: String, advice: &'static str },
    /// The server must not be reached.
    #[error(transparent)]
    Forbidden(Refusal),
    /// The proxy.
    #[error("the egress proxy for git could not listen on this machine's loopback interface")]
    Egress(#[source] std::io::Error),
    /// The directories.
    #[error("could not prepare {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// The repository does not have the commit.
    #[error("the repository has no commit {} (branch {branch})", commit.as_deref().unwrap_or("of that name"))]
    NoCommit {
        /// `None`: the head of the branch was wanted.
        commit: Option<String>,
        branch: String,
    },
    /// A submodule that cannot be fetched whatever its server says.
    #[error("the submodule '{path}' ({url}) cannot be fetched: {problem}")]
    Submodule { path: String, url: String, problem: &'static str },
    /// Bounds of one checkout.
    #[error(
        "the repository has more than {} submodules, or {} levels of them",
        submodules::COUNT_MAX,
        submodules::DEPTH_MAX
    )]
    TooManySubmodules,
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

impl From<GitFailure> for GitError {
    fn from(failure: GitFailure) -> Self {
        match failure {
            GitFailure::Start { program, cause } => Self::Start { program, cause },
            GitFailure::Timeout { command, after } => Self::Timeout { command, after },
            GitFailure::Failed { command, status: Some(merge::CONFLICTS), stdout, .. } if command == merge::COMMAND => {
                let message = String::from_utf8_lossy(&stdout).into_owned();
                Self::Failed { command, status: Some(merge::CONFLICTS), message }
            }
            GitFailure::Failed { command, status, message, .. } => Self::Failed { command, status, message },
        }
    }
}

/// Fetches one commit (the head of the branch when none is named), merges it where that is wanted, and checks it out with
/// its submodules.
pub(crate) async fn checkout(sources: &GitSources, origin: &Origin, wanted: &Wanted<'_>) -> Result<Checkout, GitError> {
    check_wanted(wanted)?;
    match origin {
        Origin::Bundle(bundle) => {
            let kept = temporary(&sources.scratch_dir, "bundle-")?;
            // Git takes a bundle for a repository of this machine.
            let transports = Transports::ServersAndFiles;
            let way = Way::open(&sources.egress, None).await.map_err(GitError::Egress)?;
            let git = Git {
                program: &sources.git,
                repository: kept.path(),
                transports,
                authorization: None,
                way: Some(&way),
            };
            git.make_bare(wanted.commit).await?;
            let commit = git.fetch_bundle(bundle, wanted.commit, wanted.branch).await?;
            let checkout = git.check_out_all(sources, &way, commit, None, wanted, None).await?;
            Ok(Checkout { flake_dir: git.sent_flake_dir().await, ..checkout })
        }
        Origin::Url(url) => {
            let parsed = check_url(url, sources.allow_file_urls)?;
            let authorization =
                |scope| wanted.credential.and_then(|credential| credential::authorization(url, credential, scope));
            let of_server = authorization(Scope::Server);
            let mirror = sources.mirrors.enter(&mirrors::name(of_server.is_some(), url)).await;
            let way = Way::open(&sources.egress, Some(&parsed)).await.map_err(GitError::Egress)?;
            let transports = if sources.allow_file_urls { Transports::ServersAndFiles } else { Transports::Servers };
            let git = Git {
                program: &sources.git,
                repository: mirror.path(),
                transports,
                authorization: of_server.as_ref(),
                way: Some(&way),
            };
            let fetching = mirror.fetching().await;
            git.prepare_mirror(wanted.commit).await?;
            let (commit, merged) = git.fetch_wanted(url, wanted).await?;
            drop(fetching);
            let of_owner = if wanted.private_submodules { authorization(Scope::Owner) } else { None };
            let from = Some((&parsed, of_owner.as_ref()));
            git.check_out_all(sources, &way, commit, merged, wanted, from).await
        }
    }
}

fn check_wanted(wanted: &Wanted<'_>) -> Result<(), GitError> {
    wanted.commit.map_or(Ok(()), check_commit)?;
    git::check_ref_name(wanted.branch)?;
    if let Some(merge) = &wanted.merge {
        git::check_ref_name(merge.base_branch)?;
        merge.base_commit.map_or(Ok(()), check_commit)?;
        merge.head_ref.map_or(Ok(()), git::check_ref_name)?;
    }
    Ok(())
}

struct Git<'a> {
    program: &'a Path,
    /// Where it runs: mostly the bare repository.
    repository: &'a Path,
    /// For what fetches.
    transports: Transports,
    authorization: Option<&'a credential::Authorization>,
    /// For what fetches.
    way: Option<&'a Way>,
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

    /// `like`: a commit of the repository, whose hashes are of the same kind.
    async fn make_bare(&self, like: Option<&str>) -> Result<(), GitError> {
        make_directory(self.repository)?;
        let format = if like.is_some_and(|commit| commit.len() == 64) { "sha256" } else { "sha1" };
        let init = ["init", "--bare", "--quiet", "--template=", "--object-format", format, "."];
        self.run("init", init).await.map(drop)
    }

    async fn fetch_bundle(&self, bundle: &Path, commit: Option<&str>, branch: &str) -> Result<String, GitError> {
        let bundle = bundle.as_os_str();
        let everything = OsStr::new("+refs/*:refs/bundle/*");
        // A bundle of a detached HEAD has no ref but that.
        let head = OsStr::new("+HEAD:refs/bundle/HEAD");
        let fetch = [OsStr::new("fetch"), OsStr::new("--quiet"), OsStr::new("--no-tags"), OsStr::new("--")];
        let all: Vec<&OsStr> = fetch.iter().copied().chain([bundle, everything]).collect();
        let tip: Vec<&OsStr> = fetch.iter().copied().chain([bundle, head]).collect();
        let (all, tip) = (self.run("fetch", all).await, self.run("fetch", tip).await);
        if let (Err(error), Err(_)) = (all, tip) {
            return Err(error);
        }
        let wanted = match commit {
            Some(commit) => commit.to_owned(),
            None => format!("refs/bundle/heads/{branch}"),
        };
        self.resolve(&wanted).await.ok_or_else(|| no_commit(commit, branch))
    }

    /// The folder that the sender of a bundle means.
    async fn sent_flake_dir(&self) -> Option<String> {
        let text = FLAKE_DIR_REF.replacen("refs/", "refs/bundle/", 1);
        self.run("cat-file", ["cat-file", "blob", &text]).await.ok()
    }

    /// A commit by its hash, or else out of the ref `from`.
    async fn fetch_url(&self, url: &str, commit: Option<&str>, from: &str, branch: &str) -> Result<String, GitError> {
        if let Some(commit) = commit {
            if self.has(commit).await {
                return self.keep(commit).await;
            }
            // Forges and newer gits hand out any commit by its hash.
            match self.fetch(url, &[&format!("+{commit}:{FETCHED}")]).await {
                Ok(()) => return self.keep(commit).await,
                // Others do not know the commit, or give out branches only.
                Err(error) if !trouble::is_clearly_away(&error) => {}
                Err(error) => return Err(self.diagnosed(url, None, error).await),
            }
        }
        if let Err(error) = self.fetch(url, &[&format!("+{from}:{FETCHED}")]).await {
            return Err(self.diagnosed(url, Some((from, no_commit(commit, branch))), error).await);
        }
        let found = self.resolve(commit.unwrap_or(FETCHED)).await.ok_or_else(|| no_commit(commit, branch))?;
        self.keep(&found).await
    }

    async fn fetch(&self, url: &str, refspecs: &[&str]) -> Result<(), GitError> {
        let fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--prune", "--", url];
        let refused = || self.way.map(|way| way.session.refused()).unwrap_or_default();
        let before = refused();
        let fetched = self.run("fetch", fetch.iter().chain(refspecs)).await.map(drop);
        fetched.map_err(|error| match self.way.and_then(|way| way.refusal(url, &before)) {
            Some(refusal) => GitError::Forbidden(refusal),
            None => error,
        })
    }

    /// The full hash of a commit that is here.
    async fn resolve(&self, wanted: &str) -> Option<String> {
        let name = format!("{wanted}^{{commit}}");
        let found = self.run("rev-parse", ["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).await;
        found.ok().map(|text| text.trim().to_owned()).filter(|hash| git::is_commit(hash))
    }

    /// Checks a commit of this repository out with its submodules and says what is known of it. `from`: where it was fetched
    /// from, and what submodules of the same owner are fetched with.
    async fn check_out_all(
        &self,
        sources: &GitSources,
        way: &Way,
        commit: String,
        merged: Option<Merged>,
        wanted: &Wanted<'_>,
        from: Option<(&Url, Option<&credential::Authorization>)>,
    ) -> Result<Checkout, GitError> {
        let dir = temporary(&sources.scratch_dir, "checkout-")?;
        // People look for the commit that was pushed, not for our merge of it.
        let described = merged.as_ref().map_or(&commit, |merged| &merged.head);
        let facts = self
            .run("show", ["show", "--no-patch", "--no-show-signature", "--format=%T%n%ct%n%an%n%s", described])
            .await?;
        let mut facts = facts.lines().map(str::to_owned);
        let mut next = || facts.next().unwrap_or_default();
        let (mut tree_hash, committed_at_s, author, title) = (next(), next().parse().unwrap_or(0), next(), next());
        if merged.is_some() {
            let tree = format!("{commit}^{{tree}}");
            let of_merge = self.run("rev-parse", ["rev-parse", "--verify", "--end-of-options", &tree]).await?;
            of_merge.trim().clone_into(&mut tree_hash);
        }
        self.check_out(dir.path(), &commit).await?;
        let submodules = Submodules {
            sources,
            way,
            // A stranger decides what is written there, not what may be reached.
            transports: if wanted.merge.is_some() { Transports::Http } else { Transports::Servers },
            of_owner: from.and_then(|(_, of_owner)| of_owner),
            waits: wanted.waits_for_submodules,
        };
        let warnings = submodules.fill(dir.path(), self.repository, &commit, from.map(|(url, _)| url)).await?;
        let place = dir.path().to_owned();
        let failed = |cause| GitError::Directory { path: place.clone(), cause };
        let top = place.clone();
        tokio::task::spawn_blocking(move || remove_git_directories(&top))
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?
            .map_err(failed)?;
        Ok(Checkout { dir, commit, merged, tree_hash, title, author, committed_at_s, warnings, flake_dir: None })
    }

    /// The files of a commit of this repository.
    async fn check_out(&self, dir: &Path, commit: &str) -> Result<(), GitError> {
        let work = Git { repository: dir, authorization: None, transports: Transports::None, way: None, ..*self };
        let format = if commit.len() == 64 { "sha256" } else { "sha1" };
        work.run("init", ["init", "--quiet", "--template=", "--object-format", format, "."]).await?;
        let failed = |path: PathBuf| |cause| GitError::Directory { path, cause };
        let info = dir.join(".git/objects/info");
        let objects =
            std::fs::canonicalize(self.repository.join("objects")).map_err(failed(self.repository.to_owned()))?;
        std::fs::create_dir_all(&info).map_err(failed(info.clone()))?;
        let alternates = info.join("alternates");
        std::fs::write(&alternates, format!("{}\n", objects.display())).map_err(failed(alternates.clone()))?;
        work.run("checkout", ["checkout", "--quiet", "--force", "--detach", commit]).await.map(drop)
    }

    fn command(&self, name: &'static str) -> GitCommand {
        let fetches = matches!(name, "fetch" | trouble::LS_REMOTE);
        let transports = if fetches { self.transports } else { Transports::None };
        let command = GitCommand::server(self.program, self.repository, name, transports).time_max(TIMEOUT);
        if !fetches {
            return command;
        }
        let command = match self.way {
            Some(way) => way.apply(command),
            None => command,
        };
        match self.authorization {
            Some(authorization) => authorization.apply(command),
            None => command,
        }
    }

    async fn run<I, S>(&self, name: &'static str, arguments: I) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Ok(self.command(name).args(arguments).text().await?)
    }

    /// With an identity and a date that are the same for everybody, so that the commit is.
    async fn run_as_ci<I, S>(&self, name: &'static str, arguments: I, date: &str) -> Result<String, GitError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let identity = [
            ("GIT_AUTHOR_NAME", "Harmonia CI"),
            ("GIT_AUTHOR_EMAIL", "harmonia-ci@localhost"),
            ("GIT_AUTHOR_DATE", date),
            ("GIT_COMMITTER_NAME", "Harmonia CI"),
            ("GIT_COMMITTER_EMAIL", "harmonia-ci@localhost"),
            ("GIT_COMMITTER_DATE", date),
        ];
        let command = identity.iter().fold(self.command(name), |command, (name, value)| command.env(name, value));
        Ok(command.args(arguments).text().await?)
    }
}

fn no_commit(commit: Option<&str>, branch: &str) -> GitError {
    GitError::NoCommit { commit: commit.map(str::to_owned), branch: branch.to_owned() }
}

fn check_commit(commit: &str) -> Result<(), GitError> {
    if git::is_commit(commit) { Ok(()) } else { Err(GitError::Commit(commit.chars().take(200).collect())) }
}

fn check_url(url: &str, allow_file: bool) -> Result<Url, GitError> {
    let schemes: Vec<&str> = FETCHED_SCHEMES.iter().copied().filter(|scheme| allow_file || *scheme != "file").collect();
    git::check_url(url, &schemes)
        .map_err(|flaw| GitError::Url { url: without_credentials(url).chars().take(200).collect(), flaw })
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
