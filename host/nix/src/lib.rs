//! Nix's own formats as types that cannot be wrong: parse at the edge, print byte for byte what Nix prints.
//!
//! Start reading at [`store_path::StorePath`], then [`derivation::Derivation`].
//!
//! | module | what |
//! |---|---|
//! | [`base32`] | Nix's base32 |
//! | [`hash`] | hashes and their textual forms |
//! | [`content_address`] | `text:…` and `fixed:…` strings |
//! | [`store_path`] | store paths and how Nix computes them |
//! | [`derivation`] | `.drv` files: ATerm, output paths, placeholders |
//! | [`nar`] | archives |
//! | [`reference_scan`] | which paths an archive refers to |
//! | [`narinfo`] | what a binary cache says of a path |
//! | [`signature`] | Ed25519 keys and signatures |
//! | [`worker_protocol`] | talking to a Nix daemon |
//!
//! Never here: our own identifiers and states, databases, HTTP, processes, a clock, a source of randomness.
//! Reading and writing happens through what the caller hands in.

pub mod base32;
pub mod content_address;
pub mod derivation;
pub mod hash;
pub mod nar;
pub mod narinfo;
pub mod reference_scan;
pub mod signature;
pub mod store_path;
mod text_serde;
pub mod worker_protocol;

pub use content_address::{ContentAddress, ContentAddressMethod};
pub use derivation::{BasicDerivation, Derivation, DerivationOutput};
pub use hash::{Hash, HashAlgorithm, NarHash, Sha256Hash};
pub use narinfo::NarInfo;
pub use reference_scan::ReferenceScanner;
pub use signature::{PublicKey, SecretKey, Signature};
pub use store_path::{STORE_DIR, StorePath};
