//! Texts that stand for output paths which are not known yet (`hashPlaceholder` and `DownstreamPlaceholder` in
//! Nix). Start at [`hash_placeholder`].

use crate::base32;
use crate::hash::Sha256Hash;
use crate::store_path::{StorePath, output_path_name};

/// Length of every placeholder: a slash and the base32 of a SHA-256.
pub(super) const PLACEHOLDER_BYTES: usize = 1 + base32::encoded_len(32);

/// What `builtins.placeholder` gives: stands for an output of the derivation in which it is written.
pub fn hash_placeholder(output_name: &str) -> String {
    placeholder(&format!("nix-output:{output_name}"))
}

/// Stands for the floating output of another derivation. `None` when `drv_path` is no derivation.
pub fn upstream_output_placeholder(drv_path: &StorePath, output_name: &str) -> Option<String> {
    let name = output_path_name(drv_path.derivation_name()?, output_name);
    Some(placeholder(&format!("nix-upstream-output:{}:{name}", drv_path.hash_part())))
}

fn placeholder(text: &str) -> String {
    format!("/{}", Sha256Hash::of(text.as_bytes()).to_base32())
}
