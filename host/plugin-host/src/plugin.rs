//! One loaded plugin: its program, linked with its grants. Start at [`Plugin::load`].

use std::path::PathBuf;
use std::sync::Arc;

use harmonia_core::Clock;
use harmonia_core::plugin::{PluginKind, UnusableSecret};
use harmonia_core::policy::Policy;
use harmonia_core::ports::{Forge, PluginStore, Reporter};
use tokio::sync::Semaphore;

use crate::call::{Caller, Network};
use crate::capabilities::{HttpClient, Shared};
use crate::description::{self, Description};
use crate::engine::{Engines, POOLED_MEMORY_BYTES_MAX, POOLED_TABLE_ELEMENTS_MAX};
use crate::error::LoadError;
use crate::limits::{CALL_LIMITS, POLICY_LIMITS};
use crate::loader::{Program, import_problems};
use crate::spec::PluginSpec;
use crate::stats::Stats;
use crate::wasi::WasiGrant;
use crate::{forge, imports, reporter, scheduler};

/// What all plugins of a node share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) engines: Arc<Engines>,
    pub(crate) store: Arc<dyn PluginStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) http: HttpClient,
    pub(crate) scratch_folder: PathBuf,
    /// Of all calls.
    pub(crate) network: Network,
}

/// A plugin behind the port of its kind.
pub(crate) enum Adapter {
    Forge(Arc<dyn Forge>),
    Reporter(Arc<dyn Reporter>),
    Scheduler(Arc<dyn Policy>),
}

/// A plugin that can be called.
pub(crate) struct Plugin {
    pub(crate) spec: PluginSpec,
    pub(crate) caller: Arc<Caller>,
    pub(crate) adapter: Adapter,
    pub(crate) description: Description,
}

impl Plugin {
    /// Links a program with the grants of `spec`, checks that it fits the contract, and asks it what it is.
    pub(crate) async fn load(
        world: &World,
        spec: PluginSpec,
        program: Arc<Program>,
        stats: Arc<Stats>,
    ) -> Result<Self, LoadError> {
        // Tried with a record of its own: what fails here is no fault of the one that runs now, whose broken circuit must
        // not keep a better one out.
        let trial = Arc::new(link(world, &spec, program.clone(), Arc::new(Stats::default()))?);
        let description = description::describe(&trial).await.map_err(|error| LoadError::Describe(Box::new(error)))?;
        description.check_parameters(&spec)?;
        check_types(&trial).await?;
        let caller = Arc::new(link(world, &spec, program, stats)?);
        let adapter = adapter(&caller).map_err(mismatch)?;
        Ok(Self { spec, caller, adapter, description })
    }

    pub(crate) fn kind(&self) -> PluginKind {
        self.caller.program.contract.kind
    }

    /// Secrets that it needs or that are configured, and that cannot be used now, with the reason, which is not for
    /// everybody: it names files. Looked at anew each time, as a file may come and go. Those that it needs come first.
    pub(crate) fn secret_problems(&self) -> Vec<(UnusableSecret, String)> {
        let wanted = self.description.secrets.iter();
        let wanted = wanted.filter(|secret| secret.required || self.spec.secrets.contains_key(&secret.name));
        let mut problems: Vec<_> = wanted
            .filter_map(|secret| {
                let problem = self.caller.shared.secret_problem(&secret.name)?;
                Some((UnusableSecret { name: secret.name.clone(), required: secret.required }, problem))
            })
            .collect();
        problems.sort_by_key(|(secret, _)| !secret.required);
        problems
    }
}

/// Checks what a program imports against what is granted, and links it.
pub(crate) fn link(
    world: &World,
    spec: &PluginSpec,
    program: Arc<Program>,
    stats: Arc<Stats>,
) -> Result<Caller, LoadError> {
    let kind = program.contract.kind;
    let problems = import_problems(&program.imports, kind, spec.wasi, &spec.name);
    if !problems.is_empty() {
        return Err(LoadError::Imports(problems));
    }
    let with_wasi = program.contract.wants_wasi;
    let engine = world.engines.engine(program.is_pooled);
    let linker = imports::linker(engine, kind, with_wasi).map_err(mismatch)?;
    let instances = linker.instantiate_pre(&program.component).map_err(mismatch)?;
    description::check(&instances).map_err(mismatch)?;
    let base = if kind == PluginKind::Scheduler { POLICY_LIMITS } else { CALL_LIMITS };
    let mut limits = spec.limits.call.apply(base);
    if program.is_pooled {
        // A slot has no more; here the guest is told which bound that is.
        limits.memory_bytes_max = limits.memory_bytes_max.min(POOLED_MEMORY_BYTES_MAX);
        limits.table_elements_max = limits.table_elements_max.min(POOLED_TABLE_ELEMENTS_MAX);
    }
    Ok(Caller {
        name: spec.name.clone(),
        instances,
        limits,
        // Only those who import one pay for one.
        wasi: if with_wasi { spec.wasi } else { WasiGrant::None },
        scratch_folder: world.scratch_folder.clone(),
        queue: world.engines.queue(),
        engines: world.engines.clone(),
        shared: Shared::new(spec.grants(), world.store.clone(), world.clock.clone(), world.http.clone()),
        stats,
        clock: world.clock.clone(),
        calls: Arc::new(Semaphore::new(limits.concurrent_calls_max)),
        network: world.network,
        program,
    })
}

fn mismatch(error: wasmtime::Error) -> LoadError {
    LoadError::Mismatch(format!("{error:#}"))
}

async fn check_types(caller: &Arc<Caller>) -> Result<(), LoadError> {
    let caller = caller.clone();
    let checked = match caller.program.contract.kind {
        PluginKind::Forge => forge::v0_1::Adapter::new(caller).map_err(mismatch)?.check_types().await,
        PluginKind::Reporter => reporter::v0_1::Adapter::new(caller).map_err(mismatch)?.check_types().await,
        PluginKind::Scheduler => scheduler::v0_1::Adapter::new(caller).map_err(mismatch)?.check_types().await,
    };
    checked.map_err(LoadError::mismatch)
}

fn adapter(caller: &Arc<Caller>) -> wasmtime::Result<Adapter> {
    let caller = caller.clone();
    Ok(match caller.program.contract.kind {
        PluginKind::Forge => Adapter::Forge(Arc::new(forge::v0_1::Adapter::new(caller)?)),
        PluginKind::Reporter => Adapter::Reporter(Arc::new(reporter::v0_1::Adapter::new(caller)?)),
        PluginKind::Scheduler => Adapter::Scheduler(Arc::new(scheduler::v0_1::Adapter::new(caller)?)),
    })
}
