//! Wire types of projects: repositories, settings, deliveries.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::forge::PullRequestTrust;

/// A repository that a forge told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryInfo {
    /// Its id here.
    pub id: i64,
    /// The forge's configured name.
    pub forge: String,
    /// `owner/name`.
    pub full_name: String,
    /// Its page at the forge.
    pub html_url: String,
    /// Default branch.
    pub default_branch: String,
    /// Whether only some may read it.
    pub is_private: bool,
    /// Whether it is frozen.
    pub is_archived: bool,
    /// Topics.
    pub topics: Vec<String>,
    /// Name of its project, if it was ever enabled.
    pub project: Option<String>,
    /// Whether it is evaluated.
    pub enabled: bool,
}

/// Asks for a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AddProject {
    /// A repository of a forge; its project is enabled again when there is one.
    Repository {
        /// The forge's configured name.
        forge: String,
        /// `owner/name`.
        repository: String,
    },
    /// A plain git repository.
    Git {
        /// URL (`https://`, `ssh://`, `git://`, `file://`), without credentials.
        url: String,
        /// Name; `None`: the last parts of the URL's path.
        #[serde(default)]
        name: Option<String>,
        /// Branch; `None`: the one that the remote's HEAD names.
        #[serde(default)]
        branch: Option<String>,
        /// Seconds between two looks at it; 0: never; `None`: 60.
        #[serde(default)]
        poll_interval_s: Option<u32>,
    },
}

/// There is a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectAdded {
    /// Its name.
    pub name: String,
    /// Its page, relative to the server.
    pub page: String,
}

/// Settings to change; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectChanges {
    /// Whether anything is evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether everybody sees it; a forge's project is as visible as its repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// Its weight against other projects, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling_shares: Option<u32>,
    /// Whether pull requests are evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pr_enabled: Option<bool>,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pr_trust: Option<PullRequestTrust>,
    /// Seconds between two polls; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_interval_s: Option<u32>,
    /// Whether polls ask for open pull requests too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_pull_requests: Option<bool>,
    /// Branch of a plain git project; empty: the one that the remote's HEAD names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_branch: Option<String>,
    /// Branches besides the default branch, as patterns (`release/*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_patterns: Option<Vec<String>>,
    /// Whether tags are evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_tags: Option<bool>,
    /// Whether drafts of pull requests are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_drafts: Option<bool>,
    /// Whether the result of another commit with the same tree is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse_trees: Option<bool>,
}

/// A project and its settings.
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectSettings {
    /// Its name.
    pub name: String,
    /// `local`, `git` or `forge`.
    pub kind: String,
    /// The forge's configured name.
    pub forge: Option<String>,
    /// `owner/name` there.
    pub repository: Option<String>,
    /// Its page there.
    pub repository_url: Option<String>,
    /// The forge does not show it to us any more.
    pub repository_removed: bool,
    /// URL of a plain git project.
    pub url: Option<String>,
    /// Default branch, when known.
    pub default_branch: Option<String>,
    /// Whether anything is evaluated.
    pub enabled: bool,
    /// Whether everybody sees it.
    pub is_public: bool,
    /// Its weight against other projects.
    pub scheduling_shares: u32,
    /// Whether pull requests are evaluated.
    pub pr_enabled: bool,
    /// Whose.
    pub pr_trust: PullRequestTrust,
    /// Seconds between two polls; 0: none.
    pub poll_interval_s: u32,
    /// Whether polls ask for open pull requests too.
    pub poll_pull_requests: bool,
    /// Why the last poll failed.
    pub poll_error: Option<String>,
    /// Branches besides the default branch, as patterns.
    pub branch_patterns: Vec<String>,
    /// What the default branch's own file adds to them.
    pub tree_branch_patterns: Vec<String>,
    /// Whether tags are evaluated.
    pub build_tags: bool,
    /// Whether drafts of pull requests are.
    pub build_drafts: bool,
    /// Whether the result of another commit with the same tree is taken.
    pub reuse_trees: bool,
    /// The webhook that we install, where the forge needs that.
    pub hook: Option<HookInfo>,
}

/// A webhook that we install.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// It is there.
    pub installed: bool,
    /// Why the last try to install or remove it failed; it is tried again.
    pub error: Option<String>,
}

/// A delivery of a forge, as in the list of recent ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryInfo {
    /// Its id here; grows in the order of arrival.
    pub id: i64,
    /// The forge's configured name.
    pub forge: String,
    /// The forge's id of it; `poll:…` for what a poll found.
    pub delivery: String,
    /// When it arrived.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: Timestamp,
    /// `queued`, `done`, or `dead` (given up; can be replayed).
    pub state: String,
    /// Full names of the repositories that it is about, some of them when there are many.
    pub repositories: Vec<String>,
    /// Kinds of its events (`push`, `pull-request`, …).
    pub events: Vec<String>,
    /// What came of it.
    pub outcome: Option<String>,
    /// How long it took to verify, in milliseconds.
    pub duration_ms: u32,
    /// Tries to process it.
    pub attempts: u32,
    /// What went wrong at the last try.
    pub error: Option<String>,
    /// When it is tried next, while it is queued.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_attempt_at: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<Timestamp>,
}
