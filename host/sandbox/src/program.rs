//! The last steps before the program: session, limits, user, capabilities, the second walls, `exec`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::builder::{Builder, BuilderRun, Bytes};
use crate::error::{SandboxError, step};
use crate::exec::Builtin;
use crate::spec::{Limits, SandboxSpec};
use crate::{identity, walls};

/// Becomes the program. Returns only when that fails.
pub(crate) fn become_program(spec: &SandboxSpec, builtin: Builtin, was_root: bool) -> SandboxError {
    match (prepare(spec, was_root), &spec.builder) {
        (Err(error), _) => error,
        (Ok(()), Some(builder)) => become_builder(builder, builtin),
        (Ok(()), None) => {
            let mut command = Command::new(&spec.argv[0]);
            command.args(&spec.argv[1..]).env_clear().envs(&spec.env);
            SandboxError::Step { step: format!("run {}", spec.argv[0]), cause: command.exec() }
        }
    }
}

fn prepare(spec: &SandboxSpec, was_root: bool) -> Result<(), SandboxError> {
    if let Some(builder) = &spec.builder {
        builder_streams()?;
        builder_personality(builder.linux32)?;
    }
    // Away from the caller's terminal, into which input could be pushed.
    step(|| "start a session".to_owned(), rustix::process::setsid())?;
    step(|| format!("enter {}", spec.cwd.display()), std::env::set_current_dir(&spec.cwd))?;
    set_limits(&spec.limits)?;
    drop_privileges(spec, was_root)?;
    walls::raise(spec)
}

/// No input, and errors where the output goes; nothing else stays open.
fn builder_streams() -> Result<(), SandboxError> {
    let null = step(|| "open /dev/null".to_owned(), std::fs::File::open("/dev/null"))?;
    step(|| "empty the standard input".to_owned(), rustix::stdio::dup2_stdin(&null))?;
    step(|| "join the standard output and error".to_owned(), rustix::stdio::dup2_stdout(std::io::stderr()))?;
    // SAFETY: marks descriptors to be closed by `exec`; none is closed now.
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    let outcome = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    let outcome = if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    step(|| "keep descriptors to ourselves (needs Linux 5.11)".to_owned(), outcome)
}

/// The same addresses in each run, and the machine that the derivation asks for.
fn builder_personality(linux32: bool) -> Result<(), SandboxError> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // Of linux/personality.h.
    const PER_LINUX32: libc::c_int = 0x0008;
    const PER_MASK: libc::c_int = 0x00ff;
    // SAFETY: the call takes a number and touches no memory.
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    let outcome = unsafe {
        let current = libc::personality(ASK).max(0);
        let machine = if linux32 { PER_LINUX32 } else { current & PER_MASK };
        libc::personality(libc::c_ulong::from((machine | libc::ADDR_NO_RANDOMIZE).cast_unsigned()))
    };
    // Containers may forbid it; addresses that differ are no wall that is missing. Another machine is.
    let outcome = if outcome >= 0 || !linux32 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    step(|| "look like a machine of 32 bits".to_owned(), outcome)
}

fn become_builder(builder: &Builder, builtin: Builtin) -> SandboxError {
    match &builder.run {
        BuilderRun::Builtin(input) => std::process::exit(builtin(&input.0)),
        BuilderRun::Program { path, arg0, args } => {
            let text = |bytes: &Bytes| OsString::from_vec(bytes.0.clone());
            let mut command = Command::new(text(path));
            command.arg0(text(arg0)).args(args.iter().map(text)).env_clear();
            command.envs(builder.env.iter().map(|(name, value)| (text(name), text(value))));
            let cause = command.exec();
            // For people a failure of the build, in whose log it stands.
            eprintln!("error: executing '{}': {}", String::from_utf8_lossy(&path.0), plain(&cause));
            std::process::exit(1)
        }
    }
}

/// The kernel's words, without Rust's number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
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
    // From the bounding set first, which needs a capability itself. Kernels know fewer than all of the 64. Who has no
    // capability, as an ordinary user outside of a sandbox, can have none of that set either.
    let has_none = rustix::thread::capabilities(None).is_ok_and(|sets| sets.permitted.is_empty());
    let bounded = if has_none { CapabilitySet::empty() } else { CapabilitySet::from_bits_retain(u64::MAX) };
    for capability in bounded.iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return step(|| "give up capabilities for good".to_owned(), Err(error)),
        }
    }
    if was_root {
        let host_user = spec.builder.as_ref().and_then(|builder| builder.host_user);
        identity::become_user(host_user.unwrap_or(spec.user))?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step(|| "give up capabilities".to_owned(), rustix::thread::set_capabilities(None, sets))?;
    step(|| "refuse new privileges".to_owned(), rustix::thread::set_no_new_privs(true))
}
