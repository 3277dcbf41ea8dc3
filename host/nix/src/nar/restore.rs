//! Unpacking an archive below a directory handle, from which nothing that the archive says can escape.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;

use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use rustix::fs::OFlags;

use super::decoder::check_name;
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
    let mut unpacking = Unpacking { top: dir, open: Vec::new(), name: name.as_ref().as_bytes().to_vec(), file: None };
    while let Some(event) = reader.next_event()? {
        unpacking.apply(event)?;
    }
    Ok(())
}

struct Unpacking<'a> {
    top: &'a Dir,
    /// Directories that are being filled, with the name of each for messages.
    open: Vec<(Vec<u8>, Dir)>,
    /// Name of the node that comes next.
    name: Vec<u8>,
    file: Option<(File, bool)>,
}

impl Unpacking<'_> {
    fn apply(&mut self, event: NarEvent<'_>) -> Result<(), NarError> {
        match event {
            NarEvent::Entry { name } => self.name = name,
            NarEvent::Directory => {
                let made = self.parent().create_dir(self.file_name());
                made.map_err(|cause| self.failed("create the directory", cause))?;
                let opened = self.open_new_directory();
                let opened = opened.map_err(|cause| self.failed("open the directory", cause))?;
                self.open.push((std::mem::take(&mut self.name), opened));
            }
            NarEvent::DirectoryEnd => {
                self.open.pop();
            }
            NarEvent::Symlink { target } => {
                let target = OsStr::from_bytes(&target);
                let made = self.parent().symlink_contents(target, self.file_name());
                made.map_err(|cause| self.failed("create the symlink", cause))?;
            }
            NarEvent::Regular { executable, .. } => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
                let file = self.parent().open_with(self.file_name(), &options);
                let file = file.map_err(|cause| self.failed("create the file", cause))?;
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

    fn parent(&self) -> &Dir {
        self.open.last().map_or(self.top, |(_, dir)| dir)
    }

    fn file_name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// Opens the directory just made, but not what another process may have put in its place.
    fn open_new_directory(&self) -> std::io::Result<Dir> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed());
        let file = self.parent().open_with(self.file_name(), &options)?;
        Ok(Dir::from_std_file(file.into_std()))
    }

    fn failed(&self, action: &'static str, cause: std::io::Error) -> NarError {
        let names = self.open.iter().map(|(name, _)| name.as_slice()).chain([self.name.as_slice()]);
        let path = names.map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/");
        NarError::File { action, path, cause }
    }
}
