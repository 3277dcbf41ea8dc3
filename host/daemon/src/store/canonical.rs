//! The metadata that files of the store have: mode 0444 or 0555, one second of Unix time, our owner, no extended attributes.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, utimensat,
};
use rustix::io::Errno;

use super::StoreError;
use super::tree::{Visit, walk};

/// The modification time of everything in the store, in seconds of Unix time.
const MTIME_S: i64 = 1;

/// Gives a tree that we have unpacked or written ourselves the metadata of the store.
///
/// Not for what a builder left: here nobody asks who owned it or how many names it has.
pub(super) fn canonicalise(root: &Path) -> Result<(), StoreError> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let (has_attributes, parent) = (inherits_attributes(root), root.parent().unwrap_or(root));
    walk(root, |dir, name, stat, visit| {
        // A directory only when all below it is done, which changes its times.
        if visit == Visit::Enter {
            return Ok(());
        }
        set(dir, name, stat, (uid, gid))
    })?;
    if has_attributes {
        tracing::warn!(
            directory = %parent.display(),
            "The store directory has a default ACL, which files in it inherit: remove it with setfacl -k"
        );
    }
    Ok(())
}

fn set(dir: BorrowedFd<'_>, name: &CString, stat: &Stat, owner: (Uid, Gid)) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
        return Err(Errno::INVAL);
    }
    if stat.st_uid != owner.0.as_raw() {
        chownat(dir, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let mode = stat.st_mode & 0o7777;
    if kind != FileType::Symlink && mode != 0o444 && mode != 0o555 {
        let mode = if mode & 0o100 != 0 { 0o555 } else { 0o444 };
        chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    if stat.st_mtime != MTIME_S {
        reset_mtime(dir, name)?;
    }
    Ok(())
}

/// Gives a file or directory the modification time of the store.
pub(super) fn reset_mtime(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: MTIME_S, tv_nsec: 0 },
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether new files get an ACL from the directory that they are in.
fn inherits_attributes(root: &Path) -> bool {
    let mut nothing: [u8; 0] = [];
    let parent = root.parent().unwrap_or(root);
    rustix::fs::getxattr(parent, "system.posix_acl_default", &mut nothing).is_ok_and(|length| length > 0)
}
