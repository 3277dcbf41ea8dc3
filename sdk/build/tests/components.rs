//! The plugins that were built import nothing but the contract, and no more of it than they use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harmonia_plugin_build::component::Component;

/// Where `./dev plugins` puts them.
fn folder() -> PathBuf {
    let target = || {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")).join("plugins")
    };
    let folder = std::env::var_os("HARMONIA_PLUGINS_DIR").map_or_else(target, PathBuf::from);
    assert!(folder.is_dir(), "there is no {}: run ./dev plugins", folder.display());
    folder
}

fn component(name: &str) -> Component {
    let path = folder().join(format!("{name}.wasm"));
    let bytes = std::fs::read(&path).unwrap_or_else(|_| panic!("there is no {}: run ./dev plugins", path.display()));
    Component::read(&bytes).expect("it is a component")
}

/// Names without the package's version.
fn names(names: &[String]) -> Vec<&str> {
    names.iter().map(|name| name.strip_suffix("@0.1.0").expect("of this track")).collect()
}

#[test]
fn plugins_import_nothing_foreign() {
    for name in ["github", "gitea", "scheduler-fair"] {
        component(name).check().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // All that is there, whoever built it.
    let mut checked = BTreeMap::new();
    for folder in [folder(), folder().join("examples")] {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.extension().is_some_and(|extension| extension == "wasm") {
                let component = Component::read(&std::fs::read(&entry).expect("a file")).expect("a component");
                checked.insert(entry, component.check());
            }
        }
    }
    let foreign: Vec<String> =
        checked.iter().filter_map(|(path, result)| Some(format!("{path:?}: {}", result.as_ref().err()?))).collect();
    assert!(foreign.is_empty(), "{foreign:#?}");
    assert!(checked.len() >= 6, "too few: {checked:#?}");
}

#[test]
fn a_component_imports_only_what_it_calls() {
    let chat = component("examples/chat-reporter");
    assert_eq!(
        names(&chat.imports),
        ["harmonia:plugin/http", "harmonia:plugin/log", "harmonia:plugin/secrets", "harmonia:plugin/settings"]
    );
    let policy = component("examples/critical-path");
    assert_eq!(names(&policy.imports), ["harmonia:plugin/log"], "for the panic hook");
}

#[test]
fn a_component_exports_what_it_picked() {
    let forge = component("examples/minimal-forge");
    assert_eq!(
        names(&forge.exports),
        ["harmonia:forge/branches", "harmonia:forge/webhooks", "harmonia:plugin/description"]
    );
    let policy = component("examples/critical-path");
    assert_eq!(names(&policy.exports), ["harmonia:plugin/description", "harmonia:scheduler/policy"]);
}

#[test]
fn policies_are_pure() {
    for name in ["scheduler-fair", "examples/critical-path"] {
        let policy = component(name);
        let impure: Vec<&str> = names(&policy.imports)
            .into_iter()
            .filter(|name| !["harmonia:plugin/log", "harmonia:plugin/settings"].contains(name))
            .collect();
        assert!(impure.is_empty(), "{name} imports {impure:?}");
    }
}

#[test]
fn foreign_imports_are_found_and_named() {
    // Built all the same, because the host's tests want to see them refused (`unchecked` in tests/guests/Cargo.toml).
    for (name, foreign) in
        [("imports_wasi", "wasi:cli/environment@0.2.0"), ("imports_unknown", "evil:system/shell@1.0.0")]
    {
        let error = component(&format!("guests/{name}")).check().expect_err("it imports what is not ours");
        assert!(error.to_string().starts_with(&format!("it imports {foreign};")), "{error}");
    }
}

/// Whether a command of another language's tools is there; `./dev plugins` leaves out what it cannot build, and says so.
fn runs(program: &str, arguments: &[&str]) -> bool {
    let command = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    command.is_ok_and(|status| status.success())
}

#[test]
fn other_languages_import_exactly_their_world() {
    let world = ["harmonia:plugin/http", "harmonia:plugin/secrets", "harmonia:plugin/settings"];
    if runs("npm", &["--version"]) {
        assert_eq!(names(&component("examples/chat-reporter-js").imports), world);
    }
    if runs("python3", &["-c", "import venv, ensurepip"]) {
        assert_eq!(names(&component("examples/chat-reporter-py").imports), world);
    }
}
