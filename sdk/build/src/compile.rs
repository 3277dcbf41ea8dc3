//! Cargo: sources to core modules.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::BuildError;
use crate::guests::{Guest, Workspace};
use crate::toolchain::Toolchain;

/// Of the profile `release`: what a workspace sets for its server must not decide how its plugins are compiled. Speed
/// before size (a fresh instance costs the same for both); names stay, for backtraces.
const PROFILE: &[(&str, &str)] = &[
    ("OPT_LEVEL", "3"),
    ("LTO", "thin"),
    ("CODEGEN_UNITS", "4"),
    ("PANIC", "abort"),
    ("DEBUG", "0"),
    ("STRIP", "debuginfo"),
    ("INCREMENTAL", "false"),
];

/// A module by package id and target name.
pub(crate) type Modules = HashMap<(String, String), PathBuf>;

#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Compiles all guests of a workspace, in one run of cargo for libraries and one for examples: examples bring the
/// development dependencies of their packages, which libraries must not be compiled with.
pub(crate) fn compile(
    workspace: &Workspace,
    toolchain: &Toolchain,
    target: &Path,
    locked: bool,
) -> Result<Modules, BuildError> {
    let mut modules = Modules::new();
    for is_example in [false, true] {
        let guests: Vec<&Guest> = workspace.guests.iter().filter(|guest| guest.is_example == is_example).collect();
        if guests.is_empty() {
            continue;
        }
        let mut command = toolchain.cargo_build();
        for (key, value) in PROFILE {
            command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        // Flags for the machine's own linker do not fit this one; folders of the builder do not belong into a plugin.
        command
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", format!("--remap-path-prefix={}=cargo", cargo_home().display()));
        command.current_dir(&workspace.root).arg("--target-dir").arg(target);
        command.args(["--keep-going", "--message-format=json-render-diagnostics"]);
        if locked {
            command.arg("--locked");
        }
        let mut packages: Vec<&str> = guests.iter().map(|guest| guest.package.as_str()).collect();
        packages.dedup();
        for package in packages {
            command.args(["--package", package]);
        }
        if is_example {
            for guest in &guests {
                command.args(["--example", &guest.target]);
            }
        } else {
            command.arg("--lib");
        }
        run(command, &mut modules)?;
    }
    Ok(modules)
}

fn cargo_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn run(mut command: Command, modules: &mut Modules) -> Result<(), BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |cause| BuildError::Run { program: program.clone(), cause };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            // Lines that are no message are prints of build scripts.
            let Ok(message) = serde_json::from_str::<Message>(&line.map_err(failed)?) else { continue };
            let module = message.filenames.into_iter().find(|path| path.extension().is_some_and(|e| e == "wasm"));
            if let ("compiler-artifact", Some(package), Some(target), Some(module)) =
                (message.reason.as_str(), message.package_id, message.target, module)
            {
                modules.insert((package, target.name), module);
            }
        }
    }
    let is_success = child.wait().map_err(failed)?.success();
    // One guest that does not compile keeps no other from it.
    if is_success || !modules.is_empty() { Ok(()) } else { Err(BuildError::Compile) }
}
