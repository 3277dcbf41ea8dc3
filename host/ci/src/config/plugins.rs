//! `[[plugins]]`: which components run on this node's frontend (and, for the policy, its builder), and what each may do.
//!
//! Everything not written here is denied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harmonia_plugin_host::PluginSpec;
use serde::{Deserialize, Serialize};

/// One configured plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plugin {
    /// Name of the instance; of a forge also its name in addresses.
    pub(crate) name: String,
    /// The component. A relative path is looked up in the configuration file's folder, then in `node.plugins_dir`.
    pub(crate) path: PathBuf,
    /// SHA-256 in hex; another file is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Hosts it may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow_hosts: Vec<String>,
    /// Strings that it may read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) settings: BTreeMap<String, String>,
    /// Secrets that it may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Bounds of one call, where they differ from the defaults (docs/limits.md).
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub(crate) limits: toml::Table,
    /// Interfaces of WASI that it may import, with nothing in them.
    #[serde(default, skip_serializing_if = "Wasi::is_none")]
    pub(crate) wasi: Wasi,
    /// Repositories that are enabled when they are discovered: topics, and globs of full names.
    #[serde(default, skip_serializing_if = "AutoEnable::is_empty")]
    pub(crate) auto_enable: AutoEnable,
}

/// A file, or a file and the hosts that the secret may go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Secret {
    /// May go to every host of `allow_hosts`.
    File(PathBuf),
    /// May go to these only.
    Bound(BoundSecret),
}

/// A secret for some hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BoundSecret {
    pub(crate) file: PathBuf,
    pub(crate) hosts: Vec<String>,
}

/// What of WASI a component may import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wasi {
    /// Nothing: such an import is refused.
    #[default]
    None,
    /// Interfaces without anything behind them: no files, no environment, no arguments, no network.
    Empty,
    /// As `empty`, and a folder of its own that is emptied with every call.
    Scratch,
}

impl Wasi {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Which discovered repositories are enabled by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AutoEnable {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) topics: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
}

impl AutoEnable {
    fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.names.is_empty()
    }
}

impl Plugin {
    /// What the plugin host is to load. A relative path is one of the folder of the configuration's file when there is such
    /// a file, else one of the plugins that come with the program.
    pub(crate) fn spec(&self, config_dir: &Path, plugins_dir: Option<&Path>) -> Result<PluginSpec, String> {
        let mut table = toml::Table::try_from(self).map_err(|error| error.to_string())?;
        table.remove("auto_enable");
        let beside = config_dir.join(&self.path);
        let path = match plugins_dir {
            Some(dir) if self.path.is_relative() && !beside.exists() => dir.join(&self.path),
            _ => beside,
        };
        table.insert("path".to_owned(), path.display().to_string().into());
        table.try_into().map_err(|error: toml::de::Error| error.message().trim().to_owned())
    }
}

/// Why a list of plugins cannot be used; `None` when it can. Names are parts of addresses, so they are kept simple.
pub(crate) fn problem(plugins: &[Plugin]) -> Option<String> {
    let mut seen = std::collections::BTreeSet::new();
    for plugin in plugins {
        let name = &plugin.name;
        let simple = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if name.is_empty() || name.len() > 64 || !simple {
            return Some(format!(
                "plugins.name = '{name}' is no name: 1 to 64 of a-z, 0-9, '-' and '_' (a forge's name is part of its webhook's address)"
            ));
        }
        if ["git", "local"].contains(&name.as_str()) {
            return Some(format!("plugins.name = '{name}' is taken: it means projects without a forge"));
        }
        if !seen.insert(name) {
            return Some(format!("two plugins are named '{name}'; give each instance a name of its own"));
        }
        if let Err(error) = plugin.spec(Path::new("/"), None) {
            return Some(format!("the plugin '{name}' is configured wrongly: {error}"));
        }
        if let Some(pin) = &plugin.sha256
            && (pin.len() != 64 || !pin.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Some(format!(
                "plugins.sha256 of '{name}' is not 64 hexadecimal digits; `harmonia-ci plugin inspect FILE` prints it"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        plugins: Vec<Plugin>,
    }

    fn parse(text: &str) -> Result<Vec<Plugin>, String> {
        toml::from_str::<File>(text).map(|file| file.plugins).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let plugins = parse(
            r#"
            [[plugins]]
            name = "forge-one"
            path = "plugins/forge.wasm"
            allow_hosts = ["api.example.org"]
            settings = { app_id = "12345" }
            secrets = { webhook = "/run/secrets/hook", key = { file = "/run/secrets/app.pem", hosts = ["api.example.org"] } }
            limits = { memory_bytes_max = 134217728, wall_ms_max = 20000 }
            auto_enable = { topics = ["nix-ci"], names = ["team/*"] }
            [[plugins]]
            name = "forge-two"
            path = "plugins/forge.wasm"
            wasi = "scratch"
            "#,
        )
        .expect("valid");
        assert_eq!(plugins[0].secrets["webhook"], Secret::File("/run/secrets/hook".into()));
        assert!(matches!(&plugins[0].secrets["key"], Secret::Bound(bound) if bound.hosts == ["api.example.org"]));
        assert_eq!(plugins[0].limits["memory_bytes_max"].as_integer(), Some(128 << 20));
        let spec = plugins[0].spec(std::path::Path::new("/etc/ci"), None).expect("a plugin");
        assert_eq!(spec.path, std::path::Path::new("/etc/ci/plugins/forge.wasm"));
        assert_eq!(spec.limits.call.wall_ms_max, Some(20_000));
        assert_eq!((plugins[1].wasi, problem(&plugins)), (Wasi::Scratch, None));
        // What is written to a file reads back the same.
        let text = toml::to_string(&toml::Table::from_iter([(
            "plugins".to_owned(),
            toml::Value::try_from(&plugins).expect("serializes"),
        )]))
        .expect("text");
        assert_eq!(parse(&text).expect("valid"), plugins);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        let plugin = |name: &str, pin: Option<&str>| Plugin {
            sha256: pin.map(str::to_owned),
            ..parse(&format!("[[plugins]]\nname = \"{name}\"\npath = \"x.wasm\"\n")).expect("valid").remove(0)
        };
        for (plugins, wanted) in [
            (vec![plugin("A b", None)], "is no name"),
            (vec![plugin("", None)], "is no name"),
            (vec![plugin("git", None)], "is taken"),
            (vec![plugin("a", None), plugin("a", None)], "two plugins are named 'a'"),
            (vec![plugin("a", Some("12"))], "64 hexadecimal digits"),
            (
                vec![Plugin {
                    limits: toml::Table::from_iter([("speed_max".to_owned(), 1.into())]),
                    ..plugin("a", None)
                }],
                "speed_max",
            ),
            (vec![Plugin { allow_hosts: vec!["not a host".to_owned()], ..plugin("a", None) }], "not a host"),
        ] {
            let problem = problem(&plugins).expect("refused");
            assert!(problem.contains(wanted), "{problem}");
        }
        assert!(parse("[[plugins]]\nname = \"a\"\n").expect_err("no path").contains("path"));
        assert!(parse("[[plugins]]\nname = \"a\"\npath = \"p\"\nsecret = {}\n").expect_err("typo").contains("secrets"));
    }
}
