//! The log of a build on disk, where `nix log` looks for it. Start at [`BuildLog`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bzip2::Compression;
use bzip2::write::BzEncoder;

/// Lines are gathered so far before they are compressed: most logs are smaller, and then need no encoder while they grow.
const GATHERED_BYTES: usize = 64 << 10;

/// Writes a log.
#[derive(Debug)]
pub(super) struct BuildLog {
    path: PathBuf,
    gathered: Vec<u8>,
    file: Option<Sink>,
    compress: bool,
}

enum Sink {
    Plain(File),
    Compressed(Box<BzEncoder<File>>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Compressed(_) => "Compressed",
        })
    }
}

impl BuildLog {
    /// Goes to this path, with an ending when compressed. Nothing is made before there is something to write.
    pub(super) fn new(path: &Path, compress: bool) -> Self {
        let mut path = path.to_owned();
        if compress {
            path.as_mut_os_string().push(".bz2");
        }
        Self { path, gathered: Vec::new(), file: None, compress }
    }

    /// Adds what the builder printed.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHERED_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            if let Some(parent) = self.path.parent() {
                fs::create_dir_all(parent)?;
            }
            let file = File::create(&self.path)?;
            self.file = Some(if self.compress {
                Sink::Compressed(Box::new(BzEncoder::new(file, Compression::fast())))
            } else {
                Sink::Plain(file)
            });
        }
        match &mut self.file {
            Some(Sink::Plain(file)) => file.write_all(&self.gathered)?,
            Some(Sink::Compressed(file)) => file.write_all(&self.gathered)?,
            None => {}
        }
        self.gathered.clear();
        Ok(())
    }

    /// Writes the rest.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        match self.file {
            Some(Sink::Compressed(file)) => file.finish().map(drop),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use bzip2::read::BzDecoder;

    use super::*;

    #[test]
    fn logs_of_any_size_can_be_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        for (length, compress) in [(0, true), (10, true), (150_000, true), (150_000, false), (0, false)] {
            let path = dir.path().join(format!("ab/{length}-{compress}"));
            let text: Vec<u8> = (0..length).map(|number: u32| b'a' + (number % 23) as u8).collect();
            let mut log = BuildLog::new(&path, compress);
            for piece in text.chunks(777) {
                log.write(piece).expect("written");
            }
            log.finish().expect("finished");
            let mut read = Vec::new();
            if compress {
                let file = File::open(path.with_file_name(format!("{length}-{compress}.bz2"))).expect("a file");
                BzDecoder::new(file).read_to_end(&mut read).expect("bzip2");
            } else {
                read = fs::read(&path).expect("a file");
            }
            assert!(read == text, "{length} {compress}");
        }
    }
}
