//! Which walls the running kernel gives, for start-up messages and `doctor`. Start at [`kernel_features`].

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the kernel offers to this process. Whether a whole sandbox can be set up is best tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFeatures {
    /// We are root, so that no user namespace is needed.
    pub root: bool,
    /// User namespaces for unprivileged processes are not switched off.
    pub user_namespaces: bool,
    /// Version of Landlock; 0: none.
    pub landlock_abi: u32,
    /// System call filters, for this machine's architecture.
    pub seccomp: bool,
    /// Controllers of a cgroup v2 tree that this process could use for hard limits. (They are not used yet: limits are
    /// those of single processes.)
    pub cgroup_controllers: Vec<String>,
}

impl KernelFeatures {
    /// Sentences about walls that are missing; empty when all are there.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.root && !self.user_namespaces {
            missing.push(
                "unprivileged user namespaces are switched off: foreign code cannot be run in a sandbox (see \
                 user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns)"
                    .to_owned(),
            );
        }
        if self.landlock_abi == 0 {
            missing.push("the kernel has no Landlock: one of two walls around files is missing".to_owned());
        }
        if !self.seccomp {
            missing.push("no system call filter (seccomp) for this kernel or architecture".to_owned());
        }
        if self.cgroup_controllers.is_empty() {
            missing.push("no writable cgroup v2: memory is bounded per process, not for a whole sandbox".to_owned());
        }
        missing
    }
}

/// Looks at the running kernel.
pub fn kernel_features() -> KernelFeatures {
    let status = read("/proc/self/status");
    KernelFeatures {
        root: rustix::process::geteuid().is_root(),
        user_namespaces: user_namespaces_allowed(),
        landlock_abi: landlock_abi(),
        seccomp: status.contains("\nSeccomp:") && seccompiler::TargetArch::try_from(std::env::consts::ARCH).is_ok(),
        cgroup_controllers: cgroup_controllers(),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn user_namespaces_allowed() -> bool {
    let number = |path: &str, otherwise: u64| read(path).trim().parse().unwrap_or(otherwise);
    Path::new("/proc/self/ns/user").exists()
        && number("/proc/sys/user/max_user_namespaces", 1) > 0
        && number("/proc/sys/kernel/unprivileged_userns_clone", 1) > 0
        && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 0) == 0
}

fn landlock_abi() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag, no structure and size 0, the call only answers a number (landlock_create_ruleset(2)).
    #[expect(unsafe_code, reason = "no safe wrapper answers the version")]
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, CREATE_RULESET_VERSION)
    };
    u32::try_from(version).unwrap_or(0)
}

fn cgroup_controllers() -> Vec<String> {
    // The line of cgroup v2 begins with "0::".
    let own = read("/proc/self/cgroup");
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let directory = Path::new("/sys/fs/cgroup").join(path);
    if rustix::fs::access(&directory, rustix::fs::Access::WRITE_OK).is_err() {
        return Vec::new();
    }
    read(directory.join("cgroup.controllers")).split_ascii_whitespace().map(str::to_owned).collect()
}
