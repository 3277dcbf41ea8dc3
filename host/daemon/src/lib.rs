//! harmonia-daemon: a Nix store of its own, and the executor of its builds.
//!
//! Start reading at [`build`], what one build is given and what comes of it.
//!
//! Never here: PostgreSQL, object stores, queues, signing keys, and everything else of a CI server.

pub mod build;
