//! The rules of the house (ARCHITECTURE.md), as tests over cargo's metadata and the sources.

use std::collections::BTreeSet;

use harmonia_tests::workspace::{SourceFile, dependencies, files, root};

/// Heavy dependencies and the one crate that may use each.
const OWNERS: &[(&str, &str)] = &[
    ("sqlx", "harmonia-db"),
    ("rusqlite", "harmonia-daemon"),
    ("aws-sdk-s3", "harmonia-cache"),
    ("axum", "harmonia-web"),
    ("askama", "harmonia-web"),
    ("tower-http", "harmonia-web"),
    ("ed25519-dalek", "harmonia-nix"),
    ("s3s", "harmonia-embedded"),
    ("clap", "harmonia-ci"),
    ("wasmtime", "harmonia-plugin-host"),
    ("wasmtime-wasi", "harmonia-plugin-host"),
    ("wit-component", "harmonia-plugin-build"),
    ("jsonschema", "harmonia-fake-forges"),
    ("indicatif", "harmonia-ci"),
];

/// Which of our crates each crate may depend on.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("egress", &[]),
    ("nix", &[]),
    ("db", &["core", "nix"]),
    ("cache", &["core", "nix", "db"]),
    ("coordinator", &["core", "db"]),
    ("worker", &["core", "egress", "nix", "db", "sandbox"]),
    ("listener", &[]),
    ("web", &["core", "nix", "db", "cache", "listener"]),
    ("sandbox", &[]),
    ("daemon", &["egress", "nix", "sandbox"]),
    ("embedded", &["core", "listener"]),
    ("plugin-host", &["core", "egress"]),
    (
        "ci",
        &[
            "core",
            "egress",
            "nix",
            "db",
            "cache",
            "coordinator",
            "worker",
            "plugin-host",
            "listener",
            "web",
            "sandbox",
            "embedded",
        ],
    ),
    // Plugins know the contract only, as everybody's do.
    ("plugin", &[]),
    ("plugin-github", &["plugin"]),
    ("plugin-gitea", &["plugin"]),
    ("plugin-scheduler-fair", &["plugin"]),
    ("example-chat-reporter", &["plugin"]),
    ("example-critical-path", &["plugin"]),
    ("example-minimal-forge", &["plugin"]),
    ("test-guests", &["plugin"]),
    ("plugin-build", &[]),
    ("plugin-harness", &["core", "plugin-host"]),
    ("fake-forges", &[]),
    ("fixtures", &[]),
    ("plugin-tests", &["core", "plugin-host", "plugin-harness", "fake-forges"]),
    ("hostile-tests", &["core", "plugin-host", "plugin-harness", "plugin-github"]),
    ("tests", &["core", "db", "embedded", "fake-forges"]),
    ("scenarios", &["core", "nix", "db", "coordinator", "web", "plugin-host", "plugin-harness", "fake-forges"]),
];

/// Most lines of one file: a room that one can see at a glance.
const FILE_LINES_MAX: usize = 600;

