//! Giving files the only form that files in a store have: mode 0444 or 0555, modified at second 1, the daemon's own, no
//! attributes. Start at [`Canonical::tree`].
//!
//! Every file is held by a descriptor before it is looked at, and a directory is ours and read-only before it is listed.
//! So nothing can be put in the place of what was looked at, not even by somebody who kept a descriptor.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cap_std::fs::Dir;
use harmonia_nix::nar::Descent;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

/// Why a tree cannot be a store path.
#[derive(Debug, thiserror::Error)]
pub(in crate::build) enum CanonicalError {
    /// A socket, a device or a pipe.
    #[error("file '{0}' has an unsupported type")]
    Type(String),
    /// Not made by the build: a hard link to a file of somebody else.
    #[error("invalid ownership on file '{0}'")]
    Owner(String),
    /// Larger than allowed.
    #[error("the outputs have more than {0} bytes, the most that is allowed")]
    TooLarge(u64),
    /// Somebody gave up waiting.
    #[error("it was cancelled")]
    Cancelled,
    /// The kernel refused something.
    #[error("could not {action} '{path}': {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: String,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// What is wrong with one file, before it is known how to name it.
enum Problem {
    Type,
    Owner,
    TooLarge(u64),
    Io(&'static str, io::Error),
}

/// What all outputs of a build share.
pub(in crate::build) struct Canonical<'a> {
    /// Who made them, when that is not the daemon's own user.
    from: Option<u32>,
    /// How many bytes are allowed, and how many there were.
    bytes: (Option<u64>, u64),
    /// Files with several links that were seen: their owner was changed, and had been right.
    seen: HashSet<(u64, u64)>,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Canonical<'a> {
    pub(in crate::build) fn new(
        from: Option<u32>,
        bytes_max: Option<u64>,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self { from, bytes: (bytes_max, 0), seen: HashSet::new(), cancelled }
    }

    /// Makes the tree `name` in `parent` canonical; `shown` is its path for messages.
    pub(in crate::build) fn tree(&mut self, parent: &Dir, name: &OsStr, shown: &Path) -> Result<(), CanonicalError> {
        let mut descent = Descent::new(parent);
        let mut left: Vec<Vec<OsString>> = Vec::new();
        left.extend(self.node(&mut descent, name, shown)?);
        while let Some(names) = left.last_mut() {
            if let Some(name) = names.pop() {
                left.extend(self.node(&mut descent, &name, shown)?);
            } else {
                left.pop();
                descent.leave();
            }
        }
        Ok(())
    }

    /// Makes one file canonical. Of a directory: enters it and answers its names.
    fn node(
        &mut self,
        descent: &mut Descent<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<Option<Vec<OsString>>, CanonicalError> {
        if (self.cancelled)() {
            return Err(CanonicalError::Cancelled);
        }
        let settled = descent.current().map_err(|cause| Problem::Io("open", cause)).and_then(|dir| {
            let file = hold(dir, name).map_err(|cause| Problem::Io("open", cause))?;
            self.settle(&file)
        });
        let names = settled.and_then(|is_directory| {
            if !is_directory {
                return Ok(None);
            }
            let listed = descent.enter(name.as_bytes()).and_then(|()| {
                let entries = descent.current()?.entries()?;
                entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
            });
            listed.map(Some).map_err(|cause| Problem::Io("list", cause))
        });
        names.map_err(|problem| {
            // The first name is that of the tree itself.
            let names = descent.names().chain([name.as_bytes()]).skip(1);
            let path = names.fold(shown.to_owned(), |path: PathBuf, name| path.join(OsStr::from_bytes(name)));
            let path = path.display().to_string();
            match problem {
                Problem::Type => CanonicalError::Type(path),
                Problem::Owner => CanonicalError::Owner(path),
                Problem::TooLarge(max) => CanonicalError::TooLarge(max),
                Problem::Io(action, cause) => CanonicalError::File { action, path, cause },
            }
        })
    }

    /// Whether it is a directory.
    fn settle(&mut self, file: &OwnedFd) -> Result<bool, Problem> {
        let io = |action: &'static str| move |cause: Errno| Problem::Io(action, cause.into());
        let stat = rustix::fs::fstat(file).map_err(io("look at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(Problem::Type);
        }
        let identity = (stat.st_dev, stat.st_ino);
        if self.from.is_some_and(|from| from != stat.st_uid) {
            let ours = kind != FileType::Directory && self.seen.contains(&identity);
            return if ours { Ok(false) } else { Err(Problem::Owner) };
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            self.seen.insert(identity);
        }
        if kind == FileType::RegularFile {
            self.bytes.1 = self.bytes.1.saturating_add(u64::try_from(stat.st_size).unwrap_or(u64::MAX));
            if let (Some(max), used) = self.bytes
                && used > max
            {
                return Err(Problem::TooLarge(max));
            }
        }
        remove_attributes(file).map_err(io("remove the extended attributes of"))?;
        // A directory that cannot be entered, as Nix would leave it here, is of no use to anybody.
        let mode = if kind == FileType::Directory || stat.st_mode & 0o100 != 0 { 0o555 } else { 0o444 };
        if kind != FileType::Symlink && stat.st_mode & 0o7777 != mode {
            rustix::fs::chmod(by_descriptor(file), Mode::from_raw_mode(mode)).map_err(io("change the mode of"))?;
        }
        let own = rustix::process::geteuid();
        if stat.st_uid != own.as_raw() {
            change_owner(file, own, rustix::process::getegid()).map_err(io("change the owner of"))?;
        }
        if stat.st_mtime != 1 || stat.st_mtime_nsec != 0 {
            set_time(file).map_err(io("change the time of"))?;
        }
        Ok(kind == FileType::Directory)
    }
}

/// Holds a file of any type and any mode, itself and not what it points to.
fn hold(dir: &Dir, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty())?)
}

/// A path to exactly this file, for calls that take no such descriptor.
fn by_descriptor(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn change_owner(file: &OwnedFd, uid: Uid, gid: Gid) -> Result<(), Errno> {
    rustix::fs::chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

fn set_time(file: &OwnedFd) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    rustix::fs::utimensat(file, c"", &times, AtFlags::EMPTY_PATH)
}

fn remove_attributes(file: &OwnedFd) -> Result<(), Errno> {
    let path = by_descriptor(file);
    let mut names = vec![0_u8; 1024];
    let length = loop {
        match rustix::fs::listxattr(&path, &mut names) {
            Ok(length) => break length,
            Err(Errno::RANGE) => {
                let length = rustix::fs::listxattr(&path, &mut [0_u8; 0])?;
                names.resize(length.max(names.len() * 2), 0);
            }
            Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(()),
            Err(error) => return Err(error),
        }
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // The machine's own labels, which no file can be without (`ignored-acls` of Nix).
        if [c"security.selinux", c"system.nfs4_acl", c"security.csm"].contains(&name) {
            continue;
        }
        rustix::fs::removexattr(&path, name)?;
    }
    Ok(())
}
