//! An archive on its way: unpacked, counted and hashed, to whoever reads. Start at [`Archive`].
//!
//! The reader fails where the stream breaks off or turns out to be wrong, and never ends as if all were well: it ends only
//! if size and hash are right. Its errors carry a [`FetchError`] ([`Archive::cause`]).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use async_compression::tokio::bufread::{BrotliDecoder, BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use bytes::Bytes;
use futures_util::{Stream, stream};
use harmonia_nix::hash::Hasher;
use harmonia_nix::{Hash, HashAlgorithm, NarHash, NarInfo, Sha256Hash};
use tokio::io::{AsyncBufRead, AsyncRead, BufReader, ReadBuf};
use tokio_util::io::StreamReader;

use super::FetchError;
use super::body::{Body, into_io};

const BUFFER_BYTES: usize = 128 << 10;
/// Most memory that unpacking one xz file takes; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The archive of a path.
pub struct Archive {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    digest: Digest,
    nar_size_bytes: u64,
    nar_hash: NarHash,
    file: Arc<Mutex<Digest>>,
    file_hash: Option<Sha256Hash>,
    is_over: bool,
}

impl Archive {
    pub(super) fn new(body: Body, info: &NarInfo) -> Result<Self, FetchError> {
        let file = Arc::new(Mutex::new(Digest::default()));
        let received = Hashing { inner: StreamReader::new(Box::pin(chunks(body))), digest: Arc::clone(&file) };
        Ok(Self {
            inner: unpack(&info.compression, BufReader::with_capacity(BUFFER_BYTES, received))?,
            digest: Digest::default(),
            nar_size_bytes: info.nar_size,
            nar_hash: info.nar_hash,
            file,
            file_hash: info.file_hash,
            is_over: false,
        })
    }

    /// What is wrong with an archive, from the error that reading it gave (perhaps passed on by another reader).
    pub fn cause(error: &io::Error) -> Option<&FetchError> {
        let mut cause = error.get_ref()? as &(dyn std::error::Error + 'static);
        loop {
            if let Some(found) = cause.downcast_ref() {
                return Some(found);
            }
            cause = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => inner,
                None => cause.source()?,
            };
        }
    }

    fn check(&self) -> Result<(), FetchError> {
        if self.digest.size_bytes != self.nar_size_bytes {
            return Err(FetchError::Size { found: self.digest.size_bytes, promised: self.nar_size_bytes });
        }
        let compare = |what, found: Hash, promised: Sha256Hash| {
            if found == promised.into() {
                return Ok(());
            }
            Err(FetchError::Hash { what, found: found.to_string(), promised: promised.to_string() })
        };
        compare("archive", self.digest.hash(), self.nar_hash)?;
        match self.file_hash {
            Some(promised) => {
                let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
                compare("compressed file", file.hash(), promised)
            }
            None => Ok(()),
        }
    }
}

impl AsyncRead for Archive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if let Err(error) = ready!(Pin::new(&mut self.inner).poll_read(context, buffer)) {
            // What the connection did is told by itself; everything else is the decoder's complaint.
            let is_told = Self::cause(&error).is_some();
            buffer.set_filled(before);
            return Poll::Ready(Err(if is_told { error } else { into_io(FetchError::Unpack(error)) }));
        }
        let this = &mut *self;
        let new = &buffer.filled()[before..];
        if new.is_empty() {
            this.is_over = true;
            return Poll::Ready(this.check().map_err(into_io));
        }
        this.digest.update(new);
        if this.digest.size_bytes > this.nar_size_bytes {
            let error = FetchError::Size { found: this.digest.size_bytes, promised: this.nar_size_bytes };
            // Readers may fail or give bytes, not both.
            buffer.set_filled(before);
            return Poll::Ready(Err(into_io(error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("nar_size_bytes", &self.nar_size_bytes).finish_non_exhaustive()
    }
}

fn chunks(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(body, |mut body| async move {
        let chunk = body.chunk().await.map_err(into_io)?;
        Ok(chunk.map(|chunk| (chunk, body)))
    })
}

fn unpack(
    compression: &str,
    packed: impl AsyncBufRead + Send + Unpin + 'static,
) -> Result<Box<dyn AsyncRead + Send + Unpin>, FetchError> {
    // Several frames in a row are one file (parallel compressors write such), and reading to the last byte lets the
    // file's hash be checked.
    Ok(match compression {
        "zstd" => {
            let mut decoder = ZstdDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        "xz" => {
            let mut decoder = XzDecoder::with_mem_limit(packed, XZ_MEMORY_BYTES_MAX);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        "gzip" => {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        "bzip2" => {
            let mut decoder = BzDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        // Has no frames that could follow each other.
        "br" => Box::new(BrotliDecoder::new(packed)),
        "none" | "" => Box::new(packed),
        other => return Err(FetchError::Compression(other.chars().take(40).collect())),
    })
}

struct Digest {
    hasher: Hasher,
    size_bytes: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { hasher: Hasher::new(HashAlgorithm::Sha256), size_bytes: 0 }
    }
}

impl Digest {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    fn hash(&self) -> Hash {
        self.hasher.clone().finish()
    }
}

/// Hashes what passes.
struct Hashing<R> {
    inner: R,
    digest: Arc<Mutex<Digest>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Hashing<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.digest.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}
