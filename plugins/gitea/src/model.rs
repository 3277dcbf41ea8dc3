//! What of the instance's JSON we read, and what it means. Shapes: the API description that Gitea and Forgejo publish about
//! themselves (`/swagger.v1.json`).

use harmonia_plugin::forge::{BranchHead, Permission, PullRequest, Repository as ForgeRepository, RepositoryRef};
use serde::{Deserialize, Deserializer};

/// A commit's message, which comes with the line break that git puts at its end.
pub fn message_of(text: &str) -> String {
    text.trim_end_matches('\n').to_owned()
}

/// What stands where nothing has to stand may also be null: lists and texts that are empty are.
pub fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// Stands for accounts that were deleted.
const GHOST: &str = "Ghost";

/// A user or an organisation.
#[derive(Debug, Clone, Deserialize)]
pub struct Account {
    /// Its name.
    #[serde(default, deserialize_with = "or_default")]
    pub login: String,
}

/// The name of an account that may be gone.
pub fn login_of(account: Option<&Account>) -> String {
    account.map(|account| account.login.clone()).filter(|login| !login.is_empty()).unwrap_or_else(|| GHOST.to_owned())
}

/// A repository, as far as everything tells.
#[derive(Debug, Clone, Deserialize)]
pub struct NamedRepository {
    /// Stable id.
    pub id: u64,
    /// `owner/name`.
    pub full_name: String,
}

impl NamedRepository {
    /// What the host calls it by.
    pub fn to_ref(&self) -> RepositoryRef {
        RepositoryRef { id: self.id.to_string(), full_name: self.full_name.clone() }
    }
}

/// A repository with its properties.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the shape is the instance's")]
pub struct Repository {
    id: u64,
    owner: Option<Account>,
    name: String,
    full_name: String,
    clone_url: String,
    #[serde(default, deserialize_with = "or_default")]
    html_url: String,
    #[serde(default, deserialize_with = "or_default")]
    default_branch: String,
    private: bool,
    #[serde(default, deserialize_with = "or_default")]
    internal: bool,
    #[serde(default, deserialize_with = "or_default")]
    archived: bool,
    #[serde(default, deserialize_with = "or_default")]
    empty: bool,
    #[serde(default, deserialize_with = "or_default")]
    topics: Vec<String>,
    permissions: Option<OwnPermissions>,
}

/// What the token's user may do.
#[derive(Debug, Clone, Deserialize)]
struct OwnPermissions {
    #[serde(default, deserialize_with = "or_default")]
    push: bool,
}

impl Repository {
    /// Whether we can report to it, and it has anything to build.
    pub fn is_useful(&self) -> bool {
        !self.empty && self.permissions.as_ref().is_none_or(|permissions| permissions.push)
    }
}

impl From<Repository> for ForgeRepository {
    fn from(found: Repository) -> Self {
        Self {
            id: found.id.to_string(),
            owner: login_of(found.owner.as_ref()),
            name: found.name,
            full_name: found.full_name,
            clone_url: found.clone_url,
            html_url: found.html_url,
            default_branch: found.default_branch,
            // Internal: only for users of the instance.
            is_private: found.private || found.internal,
            is_archived: found.archived,
            topics: found.topics,
        }
    }
}

/// A pull request.
#[derive(Debug, Clone, Deserialize)]
pub struct Pull {
    number: u64,
    #[serde(default, deserialize_with = "or_default")]
    title: String,
    user: Option<Account>,
    state: String,
    /// Older instances only mark the title.
    draft: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    labels: Vec<Label>,
    head: End,
    base: End,
}

#[derive(Debug, Clone, Deserialize)]
struct Label {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
}

/// Head or base of a pull request.
#[derive(Debug, Clone, Deserialize)]
struct End {
    #[serde(default, rename = "ref", deserialize_with = "or_default")]
    branch: String,
    sha: String,
    /// None: the fork is gone.
    repo: Option<NamedRepository>,
}

impl Pull {
    /// Whether it is a draft.
    pub fn is_draft(&self) -> bool {
        self.draft.unwrap_or(false) || is_work_in_progress(&self.title)
    }
}

/// Whether a title marks a draft: the prefixes that instances know unless they are configured otherwise.
pub fn is_work_in_progress(title: &str) -> bool {
    let title = title.trim_start().to_ascii_uppercase();
    ["WIP:", "[WIP]"].iter().any(|prefix| title.starts_with(prefix))
}

impl From<Pull> for PullRequest {
    fn from(found: Pull) -> Self {
        Self {
            is_draft: found.is_draft(),
            number: found.number,
            title: found.title,
            author: login_of(found.user.as_ref()),
            is_open: found.state == "open",
            labels: found.labels.into_iter().map(|label| label.name).collect(),
            head_commit: found.head.sha,
            head_branch: found.head.branch,
            head_repository: found.head.repo.map(|repository| repository.to_ref()),
            base_branch: found.base.branch,
            base_commit: found.base.sha,
            head_ref: format!("refs/pull/{}/head", found.number),
        }
    }
}

/// `GET /repos/{owner}/{repo}/branches/{branch}`.
#[derive(Debug, Deserialize)]
pub struct Branch {
    commit: Commit,
}

#[derive(Debug, Deserialize)]
struct Commit {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    message: String,
    author: Option<Person>,
}

#[derive(Debug, Deserialize)]
struct Person {
    name: Option<String>,
    username: Option<String>,
}

impl Branch {
    /// The newest commit, by whoever the instance says, else whoever git says.
    pub fn into_head(self) -> BranchHead {
        let author =
            self.commit.author.and_then(|person| person.username.filter(|name| !name.is_empty()).or(person.name));
        BranchHead {
            commit: self.commit.id,
            author: author.unwrap_or_else(|| GHOST.to_owned()),
            message: message_of(&self.commit.message),
        }
    }
}

/// `GET /repos/{owner}/{repo}/git/commits/{sha}`.
#[derive(Debug, Deserialize)]
pub struct FullCommit {
    commit: CommitBody,
}

#[derive(Debug, Deserialize)]
struct CommitBody {
    tree: Tree,
}

#[derive(Debug, Deserialize)]
struct Tree {
    sha: String,
}

impl FullCommit {
    /// Hash of its tree.
    pub fn into_tree_hash(self) -> String {
        self.commit.tree.sha
    }
}

/// `GET /repos/{owner}/{repo}/collaborators/{collaborator}/permission`.
#[derive(Debug, Deserialize)]
pub struct Collaborator {
    permission: String,
}

impl Collaborator {
    /// What it means here; what is not known is nothing.
    pub fn permission(&self) -> Permission {
        match self.permission.as_str() {
            "owner" | "admin" => Permission::Admin,
            "write" => Permission::Write,
            "read" => Permission::Read,
            _ => Permission::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_never_guessed_upwards() {
        for (said, meant) in [
            ("owner", Permission::Admin),
            ("admin", Permission::Admin),
            ("write", Permission::Write),
            ("read", Permission::Read),
            ("none", Permission::None),
            ("Write", Permission::None),
            ("", Permission::None),
        ] {
            assert_eq!(Collaborator { permission: said.to_owned() }.permission(), meant, "{said}");
        }
    }

    #[test]
    fn drafts_are_marked_in_the_title() {
        for (title, draft) in
            [("WIP: x", true), ("[wip] x", true), (" wip:x", true), ("Wipe it", false), ("x WIP:", false)]
        {
            assert_eq!(is_work_in_progress(title), draft, "{title}");
        }
    }
}