fn rust_files() -> Vec<SourceFile> {
    files(&[".rs"])
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("testing")
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// Fails with every finding at once.
fn none(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

#[test]
fn each_heavy_dependency_has_one_owner() {
    let dependencies = dependencies();
    for (dependency, owner) in OWNERS {
        let users: Vec<&String> =
            dependencies.iter().filter(|(_, uses)| uses.contains(*dependency)).map(|(name, _)| name).collect();
        assert_eq!(users, [*owner], "{dependency}: only {owner} may use it (ARCHITECTURE.md, Owners)");
    }
}

#[test]
fn crates_depend_only_in_the_agreed_direction() {
    let dependencies = dependencies();
    let known: BTreeSet<String> = MAY_DEPEND_ON.iter().map(|(name, _)| format!("harmonia-{name}")).collect();
    let actual: BTreeSet<String> = dependencies.keys().cloned().collect();
    assert_eq!(actual, known, "a new crate belongs into MAY_DEPEND_ON and ARCHITECTURE.md");
    for (name, allowed) in MAY_DEPEND_ON {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| format!("harmonia-{name}")).collect();
        let used: BTreeSet<String> =
            dependencies[&format!("harmonia-{name}")].iter().filter(|d| known.contains(*d)).cloned().collect();
        let forbidden: Vec<&String> = used.difference(&allowed).collect();
        assert!(forbidden.is_empty(), "harmonia-{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn files_are_rooms_one_can_see_at_a_glance() {
    let long = rust_files().into_iter().filter(|f| f.text.lines().count() > FILE_LINES_MAX);
    none("files over the limit", long.map(|f| format!("{}: {} lines", f.path, f.text.lines().count())).collect());
    let mod_rs = rust_files().into_iter().filter(|f| f.path.ends_with("/mod.rs"));
    none("name.rs + name/, no mod.rs", mod_rs.map(|f| f.path).collect());
}

#[test]
fn every_crate_says_what_it_must_never_know() {
    let heads = rust_files().into_iter().filter(|f| f.path.starts_with("host/") && f.path.ends_with("src/lib.rs"));
    none(
        "crate heads without 'Start reading' and 'Never here'",
        heads.filter(|f| !f.text.contains("Never here") || !f.text.contains("Start reading")).map(|f| f.path).collect(),
    );
    let modules = rust_files()
        .into_iter()
        .filter(|f| f.path.starts_with("host/") && !is_test(&f.path) && !f.text.starts_with("//!"));
    none("modules without a head", modules.map(|f| f.path).collect());
}

#[test]
fn status_codes_and_sql_live_in_one_place() {
    let foreign = rust_files().into_iter().filter(|f| f.path.starts_with("host/") && !is_test(&f.path));
    let mut findings = Vec::new();
    for file in foreign {
        let text = without_tests(&file.text);
        if text.contains("StatusCode::") && file.path != "host/web/src/error.rs" && file.path.starts_with("host/web/") {
            findings.push(format!("{}: status codes belong into host/web/src/error.rs", file.path));
        }
        if (text.contains("sqlx::query") || text.contains("query!(")) && !file.path.starts_with("host/db/") {
            findings.push(format!("{}: SQL belongs into host/db", file.path));
        }
        // One documented line: loading code that we compiled ourselves.
        let loads_own_code =
            file.path == "host/plugin-host/src/engine/cache.rs" && text.matches("unsafe {").count() == 1;
        if text.contains("unsafe {") && !file.path.starts_with("host/sandbox/") && !loads_own_code {
            findings.push(format!("{}: unsafe belongs into host/sandbox", file.path));
        }
    }
    none("in the wrong room", findings);
}

#[test]
fn no_forge_is_known_to_the_host() {
    let mut findings = Vec::new();
    for file in files(&[".rs", ".sql", ".html"]) {
        if !file.path.starts_with("host/") || is_test(&file.path) {
            continue;
        }
        for (number, line) in without_tests(&file.text).lines().enumerate() {
            let lower = line.to_lowercase();
            if ["github", "gitea", "forgejo", "gitlab"].iter().any(|forge| lower.contains(forge)) {
                findings.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    none("forges are plugins", findings);
}

#[test]
fn nothing_is_pretended() {
    let mut findings = Vec::new();
    // Spelled apart, so that this file does not find itself.
    let ignored = concat!("#[", "ignore");
    let sleeping = concat!("thread::", "sleep");
    let words = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), ignored];
    for file in rust_files() {
        for (number, line) in file.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                findings.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
        if is_test(&file.path) && file.text.contains(sleeping) {
            findings.push(format!("{}: tests wait for conditions, they do not sleep", file.path));
        }
    }
    none("unfinished or switched off", findings);
}

#[test]
fn every_document_that_is_linked_exists() {
    let mut findings = Vec::new();
    for file in files(&[".md"]) {
        let folder = root().join(&file.path).parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        for part in file.text.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                findings.push(format!("{}: {target}", file.path));
            }
        }
    }
    none("broken links", findings);
}

#[test]
fn the_journeys_lead_through_files_that_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|name| name.contains("/src/")).collect();
    assert!(named.len() > 15, "the journeys name files: {named:?}");
    let missing = named.iter().filter(|name| !root().join("host").join(name).exists());
    none("no such file", missing.map(|name| (*name).to_owned()).collect());
}

/// A clone with nothing beside it builds and passes: no file names a folder beside the repository.
#[test]
fn the_repository_stands_alone() {
    let beside = concat!("..", "/shared");
    let endings = [".rs", ".toml", ".mjs", ".sh", ".md", ".sql", ".nix", "/run", "/dev", "dev"];
    let naming = files(&endings).into_iter().filter(|file| file.text.contains(beside)).map(|file| file.path);
    none("name what is not part of the repository", naming.collect());
}
