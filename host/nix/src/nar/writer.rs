//! Writing archives: token by token ([`NarWriter`]), or a tree below a directory handle ([`write_nar`]).

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{FileType, OFlags};

use super::decoder::{check_name, padding_of};
use super::error::shown;
use super::{DEPTH_MAX, NAR_MAGIC, NarError, TARGET_BYTES_MAX};

const BUFFER_BYTES: usize = 128 << 10;

/// Writes the words of one archive. The caller keeps the order; names are checked for validity, not for order.
#[derive(Debug)]
pub struct NarWriter<W> {
    output: W,
    written: u64,
}

impl<W: Write> NarWriter<W> {
    /// Begins an archive; one node must follow.
    pub fn new(output: W) -> Result<Self, NarError> {
        let mut writer = Self { output, written: 0 };
        writer.words(&[NAR_MAGIC.as_bytes()])?;
        Ok(writer)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes a symlink node.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), NarError> {
        let offset = self.written;
        let length = target.len() as u64;
        if target.is_empty() {
            return Err(NarError::EmptyTarget { offset });
        }
        if length > TARGET_BYTES_MAX {
            return Err(NarError::StringTooLong { offset, what: "a symlink target", length, max: TARGET_BYTES_MAX });
        }
        self.words(&[b"(", b"type", b"symlink", b"target", target, b")"])
    }

