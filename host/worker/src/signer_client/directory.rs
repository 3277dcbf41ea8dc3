//! Signers as the `nodes` table knows them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harmonia_core::ports::PortFuture;
use harmonia_db::Db;

use super::{BoxError, SignerClient, SignerDirectory, SignerOptions};

/// For so long an answer of the database is good for further calls, unless none of those signers answers.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// What the database said last, and when.
type Known = Option<(Instant, Vec<String>)>;

/// The signers that the database calls alive. Cheap to clone: clones know the same.
#[derive(Clone)]
pub struct DatabaseDirectory {
    db: Db,
    silent_after: Duration,
    known: Arc<Mutex<Known>>,
}

impl DatabaseDirectory {
    /// A signer that is silent for longer than `silent_after` is not tried.
    pub fn new(db: Db, silent_after: Duration) -> Self {
        Self { db, silent_after, known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SignerDirectory for DatabaseDirectory {
    fn signers(&self) -> PortFuture<'_, Result<Vec<String>, BoxError>> {
        Box::pin(async move {
            let fresh = self.known().clone().filter(|(since, _)| since.elapsed() < FRESH_FOR);
            if let Some((_, signers)) = fresh {
                return Ok(signers);
            }
            let nodes = self.db.live_signers(self.silent_after).await?;
            let signers: Vec<String> = nodes.into_iter().map(|node| node.endpoint).collect();
            // One that starts is not waited for longer than it takes.
            *self.known() = (!signers.is_empty()).then(|| (Instant::now(), signers.clone()));
            Ok(signers)
        })
    }

    fn none_answered(&self) {
        *self.known() = None;
    }
}

impl SignerClient {
    /// A client over the signers that the database calls alive, with the default patience.
    pub fn from_database(http: reqwest::Client, db: Db, silent_after: Duration) -> Self {
        Self::new(http, Arc::new(DatabaseDirectory::new(db, silent_after)), SignerOptions::default())
    }
}
