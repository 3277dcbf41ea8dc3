//! Namespaces, mounts and limits for programs we do not trust.
//!
//! Start reading at [`spec::SandboxSpec`], what the program may see and use; [`exec`] becomes the monitor of a program
//! that runs in such a place. A process with several threads cannot enter namespaces, so whoever wants to run
//! something starts a helper (`harmonia-ci sandbox-exec`) whose `main` is [`helper_main`], and writes
//! [`SandboxSpec::header`] to its standard input, followed by whatever the program itself is to read there.
//!
//! The walls, from the outside: namespaces (mount, PID, IPC, UTS, network unless asked for, or with one
//! way out ([`proxied`]); user when we are not
//! root), a private root that holds only what the spec names, an unprivileged user without capabilities and
//! `no_new_privs`, resource limits, Landlock and seccomp. [`kernel_features`] says which of them this kernel gives.
//! The builder of a derivation ([`Builder`]) has the same walls but Landlock, a filter of system calls of its own, and
//! what builders find in Nix's sandbox.
//!
//! Never here: everything else of ours. Only here: `unsafe`, each with its reason.

mod builder;
mod error;
mod exec;
mod host;
mod identity;
pub mod kernel_features;
mod namespaces;
mod program;
pub mod proxied;
mod root;
pub mod spec;
mod syscalls;
mod walls;

pub use builder::{Builder, BuilderRun, Bytes, End, Report};
pub use error::SandboxError;
pub use exec::{Builtin, SETUP_FAILED_EXIT_CODE, exec, helper_main, helper_main_with, read_usage};
pub use kernel_features::{KernelFeatures, kernel_features};
pub use spec::{Bind, Limits, Network, PrivateDirectory, SandboxSpec, TextFile, User};
