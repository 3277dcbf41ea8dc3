//! Builds plugins: compiles crates for `wasm32-unknown-unknown` and turns the modules into components that import nothing
//! but Harmonia's own interfaces.
//!
//! Start reading at [`build`]: it finds the [`guests`] of some crates, picks a [`toolchain`] that can compile them, has cargo
//! [`compile`] them, and makes a [`component`] of each.
//!
//! Never here: wasmtime, or anything else that would run a plugin.

pub mod arguments;
pub mod component;

mod compile;
mod guests;
mod toolchain;

use std::path::{Path, PathBuf};

use arguments::Build;
use component::{Component, ComponentError};
use guests::Guest;

/// Why plugins could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `cargo metadata` failed, or says something else than expected.
    #[error("cannot read the crate in {folder}")]
    Metadata {
        /// Where it was asked.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: guests::MetadataError,
    },
    /// There is nothing to build.
    #[error(
        "{0} is no plugin: its Cargo.toml needs a dependency `harmonia-plugin` and a library of crate-type `cdylib`"
    )]
    NoPlugin(PathBuf),
    /// No toolchain can compile for WebAssembly.
    #[error("nothing here can compile for wasm32-unknown-unknown:\n{}", .0.iter().map(|reason| format!("  - {reason}")).collect::<Vec<_>>().join("\n"))]
    NoToolchain(Vec<String>),
    /// Cargo could not be run, or what it built cannot be read.
    #[error("cannot run {program}")]
    Run {
        /// What was run.
        program: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Cargo said why on standard error.
    #[error("compiling failed")]
    Compile,
    /// Cargo compiled others, but not this one, and said why on standard error.
    #[error("{0} did not compile (see above)")]
    NotCompiled(String),
    /// A compiled module could not become a plugin.
    #[error("{name} is no plugin")]
    Component {
        /// File name of the guest.
        name: String,
        /// Why.
        #[source]
        cause: ComponentError,
    },
    /// A component could not be written or removed.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// A plugin that was built.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
    /// Its path below the output folder.
    pub name: String,
    /// Its size, imports and exports.
    pub component: Component,
    /// Whether the file was there already, byte for byte.
    pub unchanged: bool,
}

/// Builds everything that was asked for, compiling all guests of a workspace together. A guest that cannot become a plugin
/// does not keep the others from it: its error stands among the results.
pub fn build(build: &Build) -> Result<Vec<Result<Built, BuildError>>, BuildError> {
    let mut results = Vec::new();
    for workspace in guests::find(build)? {
        let toolchain = toolchain::choose(&workspace)?;
        eprintln!("compiling {} guests with {toolchain}", workspace.guests.len());
        let target = workspace.target.join("guests");
        let out = build.out.clone().unwrap_or_else(|| workspace.target.join("plugins"));
        let modules = compile::compile(&workspace, &toolchain, &target, build.locked)?;
        for guest in &workspace.guests {
            let module = modules.get(&guest.key()).ok_or_else(|| BuildError::NotCompiled(guest.name.clone()));
            results.push(module.and_then(|module| finish(guest, module, &out)));
        }
        if build.all {
            remove_stale(&workspace.guests, &out)?;
        }
    }
    Ok(results)
}

fn finish(guest: &Guest, module: &Path, out: &Path) -> Result<Built, BuildError> {
    let read = |path: &Path| std::fs::read(path);
    let module = read(module)
        .map_err(|cause| BuildError::Run { program: format!("cargo: cannot read {}", module.display()), cause })?;
    let name = format!("{}.wasm", guest.name);
    let failed = |cause| BuildError::Component { name: name.clone(), cause };
    let bytes = component::encode(&module).map_err(failed)?;
    let component = Component::read(&bytes).map_err(failed)?;
    if guest.is_checked {
        component.check().map_err(failed)?;
    }
    let path = out.join(&name);
    let unchanged = read(&path).is_ok_and(|old| old == bytes);
    if !unchanged {
        write(&path, &bytes).map_err(|cause| BuildError::Write { path: path.clone(), cause })?;
    }
    Ok(Built { path, name, component, unchanged })
}

/// A server that watches the file must never see half of it.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("wasm.new");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

/// Removes components of examples that are gone, so that no test runs what nobody can build any more.
fn remove_stale(guests: &[Guest], out: &Path) -> Result<(), BuildError> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for guest in guests.iter().filter(|guest| guest.is_example) {
        folders.extend(out.join(&guest.name).parent().map(Path::to_path_buf));
    }
    folders.dedup();
    let wanted: Vec<PathBuf> = guests.iter().map(|guest| out.join(format!("{}.wasm", guest.name))).collect();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "wasm") && !wanted.contains(&path) {
                std::fs::remove_file(&path).map_err(|cause| BuildError::Write { path, cause })?;
            }
        }
    }
    Ok(())
}
