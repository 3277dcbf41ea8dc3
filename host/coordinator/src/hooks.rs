//! Webhooks at the forges that need one for each repository. Start at [`step`]: what should be is compared with what is,
//! and put right. A failure is shown with the project and tried again.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, ForgeFeature};
use harmonia_db::{DbError, HookTarget};
use tracing::{info, warn};

use crate::in_flight::{self, Due, InFlight};
use crate::projects::{ProjectsOptions, call, wait_after};

/// How long they are ours: longer than all their calls.
const LEASE: Duration = Duration::from_mins(20);
/// Longest wait after failures.
const WAIT_MAX: Duration = Duration::from_hours(1);
/// After so many refusals nobody lets us remove a hook: it is left to the forge's owner.
const REMOVALS_MAX: u32 = 20;

/// Puts all hooks right that are not. Returns how many were tried.
pub async fn step(options: &ProjectsOptions) -> Result<u64, DbError> {
    in_flight::process_due(&Hooks(options)).await
}

/// Hooks that are not as they should be.
pub(crate) struct Hooks<'a>(pub(crate) &'a ProjectsOptions);

impl Due for Hooks<'_> {
    const ALL_MAX: usize = 16;
    const OF_FORGE_MAX: usize = 4;

    async fn begin(&self, in_flight: &mut InFlight) -> Result<(), DbError> {
        let options = self.0;
        let forges = options.forges_with(ForgeFeature::Hooks);
        if forges.is_empty() {
            return Ok(());
        }
        // That reads all projects, and hooks may end by the hundred.
        if !in_flight.refills() {
            let urls: Vec<String> = forges.iter().map(|forge| hook_url(options, forge)).collect();
            options.db.want_hooks(&forges, &urls).await?;
        }
        loop {
            let room = in_flight.room();
            let free: Vec<String> = forges.iter().filter(|forge| !in_flight.is_full(forge)).cloned().collect();
            if room == 0 || free.is_empty() {
                return Ok(());
            }
            let targets = options.db.due_hooks(&options.node, &free, room as u32, LEASE).await?;
            if targets.is_empty() {
                return Ok(());
            }
            for target in targets {
                let options = options.clone();
                in_flight.begin(target.forge.clone(), async move { put_right(&options, &target).await.map(|()| 1) });
            }
        }
    }
}

/// Where a forge shall deliver to.
pub fn hook_url(options: &ProjectsOptions, forge: &str) -> String {
    format!("{}/webhook/{forge}", options.public_url.trim_end_matches('/'))
}

async fn put_right(options: &ProjectsOptions, target: &HookTarget) -> Result<(), DbError> {
    let db = &options.db;
    let what = if target.wanted { "install" } else { "remove" };
    let result = if target.wanted { install(options, target).await? } else { remove(options, target).await };
    match result {
        Ok(()) => {
            db.hook_done(target).await?;
            info!(
                forge.name = target.forge,
                project = target.name,
                wanted = target.wanted,
                "The webhook is as it should be"
            );
        }
        Err(error) if !target.wanted && !error.is_transient() && target.attempts >= REMOVALS_MAX => {
            warn!(forge.name = target.forge, project = target.name, error = %error, "Left a webhook that we may not remove");
            db.hook_done(target).await?;
        }
        Err(error) => {
            let wait = wait_after(&error, target.attempts, WAIT_MAX);
            warn!(
                forge.name = target.forge,
                project = target.name,
                error = %error,
                "Could not {what} the webhook, next try in {wait:?}"
            );
            db.hook_failed(target, &format!("could not {what} the webhook: {error}"), wait).await?;
        }
    }
    Ok(())
}

/// The outer error is the database's. What may be at another address is removed before.
async fn install(options: &ProjectsOptions, target: &HookTarget) -> Result<Result<(), ForgeError>, DbError> {
    let url = hook_url(options, &target.forge);
    if target.old_url.as_ref().is_some_and(|old| *old != url)
        && let Err(error) = remove(options, target).await
    {
        return Ok(Err(error));
    }
    // Known before the forge is asked: should its answer be lost, there may be a hook.
    if !options.db.hook_begins(target, &url).await? {
        return Ok(Err(ForgeError::Unavailable("another node took it over".to_owned())));
    }
    let forge = match options.forge(&target.forge) {
        Ok(forge) => forge,
        Err(error) => return Ok(Err(error)),
    };
    Ok(call(forge.install_hook(target.repository.clone(), url)).await)
}

async fn remove(options: &ProjectsOptions, target: &HookTarget) -> Result<(), ForgeError> {
    let Some(url) = target.old_url.clone() else { return Ok(()) };
    match call(options.forge(&target.forge)?.remove_hook(target.repository.clone(), url)).await {
        // The repository, or the hook, is gone already.
        Err(ForgeError::NotFound) => Ok(()),
        other => other,
    }
}
