//! What a walk remembers: of the batch at hand what its files say, so that each is read and parsed once, and of everything
//! before no more than that it was dealt with. Start at [`Recent`] and [`Memo`].

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use harmonia_db::GraphDerivation;
use harmonia_nix::StorePath;

use crate::pack::physical_path;

/// Bytes of files, and what they say of so many derivations with so many references together. What is beyond is read again.
const FILES_BYTES_MAX: usize = 4 << 20;
const DESCRIBED_MAX: usize = 1_000;
const REFERENCES_MAX: usize = 20_000;

/// Files of derivations, and what they say.
#[derive(Debug, Default)]
pub(super) struct Recent {
    files: HashMap<StorePath, Arc<[u8]>>,
    bytes: usize,
    described: HashMap<StorePath, GraphDerivation>,
    references: usize,
}

impl Recent {
    pub(super) fn has(&self, path: &StorePath) -> bool {
        self.files.contains_key(path)
    }

    pub(super) fn bytes(&self, path: &StorePath) -> Option<Arc<[u8]>> {
        self.files.get(path).cloned()
    }

    pub(super) fn keep(&mut self, path: StorePath, bytes: Arc<[u8]>) {
        if self.bytes + bytes.len() <= FILES_BYTES_MAX && !self.files.contains_key(&path) {
            self.bytes += bytes.len();
            self.files.insert(path, bytes);
        }
    }

    pub(super) fn described(&self, path: &StorePath) -> Option<&GraphDerivation> {
        self.described.get(path)
    }

    pub(super) fn describe(&mut self, derivation: &GraphDerivation) {
        let references = super::names(derivation);
        if self.described.len() < DESCRIBED_MAX && self.references + references <= REFERENCES_MAX {
            self.references += references;
            self.described.insert(derivation.drv_path.clone(), derivation.clone());
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Reads these as far as they are there, and not more than is kept.
pub(super) fn read_files(store_root: Option<&Path>, paths: Vec<StorePath>) -> Vec<(StorePath, Arc<[u8]>)> {
    let mut left = FILES_BYTES_MAX as u64;
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let file = physical_path(store_root, &path);
        let Ok(metadata) = std::fs::symlink_metadata(&file) else { continue };
        if !metadata.is_file() || metadata.len() > left {
            continue;
        }
        let Ok(bytes) = std::fs::read(&file) else { continue };
        left = left.saturating_sub(bytes.len() as u64);
        files.push((path, bytes.into()));
    }
    files
}

/// Which paths were seen, by their hashes: a third of the memory that the paths would take.
#[derive(Debug, Default)]
pub(super) struct Memo {
    hashes: HashSet<[u8; 32]>,
}

impl Memo {
    fn key(path: &StorePath) -> Option<[u8; 32]> {
        path.hash_part().as_bytes().first_chunk::<32>().copied()
    }

    pub(super) fn insert(&mut self, path: &StorePath) {
        self.hashes.extend(Self::key(path));
    }

    pub(super) fn remove(&mut self, path: &StorePath) {
        if let Some(key) = Self::key(path) {
            self.hashes.remove(&key);
        }
    }

    pub(super) fn contains(&self, path: &StorePath) -> bool {
        Self::key(path).is_some_and(|key| self.hashes.contains(&key))
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn clear(&mut self) {
        self.hashes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: usize) -> StorePath {
        StorePath::from_base_name(&format!("{name:032}-x.drv")).expect("a store path")
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgotten_with_the_batch() {
        let mut recent = Recent::default();
        for name in 0..10 {
            recent.keep(path(name), vec![0; FILES_BYTES_MAX / 4].into());
        }
        assert_eq!((0..10).filter(|name| recent.has(&path(*name))).count(), 4);
        for name in 0..2 * DESCRIBED_MAX {
            recent.describe(&GraphDerivation { drv_path: path(name), ..derivation() });
        }
        assert_eq!(recent.described.len(), DESCRIBED_MAX);
        recent.clear();
        assert!(recent.bytes(&path(0)).is_none() && recent.described(&path(0)).is_none());
    }

    fn derivation() -> GraphDerivation {
        GraphDerivation {
            drv_path: path(0),
            name: "x".to_owned(),
            system: "x86_64-linux".to_owned(),
            required_features: Vec::new(),
            outputs: Vec::new(),
            inputs: Vec::new(),
            sources: Vec::new(),
            available: false,
            path_length: 1,
        }
    }

    #[test]
    fn files_that_are_not_there_or_no_files_are_left_to_who_uses_them() {
        let root = tempfile::tempdir().expect("directory");
        let store = root.path().join("nix/store");
        std::fs::create_dir_all(store.join(path(2).base_name())).expect("a directory");
        std::fs::write(store.join(path(1).base_name()), "text").expect("a file");
        let read = read_files(Some(root.path()), vec![path(0), path(1), path(2)]);
        assert_eq!(read, [(path(1), Arc::from(&b"text"[..]))]);
    }

    #[test]
    fn a_memo_knows_paths_by_their_hashes() {
        let mut memo = Memo::default();
        memo.insert(&path(1));
        assert!(memo.contains(&path(1)) && !memo.contains(&path(2)) && memo.len() == 1);
        memo.remove(&path(1));
        assert!(!memo.contains(&path(1)));
    }
}
