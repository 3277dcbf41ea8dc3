//! Runs plugins: WebAssembly components with nothing but their grants.
//!
//! Start reading at `registry`.
//!
//! Only here: wasmtime. Never here: PostgreSQL, object store, axum, Nix.

pub mod capabilities;
