//! Captured and derived secrets that stay between calls. Start at [`CallState::kept_secret`].
//!
//! Whoever finds none will most likely fetch one and keep it. So others of the same plugin that ask for the same name wait
//! for that call instead of fetching one each: for its `keep` or its end, and not for long. A call waits for another only
//! while nobody waits for it, so no two wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harmonia_core::Timestamp;
use tokio::sync::Semaphore;

use super::secrets::KEPT_NAME_BYTES_MAX;
use super::{CallState, SecretHandle, Shared};

/// Of one plugin.
#[derive(Default)]
pub(super) struct Kept {
    secrets: Mutex<HashMap<String, SecretHandle>>,
    /// Names under which a call is expected to keep something. Closed when it did, or is over.
    fetched: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// That a call is expected to keep a secret: until then others wait for it.
pub(super) struct Fetching {
    shared: Arc<Shared>,
    name: String,
}

impl Fetching {
    pub(super) fn is_for(&self, name: &str) -> bool {
        self.name == name
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(over) = lock(&self.shared.kept.fetched).remove(&self.name) {
            over.close();
        }
    }
}

impl Kept {
    fn get(&self, name: &str, now: Timestamp) -> Option<SecretHandle> {
        lock(&self.secrets).get(name).filter(|secret| !secret.is_expired(now)).cloned()
    }

    /// Puts a secret where later calls find it; at most so many.
    pub(super) fn put(&self, name: &str, secret: SecretHandle, now: Timestamp, most: usize) {
        let mut kept = lock(&self.secrets);
        kept.retain(|_, secret| !secret.is_expired(now));
        if !kept.contains_key(name) && kept.len() >= most {
            // It may be gone at any time, says the contract; so the one that has least time left goes.
            let first = kept.iter().min_by_key(|(_, secret)| secret.expires_at()).map(|(name, _)| name.clone());
            if let Some(first) = first {
                kept.remove(&first);
            }
        }
        if most > 0 {
            kept.insert(name.to_owned(), secret);
        }
    }

    /// Who fetches what this name stands for; nobody: the caller does from now on.
    fn fetcher(&self, name: &str) -> Option<Arc<Semaphore>> {
        let mut fetched = lock(&self.fetched);
        if let Some(fetcher) = fetched.get(name) {
            return Some(fetcher.clone());
        }
        fetched.insert(name.to_owned(), Arc::new(Semaphore::new(0)));
        None
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.secrets).len()
    }
}

impl CallState {
    /// A secret that an earlier call kept under this name; `None` when there is none or its time is over.
    pub(crate) async fn kept_secret(&mut self, name: &str) -> Option<SecretHandle> {
        let secret = match self.shared.kept.get(name, self.shared.clock.now()) {
            Some(secret) => secret,
            None => self.fetched_by_another(name).await?,
        };
        self.know(&secret).ok()?;
        Some(secret)
    }

    async fn fetched_by_another(&mut self, name: &str) -> Option<SecretHandle> {
        // Who may not send requests fetches nothing, and under such a name nothing is kept.
        if self.fetching.is_some() || !self.network || name.len() > KEPT_NAME_BYTES_MAX {
            return None;
        }
        let Some(fetcher) = self.shared.kept.fetcher(name) else {
            self.fetching = Some(Fetching { shared: self.shared.clone(), name: name.to_owned() });
            return None;
        };
        // Either it is closed, or this takes too long: both end the wait.
        let wait = Duration::from_millis(self.limits().kept_wait_ms);
        let _ = tokio::time::timeout(wait, fetcher.acquire()).await;
        self.shared.kept.get(name, self.shared.clock.now())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is whole after every statement: a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
