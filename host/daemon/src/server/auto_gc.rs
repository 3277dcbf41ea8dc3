//! Collecting garbage when the disk fills (`min-free`, `max-free`). Start at [`run`].

use std::sync::Arc;
use std::time::Duration;

use harmonia_nix::worker_protocol::GcRequest;
use tokio::sync::watch;

use super::Daemon;
use crate::config::Settings;
use crate::store::{KeepOptions, StoreError};

/// Once less than this part of what a collection left free is free, the next one may find something.
const WORTH_IT: f64 = 0.97;

/// Looks every `min-free-check-interval` until `stop` says so.
pub(super) async fn run(daemon: Arc<Daemon>, mut stop: watch::Receiver<bool>) {
    let settings = &daemon.config.settings;
    if settings.min_free_bytes == 0 {
        return;
    }
    let mut interval = tokio::time::interval(Duration::from_secs(settings.min_free_check_interval_s.max(1)));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut left_free = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = interval.tick() => {}
        }
        let there = Arc::clone(&daemon);
        match tokio::task::spawn_blocking(move || collect(&there, left_free)).await {
            Ok(Ok(Some(free))) => left_free = Some(free),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(error = super::chain(&error), "Could not collect garbage"),
            Err(error) => tracing::warn!(%error, "Could not collect garbage"),
        }
    }
}

/// Collects if it must; how much is free then.
fn collect(daemon: &Daemon, left_free: Option<u64>) -> Result<Option<u64>, StoreError> {
    let settings = &daemon.config.settings;
    let free = daemon.store.free_bytes()?;
    let Some(max_freed_bytes) = wanted(settings, free, left_free) else { return Ok(None) };
    tracing::info!(free, max_freed_bytes, "The disk fills: collecting garbage");
    let request = GcRequest { max_freed_bytes, ..GcRequest::delete_dead() };
    let keep = KeepOptions { outputs: settings.keep_outputs, derivations: settings.keep_derivations };
    let report = daemon.store.collect_garbage(&request, keep, &|text| tracing::debug!("{text}"))?;
    tracing::info!(paths = report.paths.len(), freed = report.freed_bytes, "Collected garbage");
    daemon.store.free_bytes().map(Some)
}

/// How many bytes should be freed, if any.
fn wanted(settings: &Settings, free: u64, left_free: Option<u64>) -> Option<u64> {
    if free >= settings.min_free_bytes || free >= settings.max_free_bytes {
        return None;
    }
    if left_free.is_some_and(|left| free as f64 > left as f64 * WORTH_IT) {
        return None;
    }
    Some(settings.max_free_bytes - free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_cleaned_once() {
        let settings = Settings { min_free_bytes: 100, max_free_bytes: 1000, ..Settings::default() };
        assert_eq!(wanted(&settings, 100, None), None);
        assert_eq!(wanted(&settings, 99, None), Some(901));
        assert_eq!(wanted(&settings, 99, Some(99)), None, "nothing was found the last time");
        assert_eq!(wanted(&settings, 90, Some(99)), Some(910));
        assert_eq!(wanted(&Settings { max_free_bytes: 50, ..settings }, 60, None), None);
    }
}
