//! The small store of plugins, behind [`PluginStore`]. `migrations/functions/plugin_kv.sql` has the function that writes.

use std::time::Duration;

use harmonia_core::chain;
use harmonia_core::ports::{PluginStore, PluginStoreError, PortFuture, StoredValue, WriteCondition};

use crate::connection::{Db, interval};
use crate::error::DbError;

/// Most bytes of a key (the schema checks it too).
const KEY_BYTES_MAX: usize = 512;
/// Most bytes of a value (the schema checks it too).
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Most keys of one plugin; expired ones make room.
const KEYS_MAX: i32 = 10_000;
/// Most rows that [`Db::delete_expired_kv`] deletes at once.
const EXPIRED_MAX: i64 = 10_000;

impl Db {
    /// Deletes expired values of plugins, at most 10,000. Returns how many; call again while there were that many.
    pub async fn delete_expired_kv(&self) -> Result<u64, DbError> {
        self.run("delete expired values of plugins", || {
            // Skipped rows are being written, and so not expired any more.
            sqlx::query!(
                "DELETE FROM plugin_kv WHERE (plugin, key) IN (
                     SELECT plugin, key FROM plugin_kv WHERE expires_at <= now()
                     ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
                EXPIRED_MAX
            )
            .execute(&self.pool)
        })
        .await
        .map(|done| done.rows_affected())
    }

    async fn kv_get(&self, plugin: &str, key: &str) -> Result<Option<StoredValue>, DbError> {
        let row = self
            .run("read a value of a plugin", || {
                sqlx::query!(
                    "SELECT value, version FROM plugin_kv
                     WHERE plugin = $1 AND key = $2 AND (expires_at IS NULL OR expires_at > now())",
                    plugin,
                    key
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        Ok(row.map(|row| StoredValue { value: row.value, version: row.version as u64 }))
    }

    /// The outcome as the function words it, and the version.
    async fn kv_set(
        &self,
        plugin: &str,
        key: &str,
        value: &[u8],
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> Result<(String, Option<i64>), DbError> {
        let (condition, version) = match condition {
            WriteCondition::Always => ("always", None),
            WriteCondition::Absent => ("absent", None),
            // No row has a version beyond i64, so it conflicts, as it must.
            WriteCondition::Version(version) => ("version", Some(i64::try_from(version).unwrap_or(-1))),
        };
        let row = self
            .run("store a value of a plugin", || {
                sqlx::query!(
                    r#"SELECT outcome AS "outcome!", new_version FROM set_plugin_kv($1, $2, $3, $4, $5, $6, $7)"#,
                    plugin,
                    key,
                    value,
                    lifetime.map(interval),
                    condition,
                    version,
                    KEYS_MAX
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok((row.outcome, row.new_version))
    }

    async fn kv_delete(&self, plugin: &str, key: &str) -> Result<(), DbError> {
        self.run("delete a value of a plugin", || {
            sqlx::query!("DELETE FROM plugin_kv WHERE plugin = $1 AND key = $2", plugin, key).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}

/// Bounds of what a plugin names.
fn check(key: &str, value_bytes: usize) -> Result<(), PluginStoreError> {
    for (what, is, most) in [("a key", key.len(), KEY_BYTES_MAX), ("a value", value_bytes, VALUE_BYTES_MAX)] {
        if is > most {
            return Err(PluginStoreError::Limit(format!("{what} of {is} bytes, at most {most} are stored")));
        }
    }
    if key.contains('\0') {
        return Err(PluginStoreError::Limit("a key holds no NUL character".to_owned()));
    }
    Ok(())
}

/// Plugins are told that it did not work; what the server said is for the operator.
fn unavailable(error: DbError) -> PluginStoreError {
    tracing::warn!(error = chain(&error), "the store of plugins did not answer");
    PluginStoreError::Unavailable(error.to_string())
}

impl PluginStore for Db {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        Box::pin(async move {
            check(&key, 0)?;
            self.kv_get(&plugin, &key).await.map_err(unavailable)
        })
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        Box::pin(async move {
            check(&key, value.len())?;
            let (outcome, version) =
                self.kv_set(&plugin, &key, &value, lifetime, condition).await.map_err(unavailable)?;
            match (outcome.as_str(), version) {
                ("written", Some(version)) => Ok(version as u64),
                ("full", _) => Err(PluginStoreError::Limit(format!("a plugin has at most {KEYS_MAX} keys"))),
                _ => Err(PluginStoreError::Conflict),
            }
        })
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        Box::pin(async move {
            check(&key, 0)?;
            self.kv_delete(&plugin, &key).await.map_err(unavailable)
        })
    }
}
