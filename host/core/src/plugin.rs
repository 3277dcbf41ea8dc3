//! What operators see of a plugin. Start at [`PluginStatus`].

use serde::{Deserialize, Serialize};

/// What a plugin is for: the world it implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginKind {
    /// A place where repositories live.
    Forge,
    /// Tells people.
    Reporter,
    /// Orders the queue.
    Scheduler,
}

/// How a plugin is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginStatus {
    /// Name of the instance, from the configuration.
    pub name: String,
    /// What it is for; `None` when it could never be loaded.
    pub kind: Option<PluginKind>,
    /// Name and version of the program.
    pub program: String,
    /// SHA-256 of the component in lower-case hex.
    pub sha256: String,
    /// Calls that were made since this node started.
    pub calls: u64,
    /// Calls that failed by the plugin's own fault: traps, limits, nonsense.
    pub failures: u64,
    /// It failed too often and is not called until this many seconds have passed.
    pub broken_for_s: Option<u64>,
    /// The newest failure, or why it could not be loaded.
    pub last_error: Option<String>,
    /// The newest failure as everybody may read it: without what the plugin itself said, which may name what is private.
    #[serde(default)]
    pub last_failure: Option<String>,
    /// Why it does not run as it is configured: nothing runs, or what ran before.
    #[serde(default)]
    pub refused: Option<String>,
    /// Secrets of its configuration that cannot be used now, by their names: those that the program declares.
    #[serde(default)]
    pub unusable_secrets: Vec<UnusableSecret>,
    /// Exported interfaces, in the order of the contract.
    pub exports: Vec<String>,
}

/// A secret that cannot be used: its file is not there, cannot be read, or holds no secret. Why stands in the log and in
/// [`PluginStatus::last_error`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusableSecret {
    /// Its name, as the program declares it.
    pub name: String,
    /// Without it the plugin cannot work at all.
    pub required: bool,
}
