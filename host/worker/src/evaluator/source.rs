//! From a commit to a pinned flake in the node's store. Start at [`checkout`] and [`add_tree`]; `source/git.rs` runs git,
//! `source/config.rs` reads the project's file, `source/pin.rs` makes the flake reference.

mod config;
mod git;
mod pin;

use std::collections::BTreeSet;
use std::path::Path;

use harmonia_nix::worker_protocol::ClientError;
use harmonia_nix::{ContentAddressMethod, HashAlgorithm, StorePath};

use crate::store_daemon::Connection;

pub(crate) use config::{ReadConfigError, bind_to_base, read_config};
pub use git::MirrorLimits;
pub(crate) use git::{
    Checkout, GitError, GitSources, MergeWanted, Mirrors, Origin, Wanted, ancestors, checkout, keep_tidy, touches,
};
pub(crate) use pin::{PinnedFlake, pin, reference};

/// A source tree in the node's store.
#[derive(Debug, Clone)]
pub(crate) struct SourceTree {
    pub(crate) path: StorePath,
    /// Hash of its NAR, `sha256-<base64>`.
    pub(crate) nar_hash_sri: String,
}

/// Why a tree is not in the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddTreeError {
    /// The checkout cannot be read, or holds names that no archive can.
    #[error("could not archive the checkout")]
    Pack(#[source] harmonia_nix::nar::NarError),
    /// The temporary file.
    #[error("could not write the archive of the checkout; is the disk full?")]
    Spool(#[source] std::io::Error),
    /// The lock file.
    #[error("could not read flake.lock")]
    Lock(#[source] std::io::Error),
    /// The daemon.
    #[error("the store daemon did not take the source tree")]
    Daemon(#[source] ClientError),
}

/// Adds a directory to the store as the recursive SHA-256 path `…-source`, as Nix itself does with flakes. The
/// connection keeps it from the garbage collector.
pub(crate) async fn add_tree(connection: &mut Connection, tree: &Path) -> Result<SourceTree, AddTreeError> {
    let tree = tree.to_owned();
    let packed = tokio::task::spawn_blocking(move || {
        let mut file = tempfile::tempfile().map_err(AddTreeError::Spool)?;
        let output = std::io::BufWriter::with_capacity(256 << 10, &mut file);
        harmonia_nix::nar::pack_path(&tree, output).map_err(AddTreeError::Pack)?;
        std::io::Seek::rewind(&mut file).map_err(AddTreeError::Spool)?;
        Ok(file)
    });
    let file = packed.await.map_err(|error| AddTreeError::Spool(std::io::Error::other(error)))??;
    let archive = tokio::io::BufReader::with_capacity(256 << 10, tokio::fs::File::from_std(file));
    let added = connection
        .add_to_store(
            "source",
            ContentAddressMethod::Recursive,
            HashAlgorithm::Sha256,
            &BTreeSet::new(),
            false,
            archive,
        )
        .await
        .map_err(AddTreeError::Daemon)?;
    connection.add_temp_root(&added.path).await.map_err(AddTreeError::Daemon)?;
    Ok(SourceTree { path: added.path, nar_hash_sri: added.info.nar_hash.to_sri() })
}

#[cfg(test)]
pub(super) mod tests;
