//! A plugin's small store: bounds here, rows behind [`harmonia_core::ports::PluginStore`].

use std::time::Duration;

use harmonia_core::ports::{PluginStoreError, StoredValue, WriteCondition};

use super::CallState;

impl CallState {
    /// Value and version of a key; `None` when absent or expired.
    pub async fn kv_get(&mut self, key: &str) -> Result<Option<StoredValue>, PluginStoreError> {
        self.check_kv(key, 0)?;
        let (store, plugin) = (&self.shared.store, self.shared.grants.plugin.clone());
        store.get(plugin, key.to_owned()).await
    }

    /// Writes a value, for `lifetime_s` seconds (`None`: until deleted), and gives its version.
    pub async fn kv_set(
        &mut self,
        key: &str,
        value: Vec<u8>,
        lifetime_s: Option<u32>,
        condition: WriteCondition,
    ) -> Result<u64, PluginStoreError> {
        self.check_kv(key, value.len())?;
        let (store, plugin) = (&self.shared.store, self.shared.grants.plugin.clone());
        let lifetime = lifetime_s.map(|seconds| Duration::from_secs(seconds.into()));
        store.set(plugin, key.to_owned(), value, lifetime, condition).await
    }

    /// Removes a key; it may be absent.
    pub async fn kv_delete(&mut self, key: &str) -> Result<(), PluginStoreError> {
        self.check_kv(key, 0)?;
        let (store, plugin) = (&self.shared.store, self.shared.grants.plugin.clone());
        store.delete(plugin, key.to_owned()).await
    }

    /// Counts the operation and checks sizes.
    fn check_kv(&mut self, key: &str, value_bytes: usize) -> Result<(), PluginStoreError> {
        let limits = self.limits();
        let (operations, operations_max) = (self.kv_operations as usize + 1, limits.kv_operations_per_call as usize);
        let bounds = [
            ("kv_operations_per_call", "operations in one call", operations, operations_max),
            ("kv_key_bytes", "bytes of a key", key.len(), limits.kv_key_bytes),
            ("kv_value_bytes", "bytes of a value", value_bytes, limits.kv_value_bytes),
        ];
        for (name, what, is, most) in bounds {
            if is > most {
                let text = format!("{is} {what}, at most {most}: {}", self.shared.grants.limit(name));
                return Err(PluginStoreError::Limit(text));
            }
        }
        if key.contains('\0') {
            return Err(PluginStoreError::Limit("a key holds no NUL character".to_owned()));
        }
        self.kv_operations += 1;
        Ok(())
    }
}
