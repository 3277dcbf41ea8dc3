//! Whether the store is what its database says. Start at [`Store::verify`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use harmonia_nix::store_path::StorePath;
use rustix::fs::{FlockOperation, flock};

use super::add::hash_archive;
use super::layout::open_lock_file;
use super::{Store, StoreError};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Something is wrong that repairing paths does not mend.
    pub has_errors: bool,
    /// Valid paths whose files are missing or changed.
    pub damaged: BTreeSet<StorePath>,
}

/// Hears what is found: a level (0 error, 3 information, 4 talkative) and a sentence.
pub type Told<'a> = &'a dyn Fn(u64, &str);

impl Store {
    /// Compares files and database. Paths that have disappeared, and that nothing valid refers to, become invalid.
    ///
    /// With `check_contents` all files are hashed; with `repair` damaged links are removed (paths are the caller's to mend).
    pub fn verify(&self, check_contents: bool, repair: bool, told: Told<'_>) -> Result<Verified, StoreError> {
        told(3, "reading the Nix store...");
        // Nothing is collected meanwhile.
        let lock_path = self.layout.gc_lock();
        let lock = open_lock_file(&lock_path)?;
        flock(&lock, FlockOperation::LockShared).map_err(StoreError::sys("lock", &lock_path))?;
        let mut verified = Verified::default();
        told(3, "checking path existence...");
        let present = self.verify_existence(&mut verified, told)?;
        if check_contents {
            told(3, "checking link hashes...");
            self.verify_links(&mut verified, repair, told)?;
            told(3, "checking store hashes...");
            for path in &present {
                self.verify_contents(path, &mut verified, told)?;
            }
        }
        Ok(verified)
    }

    /// Valid paths that are there.
    fn verify_existence(&self, verified: &mut Verified, told: Told<'_>) -> Result<BTreeSet<StorePath>, StoreError> {
        let dir = &self.layout.real_store_dir;
        let mut names = HashSet::new();
        for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
            names.insert(entry.map_err(StoreError::io("list", dir))?.file_name());
        }
        let is_there = |path: &StorePath| names.contains(Path::new(path.base_name()).as_os_str());
        let (present, mut missing): (BTreeSet<StorePath>, BTreeSet<StorePath>) =
            self.all_valid()?.into_iter().partition(is_there);
        // One after the other, as those that refer to others go first.
        let mut referrers: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        for path in &missing {
            referrers.insert(path.clone(), self.referrers(path)?);
        }
        loop {
            let free = |path: &&StorePath| referrers[*path].iter().all(|other| other == *path || !self.is_known(other));
            let Some(path) = missing.iter().find(free).cloned() else { break };
            told(3, &format!("path '{path}' disappeared, removing from database..."));
            self.invalidate(&path)?;
            missing.remove(&path);
        }
        for path in missing {
            told(0, &format!("path '{path}' disappeared, but it still has valid referrers!"));
            verified.damaged.insert(path);
        }
        Ok(present)
    }

    fn is_known(&self, path: &StorePath) -> bool {
        self.is_valid(path).unwrap_or(true)
    }

    fn verify_links(&self, verified: &mut Verified, repair: bool, told: Told<'_>) -> Result<(), StoreError> {
        let dir = self.layout.links_dir();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            let (path, name) = (entry.path(), entry.file_name());
            told(4, &format!("checking contents of '{}'", name.display()));
            let found = hash_archive(&path)?.0.to_base32();
            if found.as_str() == name {
                continue;
            }
            told(
                0,
                &format!("link '{}' was modified! expected hash '{}', got '{found}'", path.display(), name.display()),
            );
            if repair {
                fs::remove_file(&path).map_err(StoreError::io("delete", &path))?;
                told(3, &format!("removed link '{}'", path.display()));
            } else {
                verified.has_errors = true;
            }
        }
        Ok(())
    }

    fn verify_contents(&self, path: &StorePath, verified: &mut Verified, told: Told<'_>) -> Result<(), StoreError> {
        let Some(info) = self.path_info(path)? else { return Ok(()) };
        told(4, &format!("checking contents of '{path}'"));
        let (hash, size) = match hash_archive(&self.real_path(path)) {
            Ok(found) => found,
            Err(error) => {
                told(0, &crate::server::chain(&error));
                verified.damaged.insert(path.clone());
                return Ok(());
            }
        };
        if hash != info.nar_hash {
            let expected = info.nar_hash;
            told(0, &format!("path '{path}' was modified! expected hash '{expected}', got '{hash}'"));
            verified.damaged.insert(path.clone());
        } else if info.nar_size_bytes == 0 {
            told(3, &format!("updating size field on '{path}' to {size}"));
            self.set_size(path, size)?;
        }
        Ok(())
    }
}
