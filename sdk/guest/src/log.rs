//! Lines for the operator, in the server's log with the plugin's name: at most 4 KiB a line and 200 lines a call. Opened
//! secrets in them are replaced by `[secret]`.
//!
//! ```no_run
//! # use harmonia_plugin::log;
//! # let repository = "ada/engine";
//! log::warn(format!("{repository} has no default branch"));
//! ```

pub use crate::bindings::imports::harmonia::plugin::log::{Level, write};

/// For whoever debugs this plugin.
pub fn debug(message: impl AsRef<str>) {
    write(Level::Debug, message.as_ref());
}

/// What happened, when it is worth knowing.
pub fn info(message: impl AsRef<str>) {
    write(Level::Info, message.as_ref());
}

/// Something that an operator should look at.
pub fn warn(message: impl AsRef<str>) {
    write(Level::Warn, message.as_ref());
}

/// Something that does not work.
pub fn error(message: impl AsRef<str>) {
    write(Level::Error, message.as_ref());
}
