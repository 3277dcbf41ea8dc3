//! The place of one configured plugin: what runs there now, and what is wanted there.

use std::sync::{Arc, PoisonError, RwLock};

use harmonia_core::Timestamp;
use harmonia_core::plugin::{PluginKind, PluginStatus};

use crate::plugin::Plugin;
use crate::spec::PluginSpec;
use crate::stamp::Stamp;
use crate::stats::Stats;

pub(super) struct Slot {
    pub(super) name: String,
    pub(super) stats: Arc<Stats>,
    state: RwLock<State>,
}

struct State {
    plugin: Option<Arc<Plugin>>,
    /// As last configured; the running one may be an older one.
    wanted: PluginSpec,
    /// File and configuration of the last try, whatever became of it.
    tried: Tried,
    /// Why what is wanted does not run.
    problem: Option<String>,
}

/// What was tried last.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Nothing,
    /// This file, or that there was none.
    File(Option<Stamp>),
}

impl Slot {
    pub(super) fn new(spec: PluginSpec, stats: Stats) -> Self {
        Self {
            name: spec.name.clone(),
            stats: Arc::new(stats),
            state: RwLock::new(State {
                plugin: None,
                wanted: spec,
                tried: Tried::Nothing,
                problem: Some("it was not loaded yet".into()),
            }),
        }
    }

    /// Whether this configuration, with the file as it is, was tried already.
    pub(super) fn is_up_to_date(&self, spec: &PluginSpec) -> bool {
        let stamp = Stamp::of(&spec.path);
        self.read(|state| state.wanted == *spec && state.tried == Tried::File(stamp))
    }

    pub(super) fn wanted(&self) -> PluginSpec {
        self.read(|state| state.wanted.clone())
    }

    /// What runs; the error says why nothing does.
    pub(super) fn plugin(&self) -> Result<Arc<Plugin>, String> {
        self.read(|state| {
            state.plugin.clone().ok_or_else(|| {
                let problem = state.problem.as_deref().unwrap_or("it is not configured");
                format!("plugin {} is not loaded: {problem}", self.name)
            })
        })
    }

    pub(super) fn kind(&self) -> Option<PluginKind> {
        self.read(|state| state.plugin.as_ref().map(|plugin| plugin.kind()))
    }

    /// A new one runs from now on; who calls the old one finishes there.
    pub(super) fn take(&self, plugin: Plugin, stamp: Option<Stamp>) {
        self.stats.replaced();
        self.write(|state| {
            state.wanted = plugin.spec.clone();
            state.plugin = Some(Arc::new(plugin));
            state.tried = Tried::File(stamp);
            state.problem = None;
        });
    }

    /// What is wanted cannot run; what ran goes on.
    pub(super) fn refuse(&self, spec: PluginSpec, stamp: Option<Stamp>, reason: String) {
        self.stats.refused_load(reason.clone());
        self.write(|state| {
            state.wanted = spec;
            state.tried = Tried::File(stamp);
            state.problem = Some(reason);
        });
    }

    /// Nobody configures it any more.
    pub(super) fn remove(&self) {
        self.write(|state| {
            state.plugin = None;
            state.problem = Some("it is not configured any more".into());
        });
    }

    pub(super) fn status(&self, now: Timestamp) -> PluginStatus {
        let metrics = self.stats.metrics(&self.name);
        self.read(|state| {
            let plugin = state.plugin.as_ref();
            let secrets = plugin.map_or_else(Vec::new, |plugin| plugin.secret_problems());
            let problem = state.problem.clone().or_else(|| secrets.first().map(|(_, problem)| problem.clone()));
            PluginStatus {
                name: self.name.clone(),
                kind: plugin.map(|plugin| plugin.kind()),
                program: plugin.map_or_else(String::new, |plugin| {
                    format!("{} {}", plugin.description.name, plugin.description.version)
                }),
                sha256: plugin.map_or_else(String::new, |plugin| plugin.caller.program.sha256.clone()),
                calls: metrics.calls,
                failures: metrics.failures,
                broken_for_s: self.stats.broken_for_s(now),
                last_error: problem.or_else(|| self.stats.last_error()),
                last_failure: self.stats.last_failure(),
                refused: state.problem.clone(),
                unusable_secrets: secrets.into_iter().map(|(secret, _)| secret).collect(),
                exports: plugin.map_or_else(Vec::new, |plugin| plugin.caller.program.contract.exports.clone()),
            }
        })
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut State)) {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }
}
