//! The three processes of a sandbox. Start at [`exec`].
//!
//! The *monitor* (the helper that was started) makes the namespaces, waits, and ends the way the program ended. The
//! *init* is PID 1 of the PID namespace: it builds the root and reaps. The *program* is its child. When the monitor
//! dies init is killed by the kernel, and with init everything in its namespace: killing the monitor kills all.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::builder::{End, Report};
use crate::error::{SandboxError, chain, step};
use crate::spec::{Network, SandboxSpec};
use crate::{host, identity, namespaces, program, proxied, root};

/// How a helper ends whose program did not run because the sandbox could not be set up. The reason is on stderr.
pub const SETUP_FAILED_EXIT_CODE: i32 = 125;

const REPORT_ENDED: u8 = b'S';
const REPORT_FAILED: u8 = b'E';

/// What a helper runs in the place of a program when a builder is built in: it gets the input of
/// [`crate::BuilderRun::Builtin`], in the sandbox and as the builder's user, and answers the exit code.
pub type Builtin = fn(&[u8]) -> i32;

/// The whole `main` of a helper: reads the spec from standard input, runs the program, ends as it ended.
pub fn helper_main() -> ! {
    helper_main_with(|_| SETUP_FAILED_EXIT_CODE)
}

/// [`helper_main`] for a helper that has builders built in.
pub fn helper_main_with(builtin: Builtin) -> ! {
    let outcome = (|| {
        // Unbuffered: what follows the spec belongs to the program.
        let stdin = step(|| "open the standard input".to_owned(), io::stdin().as_fd().try_clone_to_owned())?;
        let spec = SandboxSpec::read(File::from(stdin))?;
        exec(&spec, builtin)
    })();
    let Err(error) = outcome;
    // Nobody is left to tell when even that fails.
    drop(writeln!(io::stderr(), "sandbox: {}", chain(&error)));
    std::process::exit(SETUP_FAILED_EXIT_CODE)
}

/// Runs the program in a sandbox and ends this process the way the program ended (same exit code, same signal).
/// Returns only when the program could not be started.
///
/// For the builder of a derivation the process ends with 0 and a [`Report`] on its standard output.
pub fn exec(spec: &SandboxSpec, builtin: Builtin) -> Result<Infallible, SandboxError> {
    match (&spec.builder, exec_unreported(spec, builtin)) {
        (Some(_), Err(error)) => report_end(End::NotSetUp(chain(&error))),
        (_, outcome) => outcome,
    }
}

fn exec_unreported(spec: &SandboxSpec, builtin: Builtin) -> Result<Infallible, SandboxError> {
    spec.check()?;
    let threads = step(|| "count the threads".to_owned(), std::fs::read_dir("/proc/self/task"))?.count();
    if threads != 1 {
        return Err(SandboxError::Threads);
    }
    let was_root = rustix::process::geteuid().is_root();
    if let Some(builder) = &spec.builder
        && !builder.sandboxed
    {
        report_end(host::run(spec, builtin, was_root)?);
    }
    // Before this process sees another file system.
    let usage_file = match &spec.usage_file {
        None => None,
        Some(path) => Some(step(|| format!("open {}", path.display()), File::options().write(true).open(path))?),
    };
    let (go_read, go_write) = pipe()?;
    let (report_read, report_write) = pipe()?;
    namespaces::enter(spec.user, spec.network)?;
    match spec.network {
        Network::Proxied { port } => proxied::hand_out(port)?,
        Network::Loopback => proxied::start_loopback()?,
        Network::None | Network::Host => {}
    }
    match fork()? {
        None => {
            drop((go_write, report_read));
            init(spec, builtin, was_root, go_read, report_write)
        }
        Some(init) => {
            drop((go_read, report_write));
            monitor(spec, init, go_write, report_read, usage_file)
        }
    }
}

