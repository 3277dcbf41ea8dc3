//! The engines, the clock that interrupts guests, and compiled code on disk. Start at [`Engines`].
//!
//! Two engines with the same compiler settings: one that takes instances from a pool (an instance in some microseconds),
//! and one that allocates each for guests that no slot of the pool can hold: programs that bring an interpreter along.

mod cache;
mod ticker;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

pub(crate) use self::cache::CodeCache;
pub(crate) use self::ticker::{Running, Ticker};
pub(crate) use self::turns::{InTurn, Pace, Queue, Turns};
use crate::error::LoadError;
use crate::limits::{POOLED_CALLS_MAX, STACK_BYTES_MAX, UNPOOLED_CALLS_MAX};

/// How often a running guest is interrupted to be counted and to let others run, in milliseconds.
pub const TICK_MS: u64 = 5;

/// Stack of a call: what the guest may use and room for what the host does for it.
const CALL_STACK_BYTES: usize = STACK_BYTES_MAX + (3 << 20);
/// Most memory of a guest in the pool; more goes to the other engine.
pub(crate) const POOLED_MEMORY_BYTES_MAX: usize = 1 << 30;
/// Most elements of a table in the pool: address space only, memory when they are used.
pub(crate) const POOLED_TABLE_ELEMENTS_MAX: usize = 200_000;

/// Most memory that stays with a slot of the pool between calls: what a small guest writes to.
const WARM_MEMORY_BYTES_MAX: usize = 512 << 10;

/// Both engines, their ticker and the cache of compiled code. One a process.
pub(crate) struct Engines {
    pooled: Engine,
    on_demand: Engine,
    ticker: Ticker,
    cache: CodeCache,
    pooled_calls: Arc<Semaphore>,
    on_demand_calls: Arc<Semaphore>,
    turns: Turns,
}

/// Compiled code and which engine runs it.
#[derive(Clone)]
pub(crate) struct Compiled {
    pub(crate) component: Component,
    pub(crate) is_pooled: bool,
}

impl Engines {
    /// Starts both. `cache_folder` holds compiled code and must belong to us alone.
    pub(crate) fn start(cache_folder: PathBuf) -> Result<Arc<Self>, LoadError> {
        let engine = |strategy| {
            Engine::new(config().allocation_strategy(strategy)).map_err(|e| LoadError::Engine(format!("{e:#}")))
        };
        let pooled = engine(InstanceAllocationStrategy::Pooling(pool()))?;
        let on_demand = engine(InstanceAllocationStrategy::OnDemand)?;
        let ticker = Ticker::start(vec![pooled.weak(), on_demand.weak()])
            .map_err(|e| LoadError::Engine(format!("no thread for the ticker: {e}")))?;
        Ok(Arc::new(Self {
            cache: CodeCache::open(cache_folder, &on_demand)?,
            ticker,
            pooled,
            on_demand,
            pooled_calls: Arc::new(Semaphore::new(POOLED_CALLS_MAX as usize)),
            on_demand_calls: Arc::new(Semaphore::new(UNPOOLED_CALLS_MAX)),
            turns: Turns::of_this_machine(),
        }))
    }

    /// Compiled code of a component: from the cache, or compiled now (0.1 s for a small one, many seconds for one with an
    /// interpreter: not on an async thread). The error is the compiler's text.
    pub(crate) fn compile(&self, sha256: &str, bytes: &[u8]) -> Result<Compiled, String> {
        let text = |e: wasmtime::Error| format!("{e:#}");
        if let Some(file) = self.cache.find(sha256)
            && let Ok(compiled) = self.load(&file)
        {
            return Ok(compiled);
        }
        // Not there yet, or damaged.
        let code = self.on_demand.precompile_component(bytes).map_err(text)?;
        let file = self.cache.store(sha256, &code)?;
        self.load(&file).map_err(text)
    }

    fn load(&self, file: &Path) -> wasmtime::Result<Compiled> {
        // What fits into the pool is for the pool to say; it does so before anything is instantiated.
        if let Ok(component) = self.cache.load(&self.pooled, file) {
            return Ok(Compiled { component, is_pooled: true });
        }
        self.cache.load(&self.on_demand, file).map(|component| Compiled { component, is_pooled: false })
    }

    /// The engine that runs a component.
    pub(crate) fn engine(&self, is_pooled: bool) -> &Engine {
        if is_pooled { &self.pooled } else { &self.on_demand }
    }

    /// Slots for calls in an engine.
    pub(crate) fn calls(&self, is_pooled: bool) -> &Arc<Semaphore> {
        if is_pooled { &self.pooled_calls } else { &self.on_demand_calls }
    }

    /// Where the long calls of one plugin wait.
    pub(crate) fn queue(&self) -> Arc<Queue> {
        self.turns.queue()
    }

    /// Keeps the ticker going for as long as the value lives.
    pub(crate) fn running(&self) -> Running<'_> {
        self.ticker.running()
    }
}

/// What both engines have in common, so that code compiled once runs in both.
fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX)
        .async_stack_size(CALL_STACK_BYTES)
        // A policy's answers can be replayed on another machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true);
    config
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(POOLED_CALLS_MAX)
        .total_stacks(POOLED_CALLS_MAX)
        .total_memories(POOLED_CALLS_MAX * 2)
        .total_tables(POOLED_CALLS_MAX * 4)
        .total_core_instances(POOLED_CALLS_MAX * 8)
        .max_core_instances_per_component(8)
        .max_memories_per_component(2)
        .max_tables_per_component(4)
        .table_elements(POOLED_TABLE_ELEMENTS_MAX)
        .max_memory_size(POOLED_MEMORY_BYTES_MAX)
        .max_unused_warm_slots(32)
        .table_keep_resident(16 << 10);
    // Pages that a call wrote are put back one by one instead of being unmapped, all of them, and faulted in again. Only the
    // kernel can say which they are (Linux 6.7); without it, this would clear so many bytes after every call.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes).linear_memory_keep_resident(WARM_MEMORY_BYTES_MAX);
    }
    pool
}
