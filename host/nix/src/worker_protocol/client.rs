//! The client: [`Client`] greets a daemon and asks it for things. Questions are in `client/queries.rs`, what changes the
//! store in `client/changes.rs`; this file has what they share.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};

use super::framed::{FRAME_BYTES, FramedWriter};
use super::handshake::{ClientGreeting, HandshakeError, ProtocolVersion, Session, greet_daemon};
use super::operations::Operation;
use super::stderr::{DaemonError, LogMessage, StderrMessage, read_message};
use super::wire::{WireError, put_bytes, put_u64};
use crate::nar::NarError;

mod changes;
mod queries;
mod sequence;

const BUFFER_BYTES: usize = 64 << 10;

/// Why an operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused, and said why. The connection can be used further, but after `NarFromPath` broke off.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The conversation failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No conversation came about.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The daemon is too old.
    #[error("{operation} needs protocol 1.{needs}, the daemon speaks {spoken}: use a newer Nix there")]
    Unsupported {
        /// What was asked.
        operation: Operation,
        /// The minor version needed.
        needs: u8,
        /// The version in force.
        spoken: ProtocolVersion,
    },
    /// What was to be sent could not be read.
    #[error("could not read the data for the daemon")]
    Source(#[source] io::Error),
    /// What was received could not be passed on.
    #[error("could not write the data from the daemon")]
    Sink(#[source] io::Error),
    /// The archive that the daemon sends is damaged or too large.
    #[error("the daemon sends a bad archive")]
    Nar(#[source] NarError),
    /// An earlier operation was cancelled or failed half way.
    #[error("this connection broke off within an earlier operation: open a new one")]
    Unusable,
}

/// Where log messages of the daemon go while operations run.
pub enum LogTarget {
    /// Nowhere.
    Discard,
    /// To a function, which must not block.
    Callback(Box<dyn FnMut(LogMessage) + Send>),
    /// Into a channel. While it is full the operation, and so the build behind it, waits. Once it is closed, nowhere.
    Channel(mpsc::Sender<LogMessage>),
}

impl LogTarget {
    /// To a function, which must not block.
    pub fn callback(function: impl FnMut(LogMessage) + Send + 'static) -> Self {
        Self::Callback(Box::new(function))
    }

    async fn take(&mut self, message: LogMessage) {
        match self {
            Self::Discard => {}
            Self::Callback(function) => function(message),
            Self::Channel(sender) => {
                if sender.send(message).await.is_err() {
                    *self = Self::Discard;
                }
            }
        }
    }
}

impl std::fmt::Debug for LogTarget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Discard => "Discard",
            Self::Callback(_) => "Callback",
            Self::Channel(_) => "Channel",
        })
    }
}

/// A conversation with a daemon over the two halves of a stream.
///
/// One operation at a time. An operation whose future is dropped leaves the conversation in the middle: all later ones fail
/// with [`ClientError::Unusable`]. Dropping the client closes the stream (if it owns the halves), on which a daemon stops
/// what it was building for it. There are no timeouts here: put them around.
#[derive(Debug)]
pub struct Client<R, W> {
    reader: BufReader<R>,
    writer: W,
    session: Session,
    log: LogTarget,
    /// Whether the daemon waits for an operation.
    is_ready: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Greets the daemon with what this crate speaks, and discards log messages.
    pub async fn connect(reader: R, writer: W) -> Result<Self, ClientError> {
        Self::connect_with(reader, writer, &ClientGreeting::default(), LogTarget::Discard).await
    }