fn monitor(
    spec: &SandboxSpec,
    init: Pid,
    go: OwnedFd,
    report: OwnedFd,
    usage_file: Option<File>,
) -> Result<Infallible, SandboxError> {
    step(|| "start init".to_owned(), File::from(go).write_all(b"g"))?;
    let stopped = wait_for_report_or_orphanage(init, report.as_fd(), spec.builder.is_some());
    let mut message = Vec::new();
    step(|| "hear from init".to_owned(), File::from(report).take(64 << 10).read_to_end(&mut message))?;
    // Of init and, through it, of everything that it reaped.
    let waited = step(|| "wait for init".to_owned(), rustix::process::waitpid(Some(init), WaitOptions::empty()))?;
    if let Some(mut file) = usage_file {
        // Whoever finds nothing in it knows nothing; that is no reason to lose how the program ended.
        drop(write!(file, "{}", peak_of_children_bytes()));
    }
    let ended = match message.split_first() {
        Some((&REPORT_FAILED, text)) => {
            return Err(SandboxError::Inside(String::from_utf8_lossy(text).into_owned()));
        }
        Some((&REPORT_ENDED, status)) if status.len() == 8 => {
            let number = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            (number(&status[..4]), number(&status[4..]))
        }
        // Init was killed, by us or by the kernel, and the program with it.
        _ => {
            let status = waited.map(|(_, status)| status);
            (-1, status.and_then(WaitStatus::terminating_signal).unwrap_or(libc::SIGKILL))
        }
    };
    match (&spec.builder, ended) {
        (None, (code, signal)) => end_as(code, signal),
        (Some(_), _) if stopped => report_end(End::Stopped),
        (Some(_), (code, signal)) => report_end(if code < 0 { End::Signalled(signal) } else { End::Exited(code) }),
    }
}

/// Tells how a builder ended, and ends. Every process of the build was waited for before.
fn report_end(end: End) -> ! {
    let usage = usage_of_children();
    let us = |time: libc::timeval| time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_usec.cast_unsigned();
    let report = Report {
        end,
        memory_peak_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
        cpu_user_us: us(usage.ru_utime),
        cpu_system_us: us(usage.ru_stime),
    };
    let told = serde_json::to_vec(&report).is_ok_and(|json| io::stdout().write_all(&json).is_ok());
    std::process::exit(if told && io::stdout().flush().is_ok() { 0 } else { SETUP_FAILED_EXIT_CODE })
}

/// The largest resident set of any descendant that ended, in bytes.
fn peak_of_children_bytes() -> u64 {
    u64::try_from(usage_of_children().ru_maxrss).unwrap_or(0) << 10
}

fn usage_of_children() -> libc::rusage {
    // SAFETY: all of its fields are integers, for which zero is a value.
    #[expect(unsafe_code, reason = "no safe form exists")]
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `rusage` that lives until the call has returned.
    #[expect(unsafe_code, reason = "no safe form exists")]
    let _zeros_when_it_fails = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage
}

/// The memory that the program of a sandbox used at most, in bytes, as its `usage_file` says; `None` when it does not.
pub fn read_usage(usage_file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(usage_file).ok()?;
    text.parse().ok().filter(|bytes| *bytes > 0)
}

/// Returns when init has something to say, or was killed because nobody listens to us any more, which is `true`: the
/// caller holds the other end of our standard error (of a builder: of our standard input), so that its death shows there
/// (a parent-death signal would be bound to the one *thread* that started us, which may end long before the caller).
fn wait_for_report_or_orphanage(init: Pid, report: BorrowedFd<'_>, is_builder: bool) -> bool {
    let (stdin, stderr) = (io::stdin(), io::stderr());
    let (watched, events) =
        if is_builder { (stdin.as_fd(), PollFlags::IN) } else { (stderr.as_fd(), PollFlags::empty()) };
    let is_pipe = rustix::fs::fstat(watched).is_ok_and(|stat| {
        matches!(
            rustix::fs::FileType::from_raw_mode(stat.st_mode),
            rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket
        )
    });
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(report, PollFlags::IN)];
        if is_pipe {
            // Errors are reported unasked.
            fds.push(PollFd::from_borrowed_fd(watched, events));
        }
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => {
                // What was said is heard, even when the caller went at the same time.
                if !fds[0].revents().is_empty() {
                    return false;
                }
                if fds.get(1).is_some_and(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | events)) {
                    let _gone = rustix::process::kill_process(init, Signal::KILL);
                    return true;
                }
            }
        }
    }
}

