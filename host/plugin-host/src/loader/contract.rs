//! What a component is and what it wants, told from the names of its imports and exports. Pure.

use std::fmt;

use harmonia_core::plugin::PluginKind;

use crate::error::LoadError;
use crate::wasi::WasiGrant;

/// Tracks of the contract that this host speaks: package, track, interfaces.
const TRACKS: &[(&str, &str, &[&str])] = &[
    ("harmonia:plugin", "0.1", &["description", "log", "clock", "settings", "secrets", "http", "kv"]),
    (
        "harmonia:forge",
        "0.1",
        &[
            "types",
            "webhooks",
            "statuses",
            "comments",
            "discovery",
            "branches",
            "pull-requests",
            "permissions",
            "credentials",
            "hooks",
            "login",
        ],
    ),
    ("harmonia:reporter", "0.1", &["reporter"]),
    ("harmonia:scheduler", "0.1", &["policy"]),
];

/// Packages of the WASI that we have.
const WASI_PACKAGES: &[&str] =
    &["wasi:io", "wasi:clocks", "wasi:random", "wasi:cli", "wasi:filesystem", "wasi:sockets"];

/// `package/interface@version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfaceName {
    package: String,
    interface: String,
    version: String,
}

impl InterfaceName {
    fn parse(name: &str) -> Option<Self> {
        let (path, version) = name.split_once('@').unwrap_or((name, ""));
        let (package, interface) = path.split_once('/')?;
        Some(Self { package: package.to_owned(), interface: interface.to_owned(), version: version.to_owned() })
    }

    /// Versions of one track can stand in for each other: `0.1.x` for `0.1.y`, `1.x` for `1.y`; pre-releases only for
    /// themselves.
    fn track(&self) -> String {
        if self.version.contains(['-', '+']) {
            return self.version.clone();
        }
        let mut numbers = self.version.split('.');
        match (numbers.next(), numbers.next()) {
            (Some("0"), Some(minor)) => format!("0.{minor}"),
            (Some(major), _) => major.to_owned(),
            _ => String::new(),
        }
    }
}

/// A component's place in the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contract {
    pub(crate) kind: PluginKind,
    /// `harmonia:forge@0.1`, for people.
    pub(crate) tracks: Vec<String>,
    /// Interfaces of its kind that it exports, in the order of the contract, without package (`webhooks`).
    pub(crate) exports: Vec<String>,
    /// Whether it wants a WASI.
    pub(crate) wants_wasi: bool,
}

/// An import that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportProblem {
    /// As the component names it.
    pub import: String,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for ImportProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the component imports {}: {}", self.import, self.reason)
    }
}

/// Finds the kind of a component and checks that it exports what it must.
pub(crate) fn contract(imports: &[String], exports: &[String]) -> Result<Contract, LoadError> {
    let kinds = [
        ("harmonia:forge", PluginKind::Forge),
        ("harmonia:reporter", PluginKind::Reporter),
        ("harmonia:scheduler", PluginKind::Scheduler),
    ];
    let known = |name: &InterfaceName| {
        TRACKS.iter().any(|(package, track, interfaces)| {
            *package == name.package && *track == name.track() && interfaces.contains(&name.interface.as_str())
        })
    };
    let ours: Vec<InterfaceName> = exports.iter().filter_map(|name| InterfaceName::parse(name)).filter(known).collect();
    let found: Vec<(&str, PluginKind)> = kinds
        .into_iter()
        .filter(|(package, _)| ours.iter().any(|name| name.package == *package && name.interface != "types"))
        .collect();
    let (package, kind) = match found.as_slice() {
        [one] => *one,
        [] => {
            let known: Vec<String> = TRACKS.iter().map(|(package, track, _)| format!("{package}@{track}")).collect();
            let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            return Err(LoadError::NoWorld { exports, known: known.join(", ") });
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(package, _)| *package).collect();
            return Err(LoadError::SeveralWorlds(names.join(", ")));
        }
    };
    if !ours.iter().any(|name| name.package == "harmonia:plugin" && name.interface == "description") {
        return Err(LoadError::MissingExport("harmonia:plugin/description@0.1"));
    }
    let order = TRACKS.iter().find(|(name, ..)| *name == package).map_or(&[][..], |(_, _, interfaces)| interfaces);
    let exported = order
        .iter()
        .filter(|interface| ours.iter().any(|n| n.package == package && n.interface == **interface))
        .filter(|interface| **interface != "types")
        .map(|interface| (*interface).to_owned())
        .collect();
    let mut tracks: Vec<String> = ours.iter().map(|name| format!("{}@{}", name.package, name.track())).collect();
    tracks.sort();
    tracks.dedup();
    let wants_wasi = imports.iter().any(|name| name.starts_with("wasi:"));
    Ok(Contract { kind, tracks, exports: exported, wants_wasi })
}

/// Every import that this kind of plugin may not have, or has no grant for.
pub(crate) fn import_problems(
    imports: &[String],
    kind: PluginKind,
    wasi: WasiGrant,
    plugin: &str,
) -> Vec<ImportProblem> {
    imports
        .iter()
        .filter_map(|import| {
            refusal(import, kind, wasi, plugin).map(|reason| ImportProblem { import: import.clone(), reason })
        })
        .collect()
}

