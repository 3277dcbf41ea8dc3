//! A policy from a component's file, run as the builders run it.

use std::path::Path;
use std::sync::Arc;

use harmonia_core::SystemClock;
use harmonia_core::policy::Policy;
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec};

use crate::exit::{Failure, chain};

/// Name of the instance.
const NAME: &str = "policy";

/// A policy that lives as long as it is held.
pub(super) async fn policy(file: &Path) -> Result<Arc<dyn Policy>, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::failed(chain(error));
    let folder = tempfile::tempdir().map_err(|error| failed(&error))?;
    let clock = Arc::new(SystemClock);
    let host = PluginHost::new(HostOptions {
        cache_folder: folder.path().join("compiled"),
        scratch_folder: folder.path().join("scratch"),
        store: Arc::new(MemoryStore::new(clock.clone())),
        clock,
        http: HttpClient::new(&HttpClientOptions::default()).map_err(|error| failed(&error))?,
    })
    .map_err(|error| failed(&error))?;
    let report = host.reload(vec![PluginSpec::new(NAME, file)]).await;
    if let Some((_, error)) = report.refused.first() {
        return Err(Failure::usage(format!("{}: {}", file.display(), chain(error)))
            .hint("`harmonia-ci plugin inspect FILE` says what it is"));
    }
    if !host.policies().iter().any(|name| name == NAME) {
        return Err(Failure::usage(format!("{} is no scheduling policy", file.display())));
    }
    // What was compiled is in memory now; the folder goes.
    drop(folder);
    Ok(Arc::new(host.policy(NAME)))
}
