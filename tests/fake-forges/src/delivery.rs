//! What forges deliver to webhooks.

/// A delivery as the forge would send it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Where to, if the forge knows it (a webhook that was installed).
    pub url: Option<String>,
    /// As sent.
    pub headers: Vec<(String, String)>,
    /// As signed.
    pub body: Vec<u8>,
}

impl Delivery {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("deliveries are JSON")
    }

    /// Replaces a header, for tests of what must be refused.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Something that happened and is worth a delivery. Repositories by full name; what else there is to say comes from the world.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A branch or tag moved.
    Push {
        /// `owner/name`.
        repository: &'a str,
        /// `refs/heads/main`.
        reference: &'a str,
        /// Full hash; zeros when it is new.
        before: &'a str,
        /// Full hash; zeros when it is gone.
        after: &'a str,
        /// Login.
        pusher: &'a str,
    },
    /// A branch or tag was made.
    Create {
        /// `owner/name`.
        repository: &'a str,
        /// `refs/heads/x` or `refs/tags/x`.
        reference: &'a str,
    },
    /// A branch or tag was deleted.
    Delete {
        /// `owner/name`.
        repository: &'a str,
        /// `refs/heads/x` or `refs/tags/x`.
        reference: &'a str,
    },
    /// Something happened to a pull request.
    PullRequest {
        /// `owner/name`.
        repository: &'a str,
        /// Its number.
        number: u64,
        /// What.
        action: PullRequestAction<'a>,
    },
    /// GitHub: a merge queue asks for checks.
    MergeGroup {
        /// `owner/name`.
        repository: &'a str,
        /// Branch of the group, without `refs/heads/`.
        branch: &'a str,
        /// Full hash.
        commit: &'a str,
        /// Branch that it is to be merged to.
        base_branch: &'a str,
        /// Full hash.
        base_commit: &'a str,
        /// The group is gone: `merged`, `invalidated` or `dequeued`.
        destroyed: Option<&'a str>,
    },
    /// A comment on a pull request.
    Comment {
        /// `owner/name`.
        repository: &'a str,
        /// Id of the comment.
        id: u64,
        /// What happened to it.
        action: CommentAction<'a>,
    },
    /// GitHub: something happened to an installation of the app.
    Installation {
        /// Its id. It may be gone from the world: then account and repositories are of example.
        id: u64,
        /// What.
        action: InstallationAction,
    },
    /// GitHub: an installation sees other repositories now.
    InstallationRepositories {
        /// Its id.
        id: u64,
        /// Full names; they need not exist any more.
        added: &'a [&'a str],
        /// Full names and ids; they need not exist any more.
        removed: &'a [(&'a str, u64)],
    },
    /// Something happened to a repository.
    Repository {
        /// Its present full name.
        repository: &'a str,
        /// What.
        action: RepositoryAction<'a>,
    },
    /// GitHub: "Re-run" was pressed on a check run.
    CheckRunRerequested {
        /// `owner/name`.
        repository: &'a str,
        /// Id of the check run.
        id: u64,
        /// Login.
        user: &'a str,
    },
    /// GitHub: "Re-run all" was pressed on a commit.
    CheckSuiteRerequested {
        /// `owner/name`.
        repository: &'a str,
        /// Full hash.
        commit: &'a str,
        /// Login.
        user: &'a str,
    },
    /// GitHub: a collaborator was `added`, `edited` or `removed`.
    Member {
        /// `owner/name`.
        repository: &'a str,
        /// Login.
        user: &'a str,
        /// `added`, `edited` or `removed`.
        action: &'a str,
    },
    /// GitHub: somebody was `added` to a team or `removed` from it.
    Membership {
        /// Login of the organisation.
        organization: &'a str,
        /// Login.
        user: &'a str,
        /// `added` or `removed`.
        action: &'a str,
    },
    /// GitHub: somebody joined or left an organisation.
    Organization {
        /// Its login.
        organization: &'a str,
        /// Login.
        user: &'a str,
        /// `member_added` or `member_removed`.
        action: &'a str,
    },
    /// The test delivery: GitHub's `ping`; Gitea sends a push of the default branch's head.
    Ping {
        /// `owner/name`.
        repository: &'a str,
    },
}

/// What happened to a pull request. The world must be in the state after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullRequestAction<'a> {
    /// New.
    Opened,
    /// Its head moved from this commit.
    Synchronize {
        /// Full hash.
        before: &'a str,
    },
    /// Open again.
    Reopened,
    /// Closed, perhaps merged.
    Closed,
    /// No draft any more. (Gitea: the title was edited.)
    ReadyForReview,
    /// A draft again. (Gitea: the title was edited.)
    ConvertedToDraft,
    /// The title was changed.
    TitleEdited {
        /// What it was.
        from: &'a str,
    },
    /// The base branch was changed.
    BaseEdited {
        /// What it was.
        from: &'a str,
    },
    /// A label was added.
    Labeled,
    /// Something that is no business of a build: somebody was assigned.
    Assigned,
}

/// What happened to a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommentAction<'a> {
    /// New.
    Created,
    /// Changed.
    Edited {
        /// What it said before.
        from: &'a str,
    },
    /// Gone. The world must still have it.
    Deleted,
}

/// What happened to an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallationAction {
    /// New.
    Created,
    /// Removed.
    Deleted,
    /// Suspended.
    Suspend,
    /// Not suspended any more.
    Unsuspend,
    /// An owner accepted new permissions.
    NewPermissionsAccepted,
}

/// What happened to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryAction<'a> {
    /// New.
    Created,
    /// Deleted. The world must still have it.
    Deleted,
    /// Renamed.
    Renamed {
        /// Its former name, without the owner.
        from: &'a str,
    },
    /// Moved to another owner.
    Transferred {
        /// Login of the former owner.
        from: &'a str,
    },
    /// Read-only now.
    Archived,
    /// Writable again.
    Unarchived,
    /// Private now.
    Privatized,
    /// Public now.
    Publicized,
    /// The default branch was changed.
    DefaultBranchEdited {
        /// What it was.
        from: &'a str,
    },
    /// The topics were changed.
    TopicsEdited,
}
