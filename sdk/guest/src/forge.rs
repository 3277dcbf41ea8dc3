//! A place where repositories and pull requests live. A forge plugin implements [`Plugin`](crate::Plugin) and those of the
//! traits here that the forge has something for, and names them in [`export!`](crate::export):
//!
//! | interface | trait | without it |
//! |---|---|---|
//! | `webhooks` | [`Webhooks`] | pushes are noticed by polling |
//! | `statuses` | [`Statuses`] | commits stay without a status |
//! | `comments` | [`Comments`] | nothing is said on pull requests |
//! | `discovery` | [`Discovery`] | repositories have to be named |
//! | `branches` | [`Branches`] | no polling |
//! | `pull_requests` | [`PullRequests`] | pull requests are known from webhooks only |
//! | `permissions` | [`Permissions`] | nobody is a collaborator |
//! | `credentials` | [`Credentials`] | public repositories only |
//! | `hooks` | [`Hooks`] | the operator installs webhooks by hand |
//! | `login` | [`Login`] | nobody logs in through this forge |
//!
//! Whether a push is built, whom to trust, what supersedes what is the host's, and the same for every forge: a plugin
//! translates, and decides nothing.
//!
//! Calls share nothing but [`kv`](crate::kv) and [`secrets::kept`](crate::secrets::kept): each runs in a fresh instance.

pub mod statuses;
pub mod webhooks;

mod access;
mod marker;
mod reading;

pub use access::{Credential, Credentials, Hooks, Login, LoginCompletion, LoginStart, User};
pub use marker::Marker;
pub use reading::{
    BranchHead, Branches, Discovery, Permission, Permissions, PullRequestPage, PullRequests, RepositoryPage,
};
pub use statuses::{Comments, Statuses};
pub use webhooks::Webhooks;

pub use crate::bindings::imports::harmonia::forge::types::{Error, PullRequest, Repository, RepositoryRef};

use crate::http::{Meaning, plugin_errors};

plugin_errors!(Error);

impl From<Meaning> for Error {
    fn from(meaning: Meaning) -> Self {
        match meaning {
            Meaning::Denied(text) => Self::Denied(text),
            Meaning::NotFound(_) => Self::NotFound,
            Meaning::RetryAfter(seconds) => Self::RetryAfter(seconds),
            Meaning::Invalid(text) => Self::Invalid(text),
            Meaning::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl Error {
    /// The input or the forge's answer makes no sense.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// The forge, or a missing grant, refuses.
    pub fn denied(text: impl Into<String>) -> Self {
        Self::Denied(text.into())
    }
}

impl Repository {
    /// What names this repository elsewhere.
    pub fn to_ref(&self) -> RepositoryRef {
        RepositoryRef { id: self.id.clone(), full_name: self.full_name.clone() }
    }
}

impl RepositoryRef {
    /// Owner (may contain `/`) and name of `owner/name`.
    pub fn owner_and_name(&self) -> Result<(&str, &str), Error> {
        self.full_name
            .rsplit_once('/')
            .filter(|(owner, name)| !owner.is_empty() && !name.is_empty())
            .ok_or_else(|| Error::Invalid(format!("`{}` is not `owner/name`", self.full_name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HttpError, StatusError};
    use crate::secrets::SecretError;
    use crate::settings::Missing;

    fn fails<E: Into<Error>>(error: E) -> Error {
        error.into()
    }

    #[test]
    fn causes_become_what_the_host_acts_on() {
        assert_eq!(fails(HttpError::Denied("add x".to_owned())), Error::Denied("add x".to_owned()));
        assert_eq!(fails(HttpError::RetryAfter(9)), Error::RetryAfter(9));
        assert_eq!(fails(HttpError::Timeout), Error::Unavailable("no answer in time".to_owned()));
        let gone = StatusError { status: 404, retry_after_s: None, message: String::new() };
        assert_eq!(fails(gone), Error::NotFound);
        assert_eq!(fails(SecretError::Expired), Error::Unavailable("a secret's time is over".to_owned()));
        let missing = fails(Missing { name: "url".to_owned() });
        assert!(matches!(missing, Error::Denied(text) if text.contains("`url`")));
        let json = serde_json::from_str::<u8>("x").expect_err("no JSON");
        assert!(matches!(fails(json), Error::Invalid(_)));
    }

    #[test]
    fn full_names_come_apart() {
        let named = |full_name: &str| RepositoryRef { id: "1".to_owned(), full_name: full_name.to_owned() };
        assert_eq!(named("a/b/c").owner_and_name(), Ok(("a/b", "c")));
        for odd in ["", "a", "/a", "a/"] {
            assert!(named(odd).owner_and_name().is_err(), "{odd}");
        }
    }
}
