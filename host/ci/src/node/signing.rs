//! What a signer does besides answering: it says what its store does not enforce, finishes publications that a crash
//! interrupted, and looks at paths that builders found in no cache.

use std::time::Duration;

use harmonia_cache::{PublishedHook, Signer, SignerOptions};
use harmonia_db::{Channel, Db};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SmallObjects};
use crate::exit::chain;

/// How often it looks without being told.
const EVERY: Duration = Duration::from_secs(15);

/// How the signer of this configuration works.
pub(super) fn options(config: &Config, on_published: Option<PublishedHook>) -> SignerOptions {
    let small_in_bucket = config.signer.small_objects == SmallObjects::Bucket;
    SignerOptions { verify: config.signer.verify, on_published, small_in_bucket, ..SignerOptions::default() }
}

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

#[cfg(test)]
mod tests {
    use harmonia_cache::Verify;

    use super::*;

    #[test]
    fn archives_are_read_as_the_configuration_says() {
        for (text, verify) in [
            ("", Verify::Declared),
            ("[signer]\nverify = \"declared\"\n", Verify::Declared),
            ("[signer]\nverify = \"always\"\n", Verify::Always),
            ("[signer]\nverify = \"sample:0.05\"\n", Verify::Sample(0.05)),
        ] {
            let config: Config = toml::from_str(text).expect(text);
            assert_eq!(options(&config, None).verify, verify, "{text}");
        }
    }
}
