//! The local store: files below `/nix/store` and the database that says which of them are valid. Start at [`Store`].
//!
//! Everything on disk is as stock Nix has it (schema 10), so that both can work on one store at the same time:
//!
//! | what | where | module |
//! |---|---|---|
//! | places | state, log and store directories below a root | `layout` |
//! | valid paths | `db/db.sqlite`, WAL | `database`, `query`, `register` |
//! | who writes a path | `PATH.lock`, with flock | `locks` |
//! | what connections need | `temproots/PID-N`, with flock | `temp_roots` |
//! | adding | a staging name, then one rename, then one transaction | `add` |
//! | removing | `gc.lock`, `gc-socket` | `gc` |
//!
//! All calls block: use a thread that may.

mod add;
mod canonical;
mod database;
mod derivations;
mod error;
mod gc;
mod layout;
mod locks;
mod optimise;
mod query;
mod register;
mod roots;
mod staging;
mod temp_roots;
mod tree;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use harmonia_nix::signature::PublicKey;
use harmonia_nix::store_path::StorePath;

pub use add::AddOptions;
pub use error::StoreError;
pub use gc::KeepOptions;
pub use layout::Layout;
pub use locks::PathLocks;
pub use optimise::Optimised;
pub use roots::Roots;
pub use staging::Staging;
pub use temp_roots::TempRoots;
pub use verify::{Told, Verified};

use database::Database;
use derivations::ModuloCache;
use locks::LockQueue;

/// How a store is kept.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Whether a path that is not content-addressed needs a signature of [`StoreSettings::trusted_keys`].
    pub require_signatures: bool,
    /// Keys whose signatures count.
    pub trusted_keys: Vec<PublicKey>,
    /// Whether SQLite may lose the last transactions, never its consistency, in a power failure (`fsync-metadata = false`).
    pub fsync_metadata: bool,
    /// The group that build users are in: its members may make names in the store directory, as in stock Nix.
    pub build_users_group: Option<u32>,
    /// Whether the store directory may be reached through symlinks.
    pub allow_symlinked_store: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            require_signatures: true,
            trusted_keys: Vec::new(),
            fsync_metadata: true,
            build_users_group: None,
            allow_symlinked_store: false,
        }
    }
}

/// A store on this machine.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    settings: StoreSettings,
    database: Database,
    modulo: ModuloCache,
    locks: Arc<LockQueue>,
    /// Shared: no schema upgrade meanwhile.
    _big_lock: std::fs::File,
}

impl Store {
    /// Opens the store, and makes it when there is none.
    pub fn open(layout: Layout, settings: StoreSettings) -> Result<Arc<Self>, StoreError> {
        let big_lock = layout.prepare(&settings)?;
        let database = Database::open(&layout, settings.fsync_metadata)?;
        let (modulo, locks) = (ModuloCache::default(), Arc::default());
        Ok(Arc::new(Self { layout, settings, database, modulo, locks, _big_lock: big_lock }))
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes that are free where the store is.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let dir = &self.layout.real_store_dir;
        let found = rustix::fs::statvfs(dir).map_err(StoreError::sys("ask for free space in", dir))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// How it is kept.
    pub fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// Where the files of a path are; in a chroot store that is not where the path says.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.layout.real_store_dir.join(path.base_name())
    }

    /// The same for any path in the store directory, also of a file below a store path.
    pub fn real_path_of(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(harmonia_nix::STORE_DIR) {
            Ok(below) => self.layout.real_store_dir.join(below),
            Err(_) => path.to_owned(),
        }
    }
}
