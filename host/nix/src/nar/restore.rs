//! Unpacking an archive below a directory handle, from which nothing that the archive says can escape.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;

use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use rustix::fs::OFlags;

use super::decoder::check_name;
use super::descent::Descent;
use super::writer::shown_path;
use super::{Limits, NarError, NarEvent, NarReader};

const BUFFER_BYTES: usize = 128 << 10;

/// Unpacks the one archive that `input` holds as `name` in `dir`, where nothing of that name may exist.
///
/// Files get mode 0444 or 0555; directories stay writable for their owner, so that the tree can be moved or deleted.
/// Symlinks are made as the archive says and never followed. Returns the size of the archive in bytes. After an error a
/// part of the tree may be there: whoever called deletes it.
pub fn unpack_nar(input: impl Read, dir: &Dir, name: impl AsRef<OsStr>, limits: Limits) -> Result<u64, NarError> {
    let mut reader = NarReader::new(BufReader::with_capacity(BUFFER_BYTES, input), limits);
    unpack_next(&mut reader, dir, name)?;
    reader.expect_end()?;
    Ok(reader.offset())
}

/// The same for an archive within a longer stream: stops behind the archive's last byte.
pub fn unpack_next<R: BufRead>(reader: &mut NarReader<R>, dir: &Dir, name: impl AsRef<OsStr>) -> Result<(), NarError> {
    check_name(name.as_ref().as_bytes(), 0)?;
    let mut unpacking = Unpacking { descent: Descent::new(dir), name: name.as_ref().as_bytes().to_vec(), file: None };
    while let Some(event) = reader.next_event()? {
        unpacking.apply(event)?;
    }
    Ok(())
}

struct Unpacking<'a> {
    descent: Descent<'a>,
    /// Name of the node that comes next.
    name: Vec<u8>,
    file: Option<(File, bool)>,
}

impl Unpacking<'_> {
    fn apply(&mut self, event: NarEvent<'_>) -> Result<(), NarError> {
        match event {
            NarEvent::Entry { name } => self.name = name,
            NarEvent::Directory => {
                self.on("create the directory", |dir, name| dir.create_dir(name))?;
                let entered = self.descent.enter(&self.name);
                entered.map_err(|cause| self.failed("open the directory", cause))?;
            }
            NarEvent::DirectoryEnd => self.descent.leave(),
            NarEvent::Symlink { target } => {
                self.on("create the symlink", |dir, name| dir.symlink_contents(OsStr::from_bytes(&target), name))?;
            }
            NarEvent::Regular { executable, .. } => {
                let file = self.on("create the file", |dir, name| {
                    let mut options = OpenOptions::new();
                    options.write(true).create_new(true).mode(0o600);
                    dir.open_with(name, options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()))
                })?;
                self.file = Some((file, executable));
            }
            NarEvent::Contents(bytes) => {
                if let Some((file, _)) = &mut self.file {
                    let written = file.write_all(bytes);
                    written.map_err(|cause| self.failed("write the file", cause))?;
                }
            }
            NarEvent::RegularEnd => {
                if let Some((file, executable)) = self.file.take() {
                    let mode = if executable { 0o555 } else { 0o444 };
                    let set = file.set_permissions(Permissions::from_mode(mode));
                    set.map_err(|cause| self.failed("set the mode of", cause))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the node that comes next in the current directory.
    fn on<T>(
        &mut self,
        action: &'static str,
        act: impl FnOnce(&Dir, &OsStr) -> std::io::Result<T>,
    ) -> Result<T, NarError> {
        let made = self.descent.current().and_then(|dir| act(dir, OsStr::from_bytes(&self.name)));
        made.map_err(|cause| self.failed(action, cause))
    }

    fn failed(&self, action: &'static str, cause: std::io::Error) -> NarError {
        NarError::File { action, path: shown_path(&self.descent, &self.name), cause }
    }
}
