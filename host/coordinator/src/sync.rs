//! Discovery: which repositories a forge lets us see. Start at [`step`]. One node syncs a forge at a time, page by page;
//! each page is saved with the cursor of the next, so that a sync goes on where a crash or a rate limit stopped it.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, ForgeFeature, ForgeRepository};
use harmonia_core::project_name;
use harmonia_db::{DbError, PageSaved, Sync};
use tracing::{info, warn};

use crate::in_flight::{self, Due, InFlight};
use crate::projects::{ProjectsOptions, call, wait_after};

/// How long a page may take before another node goes on.
const LEASE: Duration = Duration::from_mins(5);
/// More repositories on one page make no sense.
const PAGE_ITEMS_MAX: usize = 5_000;
/// A list that does not end by then never will.
const PAGES_MAX: usize = 20_000;
/// Longest wait after failures.
const WAIT_MAX: Duration = Duration::from_mins(15);
/// In the audit log, who enables repositories by pattern.
const ACTOR: &str = "auto-enable";

/// Does all syncs that are due. Returns how many pages were saved.
pub async fn step(options: &ProjectsOptions) -> Result<u64, DbError> {
    in_flight::process_due(&Syncs(options)).await
}

/// Forges whose repositories are to be discovered.
pub(crate) struct Syncs<'a>(pub(crate) &'a ProjectsOptions);

impl Due for Syncs<'_> {
    const ALL_MAX: usize = usize::MAX;
    const OF_FORGE_MAX: usize = 1;

    async fn begin(&self, in_flight: &mut InFlight) -> Result<(), DbError> {
        let options = self.0;
        let mut forges = options.forges_with(ForgeFeature::Discovery);
        loop {
            forges.retain(|forge| !in_flight.is_full(forge));
            if forges.is_empty() {
                return Ok(());
            }
            let Some(sync) = options.db.begin_sync(&options.node, &forges, LEASE).await? else { return Ok(()) };
            let options = options.clone();
            in_flight.begin(sync.forge.clone(), async move { sync_forge(&options, sync).await });
        }
    }
}

async fn sync_forge(options: &ProjectsOptions, mut sync: Sync) -> Result<u64, DbError> {
    let db = &options.db;
    let Ok(forge) = options.forge(&sync.forge) else { return db.release_sync(&sync).await.map(|()| 0) };
    let mut pages = 0;
    let failure = loop {
        let page = match call(forge.repositories(sync.cursor.clone())).await {
            Ok(page) => page,
            Err(error) => break error,
        };
        if let Some(error) = senseless(&page.items, page.next.as_deref(), sync.cursor.as_deref(), pages) {
            break ForgeError::Invalid(error);
        }
        let saved =
            db.save_sync_page(&mut sync, &page.items, page.next.as_deref(), LEASE, options.discover_every).await?;
        if saved == PageSaved::LeaseLost {
            return Ok(pages as u64);
        }
        pages += 1;
        auto_enable(options, &sync.forge, &page.items).await?;
        if let PageSaved::Complete { removed } = saved {
            info!(forge.name = sync.forge, pages, removed, "Discovered the repositories of {}", sync.forge);
            return Ok(pages as u64);
        }
    };
    // A cursor that the forge makes nothing of any more would stop us for ever.
    let restart = matches!(failure, ForgeError::Invalid(_) | ForgeError::NotFound);
    let wait = wait_after(&failure, sync.attempts, WAIT_MAX);
    warn!(forge.name = sync.forge, error = %failure, pages, "Could not discover repositories, next try in {wait:?}");
    db.sync_failed(&sync, &failure.to_string(), wait, restart).await?;
    Ok(pages as u64)
}

fn senseless(items: &[ForgeRepository], next: Option<&str>, cursor: Option<&str>, pages: usize) -> Option<String> {
    if items.len() > PAGE_ITEMS_MAX {
        return Some(format!("a page of {} repositories", items.len()));
    }
    if next.is_some() && next == cursor {
        return Some("a page that names itself as the next".to_owned());
    }
    (pages >= PAGES_MAX).then(|| format!("more than {PAGES_MAX} pages"))
}

/// Makes projects of those repositories that the configuration means. Never of one that was a project before: whoever
/// disabled it meant that.
async fn auto_enable(options: &ProjectsOptions, forge: &str, repositories: &[ForgeRepository]) -> Result<(), DbError> {
    let Some(rules) = options.auto_enable.get(forge).filter(|rules| !rules.is_empty()) else { return Ok(()) };
    let meant = repositories.iter().filter(|repository| rules.iter().any(|rule| rule.matches(repository)));
    let ids: Vec<String> = meant.map(|repository| repository.id.clone()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    for (repository, full_name) in options.db.repositories_without_project(forge, &ids).await? {
        let names = project_name::for_repository(forge, &full_name);
        match options.db.enable_repository(repository, &names, ACTOR).await {
            Ok((_, name)) => {
                info!(forge.name = forge, project = name, "Enabled {full_name}, as the configuration says");
            }
            Err(DbError::Refused { reason }) => warn!(forge.name = forge, "Could not enable {full_name}: {reason}"),
            // Gone, or renamed, in between: the next sync sees to it.
            Err(DbError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