fn refusal(import: &str, kind: PluginKind, wasi: WasiGrant, plugin: &str) -> Option<String> {
    let Some(name) = InterfaceName::parse(import) else {
        return Some("no such interface".into());
    };
    if name.package.starts_with("wasi:") {
        return wasi_refusal(&name, kind, wasi, plugin);
    }
    let tracks: Vec<_> = TRACKS.iter().filter(|(package, ..)| *package == name.package).collect();
    if tracks.is_empty() {
        return Some("no such interface".into());
    }
    let Some((_, _, interfaces)) = tracks.iter().find(|(_, track, _)| *track == name.track()) else {
        let known: Vec<&str> = tracks.iter().map(|(_, track, _)| *track).collect();
        return Some(format!("this host speaks track {} of {}", known.join(", "), name.package));
    };
    if !interfaces.contains(&name.interface.as_str()) {
        return Some("no such interface".into());
    }
    let types_only = name.interface == "types";
    let capability = name.package == "harmonia:plugin" && name.interface != "description";
    if kind == PluginKind::Scheduler && capability && !matches!(name.interface.as_str(), "log" | "settings") {
        return Some("a scheduling policy is pure: it may import log and settings only".into());
    }
    if capability || types_only {
        return None;
    }
    Some("it is for plugins to export, not to import".into())
}

fn wasi_refusal(name: &InterfaceName, kind: PluginKind, wasi: WasiGrant, plugin: &str) -> Option<String> {
    if kind == PluginKind::Scheduler {
        return Some("a scheduling policy is pure and gets no WASI: build it without".into());
    }
    if !WASI_PACKAGES.contains(&name.package.as_str()) {
        return Some("no such interface".into());
    }
    (wasi == WasiGrant::None).then(|| {
        format!(
            "it needs a WASI: `wasi = \"empty\"` (one with nothing in it) of the plugin `{plugin}` ([[plugins]]) grants it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Kind and exported interfaces, or a part of the error.
    type Expected = Result<(PluginKind, &'static [&'static str]), &'static str>;

    const DESCRIPTION: &str = "harmonia:plugin/description@0.1.0";

    #[test]
    fn the_kind_is_told_from_the_exports() {
        let cases: &[(&[&str], Expected)] = &[
            (
                &["harmonia:forge/login@0.1.0", DESCRIPTION, "harmonia:forge/webhooks@0.1.3"],
                Ok((PluginKind::Forge, &["webhooks", "login"])),
            ),
            (&[DESCRIPTION, "harmonia:reporter/reporter@0.1.0"], Ok((PluginKind::Reporter, &["reporter"]))),
            (&[DESCRIPTION, "harmonia:scheduler/policy@0.1.0"], Ok((PluginKind::Scheduler, &["policy"]))),
            (&["harmonia:reporter/reporter@0.1.0"], Err("does not export harmonia:plugin/description")),
            (&[DESCRIPTION], Err("is no plugin")),
            (&[], Err("exports nothing")),
            (&[DESCRIPTION, "harmonia:reporter/reporter@0.2.0"], Err("harmonia:reporter@0.1")),
            (&[DESCRIPTION, "harmonia:reporter/reporter@0.1.0-rc1"], Err("is no plugin")),
            (
                &[DESCRIPTION, "harmonia:reporter/reporter@0.1.0", "harmonia:forge/hooks@0.1.0"],
                Err("several kinds (harmonia:forge, harmonia:reporter)"),
            ),
        ];
        for (exports, expected) in cases {
            let found = contract(&[], &names(exports));
            match (found, expected) {
                (Ok(found), Ok((kind, exported))) => {
                    assert_eq!((found.kind, found.exports), (*kind, names(exported)), "{exports:?}");
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{exports:?}: {error}"),
                (found, _) => panic!("{exports:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn refused_imports_are_named_with_what_to_do() {
        use PluginKind::{Forge, Reporter, Scheduler};
        let cases = [
            ("harmonia:plugin/http@0.1.0", Forge, WasiGrant::None, None),
            ("harmonia:plugin/kv@0.1.9", Reporter, WasiGrant::None, None),
            ("harmonia:forge/types@0.1.0", Forge, WasiGrant::None, None),
            ("harmonia:plugin/log@0.1.0", Scheduler, WasiGrant::None, None),
            ("harmonia:plugin/settings@0.1.0", Scheduler, WasiGrant::None, None),
            ("harmonia:plugin/http@0.1.0", Scheduler, WasiGrant::None, Some("log and settings only")),
            ("harmonia:plugin/clock@0.1.0", Scheduler, WasiGrant::Empty, Some("log and settings only")),
            ("harmonia:plugin/http@0.2.0", Forge, WasiGrant::None, Some("speaks track 0.1")),
            ("harmonia:plugin/shell@0.1.0", Forge, WasiGrant::None, Some("no such interface")),
            ("harmonia:forge/webhooks@0.1.0", Forge, WasiGrant::None, Some("to export")),
            ("evil:host/exec@1.0.0", Forge, WasiGrant::Scratch, Some("no such interface")),
            ("a-function", Forge, WasiGrant::None, Some("no such interface")),
            ("wasi:cli/environment@0.2.3", Forge, WasiGrant::None, Some("`wasi = \"empty\"`")),
            ("wasi:cli/environment@0.2.3", Forge, WasiGrant::Empty, None),
            ("wasi:http/outgoing-handler@0.2.3", Forge, WasiGrant::Scratch, Some("no such interface")),
            ("wasi:random/random@0.2.3", Scheduler, WasiGrant::Empty, Some("gets no WASI")),
        ];
        for (import, kind, wasi, expected) in cases {
            let found = import_problems(&names(&[import]), kind, wasi, "p");
            match (found.as_slice(), expected) {
                ([], None) => {}
                ([problem], Some(text)) => {
                    let problem = problem.to_string();
                    assert!(problem.contains(text) && problem.contains(import), "{import}: {problem}");
                }
                (found, _) => panic!("{import}: {found:?}"),
            }
        }
    }
}
