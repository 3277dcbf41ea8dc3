//! Strings of the operator's configuration (`settings = { … }` of the plugin).

use std::error::Error;
use std::fmt;

pub use crate::bindings::imports::harmonia::plugin::settings::get;

/// A setting without which the plugin cannot work is missing. Turns into `denied`: an operator has to act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Key under `settings`.
    pub name: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the setting `{}` is missing: add it to this plugin's `settings`", self.name)
    }
}

impl Error for Missing {}

/// The value of a setting that must be there.
pub fn required(name: &str) -> Result<String, Missing> {
    get(name).ok_or_else(|| Missing { name: name.to_owned() })
}

/// The value of a setting, or what stands for it.
pub fn get_or(name: &str, default: &str) -> String {
    get(name).unwrap_or_else(|| default.to_owned())
}
