//! Where a binary cache is: a folder or a server. Start at [`Place::parse`].

use std::path::{Component, Path, PathBuf};

use url::Url;

/// Where a cache is, and what its URI says besides.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: PlaceKind,
    /// `?trusted=true`: what it has counts without a signature.
    pub(super) is_trusted: bool,
    /// `?priority=10`: when to ask it, in place of what it says itself.
    pub(super) priority: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum PlaceKind {
    Folder(PathBuf),
    /// Ends in a slash. Its query and its user are sent with each request.
    Server(Url),
}

/// Why nothing can be had from a substituter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheUriError {
    /// Not a URI.
    #[error("'{0}' is no URI of a binary cache")]
    Form(String),
    /// Neither a folder nor a web server.
    #[error("substituting from '{scheme}' stores is not supported: use a binary cache at file://, http:// or https://")]
    Scheme {
        /// What comes before the colon.
        scheme: String,
    },
}

/// Parameters that Nix takes from the query of a cache's URI and never sends.
const PARAMETERS_OF_NIX: &[&str] = &[
    "compression",
    "compression-level",
    "index-debug-info",
    "local-nar-cache",
    "parallel-compression",
    "path-info-cache-size",
    "priority",
    "secret-key",
    "secret-keys",
    "store",
    "system-features",
    "trusted",
    "want-mass-query",
    "write-nar-listing",
];

impl Place {
    pub(super) fn parse(uri: &str) -> Result<Self, CacheUriError> {
        let malformed = || CacheUriError::Form(uri.chars().take(200).collect());
        let (scheme, rest) = uri.split_once("://").ok_or_else(malformed)?;
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parameter = |wanted: &str| {
            let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
        };
        let is_trusted = parameter("trusted").is_some_and(|value| matches!(value, "true" | "1" | "yes"));
        let priority = parameter("priority").and_then(|value| value.parse().ok());
        let kind = match scheme {
            "file" => {
                let path = percent_encoding::percent_decode_str(before).decode_utf8().map_err(|_| malformed())?;
                if !path.starts_with('/') {
                    return Err(malformed());
                }
                PlaceKind::Folder(PathBuf::from(path.as_ref()))
            }
            "http" | "https" => {
                let mut url: Url = uri.parse().map_err(|_| malformed())?;
                let sent: Vec<&str> = query
                    .split('&')
                    .filter(|pair| {
                        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
                        !pair.is_empty() && !PARAMETERS_OF_NIX.contains(&name)
                    })
                    .collect();
                let sent = sent.join("&");
                url.set_query(Some(sent.as_str()).filter(|sent| !sent.is_empty()));
                url.set_fragment(None);
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                PlaceKind::Server(url)
            }
            scheme => return Err(CacheUriError::Scheme { scheme: scheme.chars().take(40).collect() }),
        };
        Ok(Self { kind, is_trusted, priority })
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self.kind, PlaceKind::Server(_))
    }
}

/// The file of an object in a folder. `None` when its name leads out of the folder.
pub(super) fn file_of(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    (is_inside && !name.is_empty()).then(|| folder.join(name))
}

/// The URL of an object of a server; `name` is relative, or a URL. `None` when it leads to no web server.
pub(super) fn url_of(base: &Url, name: &str) -> Option<Url> {
    let mut url = base.join(name).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    // What belongs to this server goes to no other.
    if url.origin() == base.origin() {
        let pairs = [url.query(), base.query()].into_iter().flatten().collect::<Vec<_>>().join("&");
        url.set_query(Some(pairs.as_str()).filter(|pairs| !pairs.is_empty()));
        url.set_username(base.username()).ok()?;
        url.set_password(base.password()).ok()?;
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(uri: &str) -> PlaceKind {
        Place::parse(uri).expect(uri).kind
    }

    #[test]
    fn folders_and_servers_are_told_apart_and_parameters_of_nix_are_not_sent() {
        let place = Place::parse("file:///a%20b/c?trusted=1&priority=7").expect("a folder");
        assert!(matches!(&place.kind, PlaceKind::Folder(path) if path == Path::new("/a b/c")), "{place:?}");
        assert_eq!((place.is_trusted, place.priority), (true, Some(7)));
        for (uri, name, object) in [
            ("https://c.example", "x.narinfo", "https://c.example/x.narinfo"),
            ("https://c.example/sub/?priority=10&trusted=0#x", "x.narinfo", "https://c.example/sub/x.narinfo"),
            ("https://c.example?want-mass-query=true&sas=abc", "nar/x", "https://c.example/nar/x?sas=abc"),
            ("https://u:p@c.example/sub?sas=abc", "https://cdn.example/x", "https://cdn.example/x"),
        ] {
            let PlaceKind::Server(base) = kind(uri) else { panic!("{uri}") };
            assert_eq!(url_of(&base, name).expect("a URL").as_str(), object, "{uri} {name}");
        }
        let PlaceKind::Server(base) = kind("https://c.example") else { panic!("a server") };
        assert_eq!(url_of(&base, "file:///etc/passwd"), None);
    }

    #[test]
    fn what_is_no_binary_cache_is_refused() {
        assert_eq!(Place::parse("ssh://host").expect_err("ssh"), CacheUriError::Scheme { scheme: "ssh".into() });
        assert!(matches!(Place::parse("cache"), Err(CacheUriError::Form(_))));
        assert!(matches!(Place::parse("file://relative"), Err(CacheUriError::Form(_))));
    }

    #[test]
    fn names_do_not_lead_out_of_a_folder() {
        let folder = Path::new("/cache");
        assert_eq!(file_of(folder, "nar/x.nar.xz"), Some(PathBuf::from("/cache/nar/x.nar.xz")));
        for name in ["../secret", "nar/../../secret", "/etc/shadow", ""] {
            assert_eq!(file_of(folder, name), None, "{name}");
        }
    }
}
