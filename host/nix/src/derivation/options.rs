//! What a scheduler reads from the environment of a derivation. Start at [`DerivationOptions`].
//!
//! Attributes stand in environment variables, or, with `__structuredAttrs`, all together as JSON in `__json`.

use std::collections::BTreeSet;

use bstr::{BStr, ByteSlice as _};

use super::Derivation;

/// The attributes that say where and how a derivation may be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivationOptions {
    /// `requiredSystemFeatures`: a builder must have all of them, such as `kvm`.
    pub required_system_features: BTreeSet<String>,
    /// `preferLocalBuild`: too small to be sent elsewhere.
    pub prefer_local_build: bool,
    /// `allowSubstitutes`: false when building is cheaper than asking caches. True unless stated.
    pub allow_substitutes: bool,
    /// Whether the attributes come as JSON.
    pub has_structured_attrs: bool,
}

/// Why the attributes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DerivationOptionsError {
    /// `__json` is no JSON object, or an attribute in it has another type than it must have.
    #[error("the derivation's __json is not valid")]
    Json(#[source] serde_json::Error),
    /// The names of features are not UTF-8.
    #[error("requiredSystemFeatures of the derivation is not UTF-8")]
    NotUtf8,
}

/// The attributes that we need of `__json`. serde_json bounds the depth of all others.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct StructuredAttrs {
    #[serde(default)]
    required_system_features: BTreeSet<String>,
    #[serde(default)]
    prefer_local_build: bool,
    #[serde(default = "yes")]
    allow_substitutes: bool,
}

impl StructuredAttrs {
    fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        // serde would also fill the fields from an array, in their order.
        if json.trim_ascii_start().first() == Some(&b'[') {
            return Err(serde::de::Error::custom("expected an object, found an array"));
        }
        serde_json::from_slice(json)
    }
}

fn yes() -> bool {
    true
}

impl Derivation {
    /// Reads the attributes. Prefer it to the two short forms when more than one is needed.
    pub fn options(&self) -> Result<DerivationOptions, DerivationOptionsError> {
        if let Some(json) = self.variable("__json") {
            let attrs = StructuredAttrs::parse(json).map_err(DerivationOptionsError::Json)?;
            return Ok(DerivationOptions {
                required_system_features: attrs.required_system_features,
                prefer_local_build: attrs.prefer_local_build,
                allow_substitutes: attrs.allow_substitutes,
                has_structured_attrs: true,
            });
        }
        let features = self.variable("requiredSystemFeatures").unwrap_or_default();
        let features = features.to_str().map_err(|_| DerivationOptionsError::NotUtf8)?;
        Ok(DerivationOptions {
            required_system_features: features
                .split([' ', '\t', '\n', '\r'])
                .filter(|feature| !feature.is_empty())
                .map(str::to_owned)
                .collect(),
            prefer_local_build: self.variable("preferLocalBuild").is_some_and(|value| value == "1"),
            allow_substitutes: self.variable("allowSubstitutes").is_none_or(|value| value == "1"),
            has_structured_attrs: false,
        })
    }

    /// The features that a builder must have, such as `kvm`.
    pub fn required_system_features(&self) -> Result<BTreeSet<String>, DerivationOptionsError> {
        Ok(self.options()?.required_system_features)
    }

    /// Whether this is too small to be sent to another machine.
    pub fn prefer_local(&self) -> Result<bool, DerivationOptionsError> {
        Ok(self.options()?.prefer_local_build)
    }

    fn variable(&self, name: &str) -> Option<&BStr> {
        self.env.get(name.as_bytes()).map(|value| value.as_bstr())
    }
}
