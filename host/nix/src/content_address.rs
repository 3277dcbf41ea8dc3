//! Content addresses: `text:sha256:…`, `fixed:sha256:…`, `fixed:r:sha256:…`. Start at [`ContentAddress`].

use std::fmt;
use std::str::FromStr;

use crate::hash::{Hash, HashAlgorithm, HashError};
use crate::text_serde::serde_as_text;

/// What of a path is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentAddressMethod {
    /// The text of one file; it may refer to other store paths.
    Text,
    /// The bytes of one file, without references.
    Flat,
    /// The NAR of the path.
    Recursive,
}

impl ContentAddressMethod {
    /// What Nix puts before the algorithm: `text:`, nothing, or `r:`.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Text => "text:",
            Self::Flat => "",
            Self::Recursive => "r:",
        }
    }

    /// Takes the prefix off `r:sha256` and the like. Says nothing of what follows.
    pub fn split_prefix(text: &str) -> (Self, &str) {
        for method in [Self::Text, Self::Recursive] {
            if let Some(rest) = text.strip_prefix(method.prefix()) {
                return (method, rest);
            }
        }
        (Self::Flat, text)
    }
}

/// How the content of a path determines its store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    /// What is hashed.
    pub method: ContentAddressMethod,
    /// Its hash.
    pub hash: Hash,
}

/// Why a text is no content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// Neither `text:` nor `fixed:`.
    #[error("a content address begins with 'text:' or 'fixed:'")]
    Prefix,
    /// The hash is not valid.
    #[error("invalid hash in the content address")]
    Hash(#[from] HashError),
    /// Texts are addressed by SHA-256 only.
    #[error("a text is addressed by its sha256, not by {0}")]
    TextAlgorithm(HashAlgorithm),
}

impl ContentAddress {
    /// Addressed by NAR hash, as sources are.
    pub const fn recursive(hash: Hash) -> Self {
        Self { method: ContentAddressMethod::Recursive, hash }
    }

    /// Addressed by the bytes of one file.
    pub const fn flat(hash: Hash) -> Self {
        Self { method: ContentAddressMethod::Flat, hash }
    }

    /// Addressed by the text of one file and its references.
    pub const fn text(hash: Hash) -> Self {
        Self { method: ContentAddressMethod::Text, hash }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, hash } = self;
        match method {
            ContentAddressMethod::Text => write!(f, "text:{hash}"),
            _ => write!(f, "fixed:{}{hash}", method.prefix()),
        }
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        if let Some(hash) = text.strip_prefix("text:") {
            let hash = Hash::parse(hash)?;
            return match hash.algorithm() {
                HashAlgorithm::Sha256 => Ok(Self::text(hash)),
                other => Err(ContentAddressError::TextAlgorithm(other)),
            };
        }
        let fixed = text.strip_prefix("fixed:").ok_or(ContentAddressError::Prefix)?;
        Ok(match fixed.strip_prefix("r:") {
            Some(hash) => Self::recursive(Hash::parse(hash)?),
            None => Self::flat(Hash::parse(fixed)?),
        })
    }
}

serde_as_text!(ContentAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let sha256 = Hash::of(HashAlgorithm::Sha256, b"");
        let sha1 = Hash::of(HashAlgorithm::Sha1, b"");
        let digits = sha256.to_base32();
        for (text, address) in [
            (format!("text:sha256:{digits}"), ContentAddress::text(sha256)),
            (format!("fixed:sha256:{digits}"), ContentAddress::flat(sha256)),
            (format!("fixed:r:sha256:{digits}"), ContentAddress::recursive(sha256)),
            (format!("fixed:r:sha1:{}", sha1.to_base32()), ContentAddress::recursive(sha1)),
        ] {
            assert_eq!(address.to_string(), text);
            assert_eq!(text.parse(), Ok(address));
            let json = serde_json::to_string(&address).expect("serialises");
            assert_eq!(serde_json::from_str::<ContentAddress>(&json).expect("parses"), address);
        }
        let parse = |text: &str| text.parse::<ContentAddress>();
        assert_eq!(parse("path:x"), Err(ContentAddressError::Prefix));
        assert_eq!(parse(&format!("text:{sha1}")), Err(ContentAddressError::TextAlgorithm(HashAlgorithm::Sha1)));
        assert!(matches!(parse("fixed:r:"), Err(ContentAddressError::Hash(_))));
        assert!(matches!(parse("fixed:text:sha256:x"), Err(ContentAddressError::Hash(_))));
    }
}
