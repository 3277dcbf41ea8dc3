//! From a commit to a pinned flake in the node's store. Start at [`checkout`] and [`add_tree`]; `source/git.rs` runs git,
//! `source/config.rs` reads the project's file.

mod config;
mod git;

use std::collections::BTreeSet;
use std::path::Path;

use harmonia_nix::worker_protocol::ClientError;
use harmonia_nix::{ContentAddressMethod, HashAlgorithm, StorePath};

use crate::store_daemon::Connection;

pub(crate) use config::{ReadConfigError, read_config};
pub(crate) use git::{Checkout, GitError, GitSources, Origin, checkout};

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

/// A flake that is evaluated purely: pinned by hash, with the commit's facts, so that `self.rev` and `self.lastModified`
/// are what they are in the repository.
#[derive(Debug, Clone)]
pub(crate) struct PinnedFlake {
    /// For `builtins.getFlake`.
    pub(crate) reference: String,
    /// The reference is of a wrapper whose output `target` is the flake.
    pub(crate) is_wrapped: bool,
}

/// Pins the flake in `flake_dir` of a tree.
pub(crate) async fn pin(
    connection: &mut Connection,
    tree: &SourceTree,
    flake_dir: &str,
    commit: Option<&str>,
    committed_at_s: u64,
) -> Result<PinnedFlake, AddTreeError> {
    if flake_dir.is_empty() {
        return Ok(PinnedFlake { reference: reference(tree, commit, committed_at_s), is_wrapped: false });
    }
    // As a URL, Nix 2.8 knows no directory within a path; as the input of a flake it does. That input is locked by
    // what it says, so neither flake needs to be changed.
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
    let revision = commit.map(|commit| format!(" rev = \"{commit}\";")).unwrap_or_default();
    let text = format!(
        "{{\n  inputs.target = {{ type = \"path\"; path = \"{}\"; dir = \"{}\"; narHash = \"{}\"; \
         lastModified = {committed_at_s};{revision} }};\n  outputs = {{ self, target }}: {{ inherit target; }};\n}}\n",
        tree.path,
        quote(flake_dir),
        tree.nar_hash_sri,
    );
    let wrapper = tempfile::tempdir().map_err(AddTreeError::Spool)?;
    let directory = wrapper.path().join("source");
    std::fs::create_dir(&directory).map_err(AddTreeError::Spool)?;
    std::fs::write(directory.join("flake.nix"), text).map_err(AddTreeError::Spool)?;
    let wrapper = add_tree(connection, &directory).await?;
    Ok(PinnedFlake { reference: reference(&wrapper, None, committed_at_s), is_wrapped: true })
}

fn reference(tree: &SourceTree, commit: Option<&str>, committed_at_s: u64) -> String {
    let revision = commit.map(|commit| format!("&rev={commit}")).unwrap_or_default();
    // In a query "+" may mean a space.
    let hash = tree.nar_hash_sri.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("path:{}?lastModified={committed_at_s}&narHash={hash}{revision}", tree.path)
}

#[cfg(test)]
mod tests;
