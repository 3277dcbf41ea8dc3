//! A plugin's small store in memory, for where there is no database: `plugin check` and `plugin call` on the command line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::ports::{PluginStore, PluginStoreError, PortFuture, StoredValue, WriteCondition};
use harmonia_core::{Clock, Timestamp};

/// Keeps what plugins write for as long as it lives.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By plugin and key.
    values: HashMap<(String, String), (StoredValue, Option<Timestamp>)>,
    versions: u64,
}

/// Most keys of all plugins together.
const KEYS_MAX: usize = 10_000;

impl MemoryStore {
    /// An empty one.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.values.retain(|_, (_, until)| until.is_none_or(|until| now < until));
        work(&mut state)
    }
}

impl PluginStore for MemoryStore {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        let found = self.with(|state| state.values.get(&(plugin, key)).map(|(value, _)| value.clone()));
        Box::pin(async { Ok(found) })
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        let until = lifetime.map(|lifetime| self.clock.now() + lifetime);
        let written = self.with(|state| {
            let place = (plugin, key);
            let version = state.values.get(&place).map(|(value, _)| value.version);
            let may = match condition {
                WriteCondition::Always => true,
                WriteCondition::Absent => version.is_none(),
                WriteCondition::Version(expected) => version == Some(expected),
            };
            if !may {
                return Err(PluginStoreError::Conflict);
            }
            if version.is_none() && state.values.len() >= KEYS_MAX {
                return Err(PluginStoreError::Limit(format!("more than {KEYS_MAX} keys")));
            }
            state.versions += 1;
            let version = state.versions;
            state.values.insert(place, (StoredValue { value, version }, until));
            Ok(version)
        });
        Box::pin(async { written })
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        self.with(|state| state.values.remove(&(plugin, key)));
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harmonia_core::SystemClock;

    #[tokio::test]
    async fn writes_obey_their_condition_and_plugins_do_not_meet() {
        let store = MemoryStore::new(Arc::new(SystemClock));
        let set = |plugin: &str, value: &[u8], condition| {
            store.set(plugin.to_owned(), "k".to_owned(), value.to_vec(), None, condition)
        };
        let first = set("a", b"1", WriteCondition::Absent).await.expect("absent");
        assert_eq!(set("a", b"2", WriteCondition::Absent).await, Err(PluginStoreError::Conflict));
        let second = set("a", b"2", WriteCondition::Version(first)).await.expect("that version");
        assert!(second > first);
        assert_eq!(set("a", b"3", WriteCondition::Version(first)).await, Err(PluginStoreError::Conflict));
        set("b", b"other", WriteCondition::Absent).await.expect("another plugin's key");
        let found = store.get("a".into(), "k".into()).await.expect("answers").expect("there");
        assert_eq!((found.value, found.version), (b"2".to_vec(), second));
        store.delete("a".into(), "k".into()).await.expect("gone");
        assert_eq!(store.get("a".into(), "k".into()).await, Ok(None));
    }
}
