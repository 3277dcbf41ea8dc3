//! Loops that decide. [`run`] does the chores, on exactly one live frontend for the whole cluster; the others run on every
//! frontend over leased rows: [`run_intake`] processes deliveries, [`report`] keeps statuses and notifications as the rows
//! say, [`run_projects`] discovers repositories, installs webhooks and polls.
//!
//! Start reading at [`Intake::step`] or [`report::step`]. A loop fetches, decides by a pure function of `harmonia-core`, and
//! stores; what it stores is a statement of `harmonia-db`. Forges and reporters are core's ports.
//!
//! Never here: HTTP, object store, WebAssembly, foreign programs.

mod charging;
mod chores;
mod health;
pub mod hooks;
mod in_flight;
mod intake;
pub mod poll;
mod projects;
pub mod report;
pub mod sync;

pub use chores::{CoordinatorOptions, run};
pub use intake::{INTAKE_RETRIES, Intake, IntakeOptions, run as run_intake};
pub use projects::{AutoEnable, ProjectsOptions, run as run_projects};
