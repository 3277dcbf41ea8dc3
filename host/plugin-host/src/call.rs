//! One call of a guest: a fresh instance, its bounds, and what became of it. Start at [`Caller::call`].

use std::future::Future;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harmonia_core::Clock;
use tokio::sync::Semaphore;
use wasmtime::component::{Instance, InstancePre, ResourceTableError};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::capabilities::{CallState, Level, Shared};
use crate::engine::{Engines, InTurn, Queue};
use crate::error::{CallError, CallFailure};
use crate::limits::{CallLimits, HANDLES_MAX, LimitReached, STACK_BYTES_MAX};
use crate::loader::Program;
use crate::state::{State, Yielding};
use crate::stats::Stats;
use crate::wasi::{Wasi, WasiGrant};

/// Frames of a backtrace that are kept.
const BACKTRACE_FRAMES_MAX: usize = 20;

/// Whether a call may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// As far as its hosts are granted.
    Granted,
    /// Not at all.
    Closed,
}

/// A fresh instance, for what is done with it. `'env` is what the doing may borrow, which outlives the instance.
pub(crate) struct Guest<'a, 'env> {
    pub(crate) store: &'a mut Store<State>,
    pub(crate) instance: &'a Instance,
    _env: PhantomData<&'a &'env ()>,
}

/// What a guest is asked to do.
pub(crate) type GuestFuture<'a, R> = Pin<Box<dyn Future<Output = wasmtime::Result<R>> + Send + 'a>>;

/// Calls one plugin as it is configured now.
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) program: Arc<Program>,
    pub(crate) instances: InstancePre<State>,
    pub(crate) limits: CallLimits,
    pub(crate) wasi: WasiGrant,
    pub(crate) scratch_folder: PathBuf,
    pub(crate) engines: Arc<Engines>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) calls: Arc<Semaphore>,
    /// Where its calls wait that want the processor for long.
    pub(crate) queue: Arc<Queue>,
    /// No call gets more than this.
    pub(crate) network: Network,
}

impl Caller {
    /// Runs `run` on a fresh instance, which is gone afterwards.
    pub(crate) async fn call<'env, R, F>(&self, export: &str, network: Network, run: F) -> Result<R, CallError>
    where
        R: Send,
        F: for<'a> FnOnce(Guest<'a, 'env>) -> GuestFuture<'a, R> + Send,
    {
        self.admit(export)?;
        let started = Instant::now();
        let outcome = self.run(network, run).await;
        self.ended(export, started, outcome)
    }

    async fn run<'env, R, F>(&self, network: Network, run: F) -> Result<R, CallFailure>
    where
        R: Send,
        F: for<'a> FnOnce(Guest<'a, 'env>) -> GuestFuture<'a, R> + Send,
    {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(self.limits.wall_ms_max);
        // That others keep its places taken is no fault of a plugin.
        let places = async { (self.calls.acquire().await, self.engines.calls(self.program.is_pooled).acquire().await) };
        let Ok((Ok(_ours), Ok(_slot))) = tokio::time::timeout_at(deadline, places).await else {
            return Err(self.too_many());
        };
        let _running = self.engines.running();
        let pace = self.queue.pace();
        // All that takes time, up to giving the memory back, is in there: it is what the guest waits its turn for.
        let mut guest = std::pin::pin!(async {
            let mut store = Logged(self.store(network, Yielding::EveryTick(pace.clone()))?);
            let store = &mut store.0;
            let outcome = async {
                let instance = self.instances.instantiate_async(&mut *store).await?;
                run(Guest { store: &mut *store, instance: &instance, _env: PhantomData }).await
            };
            let outcome = outcome.await;
            outcome.map_err(|error| self.failure(&error, store.data()))
        });
        let outcome = tokio::time::timeout_at(deadline, InTurn::new(guest.as_mut(), pace.clone())).await;
        let outcome = outcome.unwrap_or(Err(CallFailure::Limit(LimitReached::Wall(self.limits.wall_ms_max))));
        pace.ended(outcome.is_err());
        // On a timeout the future goes now, and with its store whatever the host was doing for the guest.
        outcome
    }

    /// [`Self::call`] for policies: they call nothing that waits.
    pub(crate) fn call_blocking<R>(
        &self,
        export: &str,
        run: impl FnOnce(&mut Store<State>, &Instance) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        self.admit(export)?;
        let started = Instant::now();
        let outcome = self.run_blocking(run);
        self.ended(export, started, outcome)
    }

    fn run_blocking<R>(
        &self,
        run: impl FnOnce(&mut Store<State>, &Instance) -> wasmtime::Result<R>,
    ) -> Result<R, CallFailure> {
        let _ours = self.calls.try_acquire().map_err(|_| self.too_many())?;
        let _slot = self.engines.calls(self.program.is_pooled).try_acquire().map_err(|_| self.too_many())?;
        let _running = self.engines.running();
        let mut store = self.store(Network::Closed, Yielding::Never)?;
        let outcome = self.instances.instantiate(&mut store).and_then(|instance| run(&mut store, &instance));
        outcome.map_err(|error| self.failure(&error, store.data()))
    }

