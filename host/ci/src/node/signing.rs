//! What a signer does besides answering: it says what its store does not enforce, finishes publications that a crash
//! interrupted, and looks at paths that builders found in no cache.

use std::time::Duration;

use harmonia_cache::Signer;
use harmonia_db::{Channel, Db};
use tokio_util::sync::CancellationToken;

use crate::exit::chain;

/// How often it looks without being told.
const EVERY: Duration = Duration::from_secs(15);

/// Runs until `stop`.
pub(super) async fn run(signer: Signer, db: Db, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work(&signer, &db) => {}
    }
}

async fn work(signer: &Signer, db: &Db) {
    match signer.probe().await {
        Ok(report) => {
            for weakness in report.weaknesses() {
                tracing::warn!("The object store does not enforce what presigned uploads ask of it: {weakness}");
            }
        }
        Err(error) => tracing::warn!(error = %chain(&error), "Could not find out what the object store enforces"),
    }
    let mut listener = loop {
        match db.listen(&[Channel::MissingPaths]).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Could not listen for missing paths");
                look(signer).await;
                tokio::time::sleep(EVERY).await;
            }
        }
    };
    loop {
        look(signer).await;
        tokio::select! {
            _ = listener.next() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn look(signer: &Signer) {
    match signer.finish_unfinished().await {
        Ok(0) => {}
        Ok(finished) => tracing::info!(finished, "Published what an interrupted signer had claimed"),
        Err(error) => tracing::warn!(error = %chain(&error), "Could not finish interrupted publications"),
    }
    match signer.check_reported_paths().await {
        Ok(0) => {}
        Ok(lost) => tracing::warn!(lost, "Paths are gone from the object store; what made them is built again"),
        Err(error) => tracing::warn!(error = %chain(&error), "Could not check paths that builders did not find"),
    }
}
