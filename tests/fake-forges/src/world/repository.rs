//! A repository and all that hangs on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use time::OffsetDateTime;

use super::Permission;

/// A repository.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Kept when it is renamed.
    pub id: u64,
    /// Login of the owner.
    pub owner: String,
    /// Name without the owner.
    pub name: String,
    /// Full names that redirect to it.
    pub former_names: Vec<String>,
    /// Only collaborators see it.
    pub private: bool,
    /// Read-only.
    pub archived: bool,
    /// A fork of another.
    pub fork: bool,
    /// Name of a branch.
    pub default_branch: String,
    /// Topics.
    pub topics: Vec<String>,
    /// Where git fetches from; none: an address of the forge, where nothing answers.
    pub clone_url: Option<String>,
    /// Heads by branch.
    pub branches: BTreeMap<String, String>,
    /// Targets by tag.
    pub tags: BTreeMap<String, String>,
    /// By full hash.
    pub commits: BTreeMap<String, Commit>,
    /// By number.
    pub pull_requests: BTreeMap<u64, PullRequest>,
    /// Permissions by login, beyond the owner's.
    pub collaborators: BTreeMap<String, Permission>,
    /// Oldest first, all that were ever posted.
    pub statuses: Vec<CommitStatus>,
    /// GitHub: oldest first.
    pub check_runs: Vec<CheckRun>,
    /// On pull requests, oldest first.
    pub comments: Vec<Comment>,
    /// Gitea: webhooks by id.
    pub hooks: BTreeMap<u64, Hook>,
}

/// A commit.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Full hash.
    pub sha: String,
    /// Full hash of its tree.
    pub tree: String,
    /// Message.
    pub message: String,
    /// Login; a name that no account has stays a mere name.
    pub author: String,
    /// Full hashes.
    pub parents: Vec<String>,
    /// When it was made.
    pub time: OffsetDateTime,
}

/// A pull request.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The forge's id (not the number).
    pub id: u64,
    /// Number within the repository.
    pub number: u64,
    /// Title.
    pub title: String,
    /// Text.
    pub body: String,
    /// Login.
    pub author: String,
    /// Open, or closed.
    pub open: bool,
    /// Merged (and so closed).
    pub merged: bool,
    /// Not ready.
    pub draft: bool,
    /// Labels.
    pub labels: Vec<Label>,
    /// Branch in the head repository.
    pub head_branch: String,
    /// Full hash.
    pub head_commit: String,
    /// Id; none: the fork is gone.
    pub head_repository: Option<u64>,
    /// Branch in this repository.
    pub base_branch: String,
    /// Full hash.
    pub base_commit: String,
    /// When it was opened.
    pub created_at: OffsetDateTime,
}

/// A label of a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The forge's id.
    pub id: u64,
    /// Name.
    pub name: String,
}

/// A comment on a pull request.
#[derive(Clone, Debug)]
pub struct Comment {
    /// The forge's id.
    pub id: u64,
    /// Number of the pull request.
    pub number: u64,
    /// Login, `app[bot]` for the app.
    pub author: String,
    /// Text.
    pub body: String,
    /// When it was written.
    pub created_at: OffsetDateTime,
}

/// A commit status as it was posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitStatus {
    /// The forge's id.
    pub id: u64,
    /// Full hash.
    pub sha: String,
    /// Its name.
    pub context: String,
    /// `pending`, `success`, `failure`, `error` (Gitea also `warning`).
    pub state: String,
    /// One line.
    pub description: String,
    /// Page with details.
    pub target_url: String,
    /// Login of who posted it.
    pub creator: String,
    /// When it was posted.
    pub created_at: OffsetDateTime,
}

/// GitHub: a check run.
#[derive(Clone, Debug)]
pub struct CheckRun {
    /// The forge's id.
    pub id: u64,
    /// Full hash.
    pub head_sha: String,
    /// Its name.
    pub name: String,
    /// `queued`, `in_progress`, `completed`.
    pub status: String,
    /// Once completed.
    pub conclusion: Option<String>,
    /// Page with details.
    pub details_url: Option<String>,
    /// Ours.
    pub external_id: Option<String>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub completed_at: Option<String>,
    /// Title of the output.
    pub title: Option<String>,
    /// Markdown.
    pub summary: Option<String>,
    /// Markdown.
    pub text: Option<String>,
    /// All that were ever sent: an update adds to them.
    pub annotations: Vec<Value>,
    /// Buttons.
    pub actions: Vec<Value>,
}

/// Gitea: a webhook of a repository.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The forge's id.
    pub id: u64,
    /// Where deliveries go.
    pub url: String,
    /// What they are signed with.
    pub secret: String,
    /// `json` or `form`.
    pub content_type: String,
    /// `gitea`, `forgejo`, …
    pub kind: String,
    /// Names of events.
    pub events: Vec<String>,
    /// Delivers at all.
    pub active: bool,
    /// Pattern of branches.
    pub branch_filter: String,
    /// When it was installed.
    pub created_at: OffsetDateTime,
}

impl Default for CheckRun {
    /// A run that waits.
    fn default() -> Self {
        Self {
            id: 0,
            head_sha: String::new(),
            name: String::new(),
            status: "queued".to_owned(),
            conclusion: None,
            details_url: None,
            external_id: None,
            started_at: None,
            completed_at: None,
            title: None,
            summary: None,
            text: None,
            annotations: Vec::new(),
            actions: Vec::new(),
        }
    }
}

