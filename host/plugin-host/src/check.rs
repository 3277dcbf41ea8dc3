//! Conformance: whether a plugin keeps to the contract of its kind, as far as that shows without a network. Start at
//! [`PluginHost::check`].

mod forge;
mod reporter;
mod scheduler;

use std::sync::Arc;

use serde::Serialize;

use crate::call::Network;
use crate::memory_store::MemoryStore;
use crate::plugin::{Adapter, Plugin, World};
use crate::registry::PluginHost;
use crate::spec::PluginSpec;
use crate::stats::Stats;

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// What should hold.
    pub case: String,
    /// Why it does not; `None` when it does.
    pub problem: Option<String>,
}

impl CheckResult {
    /// Whether it holds.
    pub const fn passed(&self) -> bool {
        self.problem.is_none()
    }
}

/// Collects results.
struct Report<'a> {
    stats: &'a Stats,
    results: Vec<CheckResult>,
}

impl Report<'_> {
    fn add(&mut self, case: impl Into<String>, outcome: Result<(), String>) {
        self.results.push(CheckResult { case: case.into(), problem: outcome.err() });
        // Each case on its own: what failed before must not keep the next from being tried.
        self.stats.replaced();
    }
}

impl PluginHost {
    /// Loads a plugin that need not be configured, without any network and with an empty store, and tries the cases of its
    /// kind. The first result is whether it is let in at all.
    pub async fn check(&self, spec: PluginSpec) -> Vec<CheckResult> {
        let stats = Arc::new(Stats::default());
        let mut report = Report { stats: &stats, results: Vec::new() };
        let world = World {
            network: Network::Closed,
            store: Arc::new(MemoryStore::new(self.world().clock.clone())),
            ..self.world().clone()
        };
        let loaded = match spec.check_name() {
            Ok(()) => match self.program(&spec).await {
                Ok(program) => Plugin::load(&world, spec, program, stats.clone()).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let plugin = match loaded {
            Ok(plugin) => plugin,
            Err(error) => {
                report.add("is let in and describes itself", Err(harmonia_core::chain(&error)));
                return report.results;
            }
        };
        report.add("is let in and describes itself", Ok(()));
        let description = &plugin.description;
        let named = [("name", &description.name), ("version", &description.version)];
        let lacking: Vec<&str> =
            named.iter().filter(|(_, text)| text.trim().is_empty()).map(|(name, _)| *name).collect();
        let told = if lacking.is_empty() { Ok(()) } else { Err(format!("no {}", lacking.join(", no "))) };
        report.add("says its name and version", told);
        let problem = plugin.secret_problems().into_iter().next();
        report.add("can use its secrets", problem.map_or(Ok(()), |(_, problem)| Err(problem)));
        match &plugin.adapter {
            Adapter::Forge(forge) => forge::check(&**forge, &mut report).await,
            Adapter::Reporter(reporter) => reporter::check(&**reporter, &mut report).await,
            Adapter::Scheduler(policy) => scheduler::check(&**policy, &mut report),
        }
        report.results
    }
}

/// Bodies that no sender means.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("no UTF-8", vec![0xff, 0xfe, 0, 0x80]),
        ("null", b"null".to_vec()),
        ("half an object", b"{\"a\": [1, {".to_vec()),
        ("an object of another world", b"{\"ref\": 7, \"repository\": [], \"action\": null}".to_vec()),
        ("a deep nest", [vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
        ("a megabyte of one letter", vec![b'a'; 1 << 20]),
    ]
}
