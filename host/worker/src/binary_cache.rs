//! A binary cache as it is configured: where it is, and whose signatures count there. Start at [`BinaryCache::new`].

use harmonia_core::{ClaimToken, SecretUrl};
use harmonia_nix::PublicKey;
use url::Url;

/// What Nix takes in the query of a cache's URL as settings of its own; it never sends them. They order caches among
/// each other, tune what Nix writes or remembers, or say what we do anyway: nothing of that is for us to do.
const SETTINGS_OF_NIX: &[&str] = &[
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

/// A binary cache over HTTP.
#[derive(Debug, Clone)]
pub struct BinaryCache {
    url: SecretUrl,
    trusted_keys: Vec<PublicKey>,
    wants_trust: bool,
    claim: Option<ClaimToken>,
}

/// A URL that is none of a cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no URL of a binary cache that can be asked: it begins with https:// or http://")]
pub struct NoCacheUrl(SecretUrl);

impl BinaryCache {
    /// A cache in which signatures of these keys count. Settings of Nix in the query of the URL (`?priority=10`) are
    /// dropped; whatever else is there is sent along with each request, as are a user and a password.
    pub fn new(url: &SecretUrl, trusted_keys: Vec<PublicKey>) -> Result<Self, NoCacheUrl> {
        let mut place = url.expose().clone();
        if !matches!(place.scheme(), "http" | "https") || !place.has_host() {
            return Err(NoCacheUrl(url.clone()));
        }
        let mut wants_trust = false;
        let sent: Vec<&str> = url
            .expose()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                wants_trust |= name == "trusted" && !matches!(value, "false" | "0" | "no" | "");
                !pair.is_empty() && !SETTINGS_OF_NIX.contains(&name)
            })
            .collect();
        place.set_query(Some(sent.join("&")).as_deref().filter(|query| !query.is_empty()));
        place.set_fragment(None);
        if !place.path().ends_with('/') {
            place.set_path(&format!("{}/", place.path()));
        }
        Ok(Self { url: place.into(), trusted_keys, wants_trust, claim: None })
    }

    /// Where it is.
    pub fn url(&self) -> &SecretUrl {
        &self.url
    }

    /// The same, shown the token of a claim where it has nothing for everybody: our own cache gives what private projects
    /// made to those who work on it.
    #[must_use]
    pub fn with_claim(&self, token: &ClaimToken) -> Self {
        Self { claim: Some(token.clone()), ..self.clone() }
    }

    /// The token to show.
    pub(crate) fn claim(&self) -> Option<&ClaimToken> {
        self.claim.as_ref()
    }

    /// Whose signatures count.
    pub fn trusted_keys(&self) -> &[PublicKey] {
        &self.trusted_keys
    }

    /// Whether its URL asks to believe it without a signature (`?trusted=true`), which we do for no cache: what one
    /// answers becomes part of what is built and signed here.
    pub fn wants_trust(&self) -> bool {
        self.wants_trust
    }

    /// The URL of an object; `name` is relative to the cache, or a URL. `None`: it leads nowhere.
    pub(crate) fn object(&self, name: &str) -> Option<Url> {
        let base = self.url.expose();
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(url: &str) -> BinaryCache {
        BinaryCache::new(&url.parse().expect("a URL"), Vec::new()).expect("a cache")
    }

    #[test]
    fn objects_lie_below_the_cache_whatever_its_url_holds() {
        for (url, name, object) in [
            ("https://c.example", "x.narinfo", "https://c.example/x.narinfo"),
            ("https://c.example/sub", "x.narinfo", "https://c.example/sub/x.narinfo"),
            ("https://c.example/sub/?priority=10&trusted=1#x", "x.narinfo", "https://c.example/sub/x.narinfo"),
            ("https://c.example?want-mass-query=true&sas=abc", "x.narinfo", "https://c.example/x.narinfo?sas=abc"),
            ("https://c.example?sas=abc", "nar/x.nar?hash=1", "https://c.example/nar/x.nar?hash=1&sas=abc"),
            ("https://u:p%40w@c.example/sub", "nar/x", "https://u:p%40w@c.example/sub/nar/x"),
            ("https://u:p@c.example/sub?sas=abc", "https://cdn.example/x", "https://cdn.example/x"),
            ("https://u:p@c.example/sub", "//cdn.example/x", "https://cdn.example/x"),
            ("https://u:p@c.example/sub?sas=abc", "https://c.example/x", "https://u:p@c.example/x?sas=abc"),
            ("https://c.example/sub", "../y/x", "https://c.example/y/x"),
        ] {
            assert_eq!(cache(url).object(name).expect("a URL").as_str(), object, "{url} {name}");
        }
        assert_eq!(cache("https://c.example").object("file:///etc/passwd"), None);
        assert_eq!(cache("https://u:p@c.example/sub?priority=1").url().to_string(), "https://c.example/sub/");
    }

    #[test]
    fn what_is_no_cache_over_http_is_refused_and_trust_is_noticed() {
        for url in ["s3://bucket?region=x", "file:///nix/cache", "ssh://u:hunter2@host"] {
            let error = BinaryCache::new(&url.parse().expect("a URL"), Vec::new()).expect_err(url);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        for (query, wanted) in
            [("trusted=true", true), ("trusted=1", true), ("trusted=false", false), ("priority=1", false)]
        {
            assert_eq!(cache(&format!("https://c.example?{query}")).wants_trust(), wanted, "{query}");
        }
    }
}
