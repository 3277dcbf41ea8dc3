//! harmonia-daemon: a Nix store of its own, and the executor of its builds.
//!
//! It knows nothing of PostgreSQL, object stores, queues or signing keys. Start reading at [`build`], what one build is
//! given and what comes of it.

pub mod build;
pub mod substitute;
