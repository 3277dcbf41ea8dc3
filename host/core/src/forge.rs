//! What a forge says and is asked, the same for every forge: start at [`Event`] for what comes in, and at
//! [`crate::ports::Forge`] for what can be asked. The words are those of `wit/forge`; newer tracks are translated into
//! them.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::secret::SecretText;

/// Why a forge (or the plugin that speaks for it) did not do what was asked. Whoever calls acts on the kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgeError {
    /// The forge, or a missing grant, refuses: an operator has to act.
    #[error("refused: {0}")]
    Denied(String),
    /// There is no such thing.
    #[error("not found")]
    NotFound,
    /// Try again after so many seconds.
    #[error("asked to wait for {0} s")]
    RetryAfter(u32),
    /// The input or the answer makes no sense; trying again does not help.
    #[error("makes no sense: {0}")]
    Invalid(String),
    /// Cannot be reached, or failed; it may have done what was asked.
    #[error("not available: {0}")]
    Unavailable(String),
    /// The plugin lacks this export: the feature does not exist with this forge.
    #[error("the plugin does not export {0}")]
    Unsupported(&'static str),
    /// The plugin trapped, exceeded a limit, or is circuit-broken.
    #[error("the plugin failed: {0}")]
    Plugin(String),
}

impl ForgeError {
    /// Whether trying again later may help, by itself or once an operator has acted: a credential that is refused because it
    /// expired is replaced, and what came meanwhile must not be lost. What is refused for another reason looks the same, so
    /// whoever tries again needs a bound.
    pub const fn may_pass(&self) -> bool {
        self.is_transient() || matches!(self, Self::Denied(_))
    }

    /// Whether trying again later may help without anybody acting.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::RetryAfter(_) | Self::Unavailable(_) | Self::Plugin(_))
    }
}

/// Names a repository at its forge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RepositoryRef {
    /// The forge's stable id, kept when the repository is renamed.
    pub id: String,
    /// `owner/name`.
    pub full_name: String,
}

/// A repository as the forge describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgeRepository {
    /// The forge's stable id.
    pub id: String,
    /// Owner; may contain `/`.
    pub owner: String,
    /// Name without owner.
    pub name: String,
    /// `owner/name`.
    pub full_name: String,
    /// URL for git.
    pub clone_url: String,
    /// Page for people.
    pub html_url: String,
    /// Default branch.
    pub default_branch: String,
    /// Whether only some may read it.
    pub is_private: bool,
    /// Whether it is frozen.
    pub is_archived: bool,
    /// Topics.
    pub topics: Vec<String>,
}

/// A pull request as the forge describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// Number.
    pub number: u64,
    /// Title.
    pub title: String,
    /// Login of who opened it.
    pub author: String,
    /// Open, neither closed nor merged.
    pub is_open: bool,
    /// A draft.
    pub is_draft: bool,
    /// Labels.
    pub labels: Vec<String>,
    /// Full hash of the newest commit.
    pub head_commit: String,
    /// Branch of the head.
    pub head_branch: String,
    /// Where the head lives; `None` when the fork is gone.
    pub head_repository: Option<RepositoryRef>,
    /// Branch it is to be merged into.
    pub base_branch: String,
    /// Full hash of the base branch's commit that the forge names.
    pub base_commit: String,
    /// Ref under which the base repository has the head.
    pub head_ref: String,
}

/// What moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// Branch, without `refs/heads/`.
    Branch(String),
    /// Tag, without `refs/tags/`.
    Tag(String),
}

/// A branch or tag moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Where.
    pub repository: RepositoryRef,
    /// What.
    pub reference: Reference,
    /// The new head; the old one when deleted.
    pub commit: String,
    /// It is gone.
    pub deleted: bool,
    /// Login of who pushed.
    pub author: String,
    /// Message of the head commit.
    pub message: String,
}

/// What happened to a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullRequestAction {
    /// New.
    Opened,
    /// Open again.
    Reopened,
    /// Its head moved.
    Pushed,
    /// No draft any more.
    Ready,
    /// Title, base or labels changed.
    Edited,
    /// Closed or merged.
    Closed,
    /// Anything else.
    Other,
}

/// Something happened to a pull request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequestEvent {
    /// The base repository.
    pub repository: RepositoryRef,
    /// What.
    pub action: PullRequestAction,
    /// As it was at that time.
    pub pull_request: PullRequest,
}

/// A merge queue's candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeGroup {
    /// Where.
    pub repository: RepositoryRef,
    /// Branch of the candidate.
    pub branch: String,
    /// Its head.
    pub commit: String,
    /// Branch it is to be merged into.
    pub base_branch: String,
    /// That branch's head.
    pub base_commit: String,
    /// The group is gone.
    pub destroyed: bool,
}

/// What happened to a comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommentAction {
    /// Written.
    Created,
    /// Changed afterwards.
    Edited,
    /// Removed.
    Deleted,
}

/// A comment on a pull request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comment {
    /// Where.
    pub repository: RepositoryRef,
    /// The pull request.
    pub number: u64,
    /// The forge's id of the comment.
    pub id: String,
    /// What happened.
    pub action: CommentAction,
    /// Login of who wrote it.
    pub author: String,
    /// Its text.
    pub body: String,
}

