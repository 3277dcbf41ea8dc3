//! What of GitHub's JSON we read, and what it means. Shapes: GitHub's REST description, API version 2022-11-28.

use harmonia_plugin::forge::{BranchHead, Permission, PullRequest, Repository as ForgeRepository, RepositoryRef};
use serde::{Deserialize, Deserializer};

/// Stands for accounts that were deleted.
const GHOST: &str = "ghost";

/// What stands where nothing has to stand may also be null, whatever the description says.
pub fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

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

/// A repository, as far as every payload tells.
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
    archived: bool,
    #[serde(default, deserialize_with = "or_default")]
    topics: Vec<String>,
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
            is_private: found.private,
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

impl From<Pull> for PullRequest {
    fn from(found: Pull) -> Self {
        Self {
            number: found.number,
            title: found.title,
            author: login_of(found.user.as_ref()),
            is_open: found.state == "open",
            is_draft: found.draft.unwrap_or(false),
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
    sha: String,
    author: Option<Account>,
    #[serde(rename = "commit")]
    text: CommitText,
}

#[derive(Debug, Deserialize)]
struct CommitText {
    #[serde(default, deserialize_with = "or_default")]
    message: String,
    author: Option<Person>,
}

#[derive(Debug, Deserialize)]
struct Person {
    name: Option<String>,
}

impl Branch {
    /// The newest commit, by whoever GitHub says, else whoever git says.
    pub fn into_head(self) -> BranchHead {
        let by_git = self.commit.text.author.and_then(|person| person.name);
        let by_github = self.commit.author.map(|account| account.login).filter(|login| !login.is_empty());
        let author = by_github.or(by_git);
        BranchHead {
            commit: self.commit.sha,
            author: author.unwrap_or_else(|| GHOST.to_owned()),
            message: self.commit.text.message,
        }
    }
}

/// `GET /repos/{owner}/{repo}/git/commits/{sha}`.
#[derive(Debug, Deserialize)]
pub struct GitCommit {
    /// Its tree.
    pub tree: Tree,
}

/// A tree of git.
#[derive(Debug, Deserialize)]
pub struct Tree {
    /// Its hash.
    pub sha: String,
}

/// `GET /repos/{owner}/{repo}/collaborators/{user}/permission`.
#[derive(Debug, Deserialize)]
pub struct Collaborator {
    permission: String,
}

impl Collaborator {
    /// What it means here. `maintain` and `triage` arrive as `write` and `read`; what is not known is nothing.
    pub fn permission(&self) -> Permission {
        match self.permission.as_str() {
            "admin" => Permission::Admin,
            "write" | "maintain" => Permission::Write,
            "read" | "triage" => Permission::Read,
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
            ("admin", Permission::Admin),
            ("write", Permission::Write),
            ("read", Permission::Read),
            ("none", Permission::None),
            ("owner", Permission::None),
            ("", Permission::None),
        ] {
            assert_eq!(Collaborator { permission: said.to_owned() }.permission(), meant, "{said}");
        }
    }
}
