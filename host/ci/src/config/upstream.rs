//! One of `cache.substituters`: its URL, or a table with the URL and the keys that are trusted for this cache alone.

use std::fmt;

use harmonia_core::SecretUrl;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A binary cache that is asked after our own.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    pub(crate) url: SecretUrl,
    /// Whose signatures count there; `None`: those of `cache.public_keys`.
    pub(crate) public_keys: Option<Vec<String>>,
}

/// As a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WithKeys {
    url: SecretUrl,
    public_keys: Vec<String>,
}

impl Serialize for Upstream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.public_keys {
            None => self.url.serialize(serializer),
            Some(keys) => WithKeys { url: self.url.clone(), public_keys: keys.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UpstreamVisitor)
    }
}

struct UpstreamVisitor;

impl<'de> Visitor<'de> for UpstreamVisitor {
    type Value = Upstream;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the URL of a binary cache, or { url = \"…\", public_keys = [\"name:base64\"] }")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Upstream, E> {
        Ok(Upstream { url: SecretUrl::deserialize(serde::de::value::StrDeserializer::new(text))?, public_keys: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Upstream, A::Error> {
        let WithKeys { url, public_keys } = WithKeys::deserialize(MapAccessDeserializer::new(map))?;
        if public_keys.is_empty() {
            return Err(A::Error::custom(format!("no signature of {url} would count: public_keys is empty")));
        }
        Ok(Upstream { url, public_keys: Some(public_keys) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<Vec<Upstream>, String> {
        let text = format!("[cache]\nsubstituters = {text}\n");
        toml::from_str::<Config>(&text)
            .map(|config| config.cache.substituters)
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_url_or_a_table_with_keys() {
        let caches = parse(r#"["https://a.example", { url = "https://b.example", public_keys = ["b-1:AA"] }]"#);
        let caches = caches.expect("both are allowed");
        assert_eq!(
            caches.iter().map(|cache| cache.url.to_string()).collect::<Vec<_>>(),
            ["https://a.example/", "https://b.example/"]
        );
        assert_eq!(caches[0].public_keys, None);
        assert_eq!(caches[1].public_keys.as_deref(), Some(&["b-1:AA".to_owned()][..]));
        for (text, wanted) in [
            ("[7]", "expected the URL of a binary cache, or {"),
            (r#"["cache"]"#, "'cache' is not a URL"),
            (r#"[{ url = "https://b.example", keys = [] }]"#, "unknown field `keys`"),
            (r#"[{ url = "https://b.example", public_keys = [] }]"#, "public_keys is empty"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
