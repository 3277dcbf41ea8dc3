//! Turns a store path into what a binary cache keeps: one pass gives the NAR's hash and size, the listing, the zstd
//! stream and its hash and size. Start at [`pack`].
//!
//! The compressed bytes go to a temporary file, since a presigned PUT fixes length and checksum before the first byte.
//! Memory does not depend on the size of the path: the tree is read in pieces, and the compressor has a window.

mod tee;

#[cfg(test)]
mod tests;

use std::io::{self, BufWriter, Read as _, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harmonia_core::log_end::{self, LOG_END_BYTES};
use harmonia_core::signer_api::PathInfo;
use harmonia_nix::nar::{NarError, pack_path};
use harmonia_nix::{ContentAddress, STORE_DIR, Sha256Hash, StorePath};
use tempfile::TempPath;

use tee::{Counted, Interruption, Tee};

/// What the archive writer's small writes are gathered into before they are hashed and compressed.
const NAR_BUFFER_BYTES: usize = 256 << 10;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// Where the compressed file is put; the caller checks that there is room.
    pub spool_dir: PathBuf,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Threads that compress, beside the one that reads and hashes. 0: that one compresses as well.
    pub compression_threads: u32,
    /// Largest NAR, in bytes.
    pub nar_bytes_max: u64,
}

impl PackOptions {
    /// Level 3 on two threads.
    pub fn new(spool_dir: PathBuf, nar_bytes_max: u64) -> Self {
        Self { spool_dir, level: 3, compression_threads: 2, nar_bytes_max }
    }
}

/// A store path, packed. Dropping it deletes the file.
#[derive(Debug)]
pub struct Packed {
    /// The zstd-compressed NAR.
    pub file: TempPath,
    /// Hash of the NAR.
    pub nar_hash: Sha256Hash,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// Hash of the compressed file.
    pub file_hash: Sha256Hash,
    /// Size of the compressed file in bytes.
    pub file_size: u64,
    /// The listing as JSON; `None` when names are not UTF-8, or it would be larger than a signer takes.
    pub listing: Option<String>,
}

/// A file, compressed as it is. Dropping it deletes the compressed file.
#[derive(Debug)]
pub struct Compressed {
    /// The zstd bytes.
    pub file: TempPath,
    /// Their hash.
    pub file_hash: Sha256Hash,
    /// How many there are.
    pub file_size: u64,
}

/// Why a path could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It is larger than it may be.
    #[error("{path} is larger than the allowed {max} bytes")]
    TooLarge {
        /// The file tree.
        path: String,
        /// The bound in bytes.
        max: u64,
    },
    /// The tree cannot be read, or holds what an archive cannot.
    #[error("could not archive {path}")]
    Tree {
        /// The file tree.
        path: String,
        /// What is wrong.
        #[source]
        cause: NarError,
    },
    /// The compressed file could not be written.
    #[error("could not write a compressed archive in {dir}; is the disk full?")]
    Spool {
        /// The folder for temporary files.
        dir: PathBuf,
        /// The error of the operating system or of the compressor.
        #[source]
        cause: io::Error,
    },
    /// Whoever wanted it went away.
    #[error("packing was given up")]
    Cancelled,
}

/// Where the files of `path` are on this machine, when those of `/nix/store` live under `store_root`.
pub fn physical_path(store_root: Option<&Path>, path: &StorePath) -> PathBuf {
    match store_root {
        Some(root) => root.join(STORE_DIR.trim_start_matches('/')).join(path.base_name()),
        None => PathBuf::from(path.as_str()),
    }
}

impl Packed {
    /// What a signer is told of `path`, packed here.
    pub fn path_info(
        &self,
        path: &StorePath,
        references: impl IntoIterator<Item = StorePath>,
        deriver: Option<&StorePath>,
        content_address: Option<&ContentAddress>,
    ) -> PathInfo {
        let mut references: Vec<String> = references.into_iter().map(|reference| reference.to_string()).collect();
        references.sort_unstable();
        references.dedup();
        PathInfo {
            path: path.to_string(),
            nar_hash: self.nar_hash.to_string(),
            nar_size: self.nar_size,
            file_hash: self.file_hash.to_string(),
            file_size: self.file_size,
            references,
            deriver: deriver.map(ToString::to_string),
            ca: content_address.map(ToString::to_string),
            listing: self.listing.clone(),
        }
    }
}

