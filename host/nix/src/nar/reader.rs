//! Reading an archive event by event from a blocking stream, without reading a byte beyond its end.

use std::io::BufRead;

use super::{Decoder, Limits, NarError, Token};

/// One step in the structure of an archive, with the bytes of files in place.
#[derive(Debug, PartialEq, Eq)]
pub enum NarEvent<'a> {
    /// A regular file begins.
    Regular {
        /// Whether the file may be executed.
        executable: bool,
        /// Bytes of the file.
        size: u64,
        /// Where the first byte of the file is in the archive.
        offset: u64,
    },
    /// The next bytes of the current file, never empty.
    Contents(&'a [u8]),
    /// The regular file is complete.
    RegularEnd,
    /// A directory begins.
    Directory,
    /// The next node is an entry of the current directory and has this name.
    Entry {
        /// The checked file name.
        name: Vec<u8>,
    },
    /// The directory is complete.
    DirectoryEnd,
    /// A symlink.
    Symlink {
        /// Where it points to.
        target: Vec<u8>,
    },
}

/// Reads one archive. Several archives in a row can be read from one stream, one reader after the other.
#[derive(Debug)]
pub struct NarReader<R> {
    input: R,
    decoder: Decoder,
    /// Bytes at the front of the input's buffer that the last event showed.
    shown_bytes: usize,
}

impl<R: BufRead> NarReader<R> {
    /// A reader for the archive that starts at the next byte of `input`.
    pub fn new(input: R, limits: Limits) -> Self {
        Self { input, decoder: Decoder::new(limits), shown_bytes: 0 }
    }

    /// The next event; `None` once the archive is over.
    ///
    /// Fails where the bytes are not a canonical archive within the limits, or the stream fails. Not to be called after an error.
    pub fn next_event(&mut self) -> Result<Option<NarEvent<'_>>, NarError> {
        self.input.consume(std::mem::take(&mut self.shown_bytes));
        while !self.decoder.is_done() {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(NarError::Read(cause)),
            };
            if buffer.is_empty() {
                return Err(NarError::Truncated { offset: self.decoder.offset() });
            }
            let step = self.decoder.push(buffer)?;
            let event = match step.token {
                Some(Token::Contents) => {
                    self.shown_bytes = step.consumed;
                    // Asked again because the first borrow cannot leave the loop; buffered readers answer from their buffer.
                    let buffer = self.input.fill_buf().map_err(NarError::Read)?;
                    return Ok(Some(NarEvent::Contents(&buffer[..step.consumed])));
                }
                Some(Token::Regular { executable, size, offset }) => {
                    Some(NarEvent::Regular { executable, size, offset })
                }
                Some(Token::RegularEnd) => Some(NarEvent::RegularEnd),
                Some(Token::Directory) => Some(NarEvent::Directory),
                Some(Token::Entry { name }) => Some(NarEvent::Entry { name }),
                Some(Token::DirectoryEnd) => Some(NarEvent::DirectoryEnd),
                Some(Token::Symlink { target }) => Some(NarEvent::Symlink { target }),
                None => None,
            };
            self.input.consume(step.consumed);
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Bytes of the archive read so far.
    pub fn offset(&self) -> u64 {
        self.decoder.offset()
    }

    /// Fails unless the archive and the stream are both over.
    pub fn expect_end(&mut self) -> Result<(), NarError> {
        self.decoder.finish()?;
        self.input.consume(std::mem::take(&mut self.shown_bytes));
        if self.input.fill_buf().map_err(NarError::Read)?.is_empty() {
            Ok(())
        } else {
            Err(NarError::TrailingData { offset: self.decoder.offset() })
        }
    }
}
