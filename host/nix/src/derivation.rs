//! Derivations, the `.drv` files. Start at [`Derivation`].
//!
//! Reading and writing is in `aterm`, the hashes and output paths in `modulo`, turning inputs into plain paths
//! in `resolve`, what the scheduler must know of the environment in `options`.

mod aterm;
mod modulo;
mod options;
mod output;
mod placeholder;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;

use crate::hash::Sha256Hash;
use crate::store_path::{StorePath, StorePathNameError};

pub use aterm::{
    ARGS_MAX, AtermProblem, ENV_MAX, INPUT_DRVS_MAX, INPUT_SRCS_MAX, OUTPUTS_MAX, ParseDerivationError, TEXT_BYTES_MAX,
};
pub use modulo::{ModuloError, ModuloHash, OutputMismatch, ParseModuloHashError, VerifiedOutputs, VerifyOutputsError};
pub use options::{DerivationOptions, DerivationOptionsError};
pub use output::{DerivationKind, DerivationKindError, DerivationOutput, DerivationOutputError};
pub use placeholder::{hash_placeholder, upstream_output_placeholder};
pub use resolve::ResolveError;

/// How to build something, as written in a `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// The name in the store path, without `.drv`. It is not in the file itself.
    pub name: String,
    /// What is built, by output name.
    pub outputs: BTreeMap<String, DerivationOutput>,
    /// The derivations needed, and which of their outputs.
    pub input_drvs: BTreeMap<StorePath, BTreeSet<String>>,
    /// The sources needed.
    pub input_srcs: BTreeSet<StorePath>,
    /// What kind of machine can build it, such as `x86_64-linux`.
    pub platform: String,
    /// The program that builds it.
    pub builder: BString,
    /// Its arguments.
    pub args: Vec<BString>,
    /// Its environment; values need not be UTF-8.
    pub env: BTreeMap<BString, BString>,
}

/// A derivation whose inputs are plain paths: what a Nix daemon is asked to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicDerivation {
    /// The name in the store path, without `.drv`.
    pub name: String,
    /// What is built, by output name.
    pub outputs: BTreeMap<String, DerivationOutput>,
    /// All paths needed.
    pub input_srcs: BTreeSet<StorePath>,
    /// What kind of machine can build it, such as `x86_64-linux`.
    pub platform: String,
    /// The program that builds it.
    pub builder: BString,
    /// Its arguments.
    pub args: Vec<BString>,
    /// Its environment; values need not be UTF-8.
    pub env: BTreeMap<BString, BString>,
}

/// Why the bytes of a `.drv` file do not belong to its path.
#[derive(Debug, thiserror::Error)]
pub enum DerivationFileError {
    /// The path has no name that ends in `.drv`.
    #[error("{0} is no derivation: its name does not end in .drv")]
    NotADerivation(StorePath),
    /// The bytes are no derivation.
    #[error("{path} is no valid derivation")]
    Parse {
        /// The path claimed.
        path: StorePath,
        /// What is wrong, and where.
        #[source]
        cause: ParseDerivationError,
    },
    /// The bytes belong to another path.
    #[error("the derivation at {claimed} belongs to {computed}: its text was changed")]
    Path {
        /// The path claimed.
        claimed: StorePath,
        /// The path computed from the bytes.
        computed: StorePath,
    },
    /// The name is too long for a store path.
    #[error("the derivation has no store path")]
    Name(#[from] StorePathNameError),
}

impl Derivation {
    /// Reads a `.drv` file and checks that its bytes belong to its path, which proves that nothing was changed.
    pub fn from_file(path: &StorePath, text: &[u8]) -> Result<Self, DerivationFileError> {
        let name = path.derivation_name().ok_or_else(|| DerivationFileError::NotADerivation(path.clone()))?;
        let derivation =
            Self::parse(name, text).map_err(|cause| DerivationFileError::Parse { path: path.clone(), cause })?;
        let computed = derivation.drv_path_of(text)?;
        if computed == *path {
            Ok(derivation)
        } else {
            Err(DerivationFileError::Path { claimed: path.clone(), computed })
        }
    }

    /// The store path of the `.drv` file: that of a text which refers to all inputs.
    pub fn drv_path(&self) -> Result<StorePath, StorePathNameError> {
        self.drv_path_of(&self.to_aterm())
    }

    fn drv_path_of(&self, text: &[u8]) -> Result<StorePath, StorePathNameError> {
        let references = self.input_srcs.iter().chain(self.input_drvs.keys()).cloned().collect();
        StorePath::make_text(&format!("{}.drv", self.name), Sha256Hash::of(text), &references)
    }

    /// Which of the five kinds this is; an error when its outputs are of different kinds.
    pub fn kind(&self) -> Result<DerivationKind, DerivationKindError> {
        output::kind(&self.outputs)
    }

    /// The output paths that are known, by output name.
    pub fn output_paths(&self) -> impl Iterator<Item = (&str, Option<&StorePath>)> {
        self.outputs.iter().map(|(name, output)| (name.as_str(), output.path()))
    }
}

#[cfg(test)]
mod tests;
