//! Derivations (`.drv` files). Start at [`Derivation`].

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;

use crate::content_address::{ContentAddress, ContentAddressMethod};
use crate::hash::HashAlgorithm;
use crate::store_path::StorePath;

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

/// One output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerivationOutput {
    /// The path is determined by the derivation.
    InputAddressed(StorePath),
    /// The path is determined by a hash known in advance.
    Fixed {
        /// The path.
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
