//! What a binary cache says of a path. Start at [`NarInfo`].

use std::collections::BTreeSet;

use crate::content_address::ContentAddress;
use crate::hash::{NarHash, Sha256Hash};
use crate::signature::Signature;
use crate::store_path::StorePath;

/// A `.narinfo` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path described.
    pub path: StorePath,
    /// Where the NAR lies, usually relative to the cache.
    pub url: String,
    /// `none`, `xz`, `zstd`, …
    pub compression: String,
    /// Hash of the file at `url`.
    pub file_hash: Option<Sha256Hash>,
    /// Size of the file at `url` in bytes.
    pub file_size: Option<u64>,
    /// Hash of the uncompressed NAR.
    pub nar_hash: NarHash,
    /// Size of the uncompressed NAR in bytes.
    pub nar_size: u64,
    /// What the path refers to, perhaps including itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built by.
    pub deriver: Option<StorePath>,
    /// How its content determines its path, if so.
    pub content_address: Option<ContentAddress>,
    /// Signatures over the fingerprint.
    pub signatures: Vec<Signature>,
}
