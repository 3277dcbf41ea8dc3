//! Names in the store directory under which something is made before it has its own. Start at [`Store::staging`].
//!
//! The name begins with a hash part that is among the temporary roots, so that no garbage collector, ours or stock Nix's,
//! deletes it while it is in use, and every one deletes it when its owner died.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use harmonia_nix::hash::Sha256Hash;
use harmonia_nix::store_path::StorePath;

use super::canonical::canonicalise;
use super::{Store, StoreError, TempRoots, tree};

/// What follows the hash part.
pub(super) const STAGING_NAME: &str = "harmonia-staging";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A directory on the store's file system, of its owner alone. Deleted, with all that is left in it, when this ends.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = tree::delete(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "Could not delete what was left of an addition");
        }
    }
}

impl Store {
    /// A new empty directory that lasts no longer than `roots`.
    pub fn staging(&self, roots: &TempRoots) -> Result<Staging, StoreError> {
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let seed = format!("{}:{number}:{}", std::process::id(), super::register::now_s());
            let hash = harmonia_nix::hash::compress_hash(Sha256Hash::of(seed.as_bytes()).as_bytes());
            let path = StorePath::from_parts(&hash, STAGING_NAME).map_err(|cause| (STAGING_NAME.to_owned(), cause))?;
            roots.add(&path)?;
            let dir = self.real_path(&path);
            match fs::create_dir(&dir) {
                Ok(()) => {
                    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
                        .map_err(StoreError::io("set the mode of", &dir))?;
                    return Ok(Staging { dir });
                }
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(StoreError::io("make the directory", &dir)(cause)),
            }
        }
    }

    /// Moves a finished tree to where its path belongs, in place of what may be there. The caller holds the path's lock.
    ///
    /// It may be canonical already, as a build leaves it; its own metadata is that of the store afterwards. With `optimise`
    /// its files become links to equal ones.
    pub fn move_into_store(&self, staged: &Path, path: &StorePath, optimise: bool) -> Result<(), StoreError> {
        let target = self.real_path(path);
        if fs::symlink_metadata(&target).is_ok() {
            move_away(&target, staged)?;
        }
        move_tree(staged, &target)?;
        if optimise { self.optimise_path(path) } else { Ok(()) }
    }

    /// Moves a finished tree to a name beside a path, such as `PATH.check`, in place of what may be there.
    pub fn keep_beside(&self, staged: &Path, kept: &Path) -> Result<(), StoreError> {
        tree::delete(kept)?;
        move_tree(staged, kept)
    }

    /// Makes a tree that we have written ourselves canonical and moves it to where its path belongs.
    pub(super) fn finish_staged(&self, staged: &Path, path: &StorePath, optimise: bool) -> Result<(), StoreError> {
        canonicalise(staged)?;
        self.move_into_store(staged, path, optimise)
    }
}

fn move_tree(staged: &Path, target: &Path) -> Result<(), StoreError> {
    let found = fs::symlink_metadata(staged).map_err(StoreError::io("look at", staged))?;
    // Without being root one can move only a directory that one may write.
    let is_closed = found.is_dir() && found.mode() & 0o200 == 0 && !rustix::process::geteuid().is_root();
    if is_closed {
        fs::set_permissions(staged, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::io("set the mode of", staged))?;
    }
    fs::rename(staged, target).map_err(StoreError::io("move to its place", target))?;
    if is_closed {
        fs::set_permissions(target, fs::Permissions::from_mode(0o555))
            .map_err(StoreError::io("set the mode of", target))?;
    }
    Ok(())
}

/// Something is in the way: the rest of an addition that was cut off, or what is to be repaired.
fn move_away(target: &Path, staged: &Path) -> Result<(), StoreError> {
    let mut name = staged.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    let old = staged.with_file_name(name);
    let found = fs::symlink_metadata(target).map_err(StoreError::io("look at", target))?;
    if found.is_dir() && !rustix::process::geteuid().is_root() {
        fs::set_permissions(target, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::io("set the mode of", target))?;
    }
    fs::rename(target, &old).map_err(StoreError::io("move away", target))?;
    tree::delete(&old).map(drop)
}
