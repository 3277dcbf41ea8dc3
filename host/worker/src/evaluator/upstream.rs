//! Whether upstream caches have the outputs of derivations: only a narinfo that was read and is to be believed says so.
//! Start at [`Upstream::available`]. Without substituters nothing is asked.

use std::collections::HashMap;
use std::sync::Mutex;

use futures_util::{StreamExt, stream};
use harmonia_db::GraphDerivation;
use harmonia_nix::StorePath;

use crate::binary_cache::BinaryCache;
use crate::substitute::{self, SubstituteError};

const PARALLEL: usize = 24;
const MEMO_MAX: usize = 100_000;

/// The configured caches and what they said lately.
pub(crate) struct Upstream {
    http: reqwest::Client,
    caches: Vec<BinaryCache>,
    memo: Mutex<HashMap<StorePath, bool>>,
}

impl Upstream {
    pub(crate) fn new(http: reqwest::Client, caches: Vec<BinaryCache>) -> Self {
        Self { http, caches, memo: Mutex::new(HashMap::new()) }
    }

    /// For each derivation, in order: whether every output is in one of the caches.
    pub(crate) async fn available(&self, derivations: impl Iterator<Item = &GraphDerivation>) -> Vec<bool> {
        let outputs: Vec<Option<Vec<StorePath>>> = derivations
            .map(|derivation| derivation.outputs.iter().map(|output| output.path.clone()).collect())
            .collect();
        if self.caches.is_empty() {
            return vec![false; outputs.len()];
        }
        stream::iter(outputs)
            .map(|outputs| async move {
                let Some(outputs) = outputs.filter(|outputs| !outputs.is_empty()) else { return false };
                for output in &outputs {
                    if !self.has(output).await {
                        return false;
                    }
                }
                true
            })
            .buffered(PARALLEL)
            .collect()
            .await
    }

    async fn has(&self, path: &StorePath) -> bool {
        if let Some(known) = self.memo.lock().ok().and_then(|memo| memo.get(path).copied()) {
            return known;
        }
        let mut found = Some(false);
        for cache in &self.caches {
            match self.ask(cache, path).await {
                Some(true) => {
                    found = Some(true);
                    break;
                }
                Some(false) => {}
                // Not known, so not remembered; building it is never wrong.
                None => found = None,
            }
        }
        if let (Some(found), Ok(mut memo)) = (found, self.memo.lock()) {
            if memo.len() >= MEMO_MAX {
                memo.clear();
            }
            memo.insert(path.clone(), found);
        }
        found.unwrap_or(false)
    }

    async fn ask(&self, cache: &BinaryCache, path: &StorePath) -> Option<bool> {
        match substitute::narinfo(&self.http, cache, path).await {
            Ok(answer) => Some(answer.is_some()),
            Err(SubstituteError::Unavailable { cache, cause, .. }) => {
                tracing::debug!(%cache, error = %harmonia_core::chain(&cause), "An upstream cache did not answer");
                None
            }
            Err(error) => {
                tracing::debug!(error = %harmonia_core::chain(&error), "What an upstream cache says does not count");
                Some(false)
            }
        }
    }
}

#[cfg(test)]
mod tests;
