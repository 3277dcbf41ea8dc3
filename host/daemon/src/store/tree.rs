//! Walking trees of the store, however deep, and deleting them. Start at [`walk`].
//!
//! Only for trees that nobody but us can change: ours below the store directory. Symlinks are never followed.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, chmodat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::StoreError;

/// When the visitor is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// Before what is in the directory.
    Enter,
    /// After what is in the directory.
    Leave,
    /// For anything else.
    Leaf,
}

/// Calls `visit` with the directory, the name in it and what is there, for `root` and everything below it.
pub(super) fn walk(
    root: &Path,
    mut visit: impl FnMut(BorrowedFd<'_>, &CString, &Stat, Visit) -> rustix::io::Result<()>,
) -> Result<(), StoreError> {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(StoreError::io("walk", root)(io::Error::other("it is no name in a directory")));
    };
    let top = File::open(parent).map_err(StoreError::io("open", parent))?;
    Walk { current: top.into(), left: Vec::new() }.run(name, &mut visit).map_err(StoreError::sys("walk", root))
}

struct Walk {
    current: OwnedFd,
    /// Of each directory on the way down: its name in the one above, and the names left in it.
    left: Vec<(CString, std::vec::IntoIter<CString>)>,
}

impl Walk {
    fn run(
        mut self,
        root: &OsStr,
        visit: &mut impl FnMut(BorrowedFd<'_>, &CString, &Stat, Visit) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let root = CString::new(root.as_bytes()).map_err(|_| Errno::INVAL)?;
        self.node(root, visit)?;
        while let Some((_, names)) = self.left.last_mut() {
            if let Some(name) = names.next() {
                self.node(name, visit)?;
                continue;
            }
            if let Some((name, _)) = self.left.pop() {
                // Nobody else moves directories in here, so that this is where we came from.
                self.current = open_dir(self.current.as_fd(), c"..")?;
                let stat = statat(&self.current, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                visit(self.current.as_fd(), &name, &stat, Visit::Leave)?;
            }
        }
        Ok(())
    }

    fn node(
        &mut self,
        name: CString,
        visit: &mut impl FnMut(BorrowedFd<'_>, &CString, &Stat, Visit) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        let stat = statat(&self.current, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return visit(self.current.as_fd(), &name, &stat, Visit::Leaf);
        }
        visit(self.current.as_fd(), &name, &stat, Visit::Enter)?;
        let inner = open_dir(self.current.as_fd(), &name)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&inner)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        self.current = inner;
        self.left.push((name, names.into_iter()));
        Ok(())
    }
}

fn open_dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Deletes a tree, or nothing when there is none. Returns how many bytes are likely to be free now, as stock Nix counts them.
pub(super) fn delete(root: &Path) -> Result<u64, StoreError> {
    let mut freed = 0;
    let deleted = walk(root, |dir, name, stat, visit| match visit {
        Visit::Enter if stat.st_mode & 0o700 == 0o700 => Ok(()),
        Visit::Enter => chmodat(dir, name, Mode::RWXU, AtFlags::empty()),
        Visit::Leave => unlinkat(dir, name, AtFlags::REMOVEDIR),
        Visit::Leaf => {
            // A file with two names has its other one among the links of equal files, most likely.
            if stat.st_nlink <= 2 {
                freed += stat.st_size.cast_unsigned();
            }
            unlinkat(dir, name, AtFlags::empty())
        }
    });
    match deleted {
        Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound && !root.exists() => Ok(freed),
        Err(error) => Err(error),
        Ok(()) => Ok(freed),
    }
}
