//! Entering namespaces. A process that is not root first makes a user namespace in which it is allowed the others.

use std::fs;

use rustix::process::{getegid, geteuid};
use rustix::thread::UnshareFlags;

use crate::error::{SandboxError, step};
use crate::spec::{Network, User};

/// Leaves the host's namespaces. The PID namespace takes effect for the next child.
pub(crate) fn enter(user: User, network: Network) -> Result<(), SandboxError> {
    let (uid, gid) = (geteuid(), getegid());
    if !uid.is_root() {
        unshare("make a user namespace (are unprivileged ones allowed on this machine?)", UnshareFlags::NEWUSER)?;
        // Since Linux 3.19 a group map without privileges needs setgroups to be given up first.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("{} {} 1", user.uid, uid.as_raw()))?;
        write("/proc/self/gid_map", &format!("{} {} 1", user.gid, gid.as_raw()))?;
    }
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if network != Network::Host {
        flags |= UnshareFlags::NEWNET;
    }
    unshare("make mount, PID, IPC, UTS and network namespaces", flags)
}

pub(crate) fn unshare(what: &str, flags: UnshareFlags) -> Result<(), SandboxError> {
    // SAFETY: unsafe is asked for because of `FILES`, which would unshare file descriptors between threads; it is
    // never among our flags, and this process has one thread.
    #[expect(unsafe_code, reason = "no safe form exists")]
    let outcome = unsafe { rustix::thread::unshare_unsafe(flags) };
    step(|| what.to_owned(), outcome)
}

fn write(path: &str, text: &str) -> Result<(), SandboxError> {
    step(|| format!("write '{text}' to {path}"), fs::write(path, text))
}
