//! How Nix computes store paths (`libstore/store-api.cc`, "store path" comment): the SHA-256 of
//! `<type>:<hash>:/nix/store:<name>`, folded to 20 bytes. The types differ by maker.

use std::collections::BTreeSet;

use super::{STORE_DIR, StorePath, StorePathNameError};
use crate::base32;
use crate::content_address::{ContentAddress, ContentAddressMethod};
use crate::hash::{Hash, HashAlgorithm, Sha256Hash, compress_hash};

/// The store paths that a content-addressed path refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// All but the path itself.
    pub others: BTreeSet<StorePath>,
    /// Whether the path refers to itself. Its own hash is then taken with zeros in place of its digits.
    pub to_self: bool,
}

impl References {
    /// Refers to these and not to itself.
    pub fn to(others: impl IntoIterator<Item = StorePath>) -> Self {
        Self { others: others.into_iter().collect(), to_self: false }
    }

    /// Sorts the references that a path is known to have (as in a narinfo) into itself and others.
    pub fn of(path: &StorePath, references: impl IntoIterator<Item = StorePath>) -> Self {
        let mut others: BTreeSet<StorePath> = references.into_iter().collect();
        let to_self = others.remove(path);
        Self { others, to_self }
    }

    fn is_empty(&self) -> bool {
        self.others.is_empty() && !self.to_self
    }
}

/// Why no store path can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MakeStorePathError {
    /// The name is not allowed in a store path.
    #[error("no store path can have this name")]
    Name(#[from] StorePathNameError),
    /// Only texts and recursive SHA-256 paths may have references.
    #[error("a path addressed by '{0}' cannot refer to other paths")]
    References(ContentAddress),
    /// A text cannot refer to itself.
    #[error("a text cannot refer to its own store path")]
    SelfReference,
    /// Texts are addressed by SHA-256 only.
    #[error("a text is addressed by its sha256, not by {0}")]
    TextAlgorithm(HashAlgorithm),
}

impl StorePath {
    /// The path of a file made by `builtins.toFile`, or of a derivation: addressed by the SHA-256 of its text
    /// and by what it refers to.
    pub fn make_text(
        name: &str,
        text_hash: Sha256Hash,
        references: &BTreeSet<StorePath>,
    ) -> Result<Self, StorePathNameError> {
        make(&with_references("text", references, false), text_hash, name)
    }

    /// The path of a source: addressed by its NAR hash and by what it refers to.
    ///
    /// The same as a fixed output that is recursive with SHA-256.
    pub fn make_source(name: &str, nar_hash: Sha256Hash, references: &References) -> Result<Self, StorePathNameError> {
        make(&with_references("source", &references.others, references.to_self), nar_hash, name)
    }

    /// The path of an input-addressed output: `modulo` is the derivation's hash with its outputs masked.
    pub fn make_output(
        derivation_name: &str,
        output_name: &str,
        modulo: Sha256Hash,
    ) -> Result<Self, StorePathNameError> {
        make(&format!("output:{output_name}"), modulo, &output_path_name(derivation_name, output_name))
    }

    /// The path of anything addressed by its content: fixed outputs, sources, texts.
    pub fn make_fixed_output(
        name: &str,
        address: ContentAddress,
        references: &References,
    ) -> Result<Self, MakeStorePathError> {
        let ContentAddress { method, hash } = address;
        match (method, Sha256Hash::try_from(hash)) {
            (ContentAddressMethod::Text, _) if references.to_self => Err(MakeStorePathError::SelfReference),
            (ContentAddressMethod::Text, Ok(hash)) => Ok(Self::make_text(name, hash, &references.others)?),
            (ContentAddressMethod::Text, Err(_)) => Err(MakeStorePathError::TextAlgorithm(hash.algorithm())),
            (ContentAddressMethod::Recursive, Ok(hash)) => Ok(Self::make_source(name, hash, references)?),
            _ if !references.is_empty() => Err(MakeStorePathError::References(address)),
            _ => Ok(make("output:out", fixed_output_hash(method, &hash, ""), name)?),
        }
    }
}

impl StorePath {
    /// Whether this is the path that its content address and references give.
    ///
    /// Says nothing of whether the content has this address: that takes the content.
    pub fn is_content_addressed_by(&self, address: ContentAddress, references: &References) -> bool {
        Self::make_fixed_output(self.name(), address, references).is_ok_and(|computed| computed == *self)
    }
}

/// The hash part that content of this address, which refers to nothing, has under this name in the store directory of
/// somebody else. What is addressed by its content is the same everywhere but for that.
pub fn hash_part_elsewhere(store_dir: &str, name: &str, address: ContentAddress) -> String {
    let ContentAddress { method, hash } = address;
    let (kind, hash) = match (method, Sha256Hash::try_from(hash)) {
        (ContentAddressMethod::Text, Ok(hash)) => ("text", hash),
        (ContentAddressMethod::Recursive, Ok(hash)) => ("source", hash),
        _ => ("output:out", fixed_output_hash(method, &hash, "")),
    };
    base32::encode(&digest(kind, hash, store_dir, name))
}

/// `fixed:out:<method><hash>:<path>`, hashed: what stands for a fixed output in the hashes of derivations, and,
/// without the path, what the path itself is made from.
pub(crate) fn fixed_output_hash(method: ContentAddressMethod, hash: &Hash, path: &str) -> Sha256Hash {
    Sha256Hash::of(format!("fixed:out:{}{}:{path}", method.prefix(), hash.to_prefixed_base16()).as_bytes())
}

/// The name in an output's store path: the output `out` is not named in it.
pub(crate) fn output_path_name(derivation_name: &str, output_name: &str) -> String {
    if output_name == "out" { derivation_name.to_owned() } else { format!("{derivation_name}-{output_name}") }
}

fn with_references(kind: &str, others: &BTreeSet<StorePath>, to_self: bool) -> String {
    let mut text = kind.to_owned();
    for reference in others {
        text.push(':');
        text.push_str(reference.as_str());
    }
    if to_self {
        text.push_str(":self");
    }
    text
}

fn make(kind: &str, hash: Sha256Hash, name: &str) -> Result<StorePath, StorePathNameError> {
    StorePath::from_parts(&digest(kind, hash, STORE_DIR, name), name)
}

fn digest(kind: &str, hash: Sha256Hash, store_dir: &str, name: &str) -> [u8; 20] {
    let preimage = format!("{kind}:sha256:{}:{store_dir}:{name}", hash.to_base16());
    compress_hash(Sha256Hash::of(preimage.as_bytes()).as_bytes())
}
