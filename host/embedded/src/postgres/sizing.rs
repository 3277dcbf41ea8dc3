//! Settings that follow the machine's memory. Start at [`settings`]; [`machine_memory`] looks.
//!
//! The cluster is a guest beside builds and evaluations, which need most of the memory themselves: it takes an eighth where
//! a machine of its own would be given a quarter, and never so little that a small machine is worse off than with
//! PostgreSQL's defaults.

use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Lines of a configuration file for a machine with so much memory.
pub(super) fn settings(memory_bytes: u64) -> String {
    let part = |of: u64, least: u64, most: u64| (memory_bytes / of).clamp(least, most) / MIB;
    [
        ("shared_buffers", part(8, 128 * MIB, 2 * GIB)),
        // What the kernel keeps of its files besides; only the planner reads it.
        ("effective_cache_size", part(3, 384 * MIB, 16 * GIB)),
        // For one sort of one statement, of which each of our connections has one or two.
        ("work_mem", part(1_024, 4 * MIB, 32 * MIB)),
        ("maintenance_work_mem", part(64, 64 * MIB, GIB / 2)),
        // How much is written between two checkpoints, each of which writes whole pages once more; it is disk, not memory,
        // and small machines have small disks.
        ("max_wal_size", part(8, GIB, 4 * GIB)),
    ]
    .map(|(name, mebibytes)| format!("{name} = {mebibytes}MB\n"))
    .concat()
}

/// Memory that this process and its children may use, in bytes: what the machine has, or the least of what the groups allow
/// that it is in (cgroup v2). `None`: it cannot be told.
pub(super) fn machine_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)?;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limits = Path::new(group).ancestors().filter_map(|group| limit(&Path::new("/sys/fs/cgroup").join(group)));
    Some(limits.fold(total, u64::min))
}

/// `max` is none.
fn limit(group: &Path) -> Option<u64> {
    fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_follow_the_memory_within_bounds() {
        let of = |memory: u64| {
            let text = settings(memory);
            let values: Vec<u64> = text
                .lines()
                .map(|line| line.split_once(" = ").expect("name = value").1.trim_end_matches("MB").parse().expect("MB"))
                .collect();
            <[u64; 5]>::try_from(values).expect("five settings")
        };
        // shared_buffers, effective_cache_size, work_mem, maintenance_work_mem, max_wal_size
        assert_eq!(of(0), [128, 384, 4, 64, 1_024]);
        assert_eq!(of(4 * GIB), [512, 1_365, 4, 64, 1_024]);
        assert_eq!(of(16 * GIB), [2_048, 5_461, 16, 256, 2_048]);
        assert_eq!(of(u64::MAX), [2_048, 16_384, 32, 512, 4_096]);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(machine_memory().expect("Linux says so") > 64 * MIB);
    }
}
