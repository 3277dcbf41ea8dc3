//! A password for git, which only the git process that fetches ever sees: it travels in that process's environment as a
//! configuration value, bound to one server. Not in arguments, files, logs, or the environment of anything else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::SecretText;
use harmonia_core::forge::CloneCredential;
use url::Url;

use crate::git::GitCommand;

/// A header that git sends to one server.
#[derive(Debug)]
pub(super) struct Authorization {
    /// `http.https://host/.extraHeader`.
    key: String,
    header: SecretText,
}

/// Whose repositories a credential is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All that the server has: git asks for one of them.
    Server,
    /// Those beside the one of the URL: whatever else git asks the server for goes without it.
    Owner,
}

/// The credential as a header for the server of `url`; `None` when the credential is not for that server, or nobody owns
/// the repository.
pub(super) fn authorization(url: &str, credential: &CloneCredential, scope: Scope) -> Option<Authorization> {
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "https" | "http"))?;
    let host = url.host_str()?;
    let server = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if !credential.hosts.iter().any(|allowed| *allowed == server || *allowed == host) {
        return None;
    }
    let owner = match scope {
        Scope::Server => "",
        Scope::Owner => {
            let (owner, _) = url.path().trim_end_matches('/').rsplit_once('/')?;
            Some(owner).filter(|owner| !owner.is_empty())?
        }
    };
    let pair = format!("{}:{}", credential.user, credential.password.expose());
    let header = SecretText::new(format!("Authorization: Basic {}", STANDARD.encode(pair)));
    Some(Authorization { key: format!("http.{}://{server}{owner}/.extraHeader", url.scheme()), header })
}

impl Authorization {
    /// Whether git sends it to this URL.
    pub(super) fn covers(&self, url: &Url) -> bool {
        let place = self.key.strip_prefix("http.").and_then(|key| key.strip_suffix(".extraHeader"));
        place.is_some_and(|place| url.as_str().starts_with(place))
    }

    pub(super) fn apply(&self, command: GitCommand) -> GitCommand {
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", &self.key)
            .env("GIT_CONFIG_VALUE_0", self.header.expose())
    }
}

#[cfg(test)]
mod served;

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(hosts: &[&str]) -> CloneCredential {
        CloneCredential {
            user: "x".to_owned(),
            password: SecretText::new("hunter2".to_owned()),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        }
    }

    #[test]
    fn a_password_goes_to_its_own_server_only() {
        for (url, hosts, key) in [
            (
                "https://git.example.org/a/b.git",
                vec!["git.example.org"],
                Some("http.https://git.example.org/.extraHeader"),
            ),
            ("http://127.0.0.1:3000/a", vec!["127.0.0.1:3000"], Some("http.http://127.0.0.1:3000/.extraHeader")),
            ("https://git.example.org.evil.org/a", vec!["git.example.org"], None),
            ("ssh://git.example.org/a", vec!["git.example.org"], None),
            ("https://other.org/a", vec!["git.example.org"], None),
            ("https://git.example.org/a", vec![], None),
        ] {
            let made = authorization(url, &credential(&hosts), Scope::Server);
            assert_eq!(made.as_ref().map(|made| made.key.as_str()), key, "{url}");
            assert!(!format!("{made:?}").contains("aHVudGVyMg"), "{made:?}");
        }
    }

    #[test]
    fn an_owner_is_everything_before_the_repository() {
        for (url, key) in [
            ("https://h.org/acme/site.git", Some("http.https://h.org/acme/.extraHeader")),
            ("https://h.org/group/sub/site/", Some("http.https://h.org/group/sub/.extraHeader")),
            ("https://h.org/site.git", None),
            ("https://h.org/", None),
        ] {
            let made = authorization(url, &credential(&["h.org"]), Scope::Owner);
            assert_eq!(made.as_ref().map(|made| made.key.as_str()), key, "{url}");
        }
        let made = authorization("https://h.org/acme/site", &credential(&["h.org"]), Scope::Owner).expect("made");
        for (url, covered) in [
            ("https://h.org/acme/lib.git", true),
            ("https://h.org/acme/../other/lib.git", false),
            ("https://h.org/acmes/lib.git", false),
            ("http://h.org/acme/lib.git", false),
            ("https://x.org/acme/lib.git", false),
        ] {
            assert_eq!(made.covers(&Url::parse(url).expect("URL")), covered, "{url}");
        }
    }
}
