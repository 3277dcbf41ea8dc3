//! A local repository, packed as a bundle to be sent. Start at [`snapshot`].
//!
//! The user's clone is only read: git is told to keep new objects (of uncommitted changes; of what a partial clone lacks)
//! and the index that it changes in a temporary folder. Otherwise it is the user's git with the user's configuration, so that
//! what is ignored, filtered or left out of a sparse checkout is what `git status` shows.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use harmonia_core::git::{FLAKE_DIR_REF, is_commit};
use harmonia_worker::git::{GitCommand, GitFailure};
use tempfile::TempDir;

use crate::exit::{Failure, chain};

/// What the evaluated commit is called in the bundle.
const BUNDLE_REF: &str = "refs/heads/evaluate";

/// One commit of a local repository, ready to be sent.
pub(crate) struct Snapshot {
    /// The folder of the repository.
    pub(crate) top: PathBuf,
    /// What it is called.
    pub(crate) name: String,
    /// Folder of the flake in it; empty: the repository's own.
    pub(crate) flake_dir: String,
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

/// Packs HEAD of the repository around `path`, or its working tree.
pub(crate) async fn snapshot(path: &Path, dirty: bool) -> Result<Snapshot, Failure> {
    let start = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => path.to_owned(),
        Ok(_) => path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned(),
        Err(_) => {
            return Err(Failure::usage(format!("there is no file or folder '{}'", path.display()))
                .hint("name a local repository or a git URL"));
        }
    };
    let not_a_repository = |failure: GitFailure| match failure {
        GitFailure::Failed { message, .. } => {
            let words = message.lines().next().unwrap_or_default().trim_start_matches("fatal: ").to_owned();
            Failure::usage(format!("'{}' is not in a git repository with a work tree ({words})", path.display()))
                .hint("run `git init`, add the files and commit; a flake is evaluated from a commit")
        }
        failure => failed(&failure),
    };
    let top = line(GitCommand::user(&start, "rev-parse").args(["rev-parse", "--show-toplevel"])).await;
    let top = PathBuf::from(top.map_err(not_a_repository)?);
    let folder =
        tempfile::tempdir().map_err(|error| Failure::failed(format!("could not make a temporary folder: {error}")))?;
    let clone = Clone::open(&top, folder.path()).await?;
    let head = clone.word("rev-parse", &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await;
    let head = head.map_err(|failure| match failure {
        GitFailure::Failed { .. } => {
            Failure::usage(format!("{} has no commit yet", top.display())).hint("commit something first")
        }
        failure => failed(&failure),
    })?;
    if clone.text("rev-parse", &["rev-parse", "--is-shallow-repository"]).await? == "true" {
        return Err(Failure::usage("this is a shallow clone: its history cannot be packed")
            .hint("run `git fetch --unshallow`, or evaluate the git URL"));
    }
    let changed = || async { clone.text("status", &["status", "--porcelain", "-z", "--untracked-files=normal"]).await };
    let ignored_changes = !dirty && !changed().await?.is_empty();
    let commit = if dirty { clone.commit_work_tree(&head).await? } else { head.clone() };
    let branch = clone.word("symbolic-ref", &["symbolic-ref", "--quiet", "--short", "HEAD"]).await;
    let prefix = line(GitCommand::user(&start, "rev-parse").args(["rev-parse", "--show-prefix"])).await;
    let prefix = prefix.map_err(|failure| failed(&failure))?;
    let flake_dir = clone.flake_dir(&commit, &prefix.to_string_lossy()).await?;
    let bundle = clone.bundle(&commit, &flake_dir).await?;
    let title = clone.text("log", &["log", "-1", "--no-show-signature", "--format=%s", &head]).await?;
    let author = clone.text("log", &["log", "-1", "--no-show-signature", "--format=%an", &head]).await?;
    let name = top.file_name().map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok(Snapshot {
        top: top.clone(),
        name,
        flake_dir,
        dirty: commit != head,
        ignored_changes,
        commit,
        branch: branch.unwrap_or_else(|_| "detached".to_owned()),
        title: Some(title).filter(|text| !text.is_empty()),
        author: Some(author).filter(|text| !text.is_empty()),
        bundle,
        _folder: folder,
    })
}

/// Somebody's clone, and the folder that takes what would otherwise be written into it.
struct Clone<'a> {
    top: &'a Path,
    folder: &'a Path,
}

impl<'a> Clone<'a> {
    async fn open(top: &'a Path, folder: &'a Path) -> Result<Self, Failure> {
        let clone = Clone { top, folder };
        let place = ["rev-parse", "--path-format=absolute", "--git-path", "objects"];
        let mut objects =
            line(GitCommand::user(top, "rev-parse").args(place)).await.map_err(|failure| failed(&failure))?;
        objects.push("\n");
        let own = clone.objects();
        let written = std::fs::create_dir_all(own.join("info"))
            .and_then(|()| std::fs::create_dir_all(own.join("pack")))
            .and_then(|()| std::fs::write(own.join("info/alternates"), objects.as_bytes()));
        written.map_err(|error| Failure::failed(format!("could not write into {}: {error}", folder.display())))?;
        Ok(clone)
    }

    fn objects(&self) -> PathBuf {
        self.folder.join("objects")
    }

    fn git(&self, name: &'static str) -> GitCommand {
        GitCommand::user(self.top, name).env("GIT_OBJECT_DIRECTORY", self.objects())
    }

    async fn word(&self, name: &'static str, arguments: &[&str]) -> Result<String, GitFailure> {
        self.git(name).args(arguments).text().await.map(|text| text.trim_end_matches(['\n', '\r']).to_owned())
    }

