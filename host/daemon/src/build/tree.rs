//! Moving and removing trees of files, whoever made them and whatever their modes. Start at [`remove_tree`].

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// Removes what is there, never following a symlink. That nothing is there is no error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let Some((parent, name)) = open_parent(path)? else { return Ok(()) };
    remove(parent.as_fd(), &name)
}

/// Renames a tree within a file system to a place that is free, as an ordinary user also a directory that is read-only.
pub fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    // To change the entry for its parent an ordinary user needs to be able to write the directory.
    let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
    let locked = metadata.is_dir() && mode & 0o200 == 0 && !rustix::process::geteuid().is_root();
    let set = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))
    };
    if locked {
        set(from, mode | 0o200)?;
    }
    std::fs::rename(from, to)?;
    if locked { set(to, mode) } else { Ok(()) }
}

/// The directory that holds `path`, and the name in it; `None` when there is no such directory.
pub(super) fn open_parent(path: &Path) -> io::Result<Option<(OwnedFd, CString)>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below a directory"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        opened => Ok(Some((opened?, c_name(name)?))),
    }
}

fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Opens a directory in another one; never what a symlink points to.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The names in a directory, but for itself and its parent.
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if ![b".".as_slice(), b".."].contains(&name.to_bytes()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// One directory on the way down: itself, its name, and what is left in it.
struct Level {
    handle: OwnedFd,
    name: CString,
    left: Vec<CString>,
}

/// Deeper directories are moved up before they are removed, so that a bounded number is open.
const OPEN_MAX: usize = 128;

fn remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut levels: Vec<Level> = Vec::new();
    let mut moved_up = 0;
    let mut next = Some(name.to_owned());
    loop {
        let current = levels.last().map_or(parent, |level| level.handle.as_fd());
        if let Some(name) = next.take() {
            match rustix::fs::unlinkat(current, &name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => {
                    let stat = rustix::fs::statat(current, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                        return Err(error.into());
                    }
                    if stat.st_mode & 0o700 != 0o700 {
                        rustix::fs::chmodat(current, &name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
                    }
                    if levels.len() >= OPEN_MAX {
                        moved_up += 1;
                        let up = c_name(OsStr::new(&format!(".deep-{moved_up}")))?;
                        rustix::fs::renameat(current, &name, &levels[0].handle, &up)?;
                        levels[0].left.push(up);
                        continue;
                    }
                    let handle = open_directory(current, &name)?;
                    let left = names(handle.as_fd())?;
                    levels.push(Level { handle, name, left });
                }
            }
        }
        while next.is_none() {
            let Some(level) = levels.last_mut() else { return Ok(()) };
            next = level.left.pop();
            if next.is_none() {
                let name = levels.pop().map(|level| level.name).unwrap_or_default();
                let current = levels.last().map_or(parent, |level| level.handle.as_fd());
                rustix::fs::unlinkat(current, &name, AtFlags::REMOVEDIR)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_goes_whatever_its_modes_and_what_a_link_points_to_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (tree, other) = (folder.path().join("tree"), folder.path().join("other"));
        std::fs::create_dir_all(tree.join("a/b")).expect("made");
        std::fs::create_dir(&other).expect("made");
        std::fs::write(other.join("kept"), "").expect("written");
        std::fs::write(tree.join("a/b/file"), "").expect("written");
        std::os::unix::fs::symlink(&other, tree.join("a/link")).expect("linked");
        std::fs::set_permissions(tree.join("a/b"), PermissionsExt::from_mode(0o000)).expect("mode");
        std::fs::set_permissions(tree.join("a"), PermissionsExt::from_mode(0o500)).expect("mode");
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists() && other.join("kept").exists());
        // Deeper than any path can be long, and than there may be files open.
        std::fs::create_dir(&tree).expect("made");
        let mut current = rustix::fs::open(&tree, OFlags::RDONLY, Mode::empty()).expect("opened");
        for _ in 0..1_000 {
            rustix::fs::mkdirat(&current, c"d", Mode::RWXU).expect("made");
            current = open_directory(current.as_fd(), c"d").expect("opened");
        }
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists());
        remove_tree(&tree).expect("nothing to remove");
        remove_tree(&folder.path().join("no/such")).expect("nothing to remove");
    }
}
