//! What it means that git fetched nothing: start at [`Git::diagnosed`].
//!
//! Git ends with 128 whatever happened, and its sentences are no interface. What can be known otherwise: the status code of
//! an HTTP server, which libcurl prints in one form (`The requested URL returned error: 503`); whether the server takes a
//! connection at all, and how it answers a request for the repository's refs (an HTTP status, `Retry-After`); and the exit
//! status of `git ls-remote --exit-code`, which is 2 when the repository was read and has no such ref.

use std::time::Duration;

use harmonia_egress::{Refusal, TargetError};
use tokio::net::TcpStream;
use url::Url;

use super::{Git, GitError};
use crate::evaluator::transient::{is_temporary, retry_after};
use crate::git::way;
use crate::remote_heads::refs;

/// Name of the command that asks for refs.
pub(super) const LS_REMOTE: &str = "ls-remote";
/// Its exit status when it reached the repository and nothing matched (git-ls-remote(1)).
const NO_SUCH_REF: i32 = 2;
/// How long a server may take to answer at all.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// What libcurl says of a status code, in every language.
const CURL_WORDS: &str = "The requested URL returned error: ";

/// Whether the refs that were listed have this one; git lists all that end like it.
fn names(listed: &str, reference: &str) -> bool {
    refs(listed).any(|(_, name)| name == reference)
}

/// How a server answers, before it is asked for anything that not everybody may have.
enum Knock {
    There,
    Away { message: String, retry_after: Option<Duration> },
    Forbidden(Refusal),
}

