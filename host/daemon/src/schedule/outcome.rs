//! How a goal ended. Start at [`Outcome`].

use std::collections::BTreeMap;

use harmonia_nix::derivation::Derivation;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{BuildResult, BuildStatus, BuiltOutput, DerivedPath};

use super::ScheduleError;
use crate::build::Usage;
use crate::store::{Store, StoreError};

/// How a derivation or a path ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) status: BuildStatus,
    /// The reason of a failure; may have terminal colours.
    pub(super) message: String,
    /// Whether the failure is that a fixed output has another hash than it must.
    pub(super) is_hash_mismatch: bool,
    /// What is valid now, by output name.
    pub(super) outputs: BTreeMap<String, StorePath>,
    pub(super) times_built: u64,
    pub(super) start_time_s: u64,
    pub(super) stop_time_s: u64,
    pub(super) usage: Option<Box<Usage>>,
}

impl Outcome {
    pub(super) fn success(status: BuildStatus, outputs: BTreeMap<String, StorePath>) -> Self {
        Self { outputs, ..Self::failure(status, String::new()) }
    }

    pub(super) fn failure(status: BuildStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            is_hash_mismatch: false,
            outputs: BTreeMap::new(),
            times_built: 0,
            start_time_s: 0,
            stop_time_s: 0,
            usage: None,
        }
    }

    /// It was stopped since another one failed.
    pub(super) fn cancelled() -> Self {
        Self::failure(BuildStatus::MiscFailure, String::new())
    }

    pub(super) fn is_success(&self) -> bool {
        use BuildStatus::{AlreadyValid, Built, ResolvesToAlreadyValid, Substituted};
        matches!(self.status, Built | Substituted | AlreadyValid | ResolvesToAlreadyValid)
    }

    /// What the client is told.
    pub(super) fn into_result(self, store: &Store, target: &DerivedPath) -> Result<BuildResult, StoreError> {
        match target {
            DerivedPath::Built { derivation: path, .. } if self.is_success() => {
                let derivation = store.read_derivation(path)?;
                self.into_result_of(store, path, &derivation)
            }
            _ => Ok(self.plain_result()),
        }
    }

    /// The same for outputs of this derivation, which need not be in the store.
    pub(super) fn into_result_of(
        self,
        store: &Store,
        path: &StorePath,
        derivation: &Derivation,
    ) -> Result<BuildResult, StoreError> {
        let mut built_outputs = BTreeMap::new();
        if !self.outputs.is_empty() {
            let hash = store.masked_modulo(path, derivation)?;
            for (name, path) in &self.outputs {
                let id = format!("sha256:{}!{name}", hash.hash.to_base16());
                // As Nix orders the fields.
                let realisation = format!(
                    r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{}","signatures":[]}}"#,
                    path.base_name()
                );
                built_outputs.insert(name.clone(), BuiltOutput { id, path: path.clone(), realisation });
            }
        }
        Ok(BuildResult { built_outputs, ..self.plain_result() })
    }

    fn plain_result(self) -> BuildResult {
        let microseconds = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        BuildResult {
            status: self.status,
            error_message: self.message,
            times_built: self.times_built,
            is_non_deterministic: self.status == BuildStatus::NotDeterministic,
            start_time_s: self.start_time_s,
            stop_time_s: self.stop_time_s,
            cpu_user_us: self.usage.as_ref().map(|usage| microseconds(usage.cpu_user)),
            cpu_system_us: self.usage.as_ref().map(|usage| microseconds(usage.cpu_system)),
            built_outputs: BTreeMap::new(),
        }
    }
}

impl From<ScheduleError> for Outcome {
    fn from(error: ScheduleError) -> Self {
        Self::failure(BuildStatus::MiscFailure, describe(&error))
    }
}

impl From<StoreError> for Outcome {
    fn from(error: StoreError) -> Self {
        ScheduleError::from(error).into()
    }
}

/// An error with its causes.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

/// What `nix` exits with: 1 for failures of no kind, else 100 and what kinds there were.
pub(super) fn exit_status<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> u64 {
    let mut mask = 0;
    for outcome in outcomes {
        mask |= match outcome.status {
            BuildStatus::TimedOut => 0b0101,
            _ if outcome.is_hash_mismatch => 0b0110,
            BuildStatus::PermanentFailure | BuildStatus::InputRejected => 0b0100,
            BuildStatus::NotDeterministic => 0b1000,
            _ => 0,
        };
    }
    if mask == 0 { 1 } else { 0x60 | mask }
}
