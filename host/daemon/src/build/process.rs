//! The helper that runs a builder, from its start to its end: log, limits, cancelling. Start at [`run`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use harmonia_egress::Session;
use harmonia_nix::worker_protocol::BuildStatus;
use harmonia_sandbox::{End, Network, Report, SandboxSpec, User};
use rustix::pty::OpenptFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use super::{BuildFailure, BuildLog, BuildOptions, FixedNetwork, Usage};

/// How long the last bytes of a build that has ended may take to come out of its terminal.
const LAST_BYTES: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 16 << 10;
/// Longer lines are cut: they are for people.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How a builder ended.
pub(super) struct Ended {
    pub(super) end: End,
    pub(super) usage: Usage,
    /// The last lines of its log.
    pub(super) tail: Vec<String>,
}

/// Runs a builder; every process of it is dead afterwards. `name` is what limits call it.
pub(super) async fn run(
    spec: &SandboxSpec,
    options: &BuildOptions,
    name: &str,
    log: &mut impl FnMut(BuildLog<'_>),
    cancel: &CancellationToken,
) -> Result<Ended, BuildFailure> {
    let machine = |step: &'static str| move |cause: io::Error| BuildFailure::machine(step, cause);
    let header = spec.header().map_err(|error| BuildFailure::machine("describe the sandbox", error))?;
    let user = spec.builder.as_ref().and_then(|builder| builder.host_user);
    let (ours, theirs) = terminal(user).map_err(machine("open a terminal for the builder"))?;
    // Any descriptor that can be waited for will do; and a terminal without processing is as good as a pipe.
    let mut terminal = Receiver::from_owned_fd_unchecked(ours).map_err(machine("watch the builder's terminal"))?;
    let (program, arguments) = options
        .helper
        .split_first()
        .ok_or_else(|| BuildFailure::machine("start the helper of builds", "no program is configured for it"))?;
    // A socket, so that the sandbox can hand its listener to us.
    let (mut socket, stdin) = std::os::unix::net::UnixStream::pair()
        .and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
        })
        .map_err(machine("open a way to the helper of builds"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(stdin).stdout(Stdio::piped()).stderr(theirs);
    let began = Instant::now();
    let mut child = command.spawn().map_err(machine("start the helper of builds"))?;
    // It holds the builder's end of the terminal.
    drop(command);
    let Some(mut report) = child.stdout.take() else {
        return Err(BuildFailure::machine("start the helper of builds", "its standard output is missing"));
    };
    let mut lines = Lines::new(options.log_lines);
    let mut said = Vec::new();
    let mut session = match &options.fixed_network {
        FixedNetwork::Proxied(egress) if matches!(spec.network, Network::Proxied { .. }) => {
            Some(egress.session(Vec::new()))
        }
        _ => None,
    };
    // When it ends early, its report explains that.
    let written = socket.write_all(&header).await.is_ok();
    if let Some(session) = session.as_mut().filter(|_| written)
        && let Some(listener) = receive_listener(&socket).await.map_err(machine("hear from the helper of builds"))?
    {
        session.serve(listener).map_err(machine("serve the build's way to the network"))?;
    }
    // Its end is what stops the build, also when this is dropped: the helper kills every process and ends.
    let mut control = written.then_some(socket);
    let mut stopped_by: Option<Stop> = None;
    let mut last_output = began;
    let mut printed: u64 = 0;
    let mut buffer = vec![0; READ_BYTES];
    let mut terminal_is_open = true;
    loop {
        let deadline = next_deadline(options, began, last_output);
        let running = control.is_some();
        tokio::select! {
            heard = report.read_buf(&mut said) => {
                if heard.map_err(machine("hear from the helper of builds"))? == 0 {
                    break;
                }
            }
            read = terminal.read(&mut buffer), if terminal_is_open => match read {
                Ok(0) | Err(_) => terminal_is_open = false,
                Ok(length) => {
                    last_output = Instant::now();
                    printed += length as u64;
                    if stopped_by.is_none() {
                        lines.take(&buffer[..length], log);
                        if options.max_log_bytes.is_some_and(|max| printed > max) {
                            stopped_by = Some(Stop::Log);
                            control = None;
                        }
                    }
                }
            },
            () = cancel.cancelled(), if running => {
                stopped_by = Some(Stop::Cancelled);
                control = None;
            }
            () = until(deadline.map(|(at, _)| at)), if running && deadline.is_some() => {
                // What was printed meanwhile counts.
                if let Some((at, stop)) = next_deadline(options, began, last_output)
                    && at <= Instant::now()
                {
                    stopped_by = Some(stop);
                    control = None;
                }
            }
        }
    }
    drop(control);
    child.wait().await.map_err(machine("wait for the helper of builds"))?;
    let wall = began.elapsed();
    while terminal_is_open {
        match tokio::time::timeout(LAST_BYTES, terminal.read(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 => {
                if stopped_by.is_none() {
                    lines.take(&buffer[..length], log);
                }
            }
            _ => terminal_is_open = false,
        }
    }
    lines.end(log);
    for refusal in session.iter().flat_map(Session::refused) {
        log(BuildLog::Note(&format!("the build was not let through to the network: {refusal}")));
    }
    let report = Report::read(&said).map_err(machine("understand the helper of builds"))?;
    let Some(report) = report else {
        return Err(BuildFailure::machine("run the builder", "its helper was killed"));
    };
    let usage = Usage {
        wall,
        cpu_user: Duration::from_micros(report.cpu_user_us),
        cpu_system: Duration::from_micros(report.cpu_system_us),
        memory_peak_bytes: Some(report.memory_peak_bytes).filter(|bytes| *bytes > 0),
    };
    match stopped_by {
        Some(stop) => Err(stop.failure(options, name)),
        None => Ok(Ended { end: report.end, usage, tail: lines.tail.into() }),
    }
}

async fn receive_listener(socket: &UnixStream) -> io::Result<Option<std::net::TcpListener>> {
    loop {
        socket.readable().await?;
        let receive = || harmonia_sandbox::proxied::receive_listener(socket.as_fd());
        match socket.try_io(tokio::io::Interest::READABLE, receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It ended before it had read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => return received,
        }
    }
}

/// Why a builder was stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Cancelled,
    Silent,
    Late,
    Log,
}

impl Stop {
    fn failure(self, options: &BuildOptions, name: &str) -> BuildFailure {
        let seconds = |duration: Option<Duration>| duration.unwrap_or_default().as_secs_f64();
        let (status, message) = match self {
            Self::Cancelled => (BuildStatus::MiscFailure, format!("building of '{name}' was cancelled")),
            Self::Silent => (
                BuildStatus::TimedOut,
                format!("building of '{name}' timed out after {} seconds of silence", seconds(options.max_silent)),
            ),
            Self::Late => (
                BuildStatus::TimedOut,
                format!("building of '{name}' timed out after {} seconds", seconds(options.timeout)),
            ),
            Self::Log => (
                BuildStatus::LogLimitExceeded,
                format!(
                    "building of '{name}' killed after writing more than {} bytes of log output",
                    options.max_log_bytes.unwrap_or_default()
                ),
            ),
        };
        BuildFailure::new(status, message)
    }
}

fn next_deadline(options: &BuildOptions, began: Instant, last_output: Instant) -> Option<(Instant, Stop)> {
    let late = options.timeout.and_then(|timeout| began.checked_add(timeout)).map(|at| (at, Stop::Late));
    let silent = options.max_silent.and_then(|silent| last_output.checked_add(silent)).map(|at| (at, Stop::Silent));
    [late, silent].into_iter().flatten().min_by_key(|(at, _)| *at)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A terminal without any processing: our end, and the builder's, which it may open again.
fn terminal(user: Option<User>) -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(&name, flags, rustix::fs::Mode::empty())?;
    let mut attributes = rustix::termios::tcgetattr(&theirs)?;
    attributes.make_raw();
    rustix::termios::tcsetattr(&theirs, rustix::termios::OptionalActions::Now, &attributes)?;
    if let Some(user) = user {
        rustix::fs::fchmod(&theirs, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(user.uid)), None)?;
    }
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Puts the bytes of a log into lines. A carriage return goes back to the beginning of the line, as in a terminal.
struct Lines {
    current: Vec<u8>,
    position: usize,
    tail: VecDeque<String>,
    tail_max: usize,
}

impl Lines {
    fn new(tail_max: usize) -> Self {
        Self { current: Vec::new(), position: 0, tail: VecDeque::new(), tail_max }
    }

    fn take(&mut self, bytes: &[u8], log: &mut impl FnMut(BuildLog<'_>)) {
        log(BuildLog::Output(bytes));
        for byte in bytes {
            match byte {
                b'\r' => self.position = 0,
                b'\n' => self.line(log),
                _ if self.position >= LINE_BYTES_MAX => {}
                byte => {
                    match self.current.get_mut(self.position) {
                        Some(place) => *place = *byte,
                        None => self.current.push(*byte),
                    }
                    self.position += 1;
                }
            }
        }
    }

    fn line(&mut self, log: &mut impl FnMut(BuildLog<'_>)) {
        log(BuildLog::Line(&self.current));
        // Lines for programs (activities of Nix's own builders) say nothing to people.
        if self.tail_max > 0 && !self.current.starts_with(b"@nix {") {
            if self.tail.len() == self.tail_max {
                self.tail.pop_front();
            }
            self.tail.push_back(String::from_utf8_lossy(&self.current).into_owned());
        }
        self.current.clear();
        self.position = 0;
    }

    fn end(&mut self, log: &mut impl FnMut(BuildLog<'_>)) {
        if !self.current.is_empty() {
            self.line(log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_a_terminal_would_show() {
        let mut seen = Vec::new();
        let mut log = |said: BuildLog<'_>| {
            if let BuildLog::Line(line) = said {
                seen.push(String::from_utf8_lossy(line).into_owned());
            }
        };
        let mut lines = Lines::new(2);
        for piece in ["one\ntw", "o\n10%\r100%\nab\rc\n", "@nix {}\n", "end"] {
            lines.take(piece.as_bytes(), &mut log);
        }
        lines.end(&mut log);
        assert_eq!(lines.tail, ["cb", "end"]);
        assert_eq!(seen, ["one", "two", "100%", "cb", "@nix {}", "end"]);
    }
}
