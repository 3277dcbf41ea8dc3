//! Runs plugins: WebAssembly components with nothing but their grants.
//!
//! Start reading at [`PluginHost`] (`registry.rs`), then `call.rs`: what happens to one call. `loader.rs` says what is let
//! in, `capabilities.rs` what a plugin may do, `limits.rs` how much. `forge/`, `reporter/` and `scheduler/` hold one adapter
//! a track of `wit/`, behind core's ports.
//!
//! Only here: wasmtime, and one documented line of `unsafe` (loading code that we compiled ourselves).
//! Never here: PostgreSQL, object store, axum, Nix.

mod breaker;
mod call;
mod capabilities;
mod check;
mod description;
mod engine;
mod error;
mod forge;
mod imports;
mod inspect;
mod invoke;
mod limits;
mod loader;
mod memory_store;
mod plugin;
mod registry;
mod reporter;
mod scheduler;
mod spec;
mod stamp;
mod state;
mod stats;
mod wasi;

pub use capabilities::{CapabilityLimits, Grants, HttpClient, HttpClientError, HttpClientOptions, SecretGrant};
pub use check::CheckResult;
pub use description::{Description, Parameter};
pub use engine::TICK_MS;
pub use error::{CallError, CallFailure, LoadError};
pub use harmonia_egress::{HostGrant, HostGrantError, Resolver, ResolverFuture, SystemResolver};
pub use inspect::Inspection;
pub use invoke::InvokeError;
pub use limits::{CALL_LIMITS, COMPONENT_BYTES_MAX, CallLimits, LimitOverrides, LimitReached, POLICY_LIMITS};
pub use loader::ImportProblem;
pub use memory_store::MemoryStore;
pub use registry::{HostOptions, PluginHost, PolicyHandle, ReloadReport};
pub use spec::{PluginLimits, PluginSpec};
pub use stats::{LATENCY_BUCKETS_US, PluginMetrics};
pub use wasi::WasiGrant;
