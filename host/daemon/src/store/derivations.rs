//! `.drv` files in the store, and whether the output paths that they declare are their own.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::Mutex;

use harmonia_nix::derivation::{Derivation, DerivationKind, ModuloHash, TEXT_BYTES_MAX};
use harmonia_nix::store_path::StorePath;

use super::{Store, StoreError};

/// Hashes that are kept at most; a hundred bytes each.
const KEPT_MAX: usize = 50_000;

/// What stands for derivations in the hashes of others; it never changes for a path.
#[derive(Debug, Default)]
pub(super) struct ModuloCache(Mutex<HashMap<StorePath, ModuloHash>>);

impl ModuloCache {
    fn get(&self, path: &StorePath) -> Option<ModuloHash> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(path).copied()
    }

    fn keep(&self, path: &StorePath, hash: ModuloHash) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(path.clone(), hash);
    }
}

impl Store {
    /// The derivation in a valid `.drv` file.
    pub fn read_derivation(&self, path: &StorePath) -> Result<Derivation, StoreError> {
        if !self.is_valid(path)? {
            return Err(StoreError::Invalid(path.clone()));
        }
        self.read_derivation_file(path)
    }

    /// The same whether it is valid or not yet. The path proves the text.
    pub(super) fn read_derivation_file(&self, path: &StorePath) -> Result<Derivation, StoreError> {
        let real = self.real_path(path);
        let found = match fs::symlink_metadata(&real) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Err(StoreError::Invalid(path.clone())),
            found => found.map_err(StoreError::io("look at", &real))?,
        };
        if !found.is_file() || found.len() > TEXT_BYTES_MAX as u64 {
            let cause = std::io::Error::other("it is not a file of a derivation's size");
            return Err(StoreError::io("read", &real)(cause));
        }
        let text = fs::read(&real).map_err(StoreError::io("read", &real))?;
        Derivation::from_file(path, &text).map_err(|cause| StoreError::Derivation { path: path.clone(), cause })
    }

    /// Fails unless the declared output paths are those that follow from the derivation.
    pub(super) fn check_outputs(&self, path: &StorePath, derivation: &Derivation) -> Result<(), StoreError> {
        let needed = !matches!(derivation.kind(), Ok(DerivationKind::Fixed));
        let mut inputs = HashMap::new();
        if needed {
            for input in derivation.input_drvs.keys() {
                inputs.insert(input, self.modulo(input)?);
            }
        }
        let verified = derivation
            .verify_outputs(|input| inputs.get(input).copied())
            .map_err(|cause| StoreError::Outputs { path: path.clone(), cause })?;
        self.modulo.keep(path, verified.modulo);
        Ok(())
    }

    /// What names the realisations of a derivation's outputs.
    pub fn masked_modulo(&self, path: &StorePath, derivation: &Derivation) -> Result<ModuloHash, StoreError> {
        let mut inputs = HashMap::new();
        if !matches!(derivation.kind(), Ok(DerivationKind::Fixed)) {
            for input in derivation.input_drvs.keys() {
                inputs.insert(input, self.modulo(input)?);
            }
        }
        let hash = derivation.hash_modulo_masked(|input| inputs.get(input).copied());
        hash.map_err(|cause| StoreError::Outputs { path: path.clone(), cause: cause.into() })
    }

    /// What stands for a derivation in the hashes of those that need it.
    fn modulo(&self, path: &StorePath) -> Result<ModuloHash, StoreError> {
        let mut todo: Vec<(StorePath, Option<Derivation>)> = vec![(path.clone(), None)];
        // Beside the cache, which may be cleared meanwhile.
        let mut known: HashMap<StorePath, ModuloHash> = HashMap::new();
        while let Some((path, derivation)) = todo.pop() {
            if known.contains_key(&path) {
                continue;
            }
            if let Some(hash) = self.modulo.get(&path) {
                known.insert(path, hash);
                continue;
            }
            let derivation = match derivation {
                Some(derivation) => derivation,
                None => self.read_derivation_file(&path)?,
            };
            let missing: Vec<StorePath> = if matches!(derivation.kind(), Ok(DerivationKind::Fixed)) {
                Vec::new()
            } else {
                derivation.input_drvs.keys().filter(|input| !known.contains_key(*input)).cloned().collect()
            };
            if missing.is_empty() {
                let hash = derivation.hash_modulo(|input| known.get(input).copied());
                let hash = hash.map_err(|cause| StoreError::Outputs { path: path.clone(), cause: cause.into() })?;
                self.modulo.keep(&path, hash);
                known.insert(path, hash);
            } else {
                todo.push((path, Some(derivation)));
                todo.extend(missing.into_iter().map(|input| (input, None)));
            }
        }
        Ok(known[path])
    }
}
