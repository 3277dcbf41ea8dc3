//! Loops that decide: the chores that exactly one live frontend does for the whole cluster.
//!
//! Start reading at [`run`]. A loop fetches, decides by a pure function ([`health`]), and stores; what it stores is a
//! statement of `harmonia-db`.
//!
//! Never here: HTTP, object store, WebAssembly, foreign programs.

mod chores;
mod health;

pub use chores::{CoordinatorOptions, run};
