//! Why something could not be done with the store.

use std::io;
use std::path::{Path, PathBuf};

use harmonia_nix::derivation::{DerivationFileError, VerifyOutputsError};
use harmonia_nix::nar::NarError;
use harmonia_nix::store_path::{MakeStorePathError, StorePath, StorePathNameError};

/// Why something could not be done with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Its reason.
        #[source]
        cause: io::Error,
    },
    /// The database failed.
    #[error("the store's database failed")]
    Database(#[from] rusqlite::Error),
    /// The database has something that cannot be.
    #[error("the store's database has an invalid {what} for {path}: {found}")]
    BadRow {
        /// Which column.
        what: &'static str,
        /// Of which path, as it stands there.
        path: String,
        /// What stands there.
        found: String,
    },
    /// The store was made by a Nix that is too new or too old.
    #[error("the store in {} has schema {found}, but only {known} is known here", path.display())]
    Schema {
        /// Where it says so.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What would be right.
        known: u32,
    },
    /// The store directory or one above it is a symlink.
    #[error("{} is a symlink; the Nix store and the directories above it must not be (unless allow-symlinked-store is set)", .0.display())]
    Symlinked(PathBuf),
    /// Somebody needs a valid path that is not.
    #[error("path '{0}' is not valid")]
    Invalid(StorePath),
    /// No signature that counts.
    #[error("cannot add path '{0}' because it lacks a valid signature")]
    Unsigned(StorePath),
    /// The archive is not the one that was announced.
    #[error("hash mismatch importing path '{path}';\n  specified: {specified}\n  got:       {got}")]
    HashMismatch {
        /// Which path.
        path: StorePath,
        /// The hash announced.
        specified: String,
        /// The hash found.
        got: String,
    },
    /// The archive is shorter or longer than was announced.
    #[error("size mismatch importing path '{path}';\n  specified: {specified}\n  got:       {got}")]
    SizeMismatch {
        /// Which path.
        path: StorePath,
        /// The size announced, in bytes.
        specified: u64,
        /// The size found.
        got: u64,
    },
    /// The content is not what its address says.
    #[error("ca hash mismatch importing path '{path}';\n  specified: {specified}\n  got:       {got}")]
    AddressMismatch {
        /// Which path.
        path: StorePath,
        /// The hash in its address.
        specified: String,
        /// The hash found.
        got: String,
    },
    /// The path does not follow from its content address.
    #[error("cannot add path '{0}' to the Nix store because it claims to be content-addressed but isn't")]
    NotContentAddressed(StorePath),
    /// The archive is damaged.
    #[error("cannot unpack the archive of '{path}'")]
    Archive {
        /// Of which path, or what was to be added.
        path: String,
        /// What is wrong with it.
        #[source]
        cause: NarError,
    },
    /// A tree could not be packed.
    #[error("cannot pack {}", path.display())]
    Pack {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: NarError,
    },
    /// What is added flat must be one file.
    #[error("'{0}' is not a regular file, which its content address needs")]
    NotAFile(String),
    /// No store path can be made.
    #[error("'{name}' cannot be added to the store")]
    Name {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        #[source]
        cause: MakeStorePathError,
    },
    /// A `.drv` file is damaged.
    #[error("cannot read the derivation '{path}'")]
    Derivation {
        /// Which one.
        path: StorePath,
        /// What is wrong with it.
        #[source]
        cause: DerivationFileError,
    },
    /// A derivation declares paths that are not its own.
    #[error("derivation '{path}' has incorrect outputs")]
    Outputs {
        /// Which one.
        path: StorePath,
        /// What is wrong.
        #[source]
        cause: VerifyOutputsError,
    },
    /// Paths that refer to each other.
    #[error("cycle detected in the references of '{0}' from '{1}'")]
    Cycle(StorePath, StorePath),
    /// Others refer to what should go.
    #[error("cannot delete path '{path}' because it is in use by {}", list(referrers))]
    InUse {
        /// What should go.
        path: StorePath,
        /// Who refers to it.
        referrers: Vec<StorePath>,
    },
    /// Somebody needs what should go.
    #[error("Cannot delete path '{0}' since it is still alive. To find out why, use: nix-store --query --roots")]
    Alive(StorePath),
    /// A root would keep itself alive.
    #[error("creating a garbage collector root ({}) in the Nix store is forbidden (are you running nix-build inside the store?)", .0.display())]
    RootInStore(PathBuf),
    /// Somebody's file is where a root should be.
    #[error("cannot create symlink '{}'; already exists", .0.display())]
    RootTaken(PathBuf),
    /// A text of the client that is no store path.
    #[error("'{0}' is not a hash part of a store path: 32 digits of Nix base32 are needed")]
    HashPart(String),
}

impl StoreError {
    /// For `map_err`: what was tried with which path.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |cause| Self::Io { action, path, cause }
    }

    /// The same for the errors of system calls.
    pub(crate) fn sys(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.as_ref().to_owned();
        move |errno| Self::Io { action, path, cause: errno.into() }
    }

    /// For `map_err`: the name that was asked for.
    pub(crate) fn name(name: &str) -> impl FnOnce(MakeStorePathError) -> Self {
        let name = name.to_owned();
        move |cause| Self::Name { name, cause }
    }
}

impl From<(String, StorePathNameError)> for StoreError {
    fn from((name, cause): (String, StorePathNameError)) -> Self {
        Self::Name { name, cause: cause.into() }
    }
}

fn list(paths: &[StorePath]) -> String {
    paths.iter().map(|path| format!("'{path}'")).collect::<Vec<_>>().join(", ")
}
