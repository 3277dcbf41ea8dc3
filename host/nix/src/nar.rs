//! NAR archives: the serialisation of a file tree that Nix hashes, signs and ships.
//!
//! Start reading at [`Decoder`]: the one place that knows the grammar of the format. It does no I/O, so the same
//! code serves blocking readers ([`NarReader`], [`unpack_nar`], [`ListingWriter`]) and the asynchronous worker protocol.
//! The writing half is [`write_nar`] (a tree below a directory handle) on top of [`NarWriter`] (token by token).
//!
//! Format: E. Dolstra, "The Purely Functional Software Deployment Model", figure 5.2, with entries sorted by bytes.
//! What this module reads is canonical: a tree has exactly one accepted archive, which is the one the writer makes.

mod decoder;
mod descent;
mod error;
mod listing;
mod reader;
mod restore;
mod writer;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Step, Token};
pub use descent::Descent;
pub use error::NarError;
pub use listing::{ListingError, ListingWriter, check_listing, listing_of};
pub use reader::{NarEvent, NarReader};
pub use restore::{unpack_nar, unpack_next};
pub use writer::{NarWriter, pack_path, write_nar};

/// The first string of every archive.
pub const NAR_MAGIC: &str = "nix-archive-1";

/// Longest file name, in bytes (`NAME_MAX` of Linux file systems).
pub const NAME_BYTES_MAX: u64 = 255;

/// Longest symlink target, in bytes (`PATH_MAX` of Linux).
pub const TARGET_BYTES_MAX: u64 = 4096;

/// Deepest nesting of directories that is read or written: no path on Linux has more names (`PATH_MAX`, each name with its
/// slash takes two bytes or more), so that this bounds memory and no tree of Nix.
pub const DEPTH_MAX: usize = TARGET_BYTES_MAX as usize / 2;

/// What an archive from outside may cost. Reaching a bound is an error that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of the whole archive.
    pub nar_bytes_max: u64,
    /// Deepest nesting of directories; the root is at depth 1.
    pub depth_max: usize,
    /// Most nodes (files, directories and symlinks together).
    pub nodes_max: u64,
}

impl Limits {
    /// The usual depth and number of nodes, and at most `nar_bytes_max` bytes in all: use the NAR size that was promised.
    pub const fn of_size(nar_bytes_max: u64) -> Self {
        Self { nar_bytes_max, depth_max: DEPTH_MAX, nodes_max: 10_000_000 }
    }
}
