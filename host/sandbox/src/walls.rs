//! The second wall, in case the first has a hole: Landlock (files) and seccomp (system calls).

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::error::SandboxError;
use crate::spec::SandboxSpec;
use crate::syscalls;

/// System calls that no evaluator or compiler needs, and through which kernels were attacked or sandboxes left.
const REFUSED_CALLS: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Confines the calling process for good. Needs `no_new_privs`. Where the kernel has no Landlock or seccomp, that wall
/// is missing, which [`crate::kernel_features`] says.
///
/// Builders have no Landlock: it would keep them from what Nix lets them do, such as to open `/dev/stderr` again, and all
/// that they can write is theirs.
pub(crate) fn raise(spec: &SandboxSpec) -> Result<(), SandboxError> {
    if let Some(builder) = &spec.builder {
        return syscalls::raise(builder.sandboxed);
    }
    raise_landlock(spec)?;
    raise_seccomp()
}

fn raise_landlock(spec: &SandboxSpec) -> Result<(), SandboxError> {
    let failed = |error: &dyn std::error::Error| SandboxError::Inside(format!("could not set up Landlock: {error}"));
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .map_err(|error| failed(&error))?;
    // Everything in the private root may be read and run; only what the spec calls writable may be changed.
    let writable = spec
        .private
        .iter()
        .map(|directory| directory.path.as_path())
        .chain(spec.binds.iter().filter(|bind| bind.writable).map(|bind| bind.target.as_path()))
        .map(|path| (path, AccessFs::from_all(abi)));
    let devices = spec.dev.then_some((Path::new("/dev"), AccessFs::from_read(abi) | AccessFs::WriteFile));
    for (path, access) in writable.chain(devices).chain([(Path::new("/"), AccessFs::from_read(abi))]) {
        if let Ok(beneath) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(beneath, access)).map_err(|error| failed(&error))?;
        }
    }
    rules.restrict_self().map(drop).map_err(|error| failed(&error))
}

fn raise_seccomp() -> Result<(), SandboxError> {
    // On other machines the wall is missing; `kernel_features` says so.
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(()) };
    let failed = |error: &dyn std::error::Error| SandboxError::Inside(format!("could not set up seccomp: {error}"));
    let refused: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        REFUSED_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let filter =
        SeccompFilter::new(refused, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()), arch)
            .map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}
