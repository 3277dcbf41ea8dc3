//! A client's socket in two halves, and whether anybody is at its other end. Start at [`halves`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// One direction.
pub(super) struct Half(Arc<UnixStream>);

/// Tells whether the client has closed both directions: then nobody waits for an answer any more.
pub(super) type IsGone = Box<dyn Fn() -> bool + Send + Sync>;

/// What is read from, what is written to, and whether the client is gone.
pub(super) fn halves(stream: UnixStream) -> (Half, Half, IsGone) {
    let stream = Arc::new(stream);
    let (reader, writer) = (Half(Arc::clone(&stream)), Half(Arc::clone(&stream)));
    // Sends nothing, which fails just when nothing could be received.
    (reader, writer, Box::new(move || send(&stream, &[], SendFlags::NOSIGNAL) == Err(Errno::PIPE)))
}

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_client_that_only_listens_is_not_gone() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let (mut reader, mut writer, is_gone) = halves(ours);
        let (mut their_reader, mut their_writer) = theirs.into_split();
        their_writer.write_all(b"question").await.expect("sent");
        drop(their_writer);
        let mut question = String::new();
        reader.read_to_string(&mut question).await.expect("read");
        assert_eq!((question.as_str(), is_gone()), ("question", false));
        writer.write_all(b"answer").await.expect("sent");
        let mut answer = [0; 6];
        their_reader.read_exact(&mut answer).await.expect("read");
        drop(their_reader);
        assert!(is_gone());
    }
}
