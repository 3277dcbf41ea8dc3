//! Bulk data in frames: a length and that many bytes, again and again, ended by a length of 0. [`FramedWriter`], [`FramedReader`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::wire::FRAME_BYTES_MAX;

/// Largest frame that is written, in bytes.
pub const FRAME_BYTES: usize = 64 << 10;

const LENGTH_BYTES: usize = 8;

/// Collects bytes into frames of at most [`FRAME_BYTES`].
#[derive(Debug)]
pub struct FramedWriter<'a, W> {
    output: &'a mut W,
    /// Room for the length, then the bytes of the next frame.
    buffer: Vec<u8>,
}

impl<'a, W: AsyncWrite + Unpin> FramedWriter<'a, W> {
    /// Frames onto `output`, which must be at the place where framed data begins.
    pub fn new(output: &'a mut W) -> Self {
        let mut buffer = Vec::with_capacity(LENGTH_BYTES + FRAME_BYTES);
        buffer.extend_from_slice(&[0; LENGTH_BYTES]);
        Self { output, buffer }
    }

    /// Room left in the frame that is being collected, in bytes; never 0.
    pub fn room(&self) -> usize {
        FRAME_BYTES - (self.buffer.len() - LENGTH_BYTES)
    }

    /// Adds bytes; complete frames are sent.
    pub async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == LENGTH_BYTES + FRAME_BYTES {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends what was collected, and the end.
    pub async fn finish(mut self) -> io::Result<()> {
        if self.buffer.len() > LENGTH_BYTES {
            self.send().await?;
        }
        self.output.write_all(&[0; LENGTH_BYTES]).await?;
        self.output.flush().await
    }

    async fn send(&mut self) -> io::Result<()> {
        let length = (self.buffer.len() - LENGTH_BYTES) as u64;
        self.buffer[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.output.write_all(&self.buffer).await?;
        self.buffer.truncate(LENGTH_BYTES);
        Ok(())
    }
}

/// The bytes inside the frames; ends where the frames end, without reading a byte beyond.
#[derive(Debug)]
pub struct FramedReader<R> {
    input: R,
    length: [u8; LENGTH_BYTES],
    /// How many bytes of `length` are there.
    length_read: usize,
    /// Bytes left of the current frame.
    left: u64,
    ended: bool,
}

impl<R: AsyncRead + Unpin> FramedReader<R> {
    /// Reads frames from `input`, which must be at the place where framed data begins.
    pub fn new(input: R) -> Self {
        Self { input, length: [0; LENGTH_BYTES], length_read: 0, left: 0, ended: false }
    }

    /// Whether the last frame was seen. Before that the stream underneath is not at the next operation: read on.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Hands back the stream, which is at the next operation if [`FramedReader::is_ended`].
    pub fn into_inner(self) -> R {
        self.input
    }

    fn poll_length(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.length_read < LENGTH_BYTES {
            let mut buffer = ReadBuf::new(&mut self.length[self.length_read..]);
            ready!(Pin::new(&mut self.input).poll_read(context, &mut buffer))?;
            let read = buffer.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.length_read += read;
        }
        self.length_read = 0;
        self.left = u64::from_le_bytes(self.length);
        if self.left > FRAME_BYTES_MAX {
            let message = format!("a frame declares {} bytes, at most {FRAME_BYTES_MAX} are allowed", self.left);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        self.ended = self.left == 0;
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for FramedReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left == 0 && !this.ended {
            ready!(this.poll_length(context))?;
        }
        if this.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let want = buffer.remaining().min(usize::try_from(this.left).unwrap_or(usize::MAX));
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(want));
        ready!(Pin::new(&mut this.input).poll_read(context, &mut part))?;
        let read = part.filled().len();
        if read == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        buffer.advance(read);
        this.left -= read as u64;
        Poll::Ready(Ok(()))
    }
}
