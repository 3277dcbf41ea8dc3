//! What a forge shows of our work: commit statuses, and comments on pull requests.

use super::{Error, RepositoryRef};
use crate::bindings::{Adapter, comments, statuses};
use crate::panic::install_hook;

pub use statuses::exports::harmonia::forge::statuses::{Annotation, AnnotationLevel, State, Status};

/// Interface `statuses`.
pub trait Statuses {
    /// Makes the forge show this status. Asserted again after an answer was lost: calling twice must do no harm.
    fn report(status: Status) -> Result<(), Error>;
}

impl<T: Statuses> statuses::exports::harmonia::forge::statuses::Guest for Adapter<T> {
    fn report(status: Status) -> Result<(), Error> {
        install_hook();
        T::report(status)
    }
}

/// Interface `comments`.
pub trait Comments {
    /// Adds a comment to a pull request. `key` is unique for what it says: when a comment with this key is there already,
    /// nothing is added (hide the key in the comment, as `<!-- key -->`, and look for it).
    fn post_comment(repository: RepositoryRef, number: u64, key: String, body: String) -> Result<(), Error>;
}

impl<T: Comments> comments::exports::harmonia::forge::comments::Guest for Adapter<T> {
    fn post(repository: RepositoryRef, number: u64, key: String, body: String) -> Result<(), Error> {
        install_hook();
        T::post_comment(repository, number, key, body)
    }
}