    async fn text(&self, name: &'static str, arguments: &[&str]) -> Result<String, Failure> {
        self.word(name, arguments).await.map_err(|failure| failed(&failure))
    }

    /// The work tree as git sees it, as a commit on top of `head`; `head` itself when nothing differs.
    async fn commit_work_tree(&self, head: &str) -> Result<String, Failure> {
        let in_copy = |name, index: &Path| self.git(name).env("GIT_INDEX_FILE", index);
        let place = ["rev-parse", "--path-format=absolute", "--git-path", "index"];
        let theirs = line(self.git("rev-parse").args(place)).await.map_err(|failure| failed(&failure))?;
        let index = self.folder.join("index");
        // A copy of their own index: it knows what a sparse checkout leaves out, and what is to be added.
        match std::fs::copy(&theirs, &index) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let read = in_copy("read-tree", &index).args(["read-tree", head]).output().await;
                read.map_err(|failure| failed(&failure))?;
            }
            Err(error) => return Err(Failure::failed(format!("could not copy the index of the clone: {error}"))),
        }
        let unmerged = in_copy("ls-files", &index).args(["ls-files", "--unmerged", "-z"]).output().await;
        if !unmerged.map_err(|failure| failed(&failure))?.is_empty() {
            return Err(Failure::usage(
                "a merge with conflicts is under way: what is on disk is no state of the repository",
            )
            .hint("resolve the conflicts and `git add` the files"));
        }
        // Also what lies outside of a sparse checkout: git shows it as new.
        let add = in_copy("add", &index).args(["add", "--all", "--sparse"]).output().await;
        add.map_err(|failure| failed(&failure))?;
        let tree = in_copy("write-tree", &index).args(["write-tree"]).text().await;
        let tree = tree.map_err(|failure| failed(&failure))?.trim().to_owned();
        if tree == self.text("rev-parse", &["rev-parse", &format!("{head}^{{tree}}")]).await? {
            return Ok(head.to_owned());
        }
        let words = ["-c", "user.name=harmonia-ci", "-c", "user.email=harmonia-ci@localhost"];
        let commit = ["commit-tree", "-p", head, "-m", "uncommitted changes", &tree];
        self.text("commit-tree", &[&words[..], &commit[..]].concat()).await
    }

    /// The nearest folder that has a flake, from `prefix` up; none: the repository's configuration says where it is.
    async fn flake_dir(&self, commit: &str, prefix: &str) -> Result<String, Failure> {
        let mut folder = prefix.trim_end_matches('/');
        while !folder.is_empty() {
            let entry = format!("{commit}:{folder}/flake.nix");
            match self.word("rev-parse", &["rev-parse", "--verify", "--quiet", &entry]).await {
                Ok(object) if is_commit(&object) => break,
                Ok(_) | Err(GitFailure::Failed { .. }) => {}
                Err(failure) => return Err(failed(&failure)),
            }
            folder = folder.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        Ok(folder.to_owned())
    }

    /// Everything that the commit reaches, and where the flake is that is meant, as a bundle: gitformat-bundle(5), a header and
    /// a pack.
    async fn bundle(&self, commit: &str, flake_dir: &str) -> Result<PathBuf, Failure> {
        let path = self.folder.join("commit.bundle");
        let write = |error: std::io::Error| Failure::failed(format!("could not write {}: {error}", path.display()));
        let header = match commit.len() {
            64 => "# v3 git bundle\n@object-format=sha256\n",
            _ => "# v2 git bundle\n",
        };
        let mut tips = format!("{commit} {BUNDLE_REF}\n");
        let mut wanted = format!("{commit}\n");
        if !flake_dir.is_empty() {
            let command = self.git("hash-object").args(["hash-object", "-w", "--stdin"]);
            let text = command.input(flake_dir.as_bytes().to_vec()).text().await.map_err(|failure| failed(&failure))?;
            tips.extend([text.trim(), " ", FLAKE_DIR_REF, "\n"]);
            wanted.push_str(&text);
        }
        let mut file = std::fs::File::create(&path).map_err(write)?;
        file.write_all(format!("{header}{tips}\n").as_bytes()).map_err(write)?;
        let pack = ["pack-objects", "--revs", "--stdout", "--quiet", "--delta-base-offset"];
        let packed = self.git("pack-objects").args(pack).input(wanted.into_bytes()).into_file(file).await;
        if let Err(failure) = packed {
            return Err(match failure {
                GitFailure::Failed { message, .. } if self.is_partial().await => {
                    let words = message.lines().find(|line| !line.is_empty()).unwrap_or("git does not say why");
                    Failure::usage(format!("this is a partial clone, and what it lacks could not be fetched: {words}"))
                        .hint("evaluate the git URL, or run `git fetch --refetch --no-filter`")
                }
                failure => failed(&failure),
            });
        }
        Ok(path)
    }

    async fn is_partial(&self) -> bool {
        let promisors = ["config", "--get-regexp", r"^(remote\..*\.promisor|extensions\.partialclone)$"];
        self.word("config", &promisors).await.is_ok_and(|found| !found.is_empty())
    }
}

/// One path that git prints; it may hold whatever paths may.
async fn line(command: GitCommand) -> Result<OsString, GitFailure> {
    let mut bytes = command.output().await?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(OsString::from_vec(bytes))
}

fn failed(failure: &GitFailure) -> Failure {
    match failure {
        GitFailure::Start { .. } => Failure::failed("the program git is not on PATH").hint("install git"),
        failure => Failure::failed(chain(failure)),
    }
}

#[cfg(test)]
mod tests;
