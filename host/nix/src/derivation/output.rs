//! The outputs of a derivation: five kinds, told apart by three strings. Start at [`DerivationOutput`].

use std::collections::BTreeMap;

use crate::content_address::{ContentAddress, ContentAddressMethod};
use crate::hash::{Hash, HashAlgorithm, HashError};
use crate::store_path::{MakeStorePathError, References, StorePath, StorePathError, output_path_name};

/// One output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerivationOutput {
    /// The path is determined by the derivation.
    InputAddressed(StorePath),
    /// The path is determined by a hash known in advance.
    Fixed {
        /// The path. Whether it belongs to the hash is checked by `Derivation::verify_outputs` only.
        path: StorePath,
        /// The hash that the output must have.
        address: ContentAddress,
    },
    /// The path will be determined by the content.
    Floating {
        /// How the content is hashed.
        method: ContentAddressMethod,
        /// With which algorithm.
        algorithm: HashAlgorithm,
    },
    /// Input-addressed, but an input is floating, so that the path is not known yet.
    Deferred,
    /// Different with each build.
    Impure {
        /// How the content is hashed.
        method: ContentAddressMethod,
        /// With which algorithm.
        algorithm: HashAlgorithm,
    },
}

/// What kind all outputs of a derivation are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DerivationKind {
    /// All paths are determined by the derivation.
    InputAddressed,
    /// One output, `out`, whose hash is known in advance.
    Fixed,
    /// Content-addressed; the paths are known after the build.
    Floating,
    /// Input-addressed with floating inputs.
    Deferred,
    /// Different with each build.
    Impure,
}

/// Why the outputs of a derivation do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationKindError {
    /// There are none.
    #[error("the derivation has no outputs")]
    None,
    /// Outputs of different kinds.
    #[error("the derivation mixes outputs of different kinds")]
    Mixed,
    /// A derivation with a fixed output has just this, and it is named `out`.
    #[error("a derivation with a fixed output must have no other, and it must be named 'out'")]
    FixedNotOut,
}

/// Why three strings are no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationOutputError {
    /// The path is not valid.
    #[error("invalid output path")]
    Path(#[from] StorePathError),
    /// The algorithm or the hash is not valid.
    #[error("invalid hash of a fixed output")]
    Hash(#[from] HashError),
    /// Nix writes lower-case base16 here.
    #[error("the hash of a fixed output must be written in lower-case base16")]
    HashForm,
    /// A floating or impure output cannot know its path.
    #[error("a content-addressed output without a hash cannot have a path")]
    UnexpectedPath,
    /// A hash, but no algorithm.
    #[error("the output has a hash, but no hash algorithm")]
    HashWithoutAlgorithm,
}

impl DerivationOutput {
    /// The path, if it is known before the build.
    pub fn path(&self) -> Option<&StorePath> {
        match self {
            Self::InputAddressed(path) | Self::Fixed { path, .. } => Some(path),
            Self::Floating { .. } | Self::Deferred | Self::Impure { .. } => None,
        }
    }

    /// The hash that the output must have, if it is fixed.
    pub fn fixed_address(&self) -> Option<&ContentAddress> {
        match self {
            Self::Fixed { address, .. } => Some(address),
            _ => None,
        }
    }

    /// The fixed output of this name and hash, its path computed.
    pub fn fixed(
        derivation_name: &str,
        output_name: &str,
        address: ContentAddress,
    ) -> Result<Self, MakeStorePathError> {
        let name = output_path_name(derivation_name, output_name);
        let path = StorePath::make_fixed_output(&name, address, &References::default())?;
        Ok(Self::Fixed { path, address })
    }

    /// Reads the three strings that describe an output in a `.drv` file and in the worker protocol:
    /// path, method and algorithm, hash.
    pub fn from_fields(path: &str, algorithm: &str, hash: &str) -> Result<Self, DerivationOutputError> {
        if algorithm.is_empty() {
            return match (path, hash) {
                (_, hash) if !hash.is_empty() => Err(DerivationOutputError::HashWithoutAlgorithm),
                ("", _) => Ok(Self::Deferred),
                (path, _) => Ok(Self::InputAddressed(StorePath::parse(path)?)),
            };
        }
        let (method, algorithm) = ContentAddressMethod::split_prefix(algorithm);
        let algorithm: HashAlgorithm = algorithm.parse()?;
        match hash {
            "" | "impure" if !path.is_empty() => Err(DerivationOutputError::UnexpectedPath),
            "" => Ok(Self::Floating { method, algorithm }),
            "impure" => Ok(Self::Impure { method, algorithm }),
            digits => {
                let hash = Hash::parse_as(algorithm, digits)?;
                if hash.to_base16() != digits {
                    return Err(DerivationOutputError::HashForm);
                }
                let path = StorePath::parse(path)?;
                Ok(Self::Fixed { path, address: ContentAddress { method, hash } })
            }
        }
    }

    /// The three strings of [`DerivationOutput::from_fields`].
    pub fn to_fields(&self) -> (&str, String, String) {
        let algorithm_of =
            |method: ContentAddressMethod, algorithm: HashAlgorithm| format!("{}{algorithm}", method.prefix());
        match self {
            Self::InputAddressed(path) => (path.as_str(), String::new(), String::new()),
            Self::Fixed { path, address: ContentAddress { method, hash } } => {
                (path.as_str(), algorithm_of(*method, hash.algorithm()), hash.to_base16())
            }
            Self::Floating { method, algorithm } => ("", algorithm_of(*method, *algorithm), String::new()),
            Self::Deferred => ("", String::new(), String::new()),
            Self::Impure { method, algorithm } => ("", algorithm_of(*method, *algorithm), "impure".to_owned()),
        }
    }

    const fn kind(&self) -> DerivationKind {
        match self {
            Self::InputAddressed(_) => DerivationKind::InputAddressed,
            Self::Fixed { .. } => DerivationKind::Fixed,
            Self::Floating { .. } => DerivationKind::Floating,
            Self::Deferred => DerivationKind::Deferred,
            Self::Impure { .. } => DerivationKind::Impure,
        }
    }
}

pub(super) fn kind(outputs: &BTreeMap<String, DerivationOutput>) -> Result<DerivationKind, DerivationKindError> {
    let mut kinds = outputs.values().map(DerivationOutput::kind);
    let first = kinds.next().ok_or(DerivationKindError::None)?;
    if kinds.any(|kind| kind != first) {
        return Err(DerivationKindError::Mixed);
    }
    if first == DerivationKind::Fixed && (outputs.len() > 1 || !outputs.contains_key("out")) {
        return Err(DerivationKindError::FixedNotOut);
    }
    Ok(first)
}