/// Ends this process with that exit code or, when it is negative, by that signal.
fn end_as(code: i32, signal: i32) -> ! {
    if code < 0 {
        // No second core dump for the same death; where the signal does not kill, the exit code says it.
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        let _best_effort = rustix::process::setrlimit(rustix::process::Resource::Core, none);
        if let Some(signal) = Signal::from_named_raw(signal) {
            // Twice, since the first SEGV or BUS only makes the handler of Rust's runtime step aside.
            for _ in 0..2 {
                let _not_killed = rustix::process::kill_process(rustix::process::getpid(), signal);
            }
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(code)
}

/// PID 1 of the new namespace.
fn init(spec: &SandboxSpec, builtin: Builtin, was_root: bool, go: OwnedFd, report: OwnedFd) -> ! {
    let mut report = File::from(report);
    match run(spec, builtin, was_root, go, &report) {
        Ok((code, signal)) => {
            let mut message = vec![REPORT_ENDED];
            message.extend_from_slice(&code.to_le_bytes());
            message.extend_from_slice(&signal.to_le_bytes());
            drop(report.write_all(&message));
            std::process::exit(0)
        }
        Err(error) => report_failure(report, &error),
    }
}

pub(crate) fn report_failure(mut report: File, error: &SandboxError) -> ! {
    let mut message = vec![REPORT_FAILED];
    message.extend_from_slice(chain(error).as_bytes());
    drop(report.write_all(&message));
    std::process::exit(SETUP_FAILED_EXIT_CODE)
}

/// Builds the root, starts the program and reaps until it ended: (exit code or -1, signal or 0).
fn run(
    spec: &SandboxSpec,
    builtin: Builtin,
    was_root: bool,
    go: OwnedFd,
    report: &File,
) -> Result<(i32, i32), SandboxError> {
    step(
        || "tie our life to the monitor's".to_owned(),
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)),
    )?;
    // The monitor may have died before that; then this end of file is all that is left of it.
    step(|| "hear from the monitor".to_owned(), File::from(go).read_exact(&mut [0]))?;
    step(|| "set the host name".to_owned(), rustix::system::sethostname(b"localhost"))?;
    root::build(spec)?;
    let host_user = spec.builder.as_ref().and_then(|builder| builder.host_user).filter(|_| was_root);
    let (ours, theirs) =
        if host_user.is_some() { identity::pair().map(|(a, b)| (Some(a), Some(b)))? } else { (None, None) };
    let Some(child) = fork()? else {
        let report = step(|| "report".to_owned(), report.try_clone())?;
        drop(ours);
        let taken = match (host_user, theirs) {
            (Some(user), Some(theirs)) => identity::take(user, theirs),
            _ => Ok(()),
        };
        let error = match taken {
            Ok(()) => program::become_program(spec, builtin, was_root && host_user.is_none()),
            Err(error) => error,
        };
        report_failure(report, &error)
    };
    drop(theirs);
    if let (Some(host_user), Some(ours)) = (host_user, ours) {
        identity::give(child, host_user, spec.user, ours)?;
    }
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                let signal = status.terminating_signal();
                return Ok((status.exit_status().unwrap_or(-1), signal.unwrap_or(0)));
            }
            // An orphan of the program.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return step(|| "wait for the program".to_owned(), Err(error)),
        }
    }
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    step(|| "make a pipe".to_owned(), rustix::pipe::pipe_with(PipeFlags::CLOEXEC))
}

/// `None` in the child.
pub(crate) fn fork() -> Result<Option<Pid>, SandboxError> {
    // SAFETY: this process has one thread (checked by `exec`, and none is started later), so the child finds every lock
    // free and every structure whole.
    #[expect(unsafe_code, reason = "no safe form exists")]
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => step(|| "fork".to_owned(), Err(io::Error::last_os_error())),
        pid => Ok(Pid::from_raw(pid)),
    }
}
