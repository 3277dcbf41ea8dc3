//! The webhook's bytes as events: pure, and tested natively.

use harmonia_plugin::forge::webhooks::{Event, Push, Reference};
use harmonia_plugin::forge::{Error, RepositoryRef};
use harmonia_plugin::serde_json;
use serde::Deserialize;

/// The body of a delivery. Kinds that are not listed concern nobody.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Ping,
    Push {
        repository: Repository,
        /// Without `refs/heads/`.
        branch: String,
        /// Full hash; of the old head when the branch is gone.
        commit: String,
        #[serde(default)]
        deleted: bool,
        author: String,
        #[serde(default)]
        message: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Repository {
    id: u64,
    full_name: String,
}

/// What a delivery tells.
pub(crate) fn events(body: &[u8]) -> Result<Vec<Event>, Error> {
    Ok(match serde_json::from_slice(body)? {
        Body::Ping => vec![Event::Ping],
        Body::Push { repository, branch, commit, deleted, author, message } => vec![Event::Push(Push {
            repository: RepositoryRef { id: repository.id.to_string(), full_name: repository.full_name },
            reference: Reference::Branch(branch),
            commit,
            deleted,
            author,
            message,
        })],
        Body::Other => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_an_event() {
        let body = br#"{"kind":"push","repository":{"id":7,"full_name":"ada/engine"},"branch":"main",
            "commit":"c0ffee","author":"ada","message":"Turn"}"#;
        let expected = Event::Push(Push {
            repository: RepositoryRef { id: "7".to_owned(), full_name: "ada/engine".to_owned() },
            reference: Reference::Branch("main".to_owned()),
            commit: "c0ffee".to_owned(),
            deleted: false,
            author: "ada".to_owned(),
            message: "Turn".to_owned(),
        });
        assert_eq!(events(body), Ok(vec![expected]));
    }

    #[test]
    fn what_is_unknown_concerns_nobody_and_what_is_broken_is_invalid() {
        assert_eq!(events(br#"{"kind":"ping"}"#), Ok(vec![Event::Ping]));
        assert_eq!(events(br#"{"kind":"star"}"#), Ok(Vec::new()));
        for odd in ["", "{}", "[]", r#"{"kind":"push"}"#] {
            assert!(matches!(events(odd.as_bytes()), Err(Error::Invalid(_))), "{odd}");
        }
    }
}
