//! One build: what it is given ([`BuildRequest`]) and what comes of it ([`BuildOutcome`]).
//!
//! The executor knows no database and no protocol. Whoever asks has made the inputs valid, holds the locks of the output
//! paths, and registers what was built.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use harmonia_nix::content_address::ContentAddress;
use harmonia_nix::derivation::BasicDerivation;
use harmonia_nix::hash::NarHash;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::BuildStatus;

/// A derivation whose inputs are all there.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The `.drv` file's path; it need not be in the store.
    pub drv_path: StorePath,
    /// How to build. All inputs are plain paths and placeholders of inputs are resolved; those of its own outputs are not.
    pub derivation: BasicDerivation,
    /// The closure of the inputs: what the builder may see, and what outputs can refer to.
    pub inputs: BTreeMap<StorePath, InputPath>,
    /// Which outputs are wanted; those that are valid already are built too, but thrown away.
    pub outputs: BTreeSet<String>,
    /// A directory on the store's file system, of this build alone, in which outputs are left for the caller.
    pub staging: PathBuf,
    /// How.
    pub options: BuildOptions,
}

/// A valid path that a build can see.
#[derive(Debug, Clone)]
pub struct InputPath {
    /// Where its files are, which in a chroot store is not where the path says.
    pub real: PathBuf,
    /// Hash of its archive.
    pub nar_hash: NarHash,
    /// Size of its archive in bytes.
    pub nar_size_bytes: u64,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
}

/// How to build; from the settings of the daemon and, as far as trusted, of the client.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// `NIX_BUILD_CORES`; 0 for all.
    pub cores: u64,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// How long it may be silent.
    pub max_silent: Option<Duration>,
    /// How much it may print, in bytes.
    pub max_log_bytes: Option<u64>,
    /// Leave the build directory of a failure.
    pub keep_failed: bool,
    /// Whether it must, may not, or need not be in a sandbox.
    pub sandbox: SandboxMode,
    /// What else of the host is inside: (inside, on the host); a source that ends in `?` may be absent.
    pub sandbox_paths: Vec<(PathBuf, PathBuf)>,
    /// Where build directories are made.
    pub build_dir: PathBuf,
}

/// `sandbox` of nix.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxMode {
    /// Every build.
    On,
    /// None.
    Off,
    /// All but fixed-output derivations and those with `__noChroot`.
    Relaxed,
}

/// What a build left in [`BuildRequest::staging`].
#[derive(Debug, Clone)]
pub struct BuiltPath {
    /// Its name in the derivation.
    pub output: String,
    /// Where it belongs.
    pub path: StorePath,
    /// Where it is: canonical, on fresh inodes that no process of the build can reach.
    pub staged: PathBuf,
    /// Hash of its archive.
    pub nar_hash: NarHash,
    /// Size of its archive in bytes.
    pub nar_size_bytes: u64,
    /// What it refers to, perhaps itself.
    pub references: BTreeSet<StorePath>,
    /// For fixed outputs.
    pub content_address: Option<ContentAddress>,
}

/// Why there are no outputs.
#[derive(Debug, Clone)]
pub struct BuildFailure {
    /// What kind of failure.
    pub status: BuildStatus,
    /// The reason, for people.
    pub message: String,
    /// Exit code, when the builder ended by itself.
    pub exit_code: Option<i32>,
    /// Signal, when it was killed.
    pub signal: Option<i32>,
}

/// What a build used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// From the start of the builder to its end.
    pub wall: Duration,
    /// Processor time in user mode.
    pub cpu_user: Duration,
    /// Processor time in the kernel.
    pub cpu_system: Duration,
    /// Most memory at a time, in bytes, where the kernel tells.
    pub memory_peak_bytes: Option<u64>,
}

/// What came of a build.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// Every output, or why there is none.
    pub result: Result<Vec<BuiltPath>, BuildFailure>,
    /// What it used.
    pub usage: Usage,
}
