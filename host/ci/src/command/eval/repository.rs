//! What `eval` was pointed at: a git URL, or a local repository packed as a bundle.
//!
//! The user's repository is only read: objects of a dirty tree go into a temporary repository that borrows the user's
//! objects, and the bundle is made from there.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::exit::Failure;

/// One commit of a local repository, ready to be sent.
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) commit: String,
    pub(crate) branch: String,
    pub(crate) title: Option<String>,
    pub(crate) author: Option<String>,
    /// The commit was made here, from uncommitted changes.
    pub(crate) dirty: bool,
    /// There are uncommitted changes, and they are not part of the commit.
    pub(crate) ignored_changes: bool,
    pub(crate) bundle: PathBuf,
    _folder: TempDir,
}

/// URL and branch when `flake` is a git URL rather than a path.
pub(crate) fn remote(flake: &str) -> Result<Option<(String, Option<String>)>, Failure> {
    let (location, branch) = match flake.split_once('#') {
        Some((location, branch)) => (location, Some(branch.to_owned())),
        None => (flake, None),
    };
    let location = location.strip_prefix("git+").unwrap_or(location);
    let Some((scheme, _)) = location.split_once("://") else { return Ok(None) };
    if !["https", "http", "ssh", "git", "file"].contains(&scheme) {
        let message =
            format!("'{flake}' has the scheme {scheme}, and git URLs begin with https, http, ssh, git or file");
        return Err(Failure::usage(message));
    }
    let url = url::Url::parse(location).map_err(|error| Failure::usage(format!("'{flake}' is not a URL: {error}")))?;
    if url.password().is_some() {
        return Err(
            Failure::usage("a URL with a password in it would end up in the database").hint("use a URL without one")
        );
    }
    Ok(Some((location.to_owned(), branch)))
}

/// Project name for a URL: host and path, without `.git`.
pub(crate) fn name_of_url(url: &str) -> String {
    let parsed = url::Url::parse(url).ok();
    let host = parsed.as_ref().and_then(|url| url.host_str()).unwrap_or("local").to_owned();
    let path = parsed.as_ref().map_or("", |url| url.path()).trim_matches('/').trim_end_matches(".git").to_owned();
    sanitize(&format!("{host}/{path}"))
}

/// Keeps what project names may hold.
fn sanitize(name: &str) -> String {
    let kept: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-/".contains(c) { c } else { '-' }).collect();
    let parts: Vec<&str> = kept.split('/').map(|part| part.trim_matches('.')).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "unnamed".to_owned() } else { parts.join("/") }
}

