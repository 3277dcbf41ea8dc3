//! Loops that decide: the chores that exactly one live frontend does for the whole cluster.
//!
//! Start reading at [`run`]. A loop fetches, decides by a pure function ([`health`]), and stores; what it stores is a
//! statement of `harmonia-db`.
//!
//! Never here: HTTP, object store, WebAssembly, foreign programs.

mod charging;
mod chores;
mod health;
pub mod hooks;
mod intake;
pub mod poll;
mod projects;
pub mod report;
pub mod sync;

pub use chores::{CoordinatorOptions, run};
pub use intake::{INTAKE_RETRIES, Intake, IntakeOptions, run as run_intake};
pub use projects::{AutoEnable, ProjectsOptions, run as run_projects};
