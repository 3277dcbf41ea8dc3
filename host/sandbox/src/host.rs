//! A builder without a sandbox: the host's files and namespaces. Start at [`run`].
//!
//! It has a session and, started by root, a user of its own; every process that comes of it becomes our child when its
//! parent dies, so that all can be killed before the outputs are read.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::builder::End;
use crate::error::{SandboxError, step};
use crate::exec::{self, Builtin};
use crate::program;
use crate::spec::SandboxSpec;

/// Runs the builder; returns when it ended and all that came of it is dead.
pub(crate) fn run(spec: &SandboxSpec, builtin: Builtin, was_root: bool) -> Result<End, SandboxError> {
    step(|| "adopt orphans".to_owned(), rustix::process::set_child_subreaper(Some(rustix::process::getpid())))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (failure_read, failure_write) = exec::pipe()?;
    let Some(child) = exec::fork()? else {
        drop(failure_read);
        let error = program::become_program(spec, builtin, was_root);
        exec::report_failure(failure_write.into(), &error)
    };
    drop(failure_write);
    let stopped = wait_until_it_ends_or_is_stopped(child)?;
    if stopped {
        let _gone = rustix::process::kill_process(child, Signal::KILL);
    }
    let waited =
        step(|| "wait for the builder".to_owned(), rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
    kill_what_is_left()?;
    let mut failure = Vec::new();
    step(|| "hear from the builder".to_owned(), std::fs::File::from(failure_read).read_to_end(&mut failure))?;
    if let Some((_, text)) = failure.split_first() {
        return Err(SandboxError::Inside(String::from_utf8_lossy(text).into_owned()));
    }
    let status = waited.map(|(_, status)| status);
    Ok(match status {
        _ if stopped => End::Stopped,
        Some(status) => match status.terminating_signal() {
            Some(signal) => End::Signalled(signal),
            None => End::Exited(status.exit_status().unwrap_or(1)),
        },
        None => End::Signalled(libc::SIGKILL),
    })
}

/// `true`: the standard input ended first.
fn wait_until_it_ends_or_is_stopped(child: Pid) -> Result<bool, SandboxError> {
    let child: OwnedFd =
        step(|| "watch the builder".to_owned(), rustix::process::pidfd_open(child, PidfdFlags::empty()))?;
    let stdin = io::stdin();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return step(|| "wait for the builder".to_owned(), Err(error)),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(false),
            Ok(_) => return Ok(true),
        }
    }
}

/// Kills our children until there are none; those of the killed become ours.
fn kill_what_is_left() -> Result<(), SandboxError> {
    loop {
        for child in children()? {
            let _gone = rustix::process::kill_process(child, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(error) => return step(|| "wait for what the builder left".to_owned(), Err(error)),
        }
    }
}

fn children() -> Result<Vec<Pid>, SandboxError> {
    let own = rustix::process::getpid().as_raw_nonzero();
    let mut children = Vec::new();
    for entry in step(|| "list the processes".to_owned(), std::fs::read_dir("/proc"))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // The parent is the second field after the name, which is in parentheses and may contain any character.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_ascii_whitespace().nth(1).and_then(|parent| parent.parse().ok()) == Some(own.get()) {
            children.extend(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
