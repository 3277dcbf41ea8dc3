//! Bulk data of a request, read by a thread that may block. Start at [`Bulk`].

use std::io::{self, BufRead, Read};

use harmonia_nix::nar::{Decoder, Limits, NarError, Token};
use harmonia_nix::worker_protocol::framed::FramedReader;
use tokio::io::BufReader;
use tokio_util::io::SyncIoBridge;

use super::connection::Reader;

/// What is read from the socket at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// The rest of a request. Whoever has it must hand the reader back with [`Bulk::finish`].
pub(super) enum Bulk {
    /// In frames.
    Framed(Box<io::BufReader<SyncIoBridge<FramedReader<BufReader<Reader>>>>>),
    /// One archive as it is, whose end is its own (before 1.25).
    Plain(Box<SyncIoBridge<BufReader<Reader>>>),
}

impl Bulk {
    /// Must be called on the runtime, for its handle.
    pub(super) fn framed(reader: BufReader<Reader>) -> Self {
        let bridge = SyncIoBridge::new(FramedReader::new(reader));
        Self::Framed(Box::new(io::BufReader::with_capacity(BUFFER_BYTES, bridge)))
    }

    /// Likewise.
    pub(super) fn plain(reader: BufReader<Reader>) -> Self {
        Self::Plain(Box::new(SyncIoBridge::new(reader)))
    }

    /// Reads what nobody wanted, so that the next request can be read.
    pub(super) fn finish(self) -> io::Result<BufReader<Reader>> {
        match self {
            Self::Framed(mut framed) => {
                io::copy(&mut framed, &mut io::sink())?;
                Ok(framed.into_inner().into_inner().into_inner())
            }
            Self::Plain(plain) => Ok(plain.into_inner()),
        }
    }
}

impl Read for Bulk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Framed(framed) => framed.read(buffer),
            Self::Plain(plain) => plain.read(buffer),
        }
    }
}

impl BufRead for Bulk {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Framed(framed) => framed.fill_buf(),
            Self::Plain(plain) => plain.fill_buf(),
        }
    }

    fn consume(&mut self, length: usize) {
        match self {
            Self::Framed(framed) => framed.consume(length),
            Self::Plain(plain) => plain.consume(length),
        }
    }
}

/// Which bytes of an archive are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of them.
    Archive,
    /// Those of the one file that it holds.
    Contents,
}

/// The bytes of one archive at the front of a longer stream: ends where the archive ends.
pub(super) struct OneArchive<R> {
    input: R,
    decoder: Decoder,
    part: Part,
    /// Wanted bytes at the front of the input's buffer, and how many follow that are not.
    shown: usize,
}

impl<R: BufRead> OneArchive<R> {
    pub(super) fn new(input: R, part: Part) -> Self {
        Self { input, decoder: Decoder::new(Limits::of_size(u64::MAX)), part, shown: 0 }
    }

    /// Reads on to the end of the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink()).map(drop)
    }

    /// Makes `shown` more than 0 unless the archive is over.
    fn advance(&mut self) -> io::Result<()> {
        while self.shown == 0 && !self.decoder.is_done() {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = self.decoder.push(buffer).map_err(invalid)?;
            match (self.part, step.token) {
                (Part::Archive, _) | (Part::Contents, Some(Token::Contents)) => self.shown = step.consumed,
                (Part::Contents, Some(Token::Directory | Token::Symlink { .. })) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a regular file is expected"));
                }
                (Part::Contents, _) => self.input.consume(step.consumed),
            }
        }
        Ok(())
    }
}

fn invalid(error: NarError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<R: BufRead> Read for OneArchive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let shown = self.fill_buf()?;
        let length = shown.len().min(buffer.len());
        buffer[..length].copy_from_slice(&shown[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for OneArchive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.advance()?;
        if self.shown == 0 {
            return Ok(&[]);
        }
        Ok(&self.input.fill_buf()?[..self.shown])
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.shown -= length;
    }
}

#[cfg(test)]
mod tests {
    use harmonia_nix::nar::NarWriter;

    use super::*;

    fn archive(contents: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = NarWriter::new(&mut bytes).expect("memory");
        let size = contents.len() as u64;
        writer.regular(true, size, contents, &mut [0; 100], "x").expect("memory");
        bytes
    }

    #[test]
    fn one_archive_ends_where_it_ends() {
        let contents = vec![7; 10_000];
        let (first, second) = (archive(&contents), archive(b"second"));
        let stream = [first.as_slice(), &second, b"rest"].concat();
        for size in [1, 7, 8, 4096, 1 << 20] {
            let mut input = io::BufReader::with_capacity(size, stream.as_slice());
            let mut read = Vec::new();
            OneArchive::new(&mut input, Part::Archive).read_to_end(&mut read).expect("an archive");
            assert_eq!(read, first);
            let mut one = OneArchive::new(&mut input, Part::Contents);
            let mut piece = [0; 3];
            one.read_exact(&mut piece).expect("three bytes");
            assert_eq!(&piece, b"sec");
            one.finish().expect("the rest of it");
            let mut rest = Vec::new();
            input.read_to_end(&mut rest).expect("memory");
            assert_eq!(rest, b"rest", "buffers of {size}");
        }
        let cut = &first[..first.len() - 1];
        assert!(OneArchive::new(cut, Part::Archive).finish().is_err());
    }
}
