//! One file a command.

pub(crate) mod config_check;
pub(crate) mod eval;
pub(crate) mod keygen;
pub(crate) mod log;
pub(crate) mod migrate;
pub(crate) mod plugin;
pub(crate) mod project;
pub(crate) mod read;
pub(crate) mod serve;
pub(crate) mod simulate;
pub(crate) mod up;
