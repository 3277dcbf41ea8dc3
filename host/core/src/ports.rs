//! Ports: what one crate needs of another without knowing it. `ci` wires them.
//!
//! [`Forge`], [`Reporter`] and [`crate::policy::Policy`] are what plugins are to the rest of the host; [`Plugins`] finds
//! them; [`RemoteHeads`] is for repositories without forge; [`PluginStore`] is what plugins need of the database.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use crate::ids::AttemptId;
use crate::plugin::PluginStatus;
use crate::reporter::{Notification, ReportError};

/// A future that a port returns.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes of a running build's log, from the spool of the builder that runs it.
pub trait LogSpool: Send + Sync {
    /// Up to `bytes_max` bytes of the uncompressed log from `offset`; `None` when this spool does not hold the attempt.
    fn read(&self, attempt: AttemptId, offset: u64, bytes_max: usize) -> PortFuture<'_, Option<Vec<u8>>>;
}

/// A place where repositories and pull requests live. What a forge lacks answers [`ForgeError::Unsupported`].
pub trait Forge: Send + Sync {
    /// Whether the forge has a feature.
    fn has(&self, feature: ForgeFeature) -> bool;
    /// Verifies and normalises a delivery, without any network. `Denied`: its signature is missing or wrong.
    fn webhook(&self, request: WebhookRequest) -> PortFuture<'_, Result<Delivery, ForgeError>>;
    /// Shows a status. Calling twice does no harm.
    fn report(&self, status: CommitStatus) -> PortFuture<'_, Result<(), ForgeError>>;
    /// Comments on a pull request, unless a comment with this key is there.
    fn comment(
        &self,
        repository: RepositoryRef,
        number: u64,
        key: String,
        body: String,
    ) -> PortFuture<'_, Result<(), ForgeError>>;
    /// One page of the repositories that we can see.
    fn repositories(&self, cursor: Option<String>) -> PortFuture<'_, Result<Page<ForgeRepository>, ForgeError>>;
    /// A branch's newest commit.
    fn branch_head(&self, repository: RepositoryRef, branch: String) -> PortFuture<'_, Result<BranchHead, ForgeError>>;
    /// Hash of a commit's tree.
    fn tree_hash(&self, repository: RepositoryRef, commit: String) -> PortFuture<'_, Result<String, ForgeError>>;
    /// A pull request as it is now.
    fn pull_request(&self, repository: RepositoryRef, number: u64) -> PortFuture<'_, Result<PullRequest, ForgeError>>;
    /// One page of the open pull requests.
    fn open_pull_requests(
        &self,
        repository: RepositoryRef,
        cursor: Option<String>,
    ) -> PortFuture<'_, Result<Page<PullRequest>, ForgeError>>;
    /// What a user may do.
    fn permission(&self, repository: RepositoryRef, user: String) -> PortFuture<'_, Result<Permission, ForgeError>>;
    /// A short-lived credential for git; `None`: none is needed.
    fn clone_credential(
        &self,
        repository: RepositoryRef,
    ) -> PortFuture<'_, Result<Option<CloneCredential>, ForgeError>>;
    /// Makes the forge deliver webhooks to `url`.
    fn install_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>>;
    /// Undoes [`Forge::install_hook`].
    fn remove_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>>;
    /// Where to send a browser to log in.
    fn login_url(&self, start: LoginStart) -> PortFuture<'_, Result<String, ForgeError>>;
    /// Who logged in.
    fn login_complete(&self, completion: LoginCompletion) -> PortFuture<'_, Result<ForgeUser, ForgeError>>;
}

/// Tells people.
pub trait Reporter: Send + Sync {
    /// Tells one thing. Calling twice with the same key does no harm.
    fn report(&self, notification: Notification) -> PortFuture<'_, Result<(), ReportError>>;
}

/// Where a branch of a plain git repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteHead {
    /// Branch.
    pub branch: String,
    /// Full hash of its newest commit.
    pub commit: String,
}

/// Asks plain git repositories where their branches are, without fetching anything.
pub trait RemoteHeads: Send + Sync {
    /// The head of a branch, or of the one that the remote's HEAD names. Errors are sentences for people.
    fn head(&self, url: String, branch: Option<String>) -> PortFuture<'_, Result<RemoteHead, String>>;
}

/// The plugins of this node, as they are configured now (a reload may change them between two calls).
pub trait Plugins: Send + Sync {
    /// Names of the configured forges.
    fn forges(&self) -> Vec<String>;
    /// The forge of this name.
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>>;
    /// Names of the configured reporters.
    fn reporters(&self) -> Vec<String>;
    /// The reporter of this name.
    fn reporter(&self, name: &str) -> Option<Arc<dyn Reporter>>;
    /// How every plugin is.
    fn statuses(&self) -> Vec<PluginStatus>;
    /// Why the configuration as it is now was not taken, so that an older one is in force.
    fn refused_configuration(&self) -> Option<String> {
        None
    }
}

/// No plugins at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPlugins;

impl Plugins for NoPlugins {
    fn forges(&self) -> Vec<String> {
        Vec::new()
    }
    fn forge(&self, _: &str) -> Option<Arc<dyn Forge>> {
        None
    }
    fn reporters(&self) -> Vec<String> {
        Vec::new()
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        None
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        Vec::new()
    }
}

/// A plugin's small store, shared by all nodes.
pub trait PluginStore: Send + Sync {
    /// Value and version of a key; `None` when absent or expired.
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>>;
    /// Writes a value and returns its version.
    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>>;
    /// Removes a key; it may be absent.
    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>>;
}

/// A stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    /// The bytes.
    pub value: Vec<u8>,
    /// Grows with every write of the key.
    pub version: u64,
}

/// When a write is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCondition {
    /// Whatever is there.
    Always,
    /// Only when the key is absent (or expired).
    Absent,
    /// Only when the stored version is this one.
    Version(u64),
}

/// Why nothing was read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginStoreError {
    /// Somebody else wrote.
    #[error("somebody else wrote this key")]
    Conflict,
    /// A bound is reached.
    #[error("{0}")]
    Limit(String),
    /// The database does not answer.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
}
