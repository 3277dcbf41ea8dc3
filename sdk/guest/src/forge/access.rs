//! Access: credentials for git, webhooks that we install, login of people.

use super::{Error, RepositoryRef};
use crate::bindings::{Adapter, credentials, hooks, login};
use crate::panic::install_hook;

pub use credentials::exports::harmonia::forge::credentials::Credential;
pub use login::exports::harmonia::forge::login::{Completion as LoginCompletion, Start as LoginStart, User};

/// Interface `credentials`.
pub trait Credentials {
    /// A short-lived credential with which `git fetch` may read the repository over https; none when it needs none. The
    /// password is a handle: neither the plugin nor a log sees it.
    fn clone_credential(repository: RepositoryRef) -> Result<Option<Credential>, Error>;
}

impl<T: Credentials> credentials::exports::harmonia::forge::credentials::Guest for Adapter<T> {
    fn clone(repository: RepositoryRef) -> Result<Option<Credential>, Error> {
        install_hook();
        T::clone_credential(repository)
    }
}

/// Interface `hooks`.
pub trait Hooks {
    /// Makes the forge deliver to `url`. There already: nothing changes, or it is put right.
    fn install_hook(repository: RepositoryRef, url: String) -> Result<(), Error>;

    /// Removes our webhook with this `url`. Gone already: fine.
    fn remove_hook(repository: RepositoryRef, url: String) -> Result<(), Error>;
}

impl<T: Hooks> hooks::exports::harmonia::forge::hooks::Guest for Adapter<T> {
    fn install(repository: RepositoryRef, url: String) -> Result<(), Error> {
        install_hook();
        T::install_hook(repository, url)
    }

    fn remove(repository: RepositoryRef, url: String) -> Result<(), Error> {
        install_hook();
        T::remove_hook(repository, url)
    }
}

/// Interface `login` (OAuth 2 with PKCE).
pub trait Login {
    /// Where to send the browser.
    fn login_url(start: LoginStart) -> Result<String, Error>;

    /// Who logged in. Exchange the code with [`capture`](crate::http::Request::capture), so that the token is used for one
    /// question and never seen.
    fn complete_login(completion: LoginCompletion) -> Result<User, Error>;
}

impl<T: Login> login::exports::harmonia::forge::login::Guest for Adapter<T> {
    fn url(start: LoginStart) -> Result<String, Error> {
        install_hook();
        T::login_url(start)
    }

    fn complete(completion: LoginCompletion) -> Result<User, Error> {
        install_hook();
        T::complete_login(completion)
    }
}