    /// Writes a regular file node of exactly `size` bytes taken from `contents`.
    ///
    /// `path` is named in the error when `contents` fails or ends too early.
    pub fn regular(
        &mut self,
        executable: bool,
        size: u64,
        mut contents: impl Read,
        buffer: &mut [u8],
        path: &str,
    ) -> Result<(), NarError> {
        self.words(&[b"(", b"type", b"regular"])?;
        if executable {
            self.words(&[b"executable", b""])?;
        }
        self.words(&[b"contents"])?;
        self.bytes(&size.to_le_bytes())?;
        let mut left = size;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            match contents.read(&mut buffer[..want]) {
                Ok(0) => {
                    return Err(NarError::Changed { path: path.to_owned(), expected: size, found: size - left });
                }
                Ok(length) => {
                    self.bytes(&buffer[..length])?;
                    left -= length as u64;
                }
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(NarError::File { action: "read", path: path.to_owned(), cause }),
            }
        }
        self.bytes(&[0; 8][..padding_of(size)])?;
        self.words(&[b")"])
    }

    /// Opens a directory node: entries in the order of their bytes, then [`NarWriter::directory_end`].
    pub fn directory(&mut self) -> Result<(), NarError> {
        self.words(&[b"(", b"type", b"directory"])
    }

    /// Begins an entry of the open directory; a node must follow, then [`NarWriter::entry_end`].
    pub fn entry(&mut self, name: &[u8]) -> Result<(), NarError> {
        check_name(name, self.written)?;
        self.words(&[b"entry", b"(", b"name", name, b"node"])
    }

    /// Ends the entry.
    pub fn entry_end(&mut self) -> Result<(), NarError> {
        self.words(&[b")"])
    }

    /// Ends the directory.
    pub fn directory_end(&mut self) -> Result<(), NarError> {
        self.words(&[b")"])
    }

    /// Hands back the stream. The caller flushes it.
    pub fn into_inner(self) -> W {
        self.output
    }

    fn words(&mut self, words: &[&[u8]]) -> Result<(), NarError> {
        for word in words {
            self.bytes(&(word.len() as u64).to_le_bytes())?;
            self.bytes(word)?;
            self.bytes(&[0; 8][..padding_of(word.len() as u64)])?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.output.write_all(bytes).map_err(NarError::Write)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Writes the archive of the file, directory or symlink `name` in `dir`; returns its size in bytes.
///
/// Memory does not depend on the size of files, only on the number of names in one directory. `output` gets many small
/// writes: buffer it. Sockets, devices and pipes are refused, and so are trees deeper than [`DEPTH_MAX`]. A tree that
/// changes meanwhile gives an error or an archive of one of its states, file by file, and never leaves `dir`.
pub fn write_nar(dir: &Dir, name: impl AsRef<Path>, output: impl Write) -> Result<u64, NarError> {
    let name = name.as_ref().as_os_str();
    let mut packing = Packing {
        writer: NarWriter::new(output)?,
        buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        path: name.to_string_lossy().into_owned(),
    };
    packing.node(dir, name, 0)?;
    Ok(packing.writer.written())
}

/// [`write_nar`] for a path of this machine, which is not followed when it is a symlink.
pub fn pack_path(path: &Path, output: impl Write) -> Result<u64, NarError> {
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
        (Some(parent), Some(name)) => (parent, name),
        // "/", "." or something that ends in "..": a directory in any case.
        _ => (path, ".".as_ref()),
    };
    let dir = Dir::open_ambient_dir(parent, ambient_authority()).map_err(|cause| NarError::File {
        action: "open the directory",
        path: parent.to_string_lossy().into_owned(),
        cause,
    })?;
    write_nar(&dir, name, output)
}

struct Packing<W> {
    writer: NarWriter<W>,
    buffer: Box<[u8]>,
    /// Where we are, for messages.
    path: String,
}

impl<W: Write> Packing<W> {
    fn node(&mut self, dir: &Dir, name: &std::ffi::OsStr, depth: usize) -> Result<(), NarError> {
        let metadata = dir.symlink_metadata(name).map_err(|cause| self.failed("look at", cause))?;
        match FileType::from_raw_mode(metadata.mode()) {
            FileType::Symlink => {
                let target = dir.read_link_contents(name).map_err(|cause| self.failed("read the symlink", cause))?;
                self.writer.symlink(target.as_os_str().as_bytes())
            }
            FileType::RegularFile => {
                // Without blocking, should a pipe have taken the file's place since we looked.
                let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file = self.open(dir, name, flags)?;
                let metadata = file.metadata().map_err(|cause| self.failed("look at", cause))?;
                let executable = metadata.mode() & 0o100 != 0;
                self.writer.regular(executable, metadata.len(), file, &mut self.buffer, &self.path)
            }
            FileType::Directory => {
                if depth >= DEPTH_MAX {
                    return Err(NarError::TooDeep { max: DEPTH_MAX });
                }
                let file = self.open(dir, name, OFlags::NOFOLLOW | OFlags::DIRECTORY)?;
                self.directory(&Dir::from_std_file(file.into_std()), depth)
            }
            FileType::Fifo => Err(self.unsupported("a pipe")),
            FileType::Socket => Err(self.unsupported("a socket")),
            FileType::CharacterDevice => Err(self.unsupported("a character device")),
            FileType::BlockDevice => Err(self.unsupported("a block device")),
            FileType::Unknown => Err(self.unsupported("of an unknown type")),
        }
    }

    fn directory(&mut self, dir: &Dir, depth: usize) -> Result<(), NarError> {
        self.writer.directory()?;
        for name in self.sorted_names(dir)? {
            self.writer.entry(&name)?;
            let length = self.path.len();
            self.path.push('/');
            self.path.push_str(&shown(&name));
            self.node(dir, &OsString::from_vec(name), depth + 1)?;
            self.path.truncate(length);
            self.writer.entry_end()?;
        }
        self.writer.directory_end()
    }

    fn sorted_names(&self, dir: &Dir) -> Result<Vec<Vec<u8>>, NarError> {
        let entries = dir.entries().map_err(|cause| self.failed("list", cause))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|cause| self.failed("list", cause))?;
            names.push(entry.file_name().into_vec());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, dir: &Dir, name: &std::ffi::OsStr, flags: OFlags) -> Result<File, NarError> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        dir.open_with(name, &options).map_err(|cause| self.failed("open", cause))
    }

    fn failed(&self, action: &'static str, cause: std::io::Error) -> NarError {
        NarError::File { action, path: self.path.clone(), cause }
    }

    fn unsupported(&self, kind: &'static str) -> NarError {
        NarError::UnsupportedType { path: self.path.clone(), kind }
    }
}
