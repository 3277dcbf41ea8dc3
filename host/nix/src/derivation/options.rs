//! What a scheduler reads from the environment of a derivation. Start at [`DerivationOptions`].
//!
//! Attributes stand in environment variables, or, with `__structuredAttrs`, all together as JSON in `__json`.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BStr, ByteSlice as _};
use serde_json::value::RawValue;

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
    /// `__json` is no JSON object.
    #[error("its __json is no JSON object")]
    Json(#[source] serde_json::Error),
    /// An attribute has another type than it must have; Nix refuses to build that, too.
    #[error("its attribute {attribute} must be {expected}")]
    Type {
        /// Name of the attribute.
        attribute: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// The names of features are not UTF-8.
    #[error("its attribute requiredSystemFeatures is not UTF-8")]
    NotUtf8,
}

/// The attributes that we need of `__json`. Others may be anything, of any depth: they are skipped without recursion.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct StructuredAttrs<'a> {
    #[serde(borrow, default, deserialize_with = "also_null")]
    required_system_features: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "also_null")]
    prefer_local_build: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "also_null")]
    allow_substitutes: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "also_null")]
    unsafe_discard_references: Option<&'a RawValue>,
}

impl<'a> StructuredAttrs<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        // serde would also fill the fields from an array, in their order.
        if json.trim_ascii_start().first() == Some(&b'[') {
            return Err(serde::de::Error::custom("expected an object, found an array"));
        }
        serde_json::from_slice(json)
    }

    fn options(&self) -> Result<DerivationOptions, DerivationOptionsError> {
        let features = value(self.required_system_features, "requiredSystemFeatures", "a list of strings")?;
        let prefer_local_build = value(self.prefer_local_build, "preferLocalBuild", "true or false")?;
        let allow_substitutes = value(self.allow_substitutes, "allowSubstitutes", "true or false")?;
        Ok(DerivationOptions {
            required_system_features: features.unwrap_or_default(),
            prefer_local_build: prefer_local_build.unwrap_or(false),
            allow_substitutes: allow_substitutes.unwrap_or(true),
            has_structured_attrs: true,
        })
    }
}

/// What is null is there, and of a wrong type.
fn also_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

fn value<'a, T: serde::Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    attribute: &'static str,
    expected: &'static str,
) -> Result<Option<T>, DerivationOptionsError> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| DerivationOptionsError::Type { attribute, expected })
}

impl Derivation {
    /// Reads the attributes. Prefer it to the two short forms when more than one is needed.
    pub fn options(&self) -> Result<DerivationOptions, DerivationOptionsError> {
        if let Some(json) = self.variable("__json") {
            return StructuredAttrs::parse(json).map_err(DerivationOptionsError::Json)?.options();
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

    /// Whether Nix keeps no references of this output, whatever stands in it (`unsafeDiscardReferences`, which is read with
    /// `__structuredAttrs` only). False when that cannot be read: Nix refuses to build such a derivation.
    pub fn discards_references(&self, output: &str) -> bool {
        let attributes = self.variable("__json").map(|json| StructuredAttrs::parse(json));
        let Some(Ok(StructuredAttrs { unsafe_discard_references: Some(raw), .. })) = attributes else { return false };
        let by_output: Result<BTreeMap<String, bool>, _> = serde_json::from_str(raw.get());
        by_output.is_ok_and(|by_output| by_output.get(output) == Some(&true))
    }

    fn variable(&self, name: &str) -> Option<&BStr> {
        self.env.get(name.as_bytes()).map(|value| value.as_bstr())
    }
}
