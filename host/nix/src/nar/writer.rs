//! Writing archives: token by token ([`NarWriter`]), or a tree below a directory handle ([`write_nar`]).

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{FileType, OFlags};

use super::decoder::{check_name, padding_of};
use super::descent::Descent;
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
/// Memory does not depend on the size of files, only on the number of names in the directories on the way down; the number
/// of open files does not depend on the depth. `output` gets many small writes: buffer it. Sockets, devices and pipes are
/// refused. A tree that changes meanwhile gives an error or an archive of one of its states, file by file, and never leaves
/// `dir`.
pub fn write_nar(dir: &Dir, name: impl AsRef<Path>, output: impl Write) -> Result<u64, NarError> {
    let name = name.as_ref().as_os_str();
    let mut packing = Packing {
        writer: NarWriter::new(output)?,
        buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
        descent: Descent::new(dir),
        left: Vec::new(),
    };
    packing.tree(name.as_bytes())?;
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

struct Packing<'a, W> {
    writer: NarWriter<W>,
    buffer: Box<[u8]>,
    descent: Descent<'a>,
    /// Of each directory that is open, the names that are still to be written.
    left: Vec<std::vec::IntoIter<Vec<u8>>>,
}

impl<W: Write> Packing<'_, W> {
    fn tree(&mut self, name: &[u8]) -> Result<(), NarError> {
        self.node(name)?;
        while let Some(names) = self.left.last_mut() {
            if let Some(name) = names.next() {
                self.writer.entry(&name)?;
                self.node(&name)?;
            } else {
                self.left.pop();
                self.descent.leave();
                self.writer.directory_end()?;
                self.entry_end()?;
            }
        }
        Ok(())
    }

    /// Writes a file or symlink; of a directory its beginning, and it is the current one from then on.
    fn node(&mut self, name: &[u8]) -> Result<(), NarError> {
        let metadata = self.on(name, "look at", |dir, name| dir.symlink_metadata(name))?;
        match FileType::from_raw_mode(metadata.mode()) {
            FileType::Symlink => {
                let target = self.on(name, "read the symlink", |dir, name| dir.read_link_contents(name))?;
                self.writer.symlink(target.as_os_str().as_bytes())?;
                self.entry_end()
            }
            FileType::RegularFile => {
                let file = self.on(name, "open", |dir, name| {
                    // Without blocking, should a pipe have taken the file's place since we looked.
                    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
                    let mut options = OpenOptions::new();
                    dir.open_with(name, options.read(true).custom_flags(flags.bits().cast_signed()))
                })?;
                let metadata = file.metadata().map_err(|cause| self.failed("look at", name, cause))?;
                let executable = metadata.mode() & 0o100 != 0;
                let path = shown_path(&self.descent, name);
                self.writer.regular(executable, metadata.len(), file, &mut self.buffer, &path)?;
                self.entry_end()
            }
            FileType::Directory => {
                if self.descent.depth() >= DEPTH_MAX {
                    return Err(NarError::TooDeep { max: DEPTH_MAX });
                }
                self.writer.directory()?;
                self.descent.enter(name).map_err(|cause| self.failed("open", name, cause))?;
                let names = sorted_names(&mut self.descent).map_err(|cause| self.failed("list", b".", cause))?;
                self.left.push(names.into_iter());
                Ok(())
            }
            FileType::Fifo => Err(self.unsupported(name, "a pipe")),
            FileType::Socket => Err(self.unsupported(name, "a socket")),
            FileType::CharacterDevice => Err(self.unsupported(name, "a character device")),
            FileType::BlockDevice => Err(self.unsupported(name, "a block device")),
            FileType::Unknown => Err(self.unsupported(name, "of an unknown type")),
        }
    }

    /// Ends the entry that holds the node just written; the root is no entry.
    fn entry_end(&mut self) -> Result<(), NarError> {
        if self.left.is_empty() { Ok(()) } else { self.writer.entry_end() }
    }

    /// Does something with `name` in the current directory.
    fn on<T>(
        &mut self,
        name: &[u8],
        action: &'static str,
        act: impl FnOnce(&Dir, &OsStr) -> io::Result<T>,
    ) -> Result<T, NarError> {
        let done = self.descent.current().and_then(|dir| act(dir, OsStr::from_bytes(name)));
        done.map_err(|cause| self.failed(action, name, cause))
    }

    fn failed(&self, action: &'static str, name: &[u8], cause: io::Error) -> NarError {
        NarError::File { action, path: shown_path(&self.descent, name), cause }
    }

    fn unsupported(&self, name: &[u8], kind: &'static str) -> NarError {
        NarError::UnsupportedType { path: shown_path(&self.descent, name), kind }
    }
}

fn sorted_names(descent: &mut Descent<'_>) -> io::Result<Vec<Vec<u8>>> {
    let entries = descent.current()?.entries()?;
    let mut names = entries.map(|entry| Ok(entry?.file_name().into_vec())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Where `name` of the current directory is, for messages. The first name is the root's.
pub(super) fn shown_path(descent: &Descent<'_>, name: &[u8]) -> String {
    descent.names().chain([name]).map(shown).collect::<Vec<_>>().join("/")
}
