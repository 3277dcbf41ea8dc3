//! What can go wrong with a plugin: [`LoadError`] before it is called, [`CallError`] when it is.

use std::fmt;
use std::path::PathBuf;

use harmonia_core::forge::ForgeError;
use harmonia_core::policy::PolicyError;
use harmonia_core::reporter::ReportError;

use crate::limits::LimitReached;
use crate::loader::ImportProblem;

/// Why a plugin was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A registry instead of a file.
    #[error("'{0}' names a registry: only files are loaded now; fetch the component and give its path")]
    Registry(String),
    /// The file cannot be read.
    #[error("cannot read the component {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file is too big.
    #[error("the component {path} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The bound.
        limit_bytes: u64,
    },
    /// The file is not the pinned one.
    #[error("the component {path} has SHA-256 {actual}, but sha256 pins {pinned}: check where the file comes from")]
    Pin {
        /// Which.
        path: PathBuf,
        /// As configured.
        pinned: String,
        /// Of the file.
        actual: String,
    },
    /// No WebAssembly component.
    #[error("{path} is not a usable WebAssembly component: {reason}")]
    NotAComponent {
        /// Which.
        path: PathBuf,
        /// What the compiler says.
        reason: String,
    },
    /// It exports nothing that we know.
    #[error(
        "the component is no plugin: it exports {exports}, but none of harmonia:forge, harmonia:reporter/reporter and \
         harmonia:scheduler/policy of a known track ({known})"
    )]
    NoWorld {
        /// What it exports.
        exports: String,
        /// Tracks of this host.
        known: String,
    },
    /// It exports several kinds.
    #[error("the component exports interfaces of several kinds ({0}): one plugin, one kind")]
    SeveralWorlds(String),
    /// It lacks an export that every plugin has.
    #[error("the component does not export {0}")]
    MissingExport(&'static str),
    /// It imports what it may not.
    #[error("{}", problems(.0))]
    Imports(Vec<ImportProblem>),
    /// Its imports or exports have other types than the contract says.
    #[error("the component does not fit the contract: {0}")]
    Mismatch(String),
    /// It needs a setting or a secret that is not configured.
    #[error(
        "the plugin needs the {what} '{name}' ({summary}): add it to `{what}s` of the plugin `{plugin}` ([[plugins]])"
    )]
    MissingParameter {
        /// Name of the instance.
        plugin: String,
        /// `setting` or `secret`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What it is for.
        summary: String,
    },
    /// Its instance does not start, or `describe` failed.
    #[error("the plugin cannot be asked what it is")]
    Describe(#[source] Box<CallError>),
    /// Two plugins of one name.
    #[error("two plugins are named '{0}'")]
    DuplicateName(String),
    /// A name that does not work in URLs.
    #[error("'{0}' is no name for a plugin: 1 to 64 of a-z, 0-9, '-' and '_', a letter or digit first")]
    BadName(String),
    /// The folder for compiled code cannot be used.
    #[error("the folder {path} for compiled plugins cannot be used: {reason}")]
    CacheFolder {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The engine does not start.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
}

impl LoadError {
    /// A component that could not even be looked at.
    pub(crate) fn mismatch(error: CallError) -> Self {
        match error.failure {
            CallFailure::Invalid(reason) => Self::Mismatch(reason),
            _ => Self::Describe(Box::new(error)),
        }
    }
}

fn problems(list: &[ImportProblem]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A call that failed by itself: not an answer of the plugin, but none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// Name of the instance.
    pub plugin: String,
    /// What was called.
    pub export: String,
    /// What happened.
    pub failure: CallFailure,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFailure {
    /// The guest trapped.
    Trap {
        /// Which trap.
        reason: String,
        /// Functions of the guest, innermost first; empty when unknown.
        backtrace: String,
    },
    /// A bound is reached.
    Limit(LimitReached),
    /// What it returned, or how it called us, makes no sense.
    Invalid(String),
    /// It lacks this export.
    MissingExport,
    /// It failed too often and is not called for so many seconds.
    CircuitOpen {
        /// Seconds until the next try, rounded up.
        for_s: u64,
    },
    /// It could never be loaded, or is not configured any more.
    NotLoaded(String),
}

impl CallError {
    /// What happened, without what the guest said: that may name what not everybody may see.
    pub fn public_message(&self) -> String {
        match &self.failure {
            CallFailure::Invalid(_) => format!("plugin {} answered nonsense in {}", self.plugin, self.export),
            CallFailure::Trap { .. } => format!("plugin {} trapped in {}", self.plugin, self.export),
            CallFailure::NotLoaded(_) => format!("plugin {} is not loaded", self.plugin),
            CallFailure::Limit(_) | CallFailure::MissingExport | CallFailure::CircuitOpen { .. } => self.to_string(),
        }
    }

    /// Whether the plugin is to blame: such failures are counted and, in a row, break the circuit.
    pub const fn is_fault(&self) -> bool {
        match &self.failure {
            CallFailure::Trap { .. } | CallFailure::Invalid(_) => true,
            CallFailure::Limit(limit) => !matches!(limit, LimitReached::ConcurrentCalls(_)),
            CallFailure::MissingExport | CallFailure::CircuitOpen { .. } | CallFailure::NotLoaded(_) => false,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugin, export, failure } = self;
        match failure {
            CallFailure::Trap { reason, .. } => write!(f, "plugin {plugin} trapped in {export}: {reason}"),
            CallFailure::Limit(limit) => {
                write!(f, "plugin {plugin} was stopped in {export}: {limit}")?;
                match limit.key() {
                    Some(key) => write!(f, " (`limits.{key}` of the plugin `{plugin}` ([[plugins]]) raises it)"),
                    None => Ok(()),
                }
            }
            CallFailure::Invalid(reason) => write!(f, "plugin {plugin} answered nonsense in {export}: {reason}"),
            CallFailure::MissingExport => write!(f, "plugin {plugin} does not export {export}"),
            CallFailure::CircuitOpen { for_s } => {
                write!(f, "plugin {plugin} failed too often: {export} is not called for {for_s} s")
            }
            CallFailure::NotLoaded(reason) => write!(f, "plugin {plugin} is not loaded: {reason}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for ForgeError {
    fn from(error: CallError) -> Self {
        Self::Plugin(error.to_string())
    }
}

impl From<CallError> for ReportError {
    fn from(error: CallError) -> Self {
        Self::Plugin(error.to_string())
    }
}

impl From<CallError> for PolicyError {
    fn from(error: CallError) -> Self {
        Self { reason: error.to_string() }
    }
}
