//! Child processes that must not outlive us: found, spawned and signalled. Start at [`spawn`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// Where programs are looked for besides `PATH` (a service often has a bare one): Debian, then NixOS.
const USUAL_DIRECTORIES: [&str; 5] =
    ["/usr/local/bin", "/usr/bin", "/bin", "/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];

type Task = Box<dyn FnOnce() + Send>;

/// Starts `command` from a thread that lives as long as this process.
///
/// The parent-death signal of Linux is bound to the *thread* that forked. A worker thread of the runtime may end
/// long before the process, and would take the child with it.
pub(crate) async fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Task>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Task>();
        // Should the thread not start, the receiver is dropped and `send` below says so.
        drop(std::thread::Builder::new().name("child-parent".to_owned()).spawn(move || {
            for task in receiver {
                task();
            }
        }));
        Mutex::new(sender)
    });
    let runtime = tokio::runtime::Handle::current();
    let (reply, answer) = tokio::sync::oneshot::channel();
    let task: Task = Box::new(move || {
        let _entered = runtime.enter();
        drop(reply.send(command.spawn()));
    });
    let gone = || io::Error::other("the thread that starts child processes is not running");
    spawner.lock().map_err(|_| gone())?.send(task).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// The first executable file called `name` in `PATH` or one of the usual directories.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(USUAL_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

pub(crate) fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A command that runs `program` and, where util-linux is installed, has the kernel send it `signal` (`INT`, `TERM`)
/// when we die, however we die.
///
/// `setpriv` asks for that after the change of user, which clears it; doing the same here would need `unsafe`.
pub(crate) async fn dying_with_us(program: &Path, signal: &str) -> Command {
    match setpriv().await {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

async fn setpriv() -> Option<PathBuf> {
    static SETPRIV: tokio::sync::OnceCell<Option<PathBuf>> = tokio::sync::OnceCell::const_new();
    SETPRIV
        .get_or_init(|| async {
            let program = find_program("setpriv")?;
            // The one of busybox lacks the option.
            let help = Command::new(&program).arg("--help").kill_on_drop(true).output().await.ok()?;
            String::from_utf8_lossy(&help.stdout).contains("--pdeathsig").then_some(program)
        })
        .await
        .clone()
}

/// When the process started, in clock ticks since boot: with the id it names one process for good, as ids are reused.
/// `None` when there is no such process, or only its unreaped remains.
pub(crate) fn start_time_ticks(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // proc(5): the name in parentheses may hold anything, the state follows it, the start time is field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// One process, recognised again by id and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incarnation {
    pub(crate) pid: Pid,
    pub(crate) started_ticks: u64,
}

impl Incarnation {
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        start_time_ticks(pid).map(|started_ticks| Self { pid, started_ticks })
    }

    pub(crate) fn is_alive(self) -> bool {
        start_time_ticks(self.pid) == Some(self.started_ticks)
    }

    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may have ended in between, which is what the signal was for.
            let _ended = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// Whether the process ended within `patience`. For processes that are not our children.
    pub(crate) async fn ended_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive_and_our_incarnation_is_stable() {
        let me = rustix::process::getpid();
        let first = Incarnation::of(me).expect("we run");
        assert!(first.is_alive());
        assert!(
            !Incarnation { started_ticks: first.started_ticks + 1, ..first }.is_alive(),
            "another process of that id"
        );
    }

    #[tokio::test]
    async fn an_unreaped_child_counts_as_ended() {
        let mut child = spawn(Command::new("/bin/true")).await.expect("true starts");
        let pid = Pid::from_raw(child.id().expect("not reaped").cast_signed()).expect("not zero");
        if let Some(incarnation) = Incarnation::of(pid) {
            assert!(incarnation.ended_within(Duration::from_secs(10)).await);
        }
        assert!(child.wait().await.expect("waits").success());
    }

    #[test]
    fn a_missing_program_is_not_found() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