/// Packs the tree at `physical`, a path of this machine. Dropping the future stops the work and deletes the file.
pub async fn pack(physical: PathBuf, options: PackOptions) -> Result<Packed, PackError> {
    let wanted = Wanted(Arc::new(AtomicBool::new(true)));
    let flag = Arc::clone(&wanted.0);
    let packed = tokio::task::spawn_blocking(move || pack_blocking(&physical, &options, &flag)).await;
    drop(wanted);
    match packed {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down.
        Err(_) => Err(PackError::Cancelled),
    }
}

/// Tells the blocking thread, which nothing else can stop, that nobody waits for it any more.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn pack_blocking(physical: &Path, options: &PackOptions, wanted: &AtomicBool) -> Result<Packed, PackError> {
    let spool = |cause| PackError::Spool { dir: options.spool_dir.clone(), cause };
    let (file, path) =
        tempfile::Builder::new().prefix("pack-").tempfile_in(&options.spool_dir).map_err(spool)?.into_parts();

    let mut encoder = zstd::stream::write::Encoder::new(Counted::new(file), options.level).map_err(spool)?;
    // What unpacks it can then check each frame by itself.
    encoder.include_checksum(true).map_err(spool)?;
    if options.compression_threads > 0 {
        encoder.multithread(options.compression_threads).map_err(spool)?;
    }
    let mut tee = Tee::new(encoder, options.nar_bytes_max, wanted);

    let mut buffered = BufWriter::with_capacity(NAR_BUFFER_BYTES, &mut tee);
    let written = pack_path(physical, &mut buffered).and_then(|size| match buffered.flush() {
        Ok(()) => Ok(size),
        Err(cause) => Err(NarError::Write(cause)),
    });
    // Whatever is left in the buffer after an error must not be written while it is dropped.
    drop(buffered.into_parts());
    if let Err(cause) = written {
        return Err(explain(cause, physical, options));
    }

    let parts = tee.finish();
    let counted = parts.output.finish().map_err(spool)?;
    let (file_hash, file_size, file) = counted.finish();
    // Its bytes are read again for the PUT; errors that the kernel kept for later should show now.
    drop(file);
    Ok(Packed { file: path, nar_hash: parts.hash, nar_size: parts.size, file_hash, file_size, listing: parts.listing })
}

/// Compresses a log, with its end once more behind it ([`log_end`]).
pub async fn compress_log(plain: PathBuf, spool_dir: PathBuf, level: i32) -> Result<Compressed, PackError> {
    let dir = spool_dir.clone();
    let compress = move || -> io::Result<Compressed> {
        let (file, path) = tempfile::Builder::new().prefix("pack-").tempfile_in(&spool_dir)?.into_parts();
        let mut encoder = zstd::stream::write::Encoder::new(Counted::new(file), level)?;
        encoder.include_checksum(true)?;
        let mut plain = std::fs::File::open(&plain)?;
        let total = io::copy(&mut plain, &mut encoder)?;
        let mut counted = encoder.finish()?;
        plain.seek(io::SeekFrom::Start(total.saturating_sub(LOG_END_BYTES as u64)))?;
        let end = zstd::stream::encode_all(plain.take(LOG_END_BYTES as u64), level)?;
        counted.write_all(&log_end::frame(&end, total))?;
        let (file_hash, file_size, _) = counted.finish();
        Ok(Compressed { file: path, file_hash, file_size })
    };
    match tokio::task::spawn_blocking(compress).await {
        Ok(result) => result.map_err(|cause| PackError::Spool { dir, cause }),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(PackError::Cancelled),
    }
}

fn explain(error: NarError, physical: &Path, options: &PackOptions) -> PackError {
    let path = physical.display().to_string();
    match error {
        NarError::Write(cause) => match Interruption::of(&cause) {
            Some(Interruption::TooLarge) => PackError::TooLarge { path, max: options.nar_bytes_max },
            Some(Interruption::NotWanted) => PackError::Cancelled,
            None => PackError::Spool { dir: options.spool_dir.clone(), cause },
        },
        cause => PackError::Tree { path, cause },
    }
}
