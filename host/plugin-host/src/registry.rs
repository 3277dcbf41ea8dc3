//! The plugins of a node: loaded, reloaded, and found by name. Start at [`PluginHost`].

mod handles;
mod slot;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use harmonia_core::Clock;
use harmonia_core::plugin::{PluginKind, PluginStatus};
use harmonia_core::ports::{Forge, PluginStore, Plugins, Reporter};

pub use self::handles::PolicyHandle;
use self::handles::{ForgeHandle, ReporterHandle};
use self::slot::Slot;
use crate::call::Network;
use crate::capabilities::HttpClient;
use crate::engine::Engines;
use crate::error::LoadError;
use crate::loader::{self, Program};
use crate::plugin::{Plugin, World};
use crate::spec::PluginSpec;
use crate::stamp::Stamp;
use crate::stats::{PluginMetrics, Stats};
use crate::wasi;

/// What the host of plugins needs of the node.
pub struct HostOptions {
    /// Folder for compiled code. Created for us alone; refused when others may write into it.
    pub cache_folder: PathBuf,
    /// Folder for scratch files of plugins that are granted them.
    pub scratch_folder: PathBuf,
    /// The plugins' small store.
    pub store: Arc<dyn PluginStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What sends their requests.
    pub http: HttpClient,
}

/// What a reload did, by name.
#[derive(Debug, Default)]
pub struct ReloadReport {
    /// New, or with another component or configuration.
    pub loaded: Vec<String>,
    /// As they were.
    pub unchanged: Vec<String>,
    /// Not configured any more.
    pub removed: Vec<String>,
    /// Refused; where an older one runs, it stays.
    pub refused: Vec<(String, LoadError)>,
}

/// The plugins of a node. Cheap to clone.
#[derive(Clone)]
pub struct PluginHost(Arc<Inner>);

struct Inner {
    world: World,
    slots: RwLock<BTreeMap<String, Arc<Slot>>>,
    /// Compiled components by SHA-256, for as long as somebody uses them.
    programs: Mutex<HashMap<String, Weak<Program>>>,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

impl PluginHost {
    /// Starts the engines; there are no plugins yet: [`Self::reload`] brings them.
    pub fn new(options: HostOptions) -> Result<Self, LoadError> {
        let scratch_folder = wasi::scratch_folder(options.scratch_folder.clone())
            .map_err(|e| LoadError::CacheFolder { path: options.scratch_folder.clone(), reason: e.to_string() })?;
        Ok(Self(Arc::new(Inner {
            world: World {
                engines: Engines::start(options.cache_folder)?,
                store: options.store,
                clock: options.clock,
                http: options.http,
                scratch_folder,
                network: Network::Granted,
            },
            slots: RwLock::default(),
            programs: Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
        })))
    }

