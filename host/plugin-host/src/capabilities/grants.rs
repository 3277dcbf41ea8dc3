//! What the operator allows a plugin. Start at [`Grants`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use harmonia_egress::HostGrant;
use serde::Deserialize;

use super::limits::CapabilityLimits;

/// Everything that one plugin may do. What is not here is refused.
#[derive(Debug, Clone)]
pub struct Grants {
    /// Name of the instance, from the configuration.
    pub plugin: String,
    /// Hosts it may call.
    pub allow_hosts: Vec<HostGrant>,
    /// Strings it may read.
    pub settings: BTreeMap<String, String>,
    /// Secrets it may use without seeing them.
    pub secrets: BTreeMap<String, SecretGrant>,
    /// Bounds.
    pub limits: CapabilityLimits,
}

/// A secret of the configuration: a path, or `{ file = "…", hosts = ["…"] }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "SecretGrantForm")]
pub struct SecretGrant {
    /// File that holds it. Read whenever the plugin opens the secret, so that a new one needs no restart.
    pub file: PathBuf,
    /// Hosts it may be sent to (as in `allow_hosts`; without scheme or port: any that is granted for this host). `None`: all of
    /// the plugin's `allow_hosts`.
    pub hosts: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum SecretGrantForm {
    Path(PathBuf),
    Table { file: PathBuf, hosts: Option<Vec<String>> },
}

impl From<SecretGrantForm> for SecretGrant {
    fn from(form: SecretGrantForm) -> Self {
        match form {
            SecretGrantForm::Path(file) => Self { file, hosts: None },
            SecretGrantForm::Table { file, hosts } => Self { file, hosts },
        }
    }
}

impl Grants {
    /// Nothing but a name.
    pub fn none(plugin: impl Into<String>) -> Self {
        Self {
            plugin: plugin.into(),
            allow_hosts: Vec::new(),
            settings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            limits: CapabilityLimits::default(),
        }
    }

    /// Names a key of this plugin's configuration, for messages.
    pub(super) fn key(&self, key: &str) -> String {
        format!("`{key}` of the plugin `{}` ([[plugins]])", self.plugin)
    }

    /// Names one of this plugin's limits, for messages.
    pub(super) fn limit(&self, name: &str) -> String {
        format!("`limits.{name}` of the plugin `{}` ([[plugins]])", self.plugin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Configuration {
        secrets: BTreeMap<String, SecretGrant>,
    }

    #[test]
    fn a_secret_is_a_path_or_a_path_with_hosts() {
        let text = r#"{"secrets": {"a": "/a", "b": {"file": "/b", "hosts": ["h"]}, "c": {"file": "/c"}}}"#;
        let secrets = serde_json::from_str::<Configuration>(text).expect("it parses").secrets;
        assert_eq!(secrets["a"], SecretGrant { file: "/a".into(), hosts: None });
        assert_eq!(secrets["b"], SecretGrant { file: "/b".into(), hosts: Some(vec!["h".to_owned()]) });
        let unknown = r#"{"secrets": {"a": {"file": "/a", "host": ["h"]}}}"#;
        assert!(serde_json::from_str::<Configuration>(unknown).is_err(), "not silently unbound");
        assert_eq!(secrets["c"], SecretGrant { file: "/c".into(), hosts: None });
    }
}
