//! Whether upstream caches have the outputs of derivations, asked by `HEAD <hash>.narinfo`. Start at
//! [`Upstream::available`]. Without substituters nothing is asked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use harmonia_db::GraphDerivation;
use harmonia_nix::StorePath;
use url::Url;

const TIMEOUT: Duration = Duration::from_secs(15);
const PARALLEL: usize = 24;
const MEMO_MAX: usize = 100_000;

/// The configured caches and what they said lately.
pub(crate) struct Upstream {
    http: reqwest::Client,
    caches: Vec<Url>,
    memo: Mutex<HashMap<StorePath, bool>>,
}

impl Upstream {
    pub(crate) fn new(http: reqwest::Client, caches: Vec<Url>) -> Self {
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

    async fn ask(&self, cache: &Url, path: &StorePath) -> Option<bool> {
        let url = format!("{}/{}.narinfo", cache.as_str().trim_end_matches('/'), path.hash_part());
        match self.http.head(url).timeout(TIMEOUT).send().await {
            Ok(answer) if answer.status().is_success() => Some(true),
            Ok(answer) if matches!(answer.status().as_u16(), 403 | 404 | 410) => Some(false),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%cache, error = %error.without_url(), "An upstream cache did not answer");
                None
            }
        }
    }
}
