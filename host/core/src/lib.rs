//! The words and the pure decisions of Harmonia CI: ids, states, claim tokens, wire types, ports.
//!
//! Start reading at [`state`] for what a job and an evaluation may become, then [`signer_api`] and [`api`] for what
//! travels over HTTP. Everything here is a value or a pure function.
//!
//! Never here: I/O of any kind, tokio, sqlx, axum, wasmtime. Time and randomness are arguments.

pub mod api;
pub mod branches;
pub mod clock;
mod error_chain;
pub mod evaluation_error;
pub mod foreign_text;
pub mod forge;
pub mod frontend_api;
pub mod git;
pub mod ids;
pub mod intake;
pub mod limits;
pub mod log_end;
pub mod log_text;
pub mod plugin;
pub mod policy;
pub mod ports;
pub mod project_config;
pub mod project_name;
pub mod reporter;
pub mod retry;
pub mod reuse;
mod secret;
mod secret_url;
pub mod signer_api;
pub mod simulate;
pub mod state;
pub mod status;
pub mod token;
pub mod trust;
mod viewer;

pub use clock::{Clock, SystemClock, Timestamp};
pub use error_chain::chain;
pub use ids::{AttemptId, ClassId, EvalId, JobId, NodeId, ProjectId};
pub use secret::SecretText;
pub use secret_url::{SecretUrl, without_credentials};
pub use state::{AttemptOutcome, Capability, EvalStatus, FailureKind, JobStatus};
pub use token::{ClaimToken, Incarnation, NodeSecret, TokenHash};
pub use viewer::Viewer;
