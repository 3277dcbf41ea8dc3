//! What sees every byte in passing: hash, listing, bound, and the way to the compressor. Start at [`Tee`].

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use harmonia_core::limits::LISTING_BYTES_MAX;
use harmonia_nix::Sha256Hash;
use harmonia_nix::nar::{Limits, ListingWriter};
use sha2::{Digest as _, Sha256};

/// A listing of more files would exceed what a signer takes anyway; stopping there bounds our memory.
const LISTED_NODES_MAX: u64 = 100_000;

/// Why the tee refused to go on. Travels inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Interruption {
    #[error("the archive is too large")]
    TooLarge,
    #[error("nobody waits for the archive any more")]
    NotWanted,
}

impl Interruption {
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Passes an archive on to `output` and keeps its hash, size and listing.
pub(super) struct Tee<'a, W> {
    output: W,
    hasher: Sha256,
    size: u64,
    size_max: u64,
    /// `None` once the archive turned out to have no listing.
    listing: Option<ListingWriter>,
    wanted: &'a AtomicBool,
}

/// What is left when the archive is over.
pub(super) struct TeeParts<W> {
    pub(super) output: W,
    pub(super) hash: Sha256Hash,
    pub(super) size: u64,
    pub(super) listing: Option<String>,
}

impl<'a, W: Write> Tee<'a, W> {
    pub(super) fn new(output: W, size_max: u64, wanted: &'a AtomicBool) -> Self {
        let limits = Limits { nodes_max: LISTED_NODES_MAX, ..Limits::of_size(size_max) };
        let listing = Some(ListingWriter::new(limits, LISTING_BYTES_MAX));
        Self { output, hasher: Sha256::new(), size: 0, size_max, listing, wanted }
    }

    pub(super) fn finish(self) -> TeeParts<W> {
        TeeParts {
            output: self.output,
            hash: Sha256Hash::from_bytes(self.hasher.finalize().into()),
            size: self.size,
            listing: self.listing.and_then(|listing| listing.finish().ok()),
        }
    }
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.wanted.load(Ordering::Relaxed) {
            return Err(io::Error::other(Interruption::NotWanted));
        }
        if self.size + bytes.len() as u64 > self.size_max {
            return Err(io::Error::other(Interruption::TooLarge));
        }
        self.output.write_all(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        // Names that are not UTF-8, or too many files: such a tree is sound, it only has no listing.
        if let Some(listing) = &mut self.listing
            && listing.write_all(bytes).is_err()
        {
            self.listing = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Flushing the compressor would cut its blocks short.
        Ok(())
    }
}

/// Hashes and counts what goes to a file.
pub(super) struct Counted {
    file: File,
    hasher: Sha256,
    size: u64,
}

impl Counted {
    pub(super) fn new(file: File) -> Self {
        Self { file, hasher: Sha256::new(), size: 0 }
    }

    pub(super) fn finish(self) -> (Sha256Hash, u64, File) {
        (Sha256Hash::from_bytes(self.hasher.finalize().into()), self.size, self.file)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
