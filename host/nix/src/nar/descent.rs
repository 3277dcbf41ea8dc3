//! The directories on the way down into a tree, however deep it is, with a bounded number of them open.
//!
//! Start reading at [`Descent::current`]. A tree of Nix may be nested as deep as a path can be long, which is more than a
//! process may have open. So only the innermost directories stay open; one further up is opened again when it is
//! needed, name by name from the top, and must be the one that it was.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;

/// How many directories stay open.
const OPEN_MAX: usize = 64;

/// The directories from the top of a tree down to the current one.
#[derive(Debug)]
pub struct Descent<'a> {
    /// What holds the root of the tree.
    top: &'a Dir,
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    /// Device and inode.
    identity: (u64, u64),
    handle: Option<Dir>,
}

impl<'a> Descent<'a> {
    /// At the directory that holds the root of the tree.
    pub fn new(top: &'a Dir) -> Self {
        Self { top, levels: Vec::new() }
    }

    /// How many directories of the tree are entered.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The names of the directories that are entered, outermost first.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.levels.iter().map(|level| level.name.as_slice())
    }

    /// Enters the directory `name` of the current one; never what a symlink of that name points to.
    pub fn enter(&mut self, name: &[u8]) -> io::Result<()> {
        let handle = open(self.current()?, name)?;
        let identity = identity(&handle)?;
        if let Some(outer) = self.levels.len().checked_sub(OPEN_MAX) {
            self.levels[outer].handle = None;
        }
        self.levels.push(Level { name: name.to_vec(), identity, handle: Some(handle) });
        Ok(())
    }

    /// Goes back to the directory above.
    pub fn leave(&mut self) {
        self.levels.pop();
    }

    /// The current directory.
    pub fn current(&mut self) -> io::Result<&Dir> {
        if self.levels.last().is_some_and(|level| level.handle.is_none()) {
            self.reopen()?;
        }
        Ok(self.levels.last().and_then(|level| level.handle.as_ref()).unwrap_or(self.top))
    }

    /// Opens the innermost directories again. It opens as many as may be open, so that going up costs one walk for every
    /// so many levels.
    fn reopen(&mut self) -> io::Result<()> {
        let kept_from = self.levels.len().saturating_sub(OPEN_MAX);
        let mut outer: Option<Dir> = None;
        for index in 0..self.levels.len() {
            let above = match index.checked_sub(1).map(|above| &self.levels[above].handle) {
                Some(Some(kept)) => kept,
                _ => outer.as_ref().unwrap_or(self.top),
            };
            let opened = open(above, &self.levels[index].name)?;
            if identity(&opened)? != self.levels[index].identity {
                return Err(io::Error::other("a directory of the tree was replaced meanwhile"));
            }
            if index < kept_from {
                outer = Some(opened);
            } else {
                self.levels[index].handle = Some(opened);
            }
        }
        Ok(())
    }
}

fn open(dir: &Dir, name: &[u8]) -> io::Result<Dir> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed());
    Ok(Dir::from_std_file(dir.open_with(OsStr::from_bytes(name), &options)?.into_std()))
}

fn identity(dir: &Dir) -> io::Result<(u64, u64)> {
    let metadata = dir.dir_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("Linux").count()
    }

    #[test]
    fn a_thousand_levels_down_and_up_with_few_open() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let top = Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).expect("a folder");
        let before = open_files();
        let mut descent = Descent::new(&top);
        for level in 0..1_000 {
            let name = format!("d{level}");
            descent.current().expect("open").create_dir(&name).expect("made");
            descent.enter(name.as_bytes()).expect("entered");
        }
        // Other tests of this process have files of their own open; there are not a thousand.
        assert!(open_files() < before + 500, "{} open, {before} before", open_files());
        for level in (0..1_000).rev() {
            assert_eq!(descent.depth(), level + 1);
            let file = format!("f{level}");
            descent.current().expect("open again").write(&file, "x").expect("written");
            descent.leave();
            let below = descent.current().expect("open again");
            assert!(below.exists(format!("d{level}/{file}")), "{level}");
        }
    }

    #[test]
    fn a_directory_that_was_replaced_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let top = Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).expect("a folder");
        let mut descent = Descent::new(&top);
        for _ in 0..=OPEN_MAX {
            descent.current().expect("open").create_dir("d").expect("made");
            descent.enter(b"d").expect("entered");
        }
        std::fs::rename(folder.path().join("d"), folder.path().join("old")).expect("moved");
        std::fs::create_dir(folder.path().join("d")).expect("another");
        for _ in 0..OPEN_MAX {
            descent.leave();
        }
        let error = descent.current().expect_err("another directory");
        assert_eq!(error.to_string(), "a directory of the tree was replaced meanwhile");
    }
}
