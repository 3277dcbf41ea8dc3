//! An archive on its way: from HTTP, unpacked, counted and hashed, to whoever reads. Start at [`open`].
//!
//! The reader fails where the stream breaks off or turns out to be wrong, and never ends as if all were well: its last
//! bytes are handed out only if size and hash are right. Since readers can only fail with an [`io::Error`], what happened is
//! kept aside, in a [`Fault`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_compression::tokio::bufread::{BrotliDecoder, BzDecoder, GzipDecoder, Lz4Decoder, XzDecoder, ZstdDecoder};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use harmonia_nix::{NarInfo, Sha256Hash};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufRead, AsyncRead, BufReader, ReadBuf};
use tokio_util::io::StreamReader;

use super::cache::{FetchError, http_error};

/// A cache that sends nothing for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);
const BUFFER_BYTES: usize = 128 << 10;
/// Most memory that unpacking one xz file takes; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Why the reader failed.
#[derive(Debug, Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<FetchError>>>);

impl Fault {
    /// What happened, if it was the stream.
    pub(super) fn take(&self) -> Option<FetchError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the first error, which causes the others.
    fn set(&self, error: FetchError) -> io::Error {
        let message = error.to_string();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        io::Error::other(message)
    }
}

/// The NAR that `response` carries, as `info` promises it.
pub(super) fn open(
    response: reqwest::Response,
    info: &NarInfo,
) -> Result<(impl AsyncRead + Send + Unpin + use<>, Fault), FetchError> {
    let fault = Fault::default();
    let chunks = with_stall_timeout(response.bytes_stream().map(|chunk| chunk.map_err(http_error)), STALL_TIMEOUT);
    let for_stream = fault.clone();
    let chunks = Box::pin(chunks.map(move |chunk| chunk.map_err(|error| for_stream.set(error))));
    let file = Arc::new(Mutex::new(Digest::default()));
    let received = Hashing { inner: StreamReader::new(chunks), digest: Arc::clone(&file) };
    let unpacked = unpack(&info.compression, BufReader::with_capacity(BUFFER_BYTES, received))?;
    let checked = Checked {
        inner: unpacked,
        digest: Digest::default(),
        nar_size: info.nar_size,
        nar_hash: info.nar_hash,
        file,
        file_hash: info.file_hash,
        fault: fault.clone(),
        is_over: false,
    };
    Ok((checked, fault))
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
        "lz4" => {
            let mut decoder = Lz4Decoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        // Has no frames that could follow each other.
        "br" => Box::new(BrotliDecoder::new(packed)),
        "none" | "" => Box::new(packed),
        other => return Err(FetchError::Compression(other.chars().take(40).collect())),
    })
}

/// Fails when no chunk comes for `limit`.
fn with_stall_timeout<S>(chunks: S, limit: Duration) -> impl Stream<Item = Result<Bytes, FetchError>> + Send
where
    S: Stream<Item = Result<Bytes, FetchError>> + Send + Unpin,
{
    stream::unfold(Some(chunks), move |chunks| async move {
        let mut chunks = chunks?;
        match tokio::time::timeout(limit, chunks.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Err(_) => Some((Err(FetchError::Stalled { seconds: limit.as_secs() }), None)),
        }
    })
}

#[derive(Debug, Default)]
struct Digest {
    hasher: Sha256,
    size: u64,
}

impl Digest {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    fn hash(&self) -> Sha256Hash {
        Sha256Hash::from_bytes(self.hasher.clone().finalize().into())
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

/// Lets an archive end only when it is what was promised.
struct Checked<R> {
    inner: R,
    digest: Digest,
    nar_size: u64,
    nar_hash: Sha256Hash,
    file: Arc<Mutex<Digest>>,
    file_hash: Option<Sha256Hash>,
    fault: Fault,
    is_over: bool,
}

impl<R> Checked<R> {
    fn check(&self) -> Result<(), FetchError> {
        if self.digest.size != self.nar_size {
            return Err(FetchError::Size { found: self.digest.size, promised: self.nar_size });
        }
        let compare = |what, found: Sha256Hash, promised: Sha256Hash| {
            if found == promised {
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

impl<R: AsyncRead + Unpin> AsyncRead for Checked<R> {
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
            // If the connection failed that is on record already, and this is only its echo.
            return Poll::Ready(Err(self.fault.set(FetchError::Unpack(error))));
        }
        let this = &mut *self;
        let new = &buffer.filled()[before..];
        if new.is_empty() {
            this.is_over = true;
            return Poll::Ready(this.check().map_err(|error| this.fault.set(error)));
        }
        this.digest.update(new);
        if this.digest.size > this.nar_size {
            let error = FetchError::Size { found: this.digest.size, promised: this.nar_size };
            return Poll::Ready(Err(this.fault.set(error)));
        }
        Poll::Ready(Ok(()))
    }
}
