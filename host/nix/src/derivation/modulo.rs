//! The hash of a derivation "modulo" its fixed outputs, and the output paths made from it.
//! Start at [`Derivation::verify_outputs`].
//!
//! The algorithm is that of `hashDerivationModulo` in Nix's `libstore/derivations.cc`: a fixed output stands for
//! itself, whatever builds it; everything else is the hash of its text in which each input derivation is replaced
//! by its own such hash. Since inputs recur all over a graph, the caller keeps the hashes already computed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::{BasicDerivation, Derivation, DerivationKind, DerivationKindError, DerivationOutput};
use crate::hash::{Hash, HashAlgorithm, HashError, Sha256Hash};
use crate::store_path::{
    MakeStorePathError, References, StorePath, StorePathNameError, fixed_output_hash, output_path_name,
};

/// What stands for a derivation in the hashes of those that need it. Worth keeping: see the module's head.
///
/// Printed as base16, with `deferred:` before it when output paths depend on floating outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuloHash {
    /// The hash.
    pub hash: Sha256Hash,
    /// Whether the derivation or one of its inputs is floating, so that no path can be made from the hash.
    pub is_deferred: bool,
}

/// Why a derivation cannot be hashed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuloError {
    /// The caller has no hash of an input.
    #[error("the hash of the input {0} is not known: hash inputs before what needs them")]
    UnknownInput(StorePath),
    /// The outputs do not go together.
    #[error("the derivation's outputs are not valid")]
    Kind(#[from] DerivationKindError),
    /// An output path would not be valid.
    #[error("the output '{output}' can have no store path")]
    Name {
        /// Which output.
        output: String,
        /// What is wrong with the name.
        #[source]
        cause: StorePathNameError,
    },
    /// The hash of a fixed output gives no store path.
    #[error("the fixed output can have no store path")]
    Fixed(#[from] MakeStorePathError),
}

/// How an output differs from what was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputMismatch {
    /// The declared path is not the computed one.
    #[error("the path declared is {declared}, but it must be {computed}")]
    Path {
        /// In the derivation.
        declared: StorePath,
        /// What it must be.
        computed: StorePath,
    },
    /// The environment variable named as the output is missing or has not its path.
    #[error("the environment variable of this name must be {0}")]
    Environment(StorePath),
    /// A path is declared that cannot be known, since an input is floating.
    #[error("the path {0} is declared, but an input is content-addressed, so that it cannot be known")]
    NotKnowable(StorePath),
}

/// Why the outputs of a derivation are not what it must have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyOutputsError {
    /// The right paths cannot be computed.
    #[error("the output paths cannot be computed")]
    Modulo(#[from] ModuloError),
    /// A wrong output.
    #[error("the output '{output}' is wrong")]
    Output {
        /// Which one.
        output: String,
        /// How.
        #[source]
        mismatch: OutputMismatch,
    },
}

/// What [`Derivation::verify_outputs`] has computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedOutputs {
    /// What stands for this derivation in those that need it.
    pub modulo: ModuloHash,
    /// Path by output name; `None` when it is known only after the build.
    pub paths: BTreeMap<String, Option<StorePath>>,
}

impl Derivation {
    /// What stands for this derivation in the hashes of those that need it (outputs not masked).
    ///
    /// `input` gives the same hash of each input derivation. It is not asked when an output is fixed.
    pub fn hash_modulo(&self, input: impl FnMut(&StorePath) -> Option<ModuloHash>) -> Result<ModuloHash, ModuloError> {
        self.hash_with(input, false)
    }

