//! Equal files (and symlinks) of the store share their blocks: each is a link to the one in `.links` that is named after the hash of its
//! archive. Start at [`Store::optimise`].

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cap_std::fs::Dir;
use harmonia_nix::hash::{HashAlgorithm, Hasher};
use harmonia_nix::nar::write_nar;
use harmonia_nix::store_path::StorePath;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, chmodat, linkat, renameat, statat};
use rustix::io::Errno;

use super::add::HashWriter;
use super::canonical::reset_mtime;
use super::tree::{Visit, walk};
use super::{Store, StoreError, TempRoots};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What linking equal files came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Optimised {
    /// Files that became links to others.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Links equal files of all valid paths. `told` hears after each path how many are done, of how many.
    pub fn optimise(&self, roots: &TempRoots, told: &dyn Fn(u64, u64)) -> Result<Optimised, StoreError> {
        let paths = self.all_valid()?;
        let mut linking = Linking::new(self)?;
        for (index, path) in paths.iter().enumerate() {
            roots.add(path)?;
            // It may be collected meanwhile.
            if self.is_valid(path)? {
                linking.tree(&self.real_path(path))?;
            }
            told(index as u64 + 1, paths.len() as u64);
        }
        Ok(linking.optimised)
    }

    /// The same for one path, which is not registered yet.
    pub(super) fn optimise_path(&self, path: &StorePath) -> Result<(), StoreError> {
        Linking::of_one(self).tree(&self.real_path(path))
    }
}

struct Linking {
    store_dir: PathBuf,
    links_dir: PathBuf,
    /// Inodes that are in `.links` already.
    linked: HashSet<u64>,
    optimised: Optimised,
}

impl Linking {
    fn of_one(store: &Store) -> Self {
        let (store_dir, links_dir) = (store.layout.real_store_dir.clone(), store.layout.links_dir());
        Self { store_dir, links_dir, linked: HashSet::new(), optimised: Optimised::default() }
    }

    fn new(store: &Store) -> Result<Self, StoreError> {
        let mut linking = Self::of_one(store);
        let dir = &linking.links_dir;
        for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
            linking.linked.insert(entry.map_err(StoreError::io("list", dir))?.ino());
        }
        Ok(linking)
    }

    fn tree(&mut self, root: &Path) -> Result<(), StoreError> {
        let in_store_dir = root.to_owned();
        let mut failed = None;
        walk(root, |dir, name, stat, visit| {
            // A file that may be written was changed by somebody, and its hash means nothing.
            let is_wanted = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => stat.st_mode & 0o200 == 0,
                FileType::Symlink => true,
                _ => false,
            };
            if visit != Visit::Leaf || !is_wanted || self.linked.contains(&stat.st_ino) {
                return Ok(());
            }
            if failed.is_none()
                && let Err(error) = self.file(dir, name, stat, &in_store_dir)
            {
                failed = Some(error);
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CString, stat: &Stat, root: &Path) -> Result<(), StoreError> {
        let hash = hash_file(dir, name, root)?;
        let link = self.links_dir.join(hash);
        match fs::symlink_metadata(&link) {
            // Damaged: something with this hash has this size.
            Ok(found) if found.size() != stat.st_size.cast_unsigned() => {
                tracing::warn!(path = %link.display(), "Removed a corrupted link");
                fs::remove_file(&link).map_err(StoreError::io("delete", &link))?;
            }
            Ok(found) if found.ino() == stat.st_ino => return Ok(()),
            Ok(_) => return self.replace(dir, name, stat, &link, root),
            Err(_) => {}
        }
        match linkat(dir, name, CWD, &link, AtFlags::empty()) {
            Ok(()) => {
                self.linked.insert(stat.st_ino);
                Ok(())
            }
            // Somebody was faster.
            Err(Errno::EXIST) => self.replace(dir, name, stat, &link, root),
            // The directory of links is full, which on some file systems is no error of ours; or so is the disk.
            Err(Errno::NOSPC | Errno::MLINK | Errno::PERM) => Ok(()),
            Err(errno) => Err(StoreError::sys("make the link", &link)(errno)),
        }
    }

    /// Puts a link to an equal file in place of the file.
    fn replace(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        link: &Path,
        root: &Path,
    ) -> Result<(), StoreError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.store_dir.join(format!(".tmp-link-{}-{number}", std::process::id()));
        match linkat(CWD, link, CWD, &temporary, AtFlags::empty()) {
            Ok(()) => {}
            // As many names as the file system allows; or the link was unused and collected meanwhile.
            Err(Errno::MLINK | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(StoreError::sys("make the link", &temporary)(errno)),
        }
        let failed = StoreError::sys("link equal files in", root);
        let holds_store_paths = root.parent() == Some(&self.store_dir) && is_same(dir, &self.store_dir);
        let done =
            if holds_store_paths { renameat(CWD, &temporary, dir, name) } else { replace_in(dir, &temporary, name) };
        match done {
            Ok(()) => {
                self.optimised.files += 1;
                self.optimised.bytes += stat.st_size.cast_unsigned();
                Ok(())
            }
            // A collector took the name in the store directory for a leftover.
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => {
                let _ = fs::remove_file(&temporary);
                if errno == Errno::MLINK { Ok(()) } else { Err(failed(errno)) }
            }
        }
    }
}

/// Opens the directory for a moment, and leaves it as it was.
fn replace_in(dir: BorrowedFd<'_>, temporary: &Path, name: &CString) -> rustix::io::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let mode = statat(dir, c".", AtFlags::empty())?.st_mode & 0o7777;
    if !is_root {
        chmodat(dir, c".", Mode::from_raw_mode(mode | 0o200), AtFlags::empty())?;
    }
    let done = renameat(CWD, temporary, dir, name);
    if !is_root {
        chmodat(dir, c".", Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    reset_mtime(dir, c".")?;
    done
}

fn is_same(dir: BorrowedFd<'_>, path: &Path) -> bool {
    match (statat(dir, c".", AtFlags::empty()), fs::metadata(path)) {
        (Ok(dir), Ok(path)) => (dir.st_dev, dir.st_ino) == (path.dev(), path.ino()),
        _ => false,
    }
}

/// The name of a file in `.links`: the hash of its archive, which says as well whether it may be executed.
fn hash_file(dir: BorrowedFd<'_>, name: &CString, root: &Path) -> Result<String, StoreError> {
    use std::os::unix::ffi::OsStrExt;
    let copy = dir.try_clone_to_owned().map_err(StoreError::io("open", root))?;
    let dir = Dir::from_std_file(copy.into());
    let mut hasher = HashWriter(Hasher::new(HashAlgorithm::Sha256));
    let name = std::ffi::OsStr::from_bytes(name.to_bytes());
    let mut buffered = std::io::BufWriter::with_capacity(128 << 10, &mut hasher);
    write_nar(&dir, name, &mut buffered).map_err(|cause| StoreError::Pack { path: root.to_owned(), cause })?;
    std::io::Write::flush(&mut buffered).map_err(StoreError::io("hash", root))?;
    drop(buffered);
    Ok(hasher.0.finish().to_base32())
}
