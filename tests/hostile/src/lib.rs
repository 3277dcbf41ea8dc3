//! A plugin host for the guests of `tests/guests`, small limits for them, and servers that treat them badly.
//!
//! Start reading at [`World`]; the tests are in `tests/hostile`, `examples/plugin_figures.rs` measures.

mod log;
mod server;
mod world;

pub use harmonia_plugin_harness::{Answer, Received, ScriptedServer, component};
pub use log::{Line, Log};
pub use server::{Drip, Held};
pub use world::{TestClock, World, ask};
