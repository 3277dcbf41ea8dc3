//! Which system calls the builder of a derivation may make. Start at [`raise`].
//!
//! Two kinds are kept from it. Those that would leave something in the store which Nix's stores never hold: files with
//! setuid or setgid bits (with which somebody else of this machine could become the build's user while it lasts) and
//! extended attributes. And, in a sandbox, those through which kernels were attacked or sandboxes left. Everything that
//! builds and their tests do otherwise, debuggers among it, is allowed as Nix allows it.
//!
//! The filter is written here rather than by a crate, since a machine has more than one table of calls (a builder of
//! x86_64 may make calls of i386, in which other numbers mean other calls), and a filter that knows one is none.

use crate::error::SandboxError;

const MODE_BITS: u32 = libc::S_ISUID | libc::S_ISGID;
/// Flags of `open` with which its mode counts: `O_CREAT` and the bit of its own that `O_TMPFILE` has.
const CREATING: u32 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)).cast_unsigned();
const EPERM: u32 = libc::EPERM.cast_unsigned();
const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();
const ENOTSUP: u32 = libc::ENOTSUP.cast_unsigned();

/// What is wrong about a call.
#[derive(Clone, Copy)]
enum Rule {
    /// That it is made; it answers this error.
    Always(u32),
    /// One of these bits in the argument of this number.
    Bits(u32, u32),
    /// A mode with setid bits in the second argument named, if the flags in the first create something.
    Creating(u32, u32),
}

use Rule::{Always, Bits, Creating};

/// A call by its number in the machine's own table and, for x86_64, in that of i386.
struct Call {
    native: Option<libc::c_long>,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "i386 runs on x86_64 only"))]
    i386: Option<u32>,
    rule: Rule,
}

const fn call(native: libc::c_long, i386: u32, rule: Rule) -> Call {
    Call { native: Some(native), i386: Some(i386), rule }
}

/// Since Linux 5.1 a new call has the same number everywhere.
const fn everywhere(number: u32, rule: Rule) -> Call {
    Call { native: Some(number as libc::c_long), i386: Some(number), rule }
}

const fn i386(number: u32, rule: Rule) -> Call {
    Call { native: None, i386: Some(number), rule }
}

/// Calls that leave in a store what must not be there.
const STORE: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_chmod, 15, Bits(1, MODE_BITS)),
    call(libc::SYS_fchmod, 94, Bits(1, MODE_BITS)),
    call(libc::SYS_fchmodat, 306, Bits(2, MODE_BITS)),
    everywhere(452, Bits(2, MODE_BITS)), // fchmodat2
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_creat, 8, Bits(1, MODE_BITS)),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_mknod, 14, Bits(1, MODE_BITS)),
    call(libc::SYS_mknodat, 297, Bits(2, MODE_BITS)),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_open, 5, Creating(1, 2)),
    call(libc::SYS_openat, 295, Creating(2, 3)),
    // Their arguments are in memory, which a filter cannot see: who asks is told that the kernel is older.
    everywhere(437, Always(ENOSYS)), // openat2
    everywhere(425, Always(ENOSYS)), // io_uring_setup
    everywhere(426, Always(ENOSYS)), // io_uring_enter
    everywhere(427, Always(ENOSYS)), // io_uring_register
    call(libc::SYS_setxattr, 226, Always(ENOTSUP)),
    call(libc::SYS_lsetxattr, 227, Always(ENOTSUP)),
    call(libc::SYS_fsetxattr, 228, Always(ENOTSUP)),
    everywhere(463, Always(ENOTSUP)), // setxattrat
];

/// Calls that no build needs, and through which kernels were attacked or sandboxes left.
const ESCAPE: &[Call] = &[
    call(libc::SYS_clone, 120, Bits(0, libc::CLONE_NEWUSER.cast_unsigned())),
    // Its flags are in memory; libraries fall back to the older call.
    everywhere(435, Always(ENOSYS)), // clone3
    call(libc::SYS_unshare, 310, Bits(0, libc::CLONE_NEWUSER.cast_unsigned())),
    call(libc::SYS_setns, 346, Always(EPERM)),
    call(libc::SYS_mount, 21, Always(EPERM)),
    call(libc::SYS_umount2, 52, Always(EPERM)),
    i386(22, Always(EPERM)), // umount
    call(libc::SYS_pivot_root, 217, Always(EPERM)),
    everywhere(428, Always(EPERM)), // open_tree
    everywhere(429, Always(EPERM)), // move_mount
    everywhere(430, Always(EPERM)), // fsopen
    everywhere(431, Always(EPERM)), // fsconfig
    everywhere(432, Always(EPERM)), // fsmount
    everywhere(433, Always(EPERM)), // fspick
    everywhere(442, Always(EPERM)), // mount_setattr
    everywhere(467, Always(EPERM)), // open_tree_attr
    call(libc::SYS_acct, 51, Always(EPERM)),
    call(libc::SYS_add_key, 286, Always(EPERM)),
    call(libc::SYS_keyctl, 288, Always(EPERM)),
    call(libc::SYS_request_key, 287, Always(EPERM)),
    call(libc::SYS_bpf, 357, Always(EPERM)),
    call(libc::SYS_clock_settime, 264, Always(EPERM)),
    i386(404, Always(EPERM)), // clock_settime64
    call(libc::SYS_settimeofday, 79, Always(EPERM)),
    i386(25, Always(EPERM)), // stime
    call(libc::SYS_delete_module, 129, Always(EPERM)),
    call(libc::SYS_finit_module, 350, Always(EPERM)),
    call(libc::SYS_init_module, 128, Always(EPERM)),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_kexec_load, 283, Always(EPERM)),
    #[cfg(target_arch = "x86_64")]
    Call { native: Some(libc::SYS_kexec_file_load), i386: None, rule: Always(EPERM) },
    call(libc::SYS_open_by_handle_at, 342, Always(EPERM)),
    call(libc::SYS_perf_event_open, 336, Always(EPERM)),
    call(libc::SYS_quotactl, 131, Always(EPERM)),
    everywhere(443, Always(EPERM)), // quotactl_fd
    call(libc::SYS_reboot, 88, Always(EPERM)),
    call(libc::SYS_setdomainname, 121, Always(EPERM)),
    call(libc::SYS_sethostname, 74, Always(EPERM)),
    call(libc::SYS_swapoff, 115, Always(EPERM)),
    call(libc::SYS_swapon, 87, Always(EPERM)),
    call(libc::SYS_syslog, 103, Always(EPERM)),
    call(libc::SYS_userfaultfd, 374, Always(EPERM)),
    call(libc::SYS_vhangup, 111, Always(EPERM)),
];