    /// Greets the daemon.
    pub async fn connect_with(
        reader: R,
        mut writer: W,
        greeting: &ClientGreeting,
        log: LogTarget,
    ) -> Result<Self, ClientError> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        let session = greet_daemon(&mut reader, &mut writer, greeting).await?;
        let mut client = Self { reader, writer, session, log, is_ready: false };
        client.until_last().await?;
        client.is_ready = true;
        Ok(client)
    }

    /// Version in force, the daemon's program version and its trust in us.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Where log messages go from now on.
    pub fn set_log(&mut self, log: LogTarget) {
        self.log = log;
    }

    /// Whether the next operation can be sent.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// The halves of the stream. The reader may hold bytes that the daemon sent unasked.
    pub fn into_parts(self) -> (BufReader<R>, W) {
        (self.reader, self.writer)
    }

    fn version(&self) -> ProtocolVersion {
        self.session.version
    }

    /// The start of a request.
    fn begin(&mut self, operation: Operation) -> Result<Vec<u8>, ClientError> {
        self.begin_since(operation, operation.since_minor())
    }

    fn begin_since(&mut self, operation: Operation, needs: u8) -> Result<Vec<u8>, ClientError> {
        if !self.is_ready {
            return Err(ClientError::Unusable);
        }
        let spoken = self.session.version;
        if spoken.minor < needs {
            return Err(ClientError::Unsupported { operation, needs, spoken });
        }
        let mut request = Vec::with_capacity(256);
        put_u64(&mut request, operation.code());
        Ok(request)
    }

    /// Sends a request and handles messages up to where the answer begins.
    async fn ask(&mut self, request: &[u8]) -> Result<(), ClientError> {
        self.send(request).await?;
        self.until_last().await
    }

    async fn send(&mut self, request: &[u8]) -> Result<(), ClientError> {
        self.is_ready = false;
        self.writer.write_all(request).await.map_err(WireError::from)?;
        self.writer.flush().await.map_err(WireError::from)?;
        Ok(())
    }

    /// The answer was read to its end.
    fn end<T>(&mut self, answer: T) -> T {
        self.is_ready = true;
        answer
    }

    async fn until_last(&mut self) -> Result<(), ClientError> {
        let result = until_last(&mut self.reader, &mut self.log, self.session.version).await;
        // After an error the daemon waits for the next operation.
        self.is_ready |= matches!(result, Err(ClientError::Daemon(_)));
        result
    }

    /// Sends `source` in frames while handling messages, since the daemon may have much to say before it has read all.
    async fn upload(&mut self, source: impl AsyncRead + Unpin) -> Result<(), ClientError> {
        let stop = Notify::new();
        let Self { reader, writer, log, session, .. } = self;
        let mut sending = pin!(send_frames(writer, source, &stop));
        let mut receiving = pin!(async {
            let result = until_last(reader, log, session.version).await;
            if result.is_err() {
                stop.notify_one();
            }
            result
        });
        let mut sent = None;
        let received = loop {
            tokio::select! {
                result = &mut receiving => break result,
                result = &mut sending, if sent.is_none() => match result {
                    Err(error @ ClientError::Source(_)) => return Err(error),
                    // When sending fails the daemon has hung up, but may have said why before.
                    result => sent = Some(result),
                },
            }
        };
        match received {
            Ok(()) => match sent {
                Some(result) => result,
                None => sending.await,
            },
            Err(ClientError::Daemon(error)) => {
                // The last frame must still go out before the next operation can.
                let sent = match sent {
                    Some(result) => result,
                    None => sending.await,
                };
                self.is_ready = sent.is_ok();
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the daemon pieces of `source` whenever it asks for some (1.21 and 1.22).
    async fn answer_reads(&mut self, mut source: impl AsyncRead + Unpin) -> Result<(), ClientError> {
        let mut piece = vec![0; FRAME_BYTES];
        let mut reply = Vec::new();
        loop {
            match read_message(&mut self.reader, self.session.version).await? {
                StderrMessage::Log(message) => self.log.take(message).await,
                StderrMessage::Last => return Ok(()),
                StderrMessage::Error(error) => {
                    self.is_ready = true;
                    return Err(error.into());
                }
                StderrMessage::Read(wanted) => {
                    let room = piece.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
                    let length = source.read(&mut piece[..room]).await.map_err(ClientError::Source)?;
                    reply.clear();
                    put_bytes(&mut reply, &piece[..length]);
                    self.send(&reply).await?;
                }
                StderrMessage::Write(_) => return Err(WireError::bad_value("a message here", "WRITE").into()),
            }
        }
    }
}

async fn until_last<R: AsyncRead + Unpin>(
    reader: &mut R,
    log: &mut LogTarget,
    version: ProtocolVersion,
) -> Result<(), ClientError> {
    loop {
        match read_message(reader, version).await? {
            StderrMessage::Log(message) => log.take(message).await,
            StderrMessage::Last => return Ok(()),
            StderrMessage::Error(error) => return Err(error.into()),
            StderrMessage::Read(_) => return Err(WireError::bad_value("a message here", "READ").into()),
            StderrMessage::Write(_) => return Err(WireError::bad_value("a message here", "WRITE").into()),
        }
    }
}

/// Sends all of `source`, or as much as was sent when `stop` is notified, and the end of the frames.
async fn send_frames<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut source: impl AsyncRead + Unpin,
    stop: &Notify,
) -> Result<(), ClientError> {
    let mut framed = FramedWriter::new(writer);
    let mut piece = vec![0; FRAME_BYTES];
    loop {
        let room = framed.room();
        let length = tokio::select! {
            biased;
            () = stop.notified() => 0,
            length = source.read(&mut piece[..room]) => length.map_err(ClientError::Source)?,
        };
        if length == 0 {
            return Ok(framed.finish().await.map_err(WireError::from)?);
        }
        framed.write(&piece[..length]).await.map_err(WireError::from)?;
    }
}
