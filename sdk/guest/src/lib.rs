//! What plugins of Harmonia CI are written with.
//!
//! A plugin is a WebAssembly component: one file that an operator drops in and configures in five lines. It is one of three
//! kinds, and implements [`Plugin`] and the traits of its kind:
//!
//! - a **forge** ([`forge`]): webhooks, statuses, repositories, pull requests, login;
//! - a **reporter** ([`reporter`]): tells people what happened;
//! - a **scheduler** ([`scheduler`]): says whose build goes first.
//!
//! ```
//! use harmonia_plugin::reporter::{Error, Event, Reporter};
//! use harmonia_plugin::{Description, Plugin, http, json, secrets, settings};
//!
//! struct Chat;
//!
//! impl Plugin for Chat {
//!     fn describe() -> Description {
//!         Description::new("chat", env!("CARGO_PKG_VERSION"), "Posts what happened to a chat's webhook.")
//!             .required_setting("url", "Where to post.")
//!             .required_secret("token", "Sent as bearer token.")
//!     }
//! }
//!
//! impl Reporter for Chat {
//!     fn report(event: Event) -> Result<(), Error> {
//!         let token = secrets::open("token")?;
//!         let message = json!({ "text": event.headline(), "link": event.url });
//!         http::Request::post(settings::required("url")?).bearer(&token).json(&message).fetch()?;
//!         Ok(())
//!     }
//! }
//!
//! harmonia_plugin::export!(Chat: reporter);
//! # fn main() {}
//! ```
//!
//! # What a plugin can do
//! Only what the operator grants, through these modules: [`log`], [`time::now_ms`], [`settings`], [`secrets`], [`http`] and
//! [`kv`] (a scheduler: only `log` and `settings`). A component imports what it calls and nothing else, and
//! `harmonia-ci plugin inspect FILE` shows it. There are no files, no environment, no sockets and no other clock.
//!
//! Each call runs in a fresh instance: statics are lost, [`kv`] and [`secrets::kept`] stay. A call may use 64 MiB of memory
//! and a few seconds; what exceeds a bound ends with an error that names it. A panic is an error of that call, and its text
//! is in the server's log.
//!
//! # Errors
//! `?` turns the errors of all modules, and of JSON, into the error of the kind ([`forge::Error`], [`reporter::Error`]). The
//! host acts on the kind of error: `denied` waits for an operator, `retry-after` waits that long, `unavailable` is tried
//! again with growing pauses, `invalid` and `not-found` are not tried again.
//!
//! # Building and testing
//! The crate needs `crate-type = ["cdylib", "rlib"]`. `harmonia-plugin-build FOLDER` makes the component, for
//! `wasm32-unknown-unknown`. The crate also compiles natively, so that pure modules (bytes to events) are tested by plain
//! `cargo test`; the host's functions panic there. `harmonia-plugin-harness` runs the component itself in `cargo test`,
//! against the true plugin host with scripted HTTP. `sdk/README.md` walks through all of it.

mod description;
mod export;
mod panic;

#[doc(hidden)]
pub mod bindings;
pub mod encoding;
pub mod forge;
pub mod http;
pub mod kv;
pub mod log;
pub mod reporter;
pub mod scheduler;
pub mod secrets;
pub mod settings;
pub mod time;

pub use description::{Description, Parameter, Plugin};
/// JSON, the same version that this crate uses.
pub use serde_json;
pub use serde_json::json;
