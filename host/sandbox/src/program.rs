//! The last steps before the program: session, limits, user, capabilities, the second walls, `exec`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::error::{SandboxError, step};
use crate::spec::{Limits, SandboxSpec};
use crate::walls;

/// Becomes the program. Returns only when that fails.
pub(crate) fn become_program(spec: &SandboxSpec, was_root: bool) -> SandboxError {
    match prepare(spec, was_root) {
        Ok(mut command) => SandboxError::Step { step: format!("run {}", spec.argv[0]), cause: command.exec() },
        Err(error) => error,
    }
}

fn prepare(spec: &SandboxSpec, was_root: bool) -> Result<Command, SandboxError> {
    // Away from the caller's terminal, into which input could be pushed.
    step(|| "start a session".to_owned(), rustix::process::setsid())?;
    step(|| format!("enter {}", spec.cwd.display()), std::env::set_current_dir(&spec.cwd))?;
    set_limits(&spec.limits)?;
    drop_privileges(spec, was_root)?;
    walls::raise(spec)?;
    let mut command = Command::new(&spec.argv[0]);
    command.args(&spec.argv[1..]).env_clear().envs(&spec.env);
    Ok(command)
}

fn set_limits(limits: &Limits) -> Result<(), SandboxError> {
    let set = |resource: Resource, name: &str, value: Option<u64>| match value {
        None => Ok(()),
        Some(value) => {
            // A limit above the inherited one is as good as the inherited one.
            let most = rustix::process::getrlimit(resource).maximum;
            let value = most.map_or(value, |most| value.min(most));
            let limit = Rlimit { current: Some(value), maximum: Some(value) };
            step(|| format!("limit {name} to {value}"), rustix::process::setrlimit(resource, limit))
        }
    };
    // A core dump could show what the program holds to whoever reads crash directories.
    set(Resource::Core, "core dumps", Some(0))?;
    set(Resource::Data, "memory", limits.memory_bytes)?;
    set(Resource::Cpu, "CPU time", limits.cpu_seconds)?;
    set(Resource::Nproc, "processes", limits.processes)?;
    set(Resource::Nofile, "open files", limits.open_files)?;
    set(Resource::Fsize, "file size", limits.file_bytes)
}

fn drop_privileges(spec: &SandboxSpec, was_root: bool) -> Result<(), SandboxError> {
    // From the bounding set first, which needs a capability itself. Kernels know fewer than all of the 64.
    for capability in CapabilitySet::from_bits_retain(u64::MAX).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return step(|| "give up capabilities for good".to_owned(), Err(error)),
        }
    }
    if was_root {
        let (uid, gid) = (Uid::from_raw(spec.user.uid), Gid::from_raw(spec.user.gid));
        step(|| "leave all groups".to_owned(), rustix::thread::set_thread_groups(&[]))?;
        step(|| format!("become group {gid:?}"), rustix::thread::set_thread_res_gid(gid, gid, gid))?;
        step(|| format!("become user {uid:?}"), rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step(|| "give up capabilities".to_owned(), rustix::thread::set_capabilities(None, sets))?;
    step(|| "refuse new privileges".to_owned(), rustix::thread::set_no_new_privs(true))
}
