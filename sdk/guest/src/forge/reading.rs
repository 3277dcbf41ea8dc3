//! Asking a forge: repositories, branches, pull requests, permissions.

use super::{Error, PullRequest, RepositoryRef};
use crate::bindings::{Adapter, branches, discovery, permissions, pull_requests};
use crate::panic::install_hook;

pub use branches::exports::harmonia::forge::branches::BranchHead;
pub use discovery::exports::harmonia::forge::discovery::Page as RepositoryPage;
pub use permissions::exports::harmonia::forge::permissions::Permission;
pub use pull_requests::exports::harmonia::forge::pull_requests::Page as PullRequestPage;

/// Interface `discovery`.
pub trait Discovery {
    /// One page of the repositories that we can see. The first call has no cursor, the next ones what the one before
    /// returned as `next`; a page without `next` is the last. A call should make few requests.
    fn repositories(cursor: Option<String>) -> Result<RepositoryPage, Error>;
}

impl<T: Discovery> discovery::exports::harmonia::forge::discovery::Guest for Adapter<T> {
    fn repositories(cursor: Option<String>) -> Result<RepositoryPage, Error> {
        install_hook();
        T::repositories(cursor)
    }
}

/// Interface `branches`.
pub trait Branches {
    /// The branch's newest commit.
    fn branch_head(repository: RepositoryRef, branch: String) -> Result<BranchHead, Error>;

    /// Hash of a commit's tree.
    fn tree_hash(repository: RepositoryRef, commit: String) -> Result<String, Error>;
}

impl<T: Branches> branches::exports::harmonia::forge::branches::Guest for Adapter<T> {
    fn head(repository: RepositoryRef, branch: String) -> Result<BranchHead, Error> {
        install_hook();
        T::branch_head(repository, branch)
    }

    fn tree_hash(repository: RepositoryRef, commit: String) -> Result<String, Error> {
        install_hook();
        T::tree_hash(repository, commit)
    }
}

/// Interface `pull-requests`.
pub trait PullRequests {
    /// A pull request as it is now.
    fn pull_request(repository: RepositoryRef, number: u64) -> Result<PullRequest, Error>;

    /// One page of the open ones, newest first. Cursors as in [`Discovery::repositories`].
    fn open_pull_requests(repository: RepositoryRef, cursor: Option<String>) -> Result<PullRequestPage, Error>;
}

impl<T: PullRequests> pull_requests::exports::harmonia::forge::pull_requests::Guest for Adapter<T> {
    fn get(repository: RepositoryRef, number: u64) -> Result<PullRequest, Error> {
        install_hook();
        T::pull_request(repository, number)
    }

    fn open(repository: RepositoryRef, cursor: Option<String>) -> Result<PullRequestPage, Error> {
        install_hook();
        T::open_pull_requests(repository, cursor)
    }
}

/// Interface `permissions`.
pub trait Permissions {
    /// What this user may do with the repository; [`Permission::None`] for users that do not exist. Whoever has
    /// [`Permission::Write`] runs code on the builders: never guess upwards.
    fn permission(repository: RepositoryRef, user: String) -> Result<Permission, Error>;
}

impl<T: Permissions> permissions::exports::harmonia::forge::permissions::Guest for Adapter<T> {
    fn get(repository: RepositoryRef, user: String) -> Result<Permission, Error> {
        install_hook();
        T::permission(repository, user)
    }
}
