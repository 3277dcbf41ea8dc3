//! A small store of the plugin's own, in the server's database and shared by all nodes: etags, cursors. Calls of one
//! instance end with it, so this is where a plugin remembers. At most 512 bytes a key, 64 KiB a value, 10,000 keys.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::bindings::imports::harmonia::plugin::kv::{Condition, Entry, KvError, delete, get, set};

/// The value of a key, from JSON; none when it is absent, expired, or was written in another shape (by another version of
/// the plugin).
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, KvError> {
    Ok(get(key)?.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
}

/// Writes a value as JSON, whatever is there, for `lifetime_s` seconds (none: until deleted).
pub fn set_json(key: &str, value: &impl Serialize, lifetime_s: Option<u32>) -> Result<(), KvError> {
    let value = serde_json::to_vec(value)
        .map_err(|error| KvError::Limit(format!("the value of `{key}` cannot be written as JSON: {error}")))?;
    set(key, &value, lifetime_s, Condition::Always).map(|_version| ())
}
