//! A plugin's small store: bounds here, rows behind [`harmonia_core::ports::PluginStore`].

use std::time::Duration;

use harmonia_core::ports::{PluginStoreError, StoredValue, WriteCondition};

use super::CallState;

impl CallState {
    /// Value and version of a key; `None` when absent or expired.
    pub(crate) async fn kv_get(&mut self, key: &str) -> Result<Option<StoredValue>, PluginStoreError> {
        self.check_kv(key, 0)?;
        let (store, plugin) = (&self.shared.store, self.shared.grants.plugin.clone());
        store.get(plugin, key.to_owned()).await
    }

    /// Writes a value, for `lifetime_s` seconds (`None`: until deleted), and gives its version.
    pub(crate) async fn kv_set(
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
    pub(crate) async fn kv_delete(&mut self, key: &str) -> Result<(), PluginStoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::testing::Plan;

    #[tokio::test]
    async fn values_are_the_plugins_own_and_bounded() {
        let world = Plan::default().limits(|limits| limits.kv_operations_per_call = 7).world();
        let mut call = world.call();
        assert_eq!(call.kv_get("k").await.expect("read"), None);
        let version = call.kv_set("k", b"v".to_vec(), None, WriteCondition::Absent).await.expect("written");
        let stored = world.shared.store.get("test-forge".to_owned(), "k".to_owned()).await.expect("read");
        assert_eq!(stored, Some(StoredValue { value: b"v".to_vec(), version }), "under the plugin's name");
        let conflict = call.kv_set("k", b"w".to_vec(), Some(60), WriteCondition::Version(version + 1)).await;
        assert_eq!(conflict, Err(PluginStoreError::Conflict));
        call.kv_delete("k").await.expect("deleted");
        let always = WriteCondition::Always;
        for (key, value, name) in [
            ("k".repeat(513), Vec::new(), "limits.kv_key_bytes"),
            ("k".to_owned(), vec![0; 64 * 1024 + 1], "limits.kv_value_bytes"),
            ("a\0b".to_owned(), Vec::new(), "NUL"),
        ] {
            match call.kv_set(&key, value, None, always).await {
                Err(PluginStoreError::Limit(text)) => assert!(text.contains(name), "{text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        call.kv_set(&"k".repeat(512), vec![0; 64 * 1024], None, always).await.expect("just fits");
        for _ in 0..2 {
            call.kv_get("k").await.expect("read");
        }
        let error = call.kv_get("k").await.expect_err("too many").to_string();
        assert!(error.contains("limits.kv_operations_per_call"), "{error}");
        world.call().kv_get("k").await.expect("another call");
    }
}