/// Confines the calling process and all that come of it. Needs `no_new_privs`.
pub(crate) fn raise(sandboxed: bool) -> Result<(), SandboxError> {
    let Some(program) = program(sandboxed) else {
        return Err(SandboxError::Inside(format!(
            "no filter of system calls for builds on {} is known: they could leave what must not be in a store",
            std::env::consts::ARCH
        )));
    };
    seccompiler::apply_filter(&program)
        .map_err(|error| SandboxError::Inside(format!("could not filter the system calls (needs seccomp): {error}")))
}

fn program(sandboxed: bool) -> Option<seccompiler::BpfProgram> {
    // `AUDIT_ARCH_…` of linux/audit.h.
    let native_architecture = match std::env::consts::ARCH {
        "x86_64" => 0xc000_003e,
        "aarch64" => 0xc000_00b7,
        _ => return None,
    };
    let calls = || STORE.iter().chain(if sandboxed { ESCAPE } else { &[] });
    let mut filter = Filter::default();
    let native: Vec<(u32, Rule)> =
        calls().filter_map(|call| Some((u32::try_from(call.native?).ok()?, call.rule))).collect();
    filter.table(native_architecture, cfg!(target_arch = "x86_64"), &native);
    #[cfg(target_arch = "x86_64")]
    {
        let i386: Vec<(u32, Rule)> = calls().filter_map(|call| Some((call.i386?, call.rule))).collect();
        filter.table(0x4000_0003, false, &i386);
    }
    // A table of calls of which we know nothing.
    filter.put(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    Some(filter.0)
}

// Instructions of classic BPF, and where in `struct seccomp_data` things are.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Both architectures are little-endian: the lower half of an argument of 64 bits comes first. Modes and flags have no
/// upper half for the kernel.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

#[derive(Default)]
struct Filter(seccompiler::BpfProgram);

impl Filter {
    fn put(&mut self, code: u16, k: u32) {
        self.jump(code, k, 0, 0);
    }

    fn jump(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.0.push(seccompiler::sock_filter { code, jt, jf, k });
    }

    fn refuse(&mut self, errno: u32) {
        self.put(RETURN, libc::SECCOMP_RET_ERRNO | errno);
    }

    /// What holds for calls of one architecture; for another one the program goes on behind it.
    fn table(&mut self, architecture: u32, has_x32: bool, calls: &[(u32, Rule)]) {
        let mut body = Self::default();
        body.put(LOAD, NUMBER);
        if has_x32 {
            // Another form of the same calls, with this bit in their numbers.
            body.jump(IF_AT_LEAST, 0x4000_0000, 0, 1);
            body.refuse(ENOSYS);
        }
        for (number, rule) in calls {
            let mut block = Self::default();
            match *rule {
                Always(errno) => block.refuse(errno),
                Bits(index, bits) => {
                    block.put(LOAD, argument(index));
                    block.jump(IF_ANY_BIT, bits, 0, 1);
                    block.refuse(EPERM);
                }
                Creating(flags, mode) => {
                    block.put(LOAD, argument(flags));
                    block.jump(IF_ANY_BIT, CREATING, 0, 3);
                    block.put(LOAD, argument(mode));
                    block.jump(IF_ANY_BIT, MODE_BITS, 0, 1);
                    block.refuse(EPERM);
                }
            }
            // No other rule is for this call.
            block.put(RETURN, libc::SECCOMP_RET_ALLOW);
            body.jump(IF_EQUAL, *number, 0, block.0.len() as u8);
            body.0.append(&mut block.0);
        }
        body.put(RETURN, libc::SECCOMP_RET_ALLOW);
        self.put(LOAD, ARCHITECTURE);
        self.jump(IF_EQUAL, architecture, 1, 0);
        self.put(JUMP, body.0.len() as u32);
        self.0.append(&mut body.0);
    }
}
