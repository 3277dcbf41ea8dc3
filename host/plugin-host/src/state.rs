//! What a call's store holds: the plugin's capabilities, its handles, and the bounds it is held to.

use std::time::{Duration, Instant};

use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};

use crate::capabilities::{CallState, LAST_WORDS_BYTES_MAX};
use crate::engine::{Pace, TICK_MS};
use crate::limits::{CallLimits, HANDLES_MAX, LimitReached};
use crate::wasi::Wasi;

/// Data of one call's store.
pub(crate) struct State {
    pub(crate) capabilities: CallState,
    pub(crate) table: ResourceTable,
    pub(crate) wasi: Option<Box<Wasi>>,
    bounds: Bounds,
    /// The host waited for something, for a tick or longer, since the guest was last interrupted.
    waited: bool,
}

/// How a call gives way to others.
pub(crate) enum Yielding {
    /// Every tick, to the other tasks of its thread.
    EveryTick(Pace),
    /// Never: whoever calls waits on its thread.
    Never,
}

impl State {
    pub(crate) fn new(capabilities: CallState, wasi: Option<Box<Wasi>>, limits: CallLimits) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Self { capabilities, table, wasi, bounds: Bounds { limits, memory_bytes: 0 }, waited: false }
    }

    /// Notes that the host began to wait at `since` for something that the guest asked for.
    pub(crate) fn waited(&mut self, since: Instant) {
        self.waited |= since.elapsed() >= Duration::from_millis(TICK_MS);
    }

    /// What the guest said last of what went wrong: its last line at level error, or on standard error.
    pub(crate) fn last_words(&self) -> Option<String> {
        self.capabilities.last_words().or_else(|| {
            let output = self.wasi.as_ref()?.output();
            let line = output.lines().rev().find(|line| !line.trim().is_empty())?;
            Some(self.capabilities.shown(line, LAST_WORDS_BYTES_MAX))
        })
    }

    /// A store that holds its guest to the limits.
    pub(crate) fn into_store(self, engine: &wasmtime::Engine, yielding: Yielding) -> Store<Self> {
        let limits = self.bounds.limits;
        let mut store = Store::new(engine, self);
        store.limiter(|state| &mut state.bounds);
        store.set_hostcall_fuel(limits.output_bytes_max);
        store.set_epoch_deadline(1);
        let started = Instant::now();
        let mut ticks = 0;
        store.epoch_deadline_callback(move |mut store| {
            // Called at most once a tick, and only while the guest itself runs: this counts its processor time. A tick that
            // passed while the host waited for it is none of the guest's.
            if !std::mem::take(&mut store.data_mut().waited) {
                ticks = match &yielding {
                    Yielding::EveryTick(pace) => pace.tick(),
                    Yielding::Never => ticks + 1,
                };
            }
            if ticks * TICK_MS > limits.cpu_ms_max {
                return Err(LimitReached::Cpu(limits.cpu_ms_max).into());
            }
            if started.elapsed().as_millis() > u128::from(limits.wall_ms_max) {
                return Err(LimitReached::Wall(limits.wall_ms_max).into());
            }
            Ok(match &yielding {
                // The next tick counts from when it goes on: waiting for a turn is none of its time.
                Yielding::EveryTick(_) => UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())),
                Yielding::Never => UpdateDeadline::Continue(1),
            })
        });
        store
    }
}

struct Bounds {
    limits: CallLimits,
    /// Of all memories.
    memory_bytes: usize,
}

// Errors, not refusals: a guest that cannot grow ends with a message that names the bound, instead of one of its own.
impl ResourceLimiter for Bounds {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.memory_bytes = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if self.memory_bytes > self.limits.memory_bytes_max {
            return Err(LimitReached::Memory(self.limits.memory_bytes_max).into());
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        Err(LimitReached::Memory(self.memory_bytes).into())
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.limits.table_elements_max {
            return Err(LimitReached::Table(self.limits.table_elements_max).into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.instances_max
    }

    fn tables(&self) -> usize {
        self.limits.instances_max
    }

    fn memories(&self) -> usize {
        self.limits.instances_max
    }
}
