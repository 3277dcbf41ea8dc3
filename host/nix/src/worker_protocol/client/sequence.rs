//! The body of `AddMultipleToStore` as one stream: a count, then what is known of each path and its archive.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::worker_protocol::types::ValidPathInfo;
use crate::worker_protocol::wire::put_u64;

pub(super) struct Sequence<I, S> {
    items: I,
    header: Vec<u8>,
    /// Bytes of `header` that were read.
    header_read: usize,
    archive: Option<S>,
}

impl<S, I: Iterator<Item = (ValidPathInfo, S)>> Sequence<I, S> {
    pub(super) fn new(count: usize, items: I) -> Self {
        let mut header = Vec::new();
        put_u64(&mut header, count as u64);
        Self { items, header, header_read: 0, archive: None }
    }
}

impl<S: AsyncRead + Unpin, I: Iterator<Item = (ValidPathInfo, S)> + Unpin> AsyncRead for Sequence<I, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while buffer.remaining() > 0 {
            if this.header_read < this.header.len() {
                let left = &this.header[this.header_read..];
                let now = left.len().min(buffer.remaining());
                buffer.put_slice(&left[..now]);
                this.header_read += now;
                return Poll::Ready(Ok(()));
            }
            if let Some(archive) = &mut this.archive {
                let before = buffer.filled().len();
                ready!(Pin::new(archive).poll_read(context, buffer))?;
                if buffer.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
                this.archive = None;
            }
            let Some((info, archive)) = this.items.next() else {
                return Poll::Ready(Ok(()));
            };
            this.header.clear();
            this.header_read = 0;
            info.put(&mut this.header);
            this.archive = Some(archive);
        }
        Poll::Ready(Ok(()))
    }
}
