//! One build: what it is given ([`BuildRequest`]) and what comes of it ([`BuildOutcome`]). Start at [`run`].
//!
//! The executor knows no database and no protocol. Whoever asks has made the inputs valid, holds the locks of the output
//! paths, and registers what was built ([`move_tree`] brings it to its place).
//!
//! The builder itself is started by a helper, the own executable again, whose `main` is [`helper_main`]: a process with
//! threads can neither enter namespaces nor wait for what a builder leaves.

mod attributes;
mod builtin;
mod environment;
mod export;
mod json;
mod outputs;
mod place;
mod process;
mod rewrite;
mod run;
mod structured;
mod tree;
mod users;
mod walls;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use harmonia_egress::Egress;
use harmonia_nix::content_address::ContentAddress;
use harmonia_nix::derivation::BasicDerivation;
use harmonia_nix::hash::NarHash;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::BuildStatus;

pub use run::run;
pub use tree::{move_tree, remove_tree};
pub use users::BuildUsers;
pub use walls::{Wall, check};

/// The whole `main` of the helper that starts builders ([`BuildOptions::helper`]).
pub fn helper_main() -> ! {
    harmonia_sandbox::helper_main_with(builtin::run)
}

/// A derivation whose inputs are all there.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The `.drv` file's path; it need not be in the store.
    pub drv_path: StorePath,
    /// How to build. All inputs are plain paths and placeholders of inputs are resolved; those of its own outputs are not.
    pub derivation: BasicDerivation,
    /// The closure of the inputs: what the builder may see, and what outputs can refer to.
    pub inputs: BTreeMap<StorePath, InputPath>,
    /// What else of the store a build can see, since `sandbox_paths` need it; outputs cannot refer to it.
    pub sandbox_inputs: BTreeMap<StorePath, InputPath>,
    /// Which outputs are wanted; the others are built too, but thrown away.
    pub outputs: BTreeSet<String>,
    /// The outputs that are valid now: their files are not touched, even if they are built again (to check or repair them).
    pub valid_outputs: BTreeMap<String, InputPath>,
    /// Where the files of `/nix/store` are. Another place than that makes a sandbox necessary.
    pub store_dir: PathBuf,
    /// A directory on the store's file system, of this build alone, in which outputs are left for the caller. It need not
    /// exist; the caller removes it.
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
    /// For paths that are addressed by their content.
    pub content_address: Option<ContentAddress>,
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
    /// What the build directory is called in a sandbox (`sandbox-build-dir`).
    pub sandbox_build_dir: PathBuf,
    /// Size of `/dev/shm` in a sandbox, in bytes; 0: what the kernel gives, half of the memory.
    pub shm_bytes: u64,
    /// How many of the last lines of the log stand in the message of a failure (`log-lines`).
    pub log_lines: usize,
    /// The most that all outputs together may have, in bytes (of files, holes among them); asked before they are hashed.
    pub max_output_bytes: Option<u64>,
    /// The most memory that one process of the build may have, in bytes.
    pub max_memory_bytes: Option<u64>,
    /// The most processes and threads that the build's user may have.
    pub max_processes: Option<u64>,
    /// Who builders are when the daemon is root.
    pub build_users: BuildUsers,
    /// The program that starts builders, with its first arguments: its `main` is [`helper_main`].
    pub helper: Vec<OsString>,
    /// How fixed-output derivations in a sandbox reach the network.
    pub fixed_network: FixedNetwork,
    /// Passwords that `builtin:fetchurl` may use.
    pub netrc_file: Option<PathBuf>,
    /// Where `builtin:fetchurl` looks first, by hash (`hashed-mirrors`).
    pub hashed_mirrors: Vec<String>,
}

/// Something that a build says while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildLog<'a> {
    /// Bytes that it printed, as they came; for the log file.
    Output(&'a [u8]),
    /// A whole line that it printed, without its end; for whoever watches.
    Line(&'a [u8]),
    /// What the executor has to say itself.
    Note(&'a str),
}

/// How fixed-output derivations in a sandbox reach the network.
#[derive(Debug, Clone)]
pub enum FixedNetwork {
    /// As every process of the host does, its loopback interface and private networks among it. Their outputs are copied,
    /// since abstract sockets carry descriptors out.
    Host,
    /// By a proxy, which the builder finds in `http_proxy` and the like; their own network holds nothing else.
    Proxied(Egress),
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
    /// Where it is: canonical, on inodes that no process of the build can reach. Bring it to its place with [`move_tree`].
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
    /// What a fixed-output derivation with a wrong hash made, under the path that is right for it. As with Nix it may be
    /// registered there, so that who corrects the hash need not build again.
    pub mismatched: Option<Box<BuiltPath>>,
}

impl BuildFailure {
    pub(crate) fn new(status: BuildStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), exit_code: None, signal: None, mismatched: None }
    }

    /// Something of this machine failed, which says nothing of the derivation.
    pub(crate) fn machine(step: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::new(BuildStatus::MiscFailure, format!("could not {step}: {cause}"))
    }
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
