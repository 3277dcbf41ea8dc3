//! What becomes of derivations that an upstream cache was said to have and does not: they were made jobs at once, for
//! everybody who wants them; here somebody looks what builders reported, and walks below those jobs. Start at [`run`].

use std::sync::Arc;
use std::time::Duration;

use harmonia_core::{ClaimToken, chain};
use harmonia_db::{ClaimedWalk, DbError};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::evaluation::EvaluateError;
use super::insert::Inserter;
use crate::substitute::{self, SubstituteError};

/// How often it looks without being told.
const EVERY: Duration = Duration::from_secs(10);
/// Reports looked at in one round.
const REPORTS_PER_ROUND: u32 = 100;
/// Longest time for one path of one cache.
const EXAMINE_TIMEOUT: Duration = Duration::from_mins(10);
/// Largest archive that is read to see whether it is sound, in bytes.
const EXAMINED_BYTES_MAX: u64 = 16 << 30;

/// Runs until `shutdown`.
pub(super) async fn run(settings: Arc<Settings>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work(&settings) => {}
    }
}

async fn work(settings: &Settings) {
    let options = &settings.options;
    let mut is_registered = false;
    loop {
        if !is_registered {
            match settings.upstream.register(&options.db, &options.node, options.incarnation).await {
                Ok(()) => is_registered = true,
                Err(error) => tracing::warn!(error = %chain(&error), "Could not record which caches are asked here"),
            }
        }
        if let Err(error) = look(settings).await {
            tracing::warn!(error = %chain(&error), "Could not look after what upstream caches do not have, trying again");
        }
        tokio::select! {
            () = settings.walks_wanted.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn look(settings: &Settings) -> Result<(), DbError> {
    let options = &settings.options;
    settings.upstream.report(&options.db, &options.node, options.incarnation).await?;
    check_reports(settings).await?;
    loop {
        let token = ClaimToken::from_random(rand::random());
        let Some(walk) = options.db.claim_walk(&options.node, options.incarnation, &token).await? else {
            return Ok(());
        };
        let error = match walk_below(settings, &walk, &token).await {
            Ok(()) => None,
            Err(error) => Some(chain(&error)),
        };
        if let Some(error) = &error {
            tracing::warn!(eval.id = %walk.eval, %error, "Could not queue what an upstream cache does not have any more");
        }
        match options.db.finish_walk(&walk, &token, error.as_deref()).await {
            // Nobody wants it any more.
            Ok(()) | Err(DbError::StaleClaim) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Inserts what the jobs need, as an evaluation does.
async fn walk_below(settings: &Settings, walk: &ClaimedWalk, token: &ClaimToken) -> Result<(), EvaluateError> {
    let connection = settings.daemon.connect().await?;
    let mut inserter = Inserter::new(settings, walk.eval, token, connection, None);
    Ok(inserter.insert_below(&walk.drvs).await?)
}

/// Asks the caches themselves what builders said of them.
async fn check_reports(settings: &Settings) -> Result<(), DbError> {
    let options = &settings.options;
    let (db, node, run) = (&options.db, &options.node, options.incarnation);
    for (path, name) in db.upstream_reports(&settings.upstream.names(), REPORTS_PER_ROUND).await? {
        let Some(cache) = settings.upstream.cache(&name) else { continue };
        let examined = substitute::examine(&options.http, cache, &path, EXAMINED_BYTES_MAX);
        match tokio::time::timeout(EXAMINE_TIMEOUT, examined).await {
            Ok(Ok(())) => {
                tracing::info!(%path, cache = %name, "A builder could not get {path} from {name}, this node can");
                db.dismiss_upstream_report(node, run, &path, &name).await?;
            }
            // Looked at again until the report is too old.
            Err(_) | Ok(Err(SubstituteError::Unavailable { .. })) => {}
            Ok(Err(error)) => {
                let fault = chain(&error);
                tracing::warn!(%path, %fault, "{name} does not give {path} after all: what needs it is built here");
                db.confirm_upstream_fault(node, run, &path, &name, &fault).await?;
            }
        }
    }
    Ok(())
}