impl Git<'_> {
    /// The meaning of a failed fetch from `url`. `wanted` is the ref that was fetched, and the error if there is none;
    /// without it, a server that turns out to be there leaves the error as it was.
    pub(super) async fn diagnosed(&self, url: &str, wanted: Option<(&str, GitError)>, error: GitError) -> GitError {
        let Some(remote) = remote(url) else {
            // Of this machine: it is there, or it is not.
            let Some((reference, missing)) = wanted else { return error };
            return if self.lacks(url, reference).await { missing } else { error };
        };
        let server = server(&remote);
        let message = match &error {
            GitError::Failed { message, .. } => message.clone(),
            GitError::Timeout { .. } => {
                return GitError::Unavailable { server, message: error.to_string(), retry_after: None };
            }
            _ => return error,
        };
        let code = http_code(&message);
        if let Some(code) = code.filter(|code| !is_temporary(*code)) {
            return self.refused(server, format!("it answers with HTTP {code}"));
        }
        match (self.knock(&remote).await, code) {
            (Knock::Away { message, retry_after }, _) => {
                return GitError::Unavailable { server, message, retry_after };
            }
            (Knock::Forbidden(refusal), _) => return GitError::Forbidden(refusal),
            (Knock::There, Some(code)) => {
                let message = format!("it answered with HTTP {code}");
                return GitError::Unavailable { server, message, retry_after: None };
            }
            (Knock::There, None) => {}
        }
        let Some((reference, missing)) = wanted else { return error };
        match self.run(LS_REMOTE, [LS_REMOTE, "--quiet", "--exit-code", "--", url, reference]).await {
            Ok(listed) if !names(&listed, reference) => missing,
            Ok(_) => {
                let message = format!("the repository is there, but fetching from it failed: {message}");
                GitError::Unavailable { server, message, retry_after: None }
            }
            Err(GitError::Failed { status: Some(NO_SUCH_REF), .. }) => missing,
            Err(GitError::Failed { message, .. }) => match http_code(&message) {
                Some(code) if is_temporary(code) => {
                    let message = format!("it answered with HTTP {code}");
                    GitError::Unavailable { server, message, retry_after: None }
                }
                _ => self.refused(server, message),
            },
            Err(GitError::Timeout { .. }) => {
                GitError::Unavailable { server, message: "it did not answer in time".to_owned(), retry_after: None }
            }
            Err(_) => error,
        }
    }

    /// Whether the repository can be read, and has no such ref.
    async fn lacks(&self, url: &str, reference: &str) -> bool {
        match self.run(LS_REMOTE, [LS_REMOTE, "--quiet", "--exit-code", "--", url, reference]).await {
            Ok(listed) => !names(&listed, reference),
            Err(GitError::Failed { status, .. }) => status == Some(NO_SUCH_REF),
            Err(_) => false,
        }
    }

    fn refused(&self, server: String, message: String) -> GitError {
        let advice = if self.authorization.is_some() {
            "Does what we are registered as there still have the right to read it? Grant it, then run the evaluation again"
        } else {
            "Is it there, and public? A private one needs a forge connection that may read it"
        };
        GitError::Refused { server, message, advice }
    }

    /// Whether the server is there. No credential goes with it: that belongs to git alone.
    async fn knock(&self, remote: &Url) -> Knock {
        if !matches!(remote.scheme(), "http" | "https") {
            return knock_port(remote).await;
        }
        let Some(way) = self.way else { return Knock::There };
        // Before anything is asked: what the proxy says of a server that takes no connection is not that server's answer.
        if let Some(target) = way::target(remote) {
            match way.session.reach(&target).await {
                Ok(_) => {}
                Err(TargetError::Refused(refusal)) => return Knock::Forbidden(refusal),
                Err(error) => return Knock::Away { message: harmonia_core::chain(&error), retry_after: None },
            }
        }
        let Ok(client) = way.client() else { return Knock::There };
        let mut refs = remote.clone();
        refs.set_path(&format!("{}/info/refs", remote.path().trim_end_matches('/')));
        refs.set_query(Some("service=git-upload-pack"));
        // Only forges' own pages need what a URL may say about a user.
        let bare = refs.set_username("").and_then(|()| refs.set_password(None));
        if bare.is_err() {
            return Knock::There;
        }
        match client.get(refs).timeout(KNOCK_TIMEOUT).send().await {
            Ok(answer) if is_temporary(answer.status().as_u16()) => Knock::Away {
                message: format!("it answers with HTTP {}", answer.status().as_u16()),
                retry_after: retry_after(answer.headers()),
            },
            Ok(_) => Knock::There,
            Err(error) => {
                let message = harmonia_core::chain(&error.without_url());
                Knock::Away { message: format!("it does not answer ({message})"), retry_after: None }
            }
        }
    }
}

/// Whether an error alone says that the server is away or must not be reached, so that nothing else need be asked of it.
pub(super) fn is_clearly_away(error: &GitError) -> bool {
    match error {
        GitError::Timeout { .. } | GitError::Forbidden(_) => true,
        GitError::Failed { message, .. } => http_code(message).is_some_and(is_temporary),
        _ => false,
    }
}

async fn knock_port(remote: &Url) -> Knock {
    let Some(host) = remote.host_str() else { return Knock::There };
    let port = remote.port().unwrap_or(if remote.scheme() == "git" { 9418 } else { 22 });
    let connected = tokio::time::timeout(KNOCK_TIMEOUT, TcpStream::connect((host, port))).await;
    let message = match connected {
        Ok(Ok(_)) => return Knock::There,
        Ok(Err(error)) => format!("it takes no connection ({error})"),
        Err(_) => format!("it took no connection within {} s", KNOCK_TIMEOUT.as_secs()),
    };
    Knock::Away { message, retry_after: None }
}

/// The URL, when there is a server behind it.
fn remote(url: &str) -> Option<Url> {
    Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https" | "git" | "ssh") && url.has_host())
}

/// What people call the server: no path, no user.
fn server(remote: &Url) -> String {
    let host = remote.host_str().unwrap_or_default();
    remote.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The last status code that an HTTP server gave to git.
fn http_code(message: &str) -> Option<u16> {
    let (_, rest) = message.rsplit_once(CURL_WORDS)?;
    let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests;