/// Somebody asked for a status to be computed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rerun {
    /// Where.
    pub repository: RepositoryRef,
    /// Which commit.
    pub commit: String,
    /// Context of the status; `None`: all of the commit.
    pub context: Option<String>,
    /// Login.
    pub user: String,
}

/// What a delivery says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A branch or tag moved.
    Push(Push),
    /// A pull request.
    PullRequest(PullRequestEvent),
    /// A merge queue.
    MergeGroup(MergeGroup),
    /// A comment on a pull request.
    Comment(Comment),
    /// A status is to be computed again.
    Rerun(Rerun),
    /// These repositories exist, with these properties.
    RepositoriesChanged(Vec<ForgeRepository>),
    /// These are gone, or not ours to see.
    RepositoriesRemoved(Vec<RepositoryRef>),
    /// Discover again.
    Discover,
    /// Who may do what changed; `None`: everywhere.
    PermissionsChanged(Option<RepositoryRef>),
    /// Nothing but a sign of life.
    Ping,
}

/// A webhook as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRequest {
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Raw bytes.
    pub body: Vec<u8>,
}

/// A webhook, verified and normalised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The forge's unique id; the same when it is delivered again.
    pub id: String,
    /// What it says; may be empty.
    pub events: Vec<Event>,
}

/// State of a commit's status, in the order of how much it outweighs (the last is the worst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusState {
    /// Everything well.
    Success,
    /// Queued or running.
    Pending,
    /// Cancelled, or our own fault.
    Error,
    /// Failed.
    Failure,
}

impl StatusState {
    /// As the database and users spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Pending => "pending",
            Self::Error => "error",
            Self::Failure => "failure",
        }
    }
}

impl std::str::FromStr for StatusState {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Success, Self::Pending, Self::Error, Self::Failure].into_iter().find(|s| s.as_str() == text).ok_or(())
    }
}

/// How much an annotation matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnotationLevel {
    /// By the way.
    Notice,
    /// Doubtful.
    Warning,
    /// Wrong.
    Failure,
}

/// A remark at a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// File, relative to the repository's root.
    pub path: String,
    /// From 1.
    pub line: u32,
    /// How much it matters.
    pub level: AnnotationLevel,
    /// What is remarked.
    pub message: String,
}

/// A status that a forge is to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    /// Where.
    pub repository: RepositoryRef,
    /// Full hash.
    pub commit: String,
    /// `harmonia-ci/nix-build`.
    pub context: String,
    /// State.
    pub state: StatusState,
    /// One line, at most 140 characters.
    pub description: String,
    /// Page with details.
    pub target_url: Option<String>,
    /// Markdown.
    pub summary: String,
    /// Remarks in files.
    pub annotations: Vec<Annotation>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A page of a list, and the cursor of the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Entries.
    pub items: Vec<T>,
    /// `None`: this was the last page.
    pub next: Option<String>,
}

/// A branch's newest commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchHead {
    /// Full hash.
    pub commit: String,
    /// Its author.
    pub author: String,
    /// Its message.
    pub message: String,
}

/// What a user may do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Push: a collaborator.
    Write,
    /// Everything.
    Admin,
}

/// Whose pull requests a project evaluates without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullRequestTrust {
    /// Those of people who may push; others wait for an approval.
    #[default]
    Collaborators,
    /// Everybody's.
    All,
    /// Nobody's: each head waits for an approval.
    None,
}

impl PullRequestTrust {
    /// As the database and users spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Collaborators => "collaborators",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

impl std::str::FromStr for PullRequestTrust {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Collaborators, Self::All, Self::None].into_iter().find(|trust| trust.as_str() == text).ok_or(())
    }
}

/// User and password for git over https.
#[derive(Debug, Clone)]
pub struct CloneCredential {
    /// User.
    pub user: String,
    /// Password.
    pub password: SecretText,
    /// Hosts that git may send it to.
    pub hosts: Vec<String>,
}

/// Asks for the address of the forge's login page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginStart {
    /// Where the browser comes back to.
    pub redirect_url: String,
    /// Comes back with the code.
    pub state: String,
    /// PKCE, S256.
    pub code_challenge: String,
}

/// Ends a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginCompletion {
    /// From the forge.
    pub code: String,
    /// As at the start.
    pub redirect_url: String,
    /// PKCE.
    pub code_verifier: String,
}

/// Who logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgeUser {
    /// The forge's stable id.
    pub id: String,
    /// Login.
    pub login: String,
    /// For display; may be empty.
    pub name: String,
}

/// Features that a forge may have or lack: the interfaces its component exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForgeFeature {
    /// Takes webhooks.
    Webhooks,
    /// Shows statuses.
    Statuses,
    /// Takes comments.
    Comments,
    /// Lists repositories.
    Discovery,
    /// Knows branches and trees.
    Branches,
    /// Knows pull requests.
    PullRequests,
    /// Knows who may do what.
    Permissions,
    /// Gives credentials for git.
    Credentials,
    /// Installs webhooks.
    Hooks,
    /// Logs people in.
    Login,
}
