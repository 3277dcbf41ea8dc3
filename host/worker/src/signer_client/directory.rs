//! Signers as the `nodes` table knows them.

use std::time::Duration;

use harmonia_core::ports::PortFuture;
use harmonia_db::Db;

use super::{BoxError, SignerClient, SignerDirectory, SignerOptions};

/// The signers that the database calls alive.
#[derive(Clone)]
pub struct DatabaseDirectory {
    /// The database.
    pub db: Db,
    /// A signer silent for longer is not tried.
    pub silent_after: Duration,
}

impl SignerDirectory for DatabaseDirectory {
    fn signers(&self) -> PortFuture<'_, Result<Vec<String>, BoxError>> {
        Box::pin(async move {
            let nodes = self.db.live_signers(self.silent_after).await?;
            Ok(nodes.into_iter().map(|node| node.endpoint).collect())
        })
    }
}

impl SignerClient {
    /// A client over the signers that the database calls alive, with the default patience.
    pub fn from_database(http: reqwest::Client, db: Db, silent_after: std::time::Duration) -> Self {
        Self::new(http, std::sync::Arc::new(DatabaseDirectory { db, silent_after }), SignerOptions::default())
    }
}