    /// Makes the configured plugins these. Calls in flight end on the component they began on; a plugin whose new component
    /// or configuration is refused keeps the old one, and its status says why.
    pub async fn reload(&self, specs: Vec<PluginSpec>) -> ReloadReport {
        let _one = self.0.reloading.lock().await;
        let mut report = ReloadReport::default();
        let mut loads = tokio::task::JoinSet::new();
        let mut names = BTreeSet::new();
        for spec in specs {
            let name = spec.name.clone();
            if !names.insert(name.clone()) {
                report.refused.push((name.clone(), refused(&name, LoadError::DuplicateName(name.clone())).1));
                continue;
            }
            if let Err(error) = spec.check_name() {
                report.refused.push((name.clone(), refused(&name, error).1));
                continue;
            }
            let slot = self.slot_or_new(&spec);
            if slot.is_up_to_date(&spec) {
                report.unchanged.push(name);
                continue;
            }
            let host = self.clone();
            // At once: compiling one must not keep the others waiting.
            loads.spawn(async move { (name, host.load_into(&slot, spec).await) });
        }
        while let Some(loaded) = loads.join_next().await {
            match loaded {
                Ok((name, Ok(()))) => report.loaded.push(name),
                Ok((name, Err(error))) => report.refused.push((name, error)),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        self.slots_mut(|slots| {
            slots.retain(|name, slot| {
                let stays = names.contains(name);
                if !stays {
                    slot.remove();
                    report.removed.push(name.clone());
                }
                stays
            });
        });
        report
    }

    /// Looks at the plugins' files and loads those that changed.
    pub async fn reload_changed_files(&self) -> ReloadReport {
        let _one = self.0.reloading.lock().await;
        let mut report = ReloadReport::default();
        for slot in self.slots() {
            let spec = slot.wanted();
            let name = spec.name.clone();
            if slot.is_up_to_date(&spec) {
                report.unchanged.push(name);
                continue;
            }
            match self.load_into(&slot, spec).await {
                Ok(()) => report.loaded.push(name),
                Err(error) => report.refused.push((name, error)),
            }
        }
        report
    }

    /// [`Self::reload_changed_files`] every `period`, for ever: drop the future to stop.
    pub async fn watch(&self, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.reload_changed_files().await;
        }
    }

    /// The scheduling policy of this name, as it is configured whenever it is asked.
    pub fn policy(&self, name: impl Into<String>) -> PolicyHandle {
        PolicyHandle::new(self.clone(), name.into())
    }

    /// Names of the configured policies.
    pub fn policies(&self) -> Vec<String> {
        self.names(PluginKind::Scheduler)
    }

    /// Counters of every plugin.
    pub fn metrics(&self) -> Vec<PluginMetrics> {
        self.slots().iter().map(|slot| slot.stats.metrics(&slot.name)).collect()
    }

    pub(crate) fn world(&self) -> &World {
        &self.0.world
    }

    /// Reads and compiles a component, unless somebody uses it already.
    pub(crate) async fn program(&self, spec: &PluginSpec) -> Result<Arc<Program>, LoadError> {
        let host = self.clone();
        let (path, pin) = (spec.path.clone(), spec.sha256.clone());
        let work = move || {
            let file = loader::read(&path, pin.as_deref())?;
            if let Some(program) = host.programs(|programs| programs.get(&file.sha256).and_then(Weak::upgrade)) {
                return Ok(program);
            }
            let program = Arc::new(loader::load(&host.0.world.engines, &file)?);
            host.programs(|programs| {
                programs.retain(|_, program| program.strong_count() > 0);
                programs.insert(file.sha256.clone(), Arc::downgrade(&program));
            });
            Ok(program)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(program) => program,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn load_into(&self, slot: &Slot, spec: PluginSpec) -> Result<(), LoadError> {
        // Before it is read: what is written meanwhile is another change.
        let stamp = Stamp::of(&spec.path);
        let loaded = match self.program(&spec).await {
            Ok(program) => Plugin::load(&self.0.world, spec.clone(), program, slot.stats.clone()).await,
            Err(error) => Err(error),
        };
        match loaded {
            Ok(plugin) => {
                tracing::info!(
                    plugin = %slot.name,
                    sha256 = %plugin.caller.program.sha256,
                    "Loaded plugin {}: {} {}",
                    slot.name,
                    plugin.description.name,
                    plugin.description.version
                );
                let unknown = plugin.description.unknown_parameters(&spec);
                for (secret, problem) in plugin.secret_problems() {
                    let what = if secret.required { "cannot work" } else { "can work in part only" };
                    tracing::error!(plugin = %slot.name, "Plugin {} {what} until this is mended: {problem}", slot.name);
                }
                slot.take(plugin, stamp);
                if let Some(problem) = unknown {
                    tracing::warn!(plugin = %slot.name, "Plugin {} is configured with what it does not read: {problem}", slot.name);
                    slot.stats.note_unknown(&problem);
                }
                Ok(())
            }
            Err(error) => {
                let (reason, error) = refused(&slot.name, error);
                slot.refuse(spec, stamp, reason);
                Err(error)
            }
        }
    }

    fn slot_or_new(&self, spec: &PluginSpec) -> Arc<Slot> {
        self.slots_mut(|slots| {
            slots
                .entry(spec.name.clone())
                .or_insert_with(|| Arc::new(Slot::new(spec.clone(), Stats::default())))
                .clone()
        })
    }

    fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        self.0.slots.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.0.slots.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn slots_mut<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Slot>>) -> T) -> T {
        change(&mut self.0.slots.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn programs<T>(&self, change: impl FnOnce(&mut HashMap<String, Weak<Program>>) -> T) -> T {
        change(&mut self.0.programs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn names(&self, kind: PluginKind) -> Vec<String> {
        let slots = self.slots();
        slots.iter().filter(|slot| slot.kind() == Some(kind)).map(|slot| slot.name.clone()).collect()
    }
}

/// Says that a plugin is refused: here, once, whoever asked for it to be loaded.
fn refused(name: &str, error: LoadError) -> (String, LoadError) {
    let reason = harmonia_core::chain(&error);
    tracing::error!(plugin = name, "Plugin {name} is not loaded as configured: {reason}");
    (reason, error)
}

impl Plugins for PluginHost {
    fn forges(&self) -> Vec<String> {
        self.names(PluginKind::Forge)
    }

    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        let slot = self.slot(name).filter(|slot| slot.kind() == Some(PluginKind::Forge))?;
        Some(Arc::new(ForgeHandle(slot)))
    }

    fn reporters(&self) -> Vec<String> {
        self.names(PluginKind::Reporter)
    }

    fn reporter(&self, name: &str) -> Option<Arc<dyn Reporter>> {
        let slot = self.slot(name).filter(|slot| slot.kind() == Some(PluginKind::Reporter))?;
        Some(Arc::new(ReporterHandle(slot)))
    }

    fn statuses(&self) -> Vec<PluginStatus> {
        let now = self.0.world.clock.now();
        self.slots().iter().map(|slot| slot.status(now)).collect()
    }
}
