//! What a plugin says of itself.

use crate::bindings::{Adapter, description};
use crate::panic::install_hook;

pub use description::exports::harmonia::plugin::description::{Description, Parameter};

/// Every plugin implements it: what it is, what it reads, and where it calls.
pub trait Plugin {
    /// Called when the plugin is loaded and by `harmonia-ci plugin inspect`. Must not call out; it may read settings, so
    /// that [`Description::host`] names what the operator has to allow.
    fn describe() -> Description;
}

impl<T: Plugin> description::exports::harmonia::plugin::description::Guest for Adapter<T> {
    fn describe() -> Description {
        install_hook();
        T::describe()
    }
}

impl Description {
    /// A description without settings, secrets or hosts: `Description::new("chat", env!("CARGO_PKG_VERSION"), "…")`.
    /// `summary` is one sentence.
    pub fn new(name: &str, version: &str, summary: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            summary: summary.to_owned(),
            settings: Vec::new(),
            secrets: Vec::new(),
            hosts: Vec::new(),
        }
    }

    /// A setting without which the plugin cannot work. `summary` is one sentence.
    #[must_use]
    pub fn required_setting(mut self, name: &str, summary: &str) -> Self {
        self.settings.push(parameter(name, summary, true));
        self
    }

    /// A setting that may be absent. `summary` says what happens then.
    #[must_use]
    pub fn setting(mut self, name: &str, summary: &str) -> Self {
        self.settings.push(parameter(name, summary, false));
        self
    }

    /// A secret without which the plugin cannot work. `summary` is one sentence.
    #[must_use]
    pub fn required_secret(mut self, name: &str, summary: &str) -> Self {
        self.secrets.push(parameter(name, summary, true));
        self
    }

    /// A secret that may be absent. `summary` says what happens then.
    #[must_use]
    pub fn secret(mut self, name: &str, summary: &str) -> Self {
        self.secrets.push(parameter(name, summary, false));
        self
    }

    /// A host that the plugin calls: what the operator has to write into `allow_hosts`.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.hosts.push(host.to_owned());
        self
    }
}

fn parameter(name: &str, summary: &str, required: bool) -> Parameter {
    Parameter { name: name.to_owned(), summary: summary.to_owned(), required }
}