    /// An error that says that the plugin lacks an export.
    pub(crate) fn missing(&self, export: &str) -> CallError {
        CallError { plugin: self.name.clone(), export: export.to_owned(), failure: CallFailure::MissingExport }
    }

    fn admit(&self, export: &str) -> Result<(), CallError> {
        self.stats.admit(self.clock.now()).map_err(|failure| CallError {
            plugin: self.name.clone(),
            export: export.to_owned(),
            failure,
        })
    }

    fn store(&self, network: Network, yielding: Yielding) -> Result<Store<State>, CallFailure> {
        let capabilities =
            CallState::new(self.shared.clone(), self.network == Network::Granted && network == Network::Granted);
        let wasi = Wasi::new(self.wasi, &self.scratch_folder, self.limits.stdio_bytes_max, self.clock.clone())
            .map_err(|e| {
                CallFailure::NotLoaded(format!("no scratch folder in {}: {e}", self.scratch_folder.display()))
            })?;
        let engine = self.engines.engine(self.program.is_pooled);
        Ok(State::new(capabilities, wasi, self.limits).into_store(engine, yielding))
    }

    fn too_many(&self) -> CallFailure {
        CallFailure::Limit(LimitReached::ConcurrentCalls(self.limits.concurrent_calls_max))
    }

    fn ended<R>(&self, export: &str, started: Instant, outcome: Result<R, CallFailure>) -> Result<R, CallError> {
        let outcome =
            outcome.map_err(|failure| CallError { plugin: self.name.clone(), export: export.to_owned(), failure });
        let broke = self.stats.ended(self.clock.now(), started.elapsed(), outcome.as_ref().err());
        if let Err(error) = &outcome
            && error.is_fault()
        {
            // Here, since a counter alone does not help whoever has to find out why; callers log what it meant for them.
            let backtrace = match &error.failure {
                CallFailure::Trap { backtrace, .. } => backtrace.as_str(),
                _ => "",
            };
            tracing::warn!(plugin = %self.name, export, backtrace, "Plugin call failed: {error}");
        }
        if broke {
            tracing::error!(plugin = %self.name, "Plugin {} failed too often and is not called for a while", self.name);
        }
        outcome
    }

    /// Tells from wasmtime's error what happened.
    fn failure(&self, error: &wasmtime::Error, state: &State) -> CallFailure {
        if let Some(limit) = error.downcast_ref::<LimitReached>() {
            return CallFailure::Limit(*limit);
        }
        if let Some(Invalid(reason)) = error.downcast_ref::<Invalid>() {
            return CallFailure::Invalid(reason.clone());
        }
        if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
            return self.too_many();
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
            return CallFailure::Limit(LimitReached::Handles(HANDLES_MAX));
        }
        let text = format!("{error:#}");
        if let Some(trap) = error.downcast_ref::<Trap>() {
            return match trap {
                Trap::StackOverflow => CallFailure::Limit(LimitReached::Stack(STACK_BYTES_MAX)),
                Trap::Interrupt => CallFailure::Limit(LimitReached::Cpu(self.limits.cpu_ms_max)),
                trap => CallFailure::Trap { reason: reason(trap.to_string(), state), backtrace: backtrace(error) },
            };
        }
        // These come without a type of their own.
        if text.contains("allocated for hostcalls has been exhausted") {
            return CallFailure::Limit(LimitReached::Output(self.limits.output_bytes_max));
        }
        if text.contains("MemoryOutputPipe") {
            return CallFailure::Limit(LimitReached::Stdio(self.limits.stdio_bytes_max));
        }
        if text.contains("resource limit exceeded") {
            return CallFailure::Limit(LimitReached::Instances(self.limits.instances_max));
        }
        if error.downcast_ref::<WasmBacktrace>().is_some() {
            return CallFailure::Trap { reason: reason(innermost(error), state), backtrace: backtrace(error) };
        }
        CallFailure::Invalid(text)
    }
}

/// An answer that has the right type and makes no sense all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(pub(crate) String);

/// A store whose guest's standard output goes to the log with it, however the call ends.
struct Logged(Store<State>);

impl Drop for Logged {
    fn drop(&mut self) {
        let state = self.0.data_mut();
        let Some(output) = state.wasi.as_ref().map(|wasi| wasi.output()) else { return };
        for line in output.lines().filter(|line| !line.trim().is_empty()) {
            state.capabilities.log(Level::Info, line);
        }
    }
}

/// A trap hardly says why: a panic ends as `unreachable`. The guest's last words do.
fn reason(trap: String, state: &State) -> String {
    match state.last_words() {
        Some(words) => format!("{trap}; its last words: {words}"),
        None => trap,
    }
}

fn innermost(error: &wasmtime::Error) -> String {
    error.chain().last().map_or_else(|| error.to_string(), ToString::to_string)
}

fn backtrace(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    backtrace
        .frames()
        .iter()
        .take(BACKTRACE_FRAMES_MAX)
        .map(|frame| match frame.symbols().first().and_then(wasmtime::FrameSymbol::name).or(frame.func_name()) {
            Some(name) => name.to_owned(),
            None => format!("function {}", frame.func_index()),
        })
        .collect::<Vec<_>>()
        .join(" < ")
}
