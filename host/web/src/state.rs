//! What every handler may use. Start at [`AppOptions`]: what `ci` hands over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use harmonia_cache::{Reader, Signer};
use harmonia_core::Clock;
use harmonia_core::ports::{LogSpool, Plugins, RemoteHeads};
use harmonia_db::Db;
use harmonia_nix::PublicKey;
use tokio_util::sync::CancellationToken;

use crate::error::ErrorCounts;
use crate::live::Hub;
use crate::pages::Frame;
use crate::recorder::Recorder;
use crate::refusals::Refusals;

/// What a node serves over HTTP. A part that is `None` makes its routes answer 404 with a reason.
pub struct AppOptions {
    /// The database.
    pub db: Db,
    /// On signer nodes: answers the upload protocol.
    pub signer: Option<Signer>,
    /// The binary cache and stored logs.
    pub reader: Option<Reader>,
    /// Logs of builds that run on this node, older than what the database keeps.
    pub spool: Option<Arc<dyn LogSpool>>,
    /// The forges, on frontends.
    pub plugins: Arc<dyn Plugins>,
    /// Asks plain git repositories for their default branch, on frontends.
    pub remote_heads: Option<Arc<dyn RemoteHeads>>,
    /// URL of this server as clients see it, without a slash at the end. Also that of the binary cache.
    pub public_url: String,
    /// Keys that sign what the cache serves, newest first.
    pub public_keys: Vec<PublicKey>,
    /// Version of the binary.
    pub version: String,
    /// A node that was not heard of for this long counts as offline.
    pub node_silent_after: Duration,
    /// Now, for ages on pages.
    pub clock: Arc<dyn Clock>,
    /// Ends live streams, so that a stop does not wait for browsers. The same token as [`crate::serve`]'s.
    pub shutdown: CancellationToken,
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    options: AppOptions,
    hub: Hub,
    recorder: Recorder,
    refusals: Refusals,
    error_counts: ErrorCounts,
    /// Random, so that ids of two runs of the process differ in logs.
    process: u32,
    requests: AtomicU64,
}

impl AppState {
    /// Must be called within a tokio runtime: starts the task that follows live logs (it ends with `shutdown`), and
    /// the one that records deliveries (it ends with the state).
    pub fn new(options: AppOptions) -> Self {
        let hub = Hub::start(options.db.clone(), options.shutdown.clone());
        let recorder = Recorder::start(options.db.clone());
        Self(Arc::new(Inner {
            options,
            hub,
            recorder,
            refusals: Refusals::default(),
            error_counts: ErrorCounts::default(),
            process: rand::random(),
            requests: AtomicU64::new(1),
        }))
    }

    /// 5xx answers by cause.
    pub fn error_counts(&self) -> &ErrorCounts {
        &self.0.error_counts
    }

    pub(crate) fn next_request_id(&self) -> String {
        format!("{:08x}-{}", self.0.process, self.0.requests.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn options(&self) -> &AppOptions {
        &self.0.options
    }

    pub(crate) fn db(&self) -> &Db {
        &self.0.options.db
    }

    pub(crate) fn plugins(&self) -> &dyn Plugins {
        self.0.options.plugins.as_ref()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.0.hub
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// What surrounds a page with this title.
    pub(crate) fn frame(&self, title: &str) -> Frame {
        Frame { title: title.to_owned(), version: self.0.options.version.clone(), refresh_s: None }
    }
}
