//! GitHub.

mod discovery;
mod limits;
mod login;
mod reading;
mod setup;
mod statuses;
mod tokens;
mod webhooks;
