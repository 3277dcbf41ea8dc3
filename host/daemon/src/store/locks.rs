//! Who may write a path: whoever holds `PATH.lock` (flock), as in stock Nix. Start at [`Store::lock_paths`].
//!
//! A lock file that its holder deleted has a byte in it: whoever gets the lock of such a file must open the name anew.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_nix::store_path::StorePath;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::layout::open_lock_file;
use super::{Store, StoreError, TempRoots};

/// How often a lock of another process is tried; our own locks announce their end.
const FOREIGN_POLL: Duration = Duration::from_millis(100);

/// Wakes those of this process who wait for locks.
#[derive(Debug, Default)]
pub(super) struct LockQueue(Notify);

/// The right to write some paths. Ends with its value, and removes the lock files.
#[derive(Debug)]
pub struct PathLocks {
    held: Vec<(File, PathBuf)>,
    queue: Arc<LockQueue>,
}

impl Drop for PathLocks {
    fn drop(&mut self) {
        for (file, path) in &mut self.held {
            // Only to be tidy: a lock file that stays does no harm.
            let _ = fs::remove_file(path);
            let _ = file.write_all(b"d");
        }
        self.held.clear();
        self.queue.0.notify_waiters();
    }
}

impl Store {
    /// Locks all of these, or `None` when somebody holds one. The garbage collector is told of them first, which otherwise
    /// could delete the lock files.
    pub fn try_lock_paths(
        &self,
        roots: &TempRoots,
        paths: &BTreeSet<StorePath>,
    ) -> Result<Option<PathLocks>, StoreError> {
        for path in paths {
            roots.add(path)?;
        }
        let mut locks = PathLocks { held: Vec::new(), queue: Arc::clone(&self.locks) };
        // In the order of their names, as everybody does: so nobody waits in a circle.
        for path in paths {
            let lock_path = self.layout.real_store_dir.join(format!("{}.lock", path.base_name()));
            match lock(&lock_path, FlockOperation::NonBlockingLockExclusive)? {
                Some(file) => locks.held.push((file, lock_path)),
                None => return Ok(None),
            }
        }
        Ok(Some(locks))
    }

    /// Locks all of these, waiting for whoever holds one.
    pub fn lock_paths(&self, roots: &TempRoots, paths: &BTreeSet<StorePath>) -> Result<PathLocks, StoreError> {
        for path in paths {
            roots.add(path)?;
        }
        let mut locks = PathLocks { held: Vec::new(), queue: Arc::clone(&self.locks) };
        for path in paths {
            let lock_path = self.layout.real_store_dir.join(format!("{}.lock", path.base_name()));
            // Never `None`, as it waits.
            locks.held.extend(lock(&lock_path, FlockOperation::LockExclusive)?.map(|file| (file, lock_path)));
        }
        Ok(locks)
    }

    /// The same for builds, which hold locks for hours: no thread waits.
    pub async fn lock_paths_soon(
        self: &Arc<Self>,
        roots: &Arc<TempRoots>,
        paths: &BTreeSet<StorePath>,
    ) -> Result<PathLocks, StoreError> {
        loop {
            let mut changed = std::pin::pin!(self.locks.0.notified());
            changed.as_mut().enable();
            let (store, roots, paths) = (Arc::clone(self), Arc::clone(roots), paths.clone());
            let tried = tokio::task::spawn_blocking(move || store.try_lock_paths(&roots, &paths)).await;
            match tried {
                Ok(Ok(Some(locks))) => return Ok(locks),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(failed) => std::panic::resume_unwind(failed.into_panic()),
            }
            // Time passing means no more than that somebody else may be done.
            let _ = tokio::time::timeout(FOREIGN_POLL, changed).await;
        }
    }
}

/// `None` when somebody holds it (and the operation does not wait).
fn lock(path: &PathBuf, operation: FlockOperation) -> Result<Option<File>, StoreError> {
    loop {
        let file = open_lock_file(path)?;
        match flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(StoreError::sys("lock", path)(errno)),
        }
        let found = file.metadata().map_err(StoreError::io("look at", path))?;
        if found.len() == 0 {
            return Ok(Some(file));
        }
    }
}