impl Repository {
    pub(super) fn new(id: u64, owner: &str, name: &str) -> Self {
        Self {
            id,
            owner: owner.to_owned(),
            name: name.to_owned(),
            former_names: Vec::new(),
            private: false,
            archived: false,
            fork: false,
            default_branch: "main".to_owned(),
            topics: Vec::new(),
            clone_url: None,
            branches: BTreeMap::new(),
            tags: BTreeMap::new(),
            commits: BTreeMap::new(),
            pull_requests: BTreeMap::new(),
            collaborators: BTreeMap::new(),
            statuses: Vec::new(),
            check_runs: Vec::new(),
            comments: Vec::new(),
            hooks: BTreeMap::new(),
        }
    }

    /// `owner/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The head of a branch.
    pub fn head(&self, branch: &str) -> &str {
        self.branches.get(branch).unwrap_or_else(|| panic!("{} has no branch {branch}", self.full_name()))
    }

    /// Moves (or makes) a branch.
    pub fn set_branch(&mut self, branch: &str, head: Commit) {
        self.branches.insert(branch.to_owned(), head.sha.clone());
        self.commits.insert(head.sha.clone(), head);
    }

    /// A pull request that exists.
    pub fn pull_request_mut(&mut self, number: u64) -> &mut PullRequest {
        self.pull_requests.get_mut(&number).expect("the pull request exists")
    }

    /// The newest status of each context of a commit.
    pub fn newest_statuses(&self, sha: &str) -> BTreeMap<String, CommitStatus> {
        let of_commit = self.statuses.iter().filter(|status| status.sha == sha);
        of_commit.map(|status| (status.context.clone(), status.clone())).collect()
    }

    /// The newest check run of each name of a commit.
    pub fn newest_check_runs(&self, sha: &str) -> BTreeMap<String, CheckRun> {
        let of_commit = self.check_runs.iter().filter(|run| run.head_sha == sha);
        of_commit.map(|run| (run.name.clone(), run.clone())).collect()
    }

    /// What a hash, branch or tag (`heads/x`, `tags/x`, with or without `refs/`) means.
    pub(crate) fn resolve(&self, reference: &str) -> Option<&Commit> {
        let short = reference.strip_prefix("refs/").unwrap_or(reference);
        let sha = if let Some(branch) = short.strip_prefix("heads/") {
            self.branches.get(branch)
        } else if let Some(tag) = short.strip_prefix("tags/") {
            self.tags.get(tag)
        } else {
            self.branches.get(reference).or_else(|| self.tags.get(reference))
        };
        self.commits.get(sha.map_or(reference, String::as_str))
    }

    /// Takes over all branches, tags and commits of a git repository on disk, which becomes what `clone_url` names.
    pub fn import_git(&mut self, folder: &Path) {
        let git = |arguments: &[&str]| {
            let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().expect("git runs");
            assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("git writes UTF-8")
        };
        for line in git(&["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)"]).lines() {
            let mut words = line.split(' ');
            let (Some(reference), Some(object), peeled) = (words.next(), words.next(), words.next()) else { continue };
            let target = peeled.filter(|hash| !hash.is_empty()).unwrap_or(object).to_owned();
            if let Some(branch) = reference.strip_prefix("refs/heads/") {
                self.branches.insert(branch.to_owned(), target);
            } else if let Some(tag) = reference.strip_prefix("refs/tags/") {
                self.tags.insert(tag.to_owned(), target);
            }
        }
        let log = git(&["log", "--all", "-z", "--format=%H%x1f%T%x1f%P%x1f%an%x1f%ct%x1f%B"]);
        for entry in log.split('\0').filter(|entry| !entry.is_empty()) {
            let fields: Vec<&str> = entry.splitn(6, '\u{1f}').collect();
            let [sha, tree, parents, author, time, message] = fields[..] else { panic!("git log wrote {entry:?}") };
            let seconds = time.parse().expect("git writes seconds");
            let commit = Commit {
                sha: sha.to_owned(),
                tree: tree.to_owned(),
                message: message.trim_end().to_owned(),
                author: author.to_owned(),
                parents: parents.split_whitespace().map(str::to_owned).collect(),
                time: OffsetDateTime::from_unix_timestamp(seconds).expect("git's times are valid"),
            };
            self.commits.insert(commit.sha.clone(), commit);
        }
        let path = folder.canonicalize().expect("the repository exists");
        self.clone_url = Some(format!("file://{}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_git_repository_is_taken_over() {
        let folder = std::env::temp_dir().join(format!("harmonia-fake-forges-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let git = |arguments: &[&str]| {
            let identity =
                ["-c", "user.name=alice", "-c", "user.email=alice@example.org", "-c", "init.defaultBranch=main"];
            let output =
                Command::new("git").arg("-C").arg(&folder).args(identity).args(arguments).output().expect("git runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        git(&["init", "--quiet"]);
        git(&["commit", "--quiet", "--allow-empty", "-m", "First\n\nwith a body"]);
        git(&["tag", "-a", "-m", "release", "v1"]);
        git(&["commit", "--quiet", "--allow-empty", "-m", "Second"]);
        let mut repository = Repository::new(1, "acme", "site");
        repository.import_git(&folder);
        let head = git(&["rev-parse", "HEAD"]);
        assert_eq!(repository.head("main"), head);
        assert_eq!(repository.commits[&head].tree, git(&["rev-parse", "HEAD^{tree}"]));
        assert_eq!(repository.commits[&head].parents, [git(&["rev-parse", "HEAD^"])]);
        assert_eq!(repository.resolve("tags/v1").map(|commit| commit.message.as_str()), Some("First\n\nwith a body"));
        assert_eq!(repository.resolve("refs/heads/main").map(|commit| commit.author.as_str()), Some("alice"));
        std::fs::remove_dir_all(&folder).expect("it can be removed");
    }
}
