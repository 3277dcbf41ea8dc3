//! Who compiles for WebAssembly. Rust's own installer brings the target, where it can be reached; Debian packages a compiler
//! and the sources of the standard library, which cargo then builds along.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BuildError;
use crate::guests::{Workspace, minor_version};

/// Imports nothing by itself, in contrast to the WASI targets.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's compiler for the web: `rustc-web`, `cargo-web`, `rust-web-src`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A way to compile.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// The active toolchain has the target.
    Active { cargo: PathBuf },
    /// Debian's packages, which build the standard library along, and a linker from elsewhere.
    Debian { linker: PathBuf },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active { .. } => f.write_str("the active toolchain"),
            Self::Debian { linker } => write!(f, "{DEBIAN_RUSTC} and {}", linker.display()),
        }
    }
}

/// The first way that works, in this order: the target is installed; Debian's packages are; rustup can install the target.
pub(crate) fn choose(workspace: &Workspace) -> Result<Toolchain, BuildError> {
    let rust_version = workspace.rust_version.as_deref();
    let workspace = &workspace.root;
    let mut reasons = Vec::new();
    let active = Active::find(workspace);
    match active.as_ref().map_err(Clone::clone).and_then(Active::with_target) {
        Ok(toolchain) => return Ok(toolchain),
        Err(reason) => reasons.push(reason),
    }
    match debian(active.as_ref().ok(), rust_version) {
        Ok(toolchain) => return Ok(toolchain),
        Err(reason) => reasons.push(reason),
    }
    match active.and_then(|active| active.add_target(workspace)) {
        Ok(toolchain) => Ok(toolchain),
        Err(reason) => {
            reasons.push(reason);
            Err(BuildError::NoToolchain(reasons))
        }
    }
}

/// The toolchain that the shell would use.
#[derive(Debug)]
struct Active {
    cargo: PathBuf,
    sysroot: PathBuf,
    host: String,
}

impl Active {
    fn find(workspace: &Path) -> Result<Self, String> {
        let rustc = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
        // A proxy of rustup chooses by the folder.
        let sysroot = ask(Command::new(&rustc).args(["--print", "sysroot"]).current_dir(workspace))?;
        let version = ask(Command::new(&rustc).arg("-vV").current_dir(workspace))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
        Ok(Self { cargo, sysroot: sysroot.trim().into(), host: host.to_owned() })
    }

    fn with_target(&self) -> Result<Toolchain, String> {
        let folder = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        if holds_std(&folder) {
            return Ok(Toolchain::Active { cargo: self.cargo.clone() });
        }
        Err(format!("the active toolchain has no target {TARGET}: no libstd in {}", folder.display()))
    }

    fn add_target(&self, workspace: &Path) -> Result<Toolchain, String> {
        eprintln!("running rustup target add {TARGET}");
        ask(Command::new("rustup").args(["target", "add", TARGET]).current_dir(workspace))?;
        self.with_target()
    }
}

fn holds_std(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

/// Debian ships no linker with it: rustup's toolchains do.
fn debian(active: Option<&Active>, rust_version: Option<&str>) -> Result<Toolchain, String> {
    const INSTALL: &str = "apt-get install rustc-web cargo-web rust-web-src";
    for program in [DEBIAN_RUSTC, DEBIAN_CARGO] {
        if !Path::new(program).exists() {
            return Err(format!("there is no {program} (on Debian: {INSTALL})"));
        }
    }
    let version = ask(Command::new(DEBIAN_RUSTC).arg("--version"))?;
    let version = version.split_whitespace().nth(1).unwrap_or_default();
    if let Some(needed) = rust_version.filter(|needed| minor_version(version) < minor_version(needed)) {
        return Err(format!("{DEBIAN_RUSTC} is {version}, and the plugins need {needed}"));
    }
    let sysroot = ask(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
    if !sources.exists() {
        return Err(format!(
            "{DEBIAN_RUSTC} has no sources of the standard library: no {} ({INSTALL})",
            sources.display()
        ));
    }
    let of_active = active.map(|active| active.sysroot.join("lib/rustlib").join(&active.host).join("bin/rust-lld"));
    let in_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let in_path: Vec<PathBuf> = in_path;
    let installed = ["rust-lld", "wasm-ld"].iter().flat_map(|name| in_path.iter().map(move |folder| folder.join(name)));
    let linker = of_active.into_iter().chain(installed).find(|path| path.exists());
    linker.map(|linker| Toolchain::Debian { linker }).ok_or_else(|| {
        format!(
            "{DEBIAN_RUSTC} needs a linker: neither rust-lld in the active toolchain nor wasm-ld in PATH (package lld)"
        )
    })
}

/// Runs a program to its end. The error is for people.
fn ask(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{program} failed: {}", last.trim()))
}

impl Toolchain {
    /// `cargo build` for the target, with the environment that the way needs.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut command = match self {
            Self::Active { cargo } => Command::new(cargo),
            Self::Debian { .. } => Command::new(DEBIAN_CARGO),
        };
        command.args(["build", "--release", "--target", TARGET]);
        if let Self::Debian { linker } = self {
            command
                .args(["-Zbuild-std=std,panic_abort"])
                .env("RUSTC", DEBIAN_RUSTC)
                // -Z on a stable compiler; the packages exist to build the standard library.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
            // Set by `cargo run` of another toolchain, and meant for its children only.
            for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTDOC", "LD_LIBRARY_PATH"] {
                command.env_remove(name);
            }
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_there_when_its_standard_library_is() {
        let sysroot = tempfile::tempdir().expect("a folder");
        let active = Active {
            cargo: "cargo".into(),
            sysroot: sysroot.path().into(),
            host: "x86_64-unknown-linux-gnu".to_owned(),
        };
        let reason = active.with_target().expect_err("nothing is there");
        assert!(reason.contains(TARGET), "{reason}");
        let folder = sysroot.path().join("lib/rustlib").join(TARGET).join("lib");
        std::fs::create_dir_all(&folder).expect("a folder");
        assert!(active.with_target().is_err(), "an empty folder is left behind when a target is removed");
        std::fs::write(folder.join("libstd-0123.rlib"), "").expect("a file");
        assert!(matches!(active.with_target(), Ok(Toolchain::Active { .. })));
    }

    #[test]
    fn failures_are_said() {
        let reason = ask(Command::new("/nonexistent/rustc").arg("-vV")).expect_err("there is none");
        assert!(reason.starts_with("cannot run /nonexistent/rustc: "), "{reason}");
        let reason = ask(Command::new("sh").args(["-c", "echo why >&2; exit 1"])).expect_err("it fails");
        assert_eq!(reason, "sh failed: why");
    }
}
