//! What the node itself went through while a build ran: whether the kernel killed for lack of memory, whether a disk was
//! full. Start at [`Watch::during`].
//!
//! Only this makes a failed build the node's fault. What the build printed, or how it chose to end, never does: it would be
//! tried again for ever by whoever wants that.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// With less free on a file system it counts as full: Nix judges likewise.
const FULL_BYTES: u64 = 8 << 20;
/// Time between two looks at the disks: what fills one is often deleted as soon as the build failed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What was seen of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The kernel killed a process for lack of memory.
    pub(super) out_of_memory: bool,
    /// A file system that builds write to was full.
    pub(super) disk_full: bool,
}

/// What can be seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// Processes that the kernel killed for lack of memory since it started, in any cgroup; `None` where it does not count.
    oom_kills: Option<u64>,
    disk_full: bool,
}

/// Looks at the node while something runs on it.
#[derive(Debug)]
pub(super) struct Watch {
    /// Folders whose file systems count.
    folders: Vec<PathBuf>,
}

impl Watch {
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// Runs `work`, and says what happened to the node meanwhile.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> (T, Evidence) {
        watched(work, LOOK_EVERY, || self.look()).await
    }

    fn look(&self) -> Look {
        let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
        Look { oom_kills: oom_kills(&vmstat), disk_full: self.folders.iter().any(|folder| is_full(folder)) }
    }
}

async fn watched<T>(work: impl Future<Output = T>, every: Duration, look: impl Fn() -> Look) -> (T, Evidence) {
    let before = look();
    let mut disk_full = before.disk_full;
    let mut ticks = tokio::time::interval(every);
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            _ = ticks.tick() => disk_full |= look().disk_full,
        }
    };
    let after = look();
    let evidence =
        Evidence { out_of_memory: after.oom_kills > before.oom_kills, disk_full: disk_full | after.disk_full };
    (result, evidence)
}

/// The line `oom_kill N` of `/proc/vmstat`.
fn oom_kills(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|status| {
        let inodes_used_up = status.f_files > 0 && status.f_favail == 0;
        inodes_used_up || status.f_bavail.saturating_mul(status.f_frsize) < FULL_BYTES
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Looks in this order, the last one from then on, while work goes on until all were had.
    async fn seen(looks: &[(Option<u64>, bool)]) -> Evidence {
        let next = Cell::new(0);
        let all_seen = tokio::sync::Notify::new();
        let look = || {
            let (oom_kills, disk_full) = looks[next.get().min(looks.len() - 1)];
            next.set(next.get() + 1);
            if next.get() >= looks.len() - 1 {
                all_seen.notify_one();
            }
            Look { oom_kills, disk_full }
        };
        watched(all_seen.notified(), Duration::from_millis(1), look).await.1
    }

    #[tokio::test]
    async fn what_happened_meanwhile_is_seen_and_what_was_before_is_not() {
        let nothing = Evidence::default();
        assert_eq!(seen(&[(Some(7), false), (Some(7), false), (Some(7), false)]).await, nothing);
        assert_eq!(seen(&[(None, false), (None, false)]).await, nothing, "a kernel that does not count");
        let killed = Evidence { out_of_memory: true, ..nothing };
        assert_eq!(seen(&[(Some(7), false), (Some(8), false)]).await, killed);
        let full = Evidence { disk_full: true, ..nothing };
        assert_eq!(seen(&[(Some(7), false), (Some(7), true), (Some(7), false)]).await, full, "for a moment only");
        assert_eq!(seen(&[(Some(7), true), (Some(7), false)]).await, full, "from the start");
    }

    /// The kernel's own killing, in a cgroup that may use 32 MiB.
    #[tokio::test]
    async fn the_kernel_kills_and_counts() {
        let v1 = std::path::Path::new("/sys/fs/cgroup/memory");
        let (parent, limit) = if v1.is_dir() {
            (v1, "memory.limit_in_bytes")
        } else {
            (std::path::Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let cgroup = parent.join(format!("harmonia-ci-test-{}", std::process::id()));
        let made = std::fs::create_dir(&cgroup).and_then(|()| std::fs::write(cgroup.join(limit), "33554432"));
        if let Err(error) = made {
            eprintln!("not tried: no cgroup with a limit of memory can be made here ({error})");
            return;
        }
        let script = format!("echo $$ > {}/cgroup.procs; x=$(yes | head -c 200000000); echo ${{#x}}", cgroup.display());
        let mut greedy = tokio::process::Command::new("sh");
        let (output, evidence) = Watch::new(Vec::new()).during(greedy.args(["-c", &script]).output()).await;
        // What else was in the pipe ends when it reads or writes next.
        while let Err(error) = std::fs::remove_dir(&cgroup) {
            assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
            tokio::task::yield_now().await;
        }
        assert!(!output.expect("sh runs").status.success());
        assert!(evidence.out_of_memory);
    }

    #[test]
    fn the_kernel_counts_and_disks_have_room() {
        assert_eq!(oom_kills("pgmajfault 3\noom_kill 12\nnuma_hit 4\n"), Some(12));
        assert_eq!(oom_kills("pgmajfault 3\n"), None);
        let look = Watch::new(vec!["/".into()]).look();
        assert!(look.oom_kills.is_some(), "this kernel counts");
        assert!(!is_full(Path::new("/no/such/folder")) && !look.disk_full);
    }
}
