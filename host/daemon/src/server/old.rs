//! How clients before 1.23 send an archive with `AddToStoreNar`: in pieces that the daemon asks for. Start at [`AskedArchive`].

use std::io;

use harmonia_nix::nar::{Decoder, Limits};
use harmonia_nix::worker_protocol::stderr::put_message;
use harmonia_nix::worker_protocol::wire::read_bytes;
use harmonia_nix::worker_protocol::{ProtocolVersion, StderrMessage};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream};

use super::bulk::Bulk;

/// How much is asked for at a time.
const PIECE_BYTES: u64 = 64 << 10;

/// An archive on its way from the client to the thread that unpacks it.
pub(super) struct AskedArchive {
    /// Archive bytes go in here.
    inner: DuplexStream,
    reading: Option<DuplexStream>,
}

impl AskedArchive {
    pub(super) fn new() -> Self {
        let (inner, reading) = tokio::io::duplex(2 * PIECE_BYTES as usize);
        Self { inner, reading: Some(reading) }
    }

    /// What the operation reads from.
    pub(super) fn reading_end(&mut self) -> Bulk {
        let reading = self.reading.take().unwrap_or_else(|| tokio::io::duplex(1).0);
        Bulk::plain(BufReader::new(Box::new(reading)))
    }

    /// Asks for pieces until the archive is whole, or nobody reads it any more.
    pub(super) async fn ask<R, W>(mut self, reader: &mut R, writer: &mut W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut decoder = Decoder::new(Limits::of_size(u64::MAX));
        while !decoder.is_done() {
            let mut question = Vec::new();
            put_message(&mut question, ProtocolVersion::OLDEST, &StderrMessage::Read(PIECE_BYTES));
            writer.write_all(&question).await?;
            writer.flush().await?;
            let piece = read_bytes(reader, "a piece of an archive", PIECE_BYTES).await.map_err(io::Error::other)?;
            let mut left = piece.as_slice();
            while !left.is_empty() && !decoder.is_done() {
                let step = decoder.push(left).map_err(io::Error::other)?;
                left = &left[step.consumed..];
            }
            if piece.is_empty() || self.inner.write_all(&piece).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}
