//! harmonia-daemon: a Nix store of its own, and the executor of its builds.
//!
//! Start reading at [`store::Store`], the files and the database of valid paths, then [`build`], what one build is given
//! and what comes of it.
//!
//! Never here: PostgreSQL, object stores, queues, signing keys, forges, plugins.
//! Only here: the local store's SQLite database.

pub mod build;
pub mod config;
pub mod schedule;
pub mod server;
pub mod store;
pub mod substitute;
