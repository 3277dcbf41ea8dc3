//! Whether to claim, and how many jobs. [`capacity`] decides; [`free_bytes`] looks.

use std::io;
use std::path::Path;

/// What is known of this node's room when it thinks of claiming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Build slots in all.
    pub(super) slots: u32,
    /// Build slots in use.
    pub(super) building: u32,
    /// Jobs that are built and not yet uploaded.
    pub(super) uploading: u32,
    /// Most of those before building more would only fill the disk.
    pub(super) uploading_max: u32,
    /// Least free bytes among the file systems of the store and of the spool.
    pub(super) free_bytes: u64,
    /// Least free bytes with which a build may begin.
    pub(super) free_bytes_min: u64,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Capacity {
    /// Claim up to that many (0: every slot is in use, which is nothing to complain about).
    Claim(u32),
    /// Claim nothing, and tell people why.
    Paused(String),
}

/// Decides.
pub(super) fn capacity(room: Room) -> Capacity {
    let free = room.slots.saturating_sub(room.building);
    if room.free_bytes < room.free_bytes_min {
        return Capacity::Paused(format!(
            "the disk has {} MiB free, less than min_free ({} MiB): collect garbage or enlarge it",
            room.free_bytes >> 20,
            room.free_bytes_min >> 20
        ));
    }
    if room.uploading >= room.uploading_max {
        return Capacity::Paused(format!(
            "{} builds wait for their upload: is the object store slow or away?",
            room.uploading
        ));
    }
    Capacity::Claim(free.min(room.uploading_max - room.uploading))
}

/// Bytes that an ordinary user may still write to the file system where `path` is, or will be.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    match (rustix::fs::statvfs(path), path.parent()) {
        (Ok(status), _) => Ok(status.f_bavail.saturating_mul(status.f_frsize)),
        // A new store gets its folders with the daemon's first connection.
        (Err(rustix::io::Errno::NOENT), Some(parent)) => free_bytes(parent),
        (Err(error), _) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_claims_what_it_has_room_for() {
        let room = Room {
            slots: 4,
            building: 1,
            uploading: 0,
            uploading_max: 16,
            free_bytes: 10 << 30,
            free_bytes_min: 1 << 30,
        };
        let claims = |room| match capacity(room) {
            Capacity::Claim(count) => count,
            Capacity::Paused(reason) => panic!("{reason}"),
        };
        let pauses = |room| match capacity(room) {
            Capacity::Claim(count) => panic!("{count}"),
            Capacity::Paused(reason) => reason,
        };
        assert_eq!(claims(room), 3);
        assert_eq!(claims(Room { building: 4, ..room }), 0);
        assert_eq!(claims(Room { building: 9, ..room }), 0, "fewer slots than before a reload");
        assert_eq!(claims(Room { uploading: 14, ..room }), 2);
        assert!(pauses(Room { uploading: 16, ..room }).contains("16 builds wait for their upload"));
        assert_eq!(claims(Room { free_bytes: 1 << 30, ..room }), 3);
        let reason = pauses(Room { free_bytes: (1 << 30) - 1, ..room });
        assert!(reason.contains("1023 MiB free") && reason.contains("1024 MiB"), "{reason}");
        assert!(pauses(Room { free_bytes: 0, building: 4, ..room }).contains("disk"), "also while all slots are busy");
    }

    #[test]
    fn a_file_system_says_how_much_is_free() {
        assert!(free_bytes(Path::new("/")).expect("statvfs") > 0);
        assert!(free_bytes(Path::new("/no/such/folder")).expect("that of its nearest ancestor") > 0);
        assert!(free_bytes(Path::new("/proc/self/cmdline/x")).is_err());
    }
}
