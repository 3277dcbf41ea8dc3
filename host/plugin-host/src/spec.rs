//! One plugin as the operator configured it. Start at [`PluginSpec`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use harmonia_egress::HostGrant;
use serde::{Deserialize, Deserializer};

use crate::capabilities::{CapabilityLimits, Grants, SecretGrant};
use crate::error::LoadError;
use crate::limits::LimitOverrides;
use crate::wasi::WasiGrant;

/// One `[[plugins]]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginSpec {
    /// Name of the instance: also the forge's name in URLs.
    pub name: String,
    /// The component's file.
    pub path: PathBuf,
    /// SHA-256 in hex: another file is refused.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Hosts that it may call.
    #[serde(default)]
    pub allow_hosts: Vec<HostGrant>,
    /// Strings that it may read.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Secrets that it may use.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretGrant>,
    /// Changed limits.
    #[serde(default)]
    pub limits: PluginLimits,
    /// Whether it gets a WASI.
    #[serde(default)]
    pub wasi: WasiGrant,
}

/// `[plugins.limits]`: what a call may use and what it may ask of the host, in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginLimits {
    /// What a call may use.
    pub call: LimitOverrides,
    /// What a call may ask of the host.
    pub capabilities: CapabilityLimits,
}

impl<'de> Deserialize<'de> for PluginLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let table = serde_json::Map::<String, serde_json::Value>::deserialize(deserializer)?;
        // The keys of a call's own limits end in `_max`; the capabilities' do not.
        let (call, capabilities): (serde_json::Map<_, _>, _) =
            table.into_iter().partition(|(key, _)| key.ends_with("_max"));
        Ok(Self {
            call: serde_json::from_value(call.into()).map_err(D::Error::custom)?,
            capabilities: serde_json::from_value(serde_json::Value::Object(capabilities)).map_err(D::Error::custom)?,
        })
    }
}

impl PluginSpec {
    /// A plugin with nothing granted.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            sha256: None,
            allow_hosts: Vec::new(),
            settings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            limits: PluginLimits::default(),
            wasi: WasiGrant::None,
        }
    }

    pub(crate) fn grants(&self) -> Grants {
        Grants {
            plugin: self.name.clone(),
            allow_hosts: self.allow_hosts.clone(),
            settings: self.settings.clone(),
            secrets: self.secrets.clone(),
            limits: self.limits.capabilities.clone(),
        }
    }

    pub(crate) fn check_name(&self) -> Result<(), LoadError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let name = &self.name;
        let fits = name.len() <= 64 && name.starts_with(good) && name.chars().all(|c| good(c) || c == '-' || c == '_');
        if fits { Ok(()) } else { Err(LoadError::BadName(name.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_parsed_and_unknown_keys_are_refused() {
        let text = r#"{
            "name": "hub", "path": "a.wasm", "wasi": "scratch", "settings": {"app_id": "1"},
            "secrets": {"webhook": "/run/hook"}, "limits": {"cpu_ms_max": 7, "requests_per_call": 3}
        }"#;
        let spec: PluginSpec = serde_json::from_str(text).expect("it parses");
        assert_eq!(spec.limits.call.cpu_ms_max, Some(7));
        assert_eq!(spec.limits.capabilities.requests_per_call, 3);
        assert_eq!(spec.wasi, WasiGrant::Scratch);
        for bad in [r#"{"cpu_ms": 7}"#, r#"{"speed_max": 7}"#, r#"{"cpu_ms_max": "x"}"#] {
            let text = format!(r#"{{"name": "n", "path": "p", "limits": {bad}}}"#);
            assert!(serde_json::from_str::<PluginSpec>(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_work_in_urls() {
        for (name, fits) in
            [("hub", true), ("my-hub_2", true), ("", false), ("-x", false), ("Hub", false), ("a/b", false)]
        {
            assert_eq!(PluginSpec::new(name, "p").check_name().is_ok(), fits, "{name}");
        }
        assert!(PluginSpec::new("a".repeat(65), "p").check_name().is_err());
    }
}
