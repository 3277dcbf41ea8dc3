//! One conversation: greeting, then one request after the other. Start at [`serve_stream`].

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use harmonia_nix::worker_protocol::handshake::greet_client;
use harmonia_nix::worker_protocol::stderr::put_message;
use harmonia_nix::worker_protocol::wire::read_u64;
use harmonia_nix::worker_protocol::{
    DaemonError, DaemonGreeting, LogMessage, Operation, ProtocolVersion, Request, StderrMessage, Trust, WireError,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::bulk::Bulk;
use super::log::LogQueue;
use super::old::AskedArchive;
use super::operations::{Answer, BulkKind, Client, Failure, bulk_of, perform};
use super::socket::{IsGone, halves};
use super::{Daemon, program_version};
use crate::config::{Settings, User};
use crate::store::TempRoots;

/// Where requests come from.
pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Where answers go to.
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What is read from the socket at a time while a request is read. Small: it is there for each idle connection.
const BUFFER_BYTES: usize = 4 << 10;

/// How often a client that has no more to ask is looked after.
const GONE_POLL: Duration = Duration::from_millis(200);

/// The client is gone, or nobody understands it any more.
#[derive(Debug)]
struct Ended;

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Serves one client until it hangs up.
pub(super) async fn serve_stream(daemon: Arc<Daemon>, stream: UnixStream, user: User, trust: Trust) {
    let (reader, writer, is_gone) = halves(stream);
    let mut reader: BufReader<Reader> = BufReader::with_capacity(BUFFER_BYTES, Box::new(reader));
    let mut writer: Writer = Box::new(writer);
    let Some(version) = Box::pin(greet(&mut reader, &mut writer, trust)).await else { return };
    let roots = Arc::new(daemon.store.temp_roots());
    let settings = daemon.config.settings.clone();
    let log = Arc::default();
    let mut connection =
        Connection { daemon, reader: Some(reader), writer, is_gone, version, trust, settings, roots, log };
    let _ = connection.run(user).await;
}

async fn greet(reader: &mut BufReader<Reader>, writer: &mut Writer, trust: Trust) -> Option<ProtocolVersion> {
    let greeting = DaemonGreeting {
        version: ProtocolVersion::NEWEST,
        features: std::collections::BTreeSet::new(),
        program_version: program_version(),
        trust: Some(trust),
    };
    match greet_client(reader, writer, &greeting).await {
        Ok(session) => Some(session.version),
        Err(error) => {
            tracing::debug!(%error, "A client did not greet");
            None
        }
    }
}

struct Connection {
    daemon: Arc<Daemon>,
    /// Absent while a thread reads bulk data.
    reader: Option<BufReader<Reader>>,
    writer: Writer,
    is_gone: IsGone,
    version: ProtocolVersion,
    trust: Trust,
    settings: Settings,
    roots: Arc<TempRoots>,
    log: Arc<LogQueue>,
}

impl Connection {
    async fn run(&mut self, user: User) -> Result<(), Ended> {
        let layout = self.daemon.store.layout().clone();
        let prepared = tokio::task::spawn_blocking(move || layout.prepare_user(&user.name, user.uid)).await;
        if let Ok(Err(error)) = prepared {
            self.send_error(&Failure::from(error)).await?;
            return Err(Ended);
        }
        self.send(&[StderrMessage::Last]).await?;
        loop {
            let reader = self.reader.as_mut().ok_or(Ended)?;
            let code = read_u64(reader).await.map_err(|_| Ended)?;
            // Apart, since what is kept between requests should be small.
            Box::pin(self.answer(code)).await?;
        }
    }

    async fn answer(&mut self, code: u64) -> Result<(), Ended> {
        let Ok(operation) = Operation::try_from(code) else {
            // How long its arguments are nobody knows.
            return self.end_with(format!("invalid operation {code}: this daemon does not know it")).await;
        };
        let reader = self.reader.as_mut().ok_or(Ended)?;
        let request = match Request::read(reader, operation, self.version).await {
            Ok(request) => request,
            Err(WireError::Closed | WireError::Io(_)) => return Err(Ended),
            Err(error) => return self.end_with(format!("{operation}: {error}")).await,
        };
        let span = tracing::debug_span!("request", %operation);
        tracing::Instrument::instrument(self.work(request), span).await
    }

    async fn work(&mut self, request: Request) -> Result<(), Ended> {
        let bulk = match bulk_of(&request, self.version) {
            BulkKind::None => None,
            BulkKind::Framed => Some(Bulk::framed(self.reader.take().ok_or(Ended)?)),
            BulkKind::Plain => Some(Bulk::plain(self.reader.take().ok_or(Ended)?)),
            BulkKind::Asked => return self.work_on_asked(request).await,
        };
        let client = self.client();
        let mut work = pin!(perform(client, request, bulk));
        let log = Arc::clone(&self.log);
        let (result, reader) = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                messages = log.take() => send_log(&mut self.writer, self.version, messages).await?,
                () = hung_up(&mut self.reader, &self.is_gone) => return Err(Ended),
            }
        };
        if let Some(reader) = reader {
            self.reader = Some(reader?);
        }
        self.finish(result).await
    }

    /// Archives that the client sends in pieces, each of which it is asked for.
    async fn work_on_asked(&mut self, request: Request) -> Result<(), Ended> {
        let mut archive = AskedArchive::new();
        let bulk = archive.reading_end();
        let mut work = pin!(perform(self.client(), request, Some(bulk)));
        let reader = self.reader.as_mut().ok_or(Ended)?;
        let mut asked = None;
        let result = {
            let mut asking = pin!(archive.ask(reader, &mut self.writer));
            loop {
                tokio::select! {
                    biased;
                    (result, _) = &mut work => break result,
                    done = &mut asking, if asked.is_none() => asked = Some(done),
                }
            }
        };
        match asked {
            Some(Err(_)) => Err(Ended),
            // A piece that was asked for may still come, after which nobody understands the client any more.
            None if result.is_err() => {
                self.finish(result).await?;
                Err(Ended)
            }
            _ => self.finish(result).await,
        }
    }

    async fn finish(&mut self, result: Result<Answer, Failure>) -> Result<(), Ended> {
        let messages = self.log.take_now();
        send_log(&mut self.writer, self.version, messages).await?;
        match result {
            Ok(Answer::Bytes(bytes)) => {
                let mut buffer = Vec::with_capacity(8 + bytes.len());
                put_message(&mut buffer, self.version, &StderrMessage::Last);
                buffer.extend_from_slice(&bytes);
                self.write(&buffer).await
            }
            Ok(Answer::Settings(settings)) => {
                self.settings = *settings;
                self.send(&[StderrMessage::Last]).await
            }
            Ok(Answer::Archive(real)) => {
                self.send(&[StderrMessage::Last]).await?;
                self.send_archive(real).await
            }
            Err(failure) => self.send_error(&failure).await,
        }
    }

    /// The archive goes out as it is packed. When that fails half way nobody can tell the client but by hanging up.
    async fn send_archive(&mut self, real: std::path::PathBuf) -> Result<(), Ended> {
        const PIECE_BYTES: usize = 128 << 10;
        let (sender, mut pieces) = tokio::sync::mpsc::channel(4);
        let packing = tokio::task::spawn_blocking(move || {
            let mut writer = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(sender));
            harmonia_nix::nar::pack_path(&real, &mut writer).map_err(io::Error::other)?;
            io::Write::flush(&mut writer)
        });
        while let Some(piece) = pieces.recv().await {
            self.writer.write_all(&piece).await?;
        }
        match packing.await {
            Ok(Ok(())) => Ok(self.writer.flush().await?),
            Ok(Err(error)) => {
                tracing::warn!(%error, "Could not send an archive");
                Err(Ended)
            }
            Err(_) => Err(Ended),
        }
    }

    fn client(&self) -> Client {
        Client {
            daemon: Arc::clone(&self.daemon),
            version: self.version,
            is_trusted: self.trust == Trust::Trusted,
            settings: self.settings.clone(),
            roots: Arc::clone(&self.roots),
            log: self.log.log(self.settings.verbosity),
        }
    }

    async fn end_with(&mut self, message: String) -> Result<(), Ended> {
        self.send_error(&Failure { message, exit_status: 1 }).await?;
        Err(Ended)
    }

    async fn send_error(&mut self, failure: &Failure) -> Result<(), Ended> {
        let message = failure.message.clone();
        let error = DaemonError { message, level: 0, traces: Vec::new(), exit_status: Some(failure.exit_status) };
        self.send(&[StderrMessage::Error(error)]).await
    }

    async fn send(&mut self, messages: &[StderrMessage]) -> Result<(), Ended> {
        let mut buffer = Vec::new();
        for message in messages {
            put_message(&mut buffer, self.version, message);
        }
        self.write(&buffer).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }
}

async fn send_log(writer: &mut Writer, version: ProtocolVersion, messages: Vec<LogMessage>) -> Result<(), Ended> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut buffer = Vec::new();
    for message in messages {
        put_message(&mut buffer, version, &StderrMessage::Log(message));
    }
    writer.write_all(&buffer).await?;
    Ok(writer.flush().await?)
}

/// Ends when the client hangs up. One that sends its next request early is not watched further; one that has no more to ask
/// may still wait for the answer.
async fn hung_up(reader: &mut Option<BufReader<Reader>>, is_gone: &IsGone) {
    let Some(reader) = reader else { return pending().await };
    match reader.fill_buf().await {
        Ok(bytes) if !bytes.is_empty() => pending().await,
        Ok(_) => {
            while !is_gone() {
                // Nothing announces that the other direction is closed as well.
                tokio::time::sleep(GONE_POLL).await;
            }
        }
        Err(_) => {}
    }
}

/// Sends what is written in pieces to a task.
struct Pieces(tokio::sync::mpsc::Sender<Vec<u8>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