    /// As [`Derivation::hash_modulo`], but with the own outputs masked: what the own output paths are made from,
    /// and what names the realisations of content-addressed outputs.
    pub fn hash_modulo_masked(
        &self,
        input: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<ModuloHash, ModuloError> {
        self.hash_with(input, true)
    }

    /// Computes the output paths, whatever is declared. `None` when a path is known only after the build.
    pub fn compute_output_paths(
        &self,
        input: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<BTreeMap<String, Option<StorePath>>, ModuloError> {
        let masked = match self.kind()? {
            DerivationKind::InputAddressed | DerivationKind::Deferred => Some(self.hash_modulo_masked(input)?),
            DerivationKind::Fixed | DerivationKind::Floating | DerivationKind::Impure => None,
        };
        let compute = |name: &str, output: &DerivationOutput| match masked {
            Some(ModuloHash { hash, is_deferred: false }) => StorePath::make_output(&self.name, name, hash)
                .map(Some)
                .map_err(|cause| ModuloError::Name { output: name.to_owned(), cause }),
            Some(ModuloHash { is_deferred: true, .. }) => Ok(None),
            None => Ok(self.fixed_path(name, output)?),
        };
        self.outputs.iter().map(|(name, output)| Ok((name.clone(), compute(name, output)?))).collect()
    }

    /// Recomputes the output paths and compares them with what is declared, in the outputs and in the environment.
    ///
    /// `input` gives [`VerifiedOutputs::modulo`] of each input derivation. That hash covers the declared paths of
    /// the input, so take it from inputs that were verified themselves.
    pub fn verify_outputs(
        &self,
        mut input: impl FnMut(&StorePath) -> Option<ModuloHash>,
    ) -> Result<VerifiedOutputs, VerifyOutputsError> {
        let paths = self.compute_output_paths(&mut input)?;
        for ((name, output), computed) in self.outputs.iter().zip(paths.values()) {
            if let Err(mismatch) = self.compare(name, output, computed.as_ref()) {
                return Err(VerifyOutputsError::Output { output: name.clone(), mismatch });
            }
        }
        Ok(VerifiedOutputs { modulo: self.hash_modulo(input)?, paths })
    }

    fn compare(
        &self,
        name: &str,
        output: &DerivationOutput,
        computed: Option<&StorePath>,
    ) -> Result<(), OutputMismatch> {
        match (output.path(), computed) {
            (Some(declared), Some(computed)) if declared != computed => {
                Err(OutputMismatch::Path { declared: declared.clone(), computed: computed.clone() })
            }
            (Some(declared), Some(_)) => match self.env.get(name.as_bytes()) {
                Some(value) if value == declared.as_str() => Ok(()),
                _ => Err(OutputMismatch::Environment(declared.clone())),
            },
            (Some(declared), None) => Err(OutputMismatch::NotKnowable(declared.clone())),
            // Nix leaves paths open also where it could know them, when it wrote the derivation before its inputs.
            (None, _) => Ok(()),
        }
    }

    /// The path that a fixed output must have; `None` for others.
    fn fixed_path(&self, name: &str, output: &DerivationOutput) -> Result<Option<StorePath>, MakeStorePathError> {
        let path_name = output_path_name(&self.name, name);
        let make = |address| StorePath::make_fixed_output(&path_name, address, &References::default());
        output.fixed_address().copied().map(make).transpose()
    }

    fn hash_with(
        &self,
        mut input: impl FnMut(&StorePath) -> Option<ModuloHash>,
        mask: bool,
    ) -> Result<ModuloHash, ModuloError> {
        let kind = self.kind()?;
        if kind == DerivationKind::Impure {
            return Ok(ModuloHash { hash: Sha256Hash::of(b"impure"), is_deferred: true });
        }
        if let Some((name, output)) = self.outputs.first_key_value()
            && let Some(address) = output.fixed_address()
            && let Some(path) = self.fixed_path(name, output)?
        {
            let hash = fixed_output_hash(address.method, &address.hash, path.as_str());
            return Ok(ModuloHash { hash, is_deferred: false });
        }
        let mut is_deferred = kind == DerivationKind::Floating;
        // Several inputs may have one hash, such as two ways to fetch one file: their outputs are joined.
        let mut inputs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, output_names) in &self.input_drvs {
            let modulo = input(path).ok_or_else(|| ModuloError::UnknownInput(path.clone()))?;
            is_deferred |= modulo.is_deferred;
            if !output_names.is_empty() {
                inputs.entry(modulo.hash.to_base16()).or_default().extend(output_names.iter().cloned());
            }
        }
        let text = self.write_aterm(inputs.iter().map(|(hash, names)| (hash.as_str(), names)), mask);
        Ok(ModuloHash { hash: Sha256Hash::of(&text), is_deferred })
    }
}

impl BasicDerivation {
    /// Gives deferred outputs their paths, now that all inputs are plain paths, as Nix does when it resolves a
    /// derivation. Their environment variables are set as well.
    pub(super) fn complete_deferred_outputs(self) -> Result<Self, ModuloError> {
        let mut derivation = Derivation::from(self);
        if derivation.kind()? == DerivationKind::Deferred {
            for (name, path) in derivation.compute_output_paths(|_| None)? {
                if let Some(path) = path {
                    derivation.env.insert(name.as_str().into(), path.as_str().into());
                    derivation.outputs.insert(name, DerivationOutput::InputAddressed(path));
                }
            }
        }
        Ok(derivation.into_basic())
    }
}

const DEFERRED_PREFIX: &str = "deferred:";

impl fmt::Display for ModuloHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_deferred { DEFERRED_PREFIX } else { "" }, self.hash.to_base16())
    }
}

/// Why a text is no [`ModuloHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 base16 digits, perhaps after '{DEFERRED_PREFIX}'")]
pub struct ParseModuloHashError(#[source] HashError);

impl FromStr for ModuloHash {
    type Err = ParseModuloHashError;

    fn from_str(text: &str) -> Result<Self, ParseModuloHashError> {
        let (is_deferred, digits) = match text.strip_prefix(DEFERRED_PREFIX) {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let hash = Hash::parse_as(HashAlgorithm::Sha256, digits).and_then(Sha256Hash::try_from);
        hash.map(|hash| Self { hash, is_deferred }).map_err(ParseModuloHashError)
    }
}
