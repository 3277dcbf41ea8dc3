//! Which crates are plugins, by `cargo metadata`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::BuildError;
use crate::arguments::Build;

/// Why `cargo metadata` says nothing.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It could not be run.
    #[error("cannot run cargo")]
    Run(#[source] std::io::Error),
    /// It failed; the text is its own.
    #[error("{0}")]
    Cargo(String),
    /// Its answer is not what it was.
    #[error("cargo metadata answers in an unknown format")]
    Format(#[source] serde_json::Error),
}

/// Plugins that are compiled together.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// The newest `rust-version` that a guest names.
    pub(crate) rust_version: Option<String>,
    pub(crate) guests: Vec<Guest>,
}

impl Workspace {
    fn new(metadata: &Metadata) -> Self {
        let root = metadata.workspace_root.clone();
        Self { root, target: metadata.target_directory.clone(), rust_version: None, guests: Vec::new() }
    }

    fn add(&mut self, package: &Package, guests: Vec<Guest>) {
        if !guests.is_empty() {
            let newest = |one: &String, other: &String| minor_version(one).cmp(&minor_version(other));
            self.rust_version = self.rust_version.take().into_iter().chain(package.rust_version.clone()).max_by(newest);
        }
        self.guests.extend(guests);
    }
}

/// Major and minor version of `1.95`, `1.95.0`.
pub(crate) fn minor_version(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// One module to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Path of the component below the output folder, without `.wasm`: `github`, `examples/chat-reporter`, `guests/spins`.
    pub(crate) name: String,
    /// Cargo's id of its package.
    pub(crate) package_id: String,
    pub(crate) package: String,
    /// Cargo's name of the target.
    pub(crate) target: String,
    /// An example, not the library.
    pub(crate) is_example: bool,
    /// Refused when it imports anything foreign. Off for guests that exist to be refused by a host:
    /// `[package.metadata.harmonia-plugin] unchecked = ["name of an example"]`.
    pub(crate) is_checked: bool,
}

impl Guest {
    /// What cargo's messages call it.
    pub(crate) fn key(&self) -> (String, String) {
        (self.package_id.clone(), self.target.clone())
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    rust_version: Option<String>,
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
    #[serde(default)]
    metadata: Option<PackageMetadata>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    crate_types: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PackageMetadata {
    harmonia_plugin: Option<OurMetadata>,
}

#[derive(Deserialize)]
struct OurMetadata {
    #[serde(default)]
    unchecked: Vec<String>,
}

/// The guests that were asked for, by workspace.
pub(crate) fn find(build: &Build) -> Result<Vec<Workspace>, BuildError> {
    if build.all {
        let metadata = metadata(Path::new("."))?;
        let mut workspace = Workspace::new(&metadata);
        for package in &metadata.packages {
            workspace.add(package, guests(package, true));
        }
        return Ok(vec![workspace]);
    }
    let mut workspaces: BTreeMap<PathBuf, Workspace> = BTreeMap::new();
    for folder in &build.folders {
        let metadata = metadata(folder)?;
        let manifest = folder.join("Cargo.toml").canonicalize().ok();
        let package = metadata.packages.iter().find(|package| package.manifest_path.canonicalize().ok() == manifest);
        let found = package.map(|package| (package, guests(package, build.examples)));
        let Some((package, found)) = found.filter(|(_, found)| !found.is_empty()) else {
            return Err(BuildError::NoPlugin(folder.clone()));
        };
        let root = metadata.workspace_root.clone();
        workspaces.entry(root).or_insert_with(|| Workspace::new(&metadata)).add(package, found);
    }
    Ok(workspaces.into_values().collect())
}

fn metadata(folder: &Path) -> Result<Metadata, BuildError> {
    let failed = |cause| BuildError::Metadata { folder: folder.to_path_buf(), cause };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| failed(MetadataError::Run(cause)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(MetadataError::Cargo(text)));
    }
    serde_json::from_slice(&output.stdout).map_err(|cause| failed(MetadataError::Format(cause)))
}

/// The library of a package, when it is a plugin, and its examples that are.
fn guests(package: &Package, with_examples: bool) -> Vec<Guest> {
    let uses_the_sdk = |dependency: &Dependency| dependency.name == "harmonia-plugin" && dependency.kind.is_none();
    if !package.dependencies.iter().any(uses_the_sdk) {
        return Vec::new();
    }
    let folder = package.manifest_path.parent();
    let name_of = |path: Option<&Path>| path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let own_name = name_of(folder).unwrap_or_else(|| package.name.clone());
    // Examples of a workspace stay apart from what it ships.
    let is_below_examples = name_of(folder.and_then(Path::parent)).as_deref() == Some("examples");
    let unchecked = package.metadata.as_ref().and_then(|all| all.harmonia_plugin.as_ref()).map(|ours| &ours.unchecked);
    let modules = package.targets.iter().filter(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
    let guests = modules.filter_map(|target| {
        let is_example = target.kind.iter().any(|kind| kind == "example");
        let name = match (is_example, is_below_examples) {
            (true, _) => format!("{own_name}/{}", target.name),
            (false, true) => format!("examples/{own_name}"),
            (false, false) => own_name.clone(),
        };
        (with_examples || !is_example).then(|| Guest {
            name,
            package_id: package.id.clone(),
            package: package.name.clone(),
            target: target.name.clone(),
            is_example,
            is_checked: !unchecked.is_some_and(|names| names.contains(&target.name)),
        })
    });
    guests.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(json: &str) -> Package {
        serde_json::from_str(json).expect("it is a package")
    }

    #[test]
    fn plugins_and_examples_get_their_places() {
        let names = |json: &str, examples| -> Vec<String> {
            guests(&package(json), examples).into_iter().map(|guest| guest.name).collect()
        };
        let library = |path: &str, dependency: &str| {
            format!(
                r#"{{"id":"i","name":"n","manifest_path":"{path}/Cargo.toml","metadata":null,
                "dependencies":[{{"name":"harmonia-plugin","kind":{dependency}}}],
                "targets":[{{"name":"n","kind":["cdylib","rlib"],"crate_types":["cdylib","rlib"]}},
                    {{"name":"plain","kind":["example"],"crate_types":["bin"]}},
                    {{"name":"spins","kind":["example"],"crate_types":["cdylib"]}}]}}"#
            )
        };
        assert_eq!(names(&library("/w/plugins/hub", "null"), false), ["hub"]);
        assert_eq!(names(&library("/w/plugins/hub", "null"), true), ["hub", "hub/spins"]);
        assert_eq!(names(&library("/w/sdk/examples/chat", "null"), false), ["examples/chat"]);
        assert!(names(&library("/w/tests", "\"dev\""), true).is_empty());
    }

    #[test]
    fn guests_made_to_be_refused_are_built() {
        let guests = guests(
            &package(
                r#"{"id":"i","name":"n","manifest_path":"/w/tests/guests/Cargo.toml",
                "metadata":{"harmonia-plugin":{"unchecked":["wasi"]}},
                "dependencies":[{"name":"harmonia-plugin","kind":null}],
                "targets":[{"name":"wasi","kind":["example"],"crate_types":["cdylib"]},
                    {"name":"traps","kind":["example"],"crate_types":["cdylib"]}]}"#,
            ),
            true,
        );
        let checked: Vec<(&str, bool)> = guests.iter().map(|guest| (guest.name.as_str(), guest.is_checked)).collect();
        assert_eq!(checked, [("guests/wasi", false), ("guests/traps", true)]);
    }
}