/// Packs HEAD of the repository around `path`, or its working tree.
pub(crate) async fn snapshot(path: &Path, dirty: bool) -> Result<Snapshot, Failure> {
    if !path.exists() {
        return Err(Failure::usage(format!("there is no file or folder '{}'", path.display()))
            .hint("name a local repository or a git URL"));
    }
    let not_a_repository = |error: GitError| match error {
        GitError::Failed { .. } => {
            Failure::usage(format!("'{}' is not in a git repository with a work tree", path.display()))
                .hint("run `git init`, add the files and commit; a flake is evaluated from a commit")
        }
        error @ GitError::NotInstalled => error.into(),
    };
    let top = git(path, &["rev-parse", "--show-toplevel"]).await.map_err(not_a_repository)?;
    let top = PathBuf::from(top);
    let head =
        git(&top, &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await.map_err(|error| match error {
            GitError::Failed { .. } => {
                Failure::usage(format!("{} has no commit yet", top.display())).hint("commit something first")
            }
            error @ GitError::NotInstalled => error.into(),
        })?;
    if git(&top, &["rev-parse", "--is-shallow-repository"]).await? == "true" {
        return Err(Failure::usage("this is a shallow clone: its history cannot be packed")
            .hint("run `git fetch --unshallow`, or evaluate the git URL"));
    }
    let changed = !git(&top, &["status", "--porcelain", "--untracked-files=normal"]).await?.is_empty();
    let branch =
        git(&top, &["symbolic-ref", "--quiet", "--short", "HEAD"]).await.unwrap_or_else(|_| "detached".to_owned());
    let folder =
        tempfile::tempdir().map_err(|error| Failure::failed(format!("could not make a temporary folder: {error}")))?;
    let scratch = Scratch::new(&top, folder.path()).await?;
    let commit = if dirty && changed { scratch.commit_work_tree(&top, &head).await? } else { head.clone() };
    let bundle = scratch.bundle(&commit).await?;
    let title = git(&top, &["log", "-1", "--format=%s", &head]).await?;
    let author = git(&top, &["log", "-1", "--format=%an", &head]).await?;
    let name = top.file_name().map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok(Snapshot {
        name: sanitize(&name).replace('/', "-"),
        dirty: commit != head,
        ignored_changes: changed && !dirty,
        commit,
        branch,
        title: Some(title).filter(|text| !text.is_empty()),
        author: Some(author).filter(|text| !text.is_empty()),
        bundle,
        _folder: folder,
    })
}

/// A temporary bare repository that borrows the objects of the user's.
struct Scratch {
    git_dir: PathBuf,
    folder: PathBuf,
}

impl Scratch {
    async fn new(top: &Path, folder: &Path) -> Result<Self, Failure> {
        let git_dir = folder.join("scratch.git");
        git(folder, &["init", "--quiet", "--bare", "--object-format", &object_format(top).await, "scratch.git"])
            .await?;
        let objects = git(top, &["rev-parse", "--path-format=absolute", "--git-path", "objects"]).await?;
        let alternates = git_dir.join("objects/info/alternates");
        std::fs::write(&alternates, format!("{objects}\n"))
            .map_err(|error| Failure::failed(format!("could not write {}: {error}", alternates.display())))?;
        Ok(Self { git_dir, folder: folder.to_owned() })
    }

    async fn git(&self, extra: &[(&str, &Path)], args: &[&str]) -> Result<String, GitError> {
        run_git(&self.folder, extra, &[&["--git-dir", &self.git_dir.to_string_lossy()], args].concat()).await
    }

    /// Everything in the work tree that git does not ignore, as a commit on top of `head`.
    async fn commit_work_tree(&self, top: &Path, head: &str) -> Result<String, Failure> {
        let index = self.folder.join("index");
        let environment: [(&str, &Path); 2] = [("GIT_INDEX_FILE", &index), ("GIT_WORK_TREE", top)];
        self.git(&environment, &["read-tree", head]).await?;
        self.git(&environment, &["add", "--all", "."]).await?;
        let tree = self.git(&environment, &["write-tree"]).await?;
        let words = ["-c", "user.name=harmonia-ci", "-c", "user.email=harmonia-ci@localhost"];
        let commit = ["commit-tree", "-p", head, "-m", "uncommitted changes", &tree];
        Ok(self.git(&[], &[&words[..], &commit[..]].concat()).await?)
    }

    async fn bundle(&self, commit: &str) -> Result<PathBuf, Failure> {
        let path = self.folder.join("commit.bundle");
        self.git(&[], &["update-ref", "refs/heads/evaluate", commit]).await?;
        let text = path.to_string_lossy().into_owned();
        self.git(&[], &["bundle", "create", "--quiet", &text, "refs/heads/evaluate"]).await?;
        Ok(path)
    }
}

async fn object_format(top: &Path) -> String {
    git(top, &["rev-parse", "--show-object-format"]).await.unwrap_or_else(|_| "sha1".to_owned())
}

/// Why git gave nothing.
#[derive(Debug)]
enum GitError {
    NotInstalled,
    Failed { command: String, stderr: String },
}

impl From<GitError> for Failure {
    fn from(error: GitError) -> Self {
        match error {
            GitError::NotInstalled => Self::failed("the program git is not on PATH").hint("install git"),
            GitError::Failed { command, stderr } => Self::failed(format!("git {command} failed: {stderr}")),
        }
    }
}

async fn git(folder: &Path, args: &[&str]) -> Result<String, GitError> {
    run_git(folder, &[], args).await
}

async fn run_git(folder: &Path, environment: &[(&str, &Path)], args: &[&str]) -> Result<String, GitError> {
    let mut command = Command::new("git");
    let folder = if folder.is_dir() { folder } else { folder.parent().unwrap_or(folder) };
    command.current_dir(folder).args(args).stdin(Stdio::null());
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"] {
        command.env_remove(name);
    }
    for (name, path) in environment {
        command.env(name, path);
    }
    let output = command.output().await.map_err(|_| GitError::NotInstalled)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(GitError::Failed {
        command: args.iter().find(|a| !a.starts_with('-')).copied().unwrap_or("").to_owned(),
        stderr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_paths_are_told_apart() {
        for path in [".", "./x", "/tmp/x", "x#y", "checks"] {
            assert!(remote(path).is_ok_and(|found| found.is_none()), "{path}");
        }
        let (url, branch) = remote("git+https://example.org/a/b.git#dev").expect("parses").expect("a URL");
        assert_eq!((url.as_str(), branch.as_deref()), ("https://example.org/a/b.git", Some("dev")));
        assert_eq!(name_of_url(&url), "example.org/a/b");
        assert_eq!(name_of_url("file:///srv/../x y.git"), "local/x-20y");
        for bad in ["ext::sh://x", "ftp://example.org/x", "https://user:secret@example.org/x"] {
            assert!(remote(bad).is_err(), "{bad}");
        }
    }

    async fn repository() -> TempDir {
        let folder = tempfile::tempdir().expect("temporary folder");
        for args in [
            &["init", "-q", "-b", "main", "."][..],
            &["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"],
        ] {
            git(folder.path(), args).await.expect("git works");
        }
        folder
    }

    #[tokio::test]
    async fn a_dirty_tree_becomes_a_commit_without_touching_the_repository() {
        let folder = repository().await;
        std::fs::write(folder.path().join("new file"), "x").expect("written");
        let before = git(folder.path(), &["count-objects", "-v"]).await.expect("counted");

        let clean = snapshot(folder.path(), false).await.expect("packed");
        assert!(clean.ignored_changes && !clean.dirty);
        assert_eq!(clean.title.as_deref(), Some("first"));
        let dirty = snapshot(folder.path(), true).await.expect("packed");
        assert!(dirty.dirty && dirty.commit != clean.commit);

        assert_eq!(git(folder.path(), &["count-objects", "-v"]).await.expect("counted"), before);
        let clone = tempfile::tempdir().expect("temporary folder");
        let bundle = dirty.bundle.to_string_lossy().into_owned();
        git(clone.path(), &["clone", "-q", "-b", "evaluate", &bundle, "c"]).await.expect("the bundle is whole");
        assert!(clone.path().join("c/new file").exists());
    }

    #[tokio::test]
    async fn what_cannot_be_packed_says_why() {
        let empty = tempfile::tempdir().expect("temporary folder");
        assert!(snapshot(&empty.path().join("absent"), false).await.is_err());
        assert!(snapshot(empty.path(), false).await.is_err());
        git(empty.path(), &["init", "-q", "."]).await.expect("git works");
        assert!(snapshot(empty.path(), false).await.is_err());
    }
}
