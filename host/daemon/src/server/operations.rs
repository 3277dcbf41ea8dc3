//! What each request does. Start at [`perform`].

mod adding;
mod building;
mod store;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use harmonia_nix::worker_protocol::{ProtocolVersion, Request};
use tokio::io::BufReader;

use super::Daemon;
use super::bulk::Bulk;
use super::connection::Reader;
use super::options::{request_options, with_client};
use crate::config::Settings;
use crate::schedule::{self, Log, ScheduleError};
use crate::store::{StoreError, TempRoots};

/// Who asks, for the time of one request.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) daemon: Arc<Daemon>,
    pub(super) version: ProtocolVersion,
    pub(super) is_trusted: bool,
    pub(super) settings: Settings,
    pub(super) roots: Arc<TempRoots>,
    pub(super) log: Log,
}

/// What a client is answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing, but its settings are these from now on.
    Settings(Box<Settings>),
    /// The archive of the tree here.
    Archive(PathBuf),
}

/// Why it is not answered.
#[derive(Debug)]
pub(super) struct Failure {
    /// For people.
    pub(super) message: String,
    /// What `nix` should exit with.
    pub(super) exit_status: u64,
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_status: 1 }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(chain(&error))
    }
}

impl From<ScheduleError> for Failure {
    fn from(error: ScheduleError) -> Self {
        match error {
            ScheduleError::Failed { message, exit_status } => Self { message, exit_status },
            other => Self::new(chain(&other)),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(chain(&error))
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// How the rest of a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BulkKind {
    /// There is none.
    None,
    /// In frames.
    Framed,
    /// One archive as it is.
    Plain,
    /// One archive, in pieces that the client is asked for.
    Asked,
}

/// How the rest of this request comes.
pub(super) fn bulk_of(request: &Request, version: ProtocolVersion) -> BulkKind {
    match request {
        Request::AddToStore { .. } if version.minor < 25 => BulkKind::Plain,
        Request::AddToStoreNar { .. } if version.minor < 23 => BulkKind::Asked,
        Request::AddToStore { .. }
        | Request::AddToStoreNar { .. }
        | Request::AddMultipleToStore { .. }
        | Request::AddBuildLog(_) => BulkKind::Framed,
        _ => BulkKind::None,
    }
}

/// Works on a request. Bulk data is read whatever comes of it; the reader is handed back, or why it cannot be.
pub(super) async fn perform(
    client: Client,
    request: Request,
    bulk: Option<Bulk>,
) -> (Result<Answer, Failure>, Option<io::Result<BufReader<Reader>>>) {
    match bulk {
        Some(bulk) => {
            let added = blocking(move || Ok(adding::add(&client, request, bulk))).await;
            match added {
                Ok((result, reader)) => (result.map(Answer::Bytes), Some(reader)),
                Err(failure) => (Err(failure), Some(Err(io::ErrorKind::Other.into()))),
            }
        }
        None => (Box::pin(answer(client, request)).await, None),
    }
}

async fn answer(client: Client, request: Request) -> Result<Answer, Failure> {
    match request {
        Request::SetOptions(options) => {
            let settings = with_client(&client.daemon.config.settings, &options, client.is_trusted, &client.log);
            Ok(Answer::Settings(Box::new(settings)))
        }
        Request::NarFromPath(path) => {
            blocking(move || {
                client.roots.add(&path)?;
                client.daemon.store.valid_path_info(&path)?;
                Ok(Answer::Archive(client.daemon.store.real_path(&path)))
            })
            .await
        }
        Request::BuildPaths(..)
        | Request::BuildPathsWithResults(..)
        | Request::BuildDerivation(..)
        | Request::EnsurePath(_)
        | Request::QueryMissing(_)
        | Request::QuerySubstitutablePaths(_)
        | Request::QuerySubstitutablePathInfos(_)
        | Request::QueryValidPaths(_, true)
        | Request::VerifyStore { .. } => building::answer(&client, request).await.map(Answer::Bytes),
        request => blocking(move || store::answer(&client, request)).await.map(Answer::Bytes),
    }
}

impl Client {
    /// What the scheduler needs to know of us.
    pub(super) fn request(&self) -> schedule::Request {
        schedule::Request {
            log: self.log.clone(),
            roots: Arc::clone(&self.roots),
            options: request_options(&self.daemon.config, &self.settings, self.is_trusted),
        }
    }

    fn must_be_trusted(&self, what: &str) -> Result<(), Failure> {
        if self.is_trusted { Ok(()) } else { Err(Failure::new(format!("you are not privileged to {what}"))) }
    }
}

/// Runs on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failed) => Err(Failure::new(format!("the daemon failed: {failed}"))),
    }
}
