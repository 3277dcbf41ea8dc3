//! Gitea and Forgejo.

mod discovery;
mod hooks;
mod limits;
mod login;
mod reading;
mod setup;
mod statuses;
mod two;
mod webhooks;
