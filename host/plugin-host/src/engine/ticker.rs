//! The clock of the guests: a thread that moves the engines' epoch every [`TICK_MS`] while a guest runs, and rests when
//! none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::EngineWeak;

use super::TICK_MS;

/// Ticks without any guest before the thread rests.
const IDLE_TICKS: u32 = 200;

struct Shared {
    running: AtomicUsize,
    resting: AtomicBool,
    stop: AtomicBool,
}

/// The thread; it ends when this is dropped.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// A guest runs for as long as this lives.
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticker {
    pub(crate) fn start(engines: Vec<EngineWeak>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            resting: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let ours = shared.clone();
        let handle = thread::Builder::new().name("plugin-ticker".into()).spawn(move || tick(&ours, &engines))?;
        Ok(Self { shared, thread: handle.thread().clone(), handle: Some(handle) })
    }

    pub(crate) fn running(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        // A system call only after a rest, so that busy times pay nothing.
        if self.shared.resting.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(&self.shared)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // A panic in that loop has been printed; there is nothing to do about it here.
            let _ = handle.join();
        }
    }
}

fn tick(shared: &Shared, engines: &[EngineWeak]) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::park_timeout(Duration::from_millis(TICK_MS));
        for engine in engines.iter().filter_map(EngineWeak::upgrade) {
            engine.increment_epoch();
        }
        idle = if shared.running.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
        if idle < IDLE_TICKS {
            continue;
        }
        shared.resting.store(true, Ordering::SeqCst);
        // Whoever started between the two lines above has seen `resting` or is seen here.
        while shared.running.load(Ordering::SeqCst) == 0
            && shared.resting.load(Ordering::SeqCst)
            && !shared.stop.load(Ordering::SeqCst)
        {
            thread::park();
        }
        shared.resting.store(false, Ordering::SeqCst);
        idle = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use wasmtime::{Config, Engine, Instance, Module, Store};

    fn spinning(engine: &Engine) -> (Store<()>, wasmtime::TypedFunc<(), ()>) {
        let code = wat::parse_str("(module (func (export \"spin\") (loop (br 0))))").expect("valid");
        let module = Module::new(engine, code).expect("compiles");
        let mut store = Store::new(engine, ());
        store.set_epoch_deadline(3);
        let instance = Instance::new(&mut store, &module, &[]).expect("instantiates");
        let spin = instance.get_typed_func(&mut store, "spin").expect("exported");
        (store, spin)
    }

    #[test]
    fn a_spinning_guest_is_stopped_also_after_a_rest() {
        let engine = Engine::new(Config::new().epoch_interruption(true)).expect("starts");
        let ticker = Ticker::start(vec![engine.weak()]).expect("starts");
        for _ in 0..2 {
            let (mut store, spin) = spinning(&engine);
            let running = ticker.running();
            let error = spin.call(&mut store, ()).expect_err("it never ends by itself");
            assert_eq!(error.downcast_ref(), Some(&wasmtime::Trap::Interrupt));
            drop(running);
            let start = Instant::now();
            while !ticker.shared.resting.load(Ordering::SeqCst) {
                assert!(start.elapsed() < Duration::from_mins(1), "it never rests");
                thread::yield_now();
            }
        }
    }
}
