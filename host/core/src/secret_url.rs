//! URLs that may hold a password: [`SecretUrl`], and [`without_credentials`] for texts of others that quote URLs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// A URL as somebody configured it, perhaps with a user, a password or a token in it.
///
/// Whatever prints, logs or serialises it gets scheme, host, port and path; of the URLs of ssh and PostgreSQL also the
/// user, which is no secret there, and of the latter the query without passwords, which may name the socket. The whole of it is for the one place that connects, see [`SecretUrl::expose`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The URL itself, for the one place that connects.
    pub const fn expose(&self) -> &Url {
        &self.0
    }

    /// Whether what is shown is less than what was configured.
    pub fn has_credentials(&self) -> bool {
        self.0.password().is_some() || (!self.0.username().is_empty() && !is_user_public(self.0.scheme()))
    }
}

/// What an HTTP server takes for a name may be a token.
fn is_user_public(scheme: &str) -> bool {
    matches!(scheme, "ssh" | "git+ssh" | "postgres" | "postgresql")
}

impl From<Url> for SecretUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl FromStr for SecretUrl {
    type Err = url::ParseError;

    fn from_str(text: &str) -> Result<Self, url::ParseError> {
        Url::parse(text).map(Self)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        if url.cannot_be_a_base() {
            return write!(f, "{}:…", url.scheme());
        }
        write!(f, "{}://", url.scheme())?;
        if is_user_public(url.scheme()) && !url.username().is_empty() {
            write!(f, "{}@", url.username())?;
        }
        f.write_str(url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())?;
        match url.query().filter(|_| matches!(url.scheme(), "postgres" | "postgresql")) {
            Some(query) => write!(f, "?{}", clean_query(query)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| {
            serde::de::Error::custom(format!("'{}' is not a URL: {error}", without_credentials(&text)))
        })
    }
}

/// The text with the users, passwords and tokens of all URLs in it replaced by `…`: for what programs and libraries say,
/// which may quote a URL, and for what is no proper URL.
pub fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let scheme_at =
            before[..at].rfind(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))).map_or(0, |i| i + 1);
        let scheme = before[scheme_at..at].to_ascii_lowercase();
        let end = after.find(ends_url).unwrap_or(after.len());
        let (url, next) = after.split_at(end);
        clean_url(&scheme, url, &mut clean);
        rest = next;
    }
    clean.push_str(rest);
    clean
}

/// What cannot be in a URL, and in a sentence comes after one.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '<' | '>' | '`')
}

/// What comes after `scheme://`.
fn clean_url(scheme: &str, url: &str, clean: &mut String) {
    let (place, query) = url.split_once('?').map_or((url, None), |(place, query)| (place, Some(query)));
    let authority = &place[..place.find(['/', '#']).unwrap_or(place.len())];
    // A password with a '/' or '?' that was not escaped reaches over the end of what looks like the authority.
    let is_cut_password = || {
        let after_colon = authority.rsplit_once(':').map(|(_, after)| after);
        !authority.starts_with('[') && after_colon.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let at = if let Some(at) = authority.rfind('@') {
        Some((at, place, query))
    } else if is_cut_password() {
        url.rfind('@').map(|at| (at, url, None))
    } else {
        None
    };
    let (place, query) = match at {
        Some((at, place, query)) => {
            let user = place[..at].split(':').next().unwrap_or_default();
            match is_user_public(scheme) && !user.is_empty() {
                true if place[..at].contains(':') => clean.extend([user, ":…@"]),
                true => clean.extend([user, "@"]),
                false => clean.push_str("…@"),
            }
            (&place[at + 1..], query)
        }
        None => (place, query),
    };
    clean.push_str(place);
    if let Some(query) = query {
        clean.extend(["?", &clean_query(query)]);
    }
}

fn clean_query(query: &str) -> String {
    let clean = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if is_secret_name(name) => format!("{name}=…"),
        _ => pair.to_owned(),
    };
    query.split('&').map(clean).collect::<Vec<_>>().join("&")
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "token", "secret", "auth", "key", "sig", "credential"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_holds_a_secret() {
        for (text, shown) in [
            ("https://cache.example.org", "https://cache.example.org/"),
            ("https://ci:hunter2@cache.example.org:8443/sub?priority=10", "https://cache.example.org:8443/sub"),
            ("https://hunter2@github.example/a/b.git", "https://github.example/a/b.git"),
            ("https://cache.example.org/?token=hunter2#hunter2", "https://cache.example.org/"),
            ("ssh://git:hunter2@h.example/a", "ssh://git@h.example/a"),
            (
                "postgres://ci:hunter2@db.example.org/ci?sslpassword=hunter2",
                "postgres://ci@db.example.org/ci?sslpassword=…",
            ),
            ("postgres:///ci?host=/run/pg&port=5", "postgres:///ci?host=/run/pg&port=5"),
            ("http://ci:hunter2@[::1]:80/", "http://[::1]/"),
            ("mailto:hunter2", "mailto:…"),
        ] {
            let url: SecretUrl = text.parse().expect("a URL");
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(format!("{url:?}"), format!("\"{shown}\""));
            assert_eq!(serde_json::to_string(&url).expect("JSON"), format!("\"{shown}\""));
            assert_eq!(url.expose().as_str(), Url::parse(text).expect("a URL").as_str());
        }
        let error = serde_json::from_str::<SecretUrl>("\"https://ci:hunter2@ho st/\"").expect_err("no URL");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn texts_lose_the_credentials_of_urls_and_nothing_else() {
        for (text, clean) in [
            ("no URL here: a@b", "no URL here: a@b"),
            ("get https://h.example/a@1.2 now", "get https://h.example/a@1.2 now"),
            ("fatal: 'https://u:hunter2@h.example/a/' not found", "fatal: 'https://…@h.example/a/' not found"),
            ("https://hunter2@h https://x:hunter2@i", "https://…@h https://…@i"),
            ("ssh://git@h.example:22/a", "ssh://git@h.example:22/a"),
            ("ssh://git:hunter2@h.example/a", "ssh://git:…@h.example/a"),
            ("url = \"postgres://ci:hunter2@db/ci\"", "url = \"postgres://ci:…@db/ci\""),
            ("https://ci:hunt@er2@h/", "https://…@h/"),
            ("https://ci:hunter2/x@h/ (unescaped)", "https://…@h/ (unescaped)"),
            ("https://ci:hunter2?x@h/y", "https://…@h/y"),
            ("http://[::1]:80/x@y http://h:80/x@y", "http://[::1]:80/x@y http://h:80/x@y"),
            (
                "https://h/?access_token=hunter2&a=1&X-Amz-Signature=hunter2",
                "https://h/?access_token=…&a=1&X-Amz-Signature=…",
            ),
            ("://", "://"),
        ] {
            assert_eq!(without_credentials(text), clean, "{text}");
        }
    }
}
