//! HTTP: the binary cache at the root, the signer's API, `/api/v1`, pages under `/ci/`.
//!
//! Start reading at [`router`] (every address in one table). [`AppOptions`] is what a node hands over; [`Gate`] and
//! [`serve`] are the listener's life. Handlers parse (`extract`, `validate`), call `db` or `cache`, and render (`pages`).
//!
//! Only here: axum, askama, HTTP status codes (all of them in `error`). Never here: SQL, S3, plugins, processes,
//! foreign code, decisions about jobs.

mod auth;
mod bodies;
mod client;
mod error;
mod extract;
mod live;
mod logs;
mod look;
mod memory;
mod overview;
mod pages;
mod recorder;
mod refusals;
mod routes;
mod serve;
mod state;
pub mod validate;

pub use auth::api_token_hash;
pub use bodies::BodyLimits;
pub use error::ErrorCounts;
pub use harmonia_listener::Limits as ListenerLimits;
pub use routes::router;
pub use serve::{Gate, serve};
pub use state::{AppLimits, AppOptions, AppState};
