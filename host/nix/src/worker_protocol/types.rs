//! What travels in operations and answers. Each type knows its layout in every protocol version that is spoken.

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;
use tokio::io::AsyncRead;

use super::handshake::ProtocolVersion;
use super::wire::{
    TEXT_BYTES_MAX, WireError, put_bool, put_bytes, put_list, put_optional_store_path, put_store_path,
    put_store_paths, put_u64, read_bool, read_bytes, read_count, read_optional_store_path, read_store_path,
    read_store_paths, read_string, read_strings, read_text, read_u64,
};
use crate::content_address::ContentAddress;
use crate::derivation::{BasicDerivation, DerivationOutput};
use crate::hash::{HashAlgorithm, NarHash};
use crate::store_path::StorePath;

/// Settings of a client. What the daemon makes of them depends on its trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Keep the build directories of failed builds.
    pub keep_failed: bool,
    /// Go on with other builds after a failure.
    pub keep_going: bool,
    /// Build what cannot be substituted although it should be.
    pub try_fallback: bool,
    /// Which messages to send, 0 errors to 7 everything; 3 is the usual.
    pub verbosity: u64,
    /// Builds at the same time, 0 for none.
    pub max_build_jobs: u64,
    /// Seconds without output after which a build is stopped; 0 for no limit.
    pub max_silent_time_s: u64,
    /// Verbosity of what builders print; 0 prints.
    pub verbose_build: u64,
    /// Cores for each build, 0 for all.
    pub build_cores: u64,
    /// Whether to substitute at all.
    pub use_substitutes: bool,
    /// Any other settings by name, such as `timeout`.
    pub overrides: BTreeMap<String, String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            keep_failed: false,
            keep_going: false,
            try_fallback: false,
            verbosity: 3,
            max_build_jobs: 1,
            max_silent_time_s: 0,
            verbose_build: 0,
            build_cores: 0,
            use_substitutes: true,
            overrides: BTreeMap::new(),
        }
    }
}

impl ClientOptions {
    pub(super) fn put(&self, buffer: &mut Vec<u8>) {
        put_bool(buffer, self.keep_failed);
        put_bool(buffer, self.keep_going);
        put_bool(buffer, self.try_fallback);
        put_u64(buffer, self.verbosity);
        put_u64(buffer, self.max_build_jobs);
        put_u64(buffer, self.max_silent_time_s);
        put_u64(buffer, 1); // use build hook, obsolete
        put_u64(buffer, self.verbose_build);
        put_u64(buffer, 0); // type of log, obsolete
        put_u64(buffer, 0); // print build trace, obsolete
        put_u64(buffer, self.build_cores);
        put_bool(buffer, self.use_substitutes);
        put_u64(buffer, self.overrides.len() as u64);
        for (name, value) in &self.overrides {
            put_bytes(buffer, name);
            put_bytes(buffer, value);
        }
    }
}

/// What a store knows of a valid path, but for the path itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// Hash of its archive.
    pub nar_hash: NarHash,
    /// Paths that it refers to, perhaps itself.
    pub references: BTreeSet<StorePath>,
    /// When it became valid in this store, in seconds of Unix time; 0 is "let the store decide".
    pub registration_time_s: u64,
    /// Size of its archive in bytes.
    pub nar_size_bytes: u64,
    /// Whether it was built here.
    pub ultimate: bool,
    /// Signatures as text, `key-name:base64`.
    pub signatures: BTreeSet<String>,
    /// For paths whose name follows from their content.
    pub content_address: Option<ContentAddress>,
}

impl PathInfo {
    /// What is known of a path without origin: all else is empty.
    pub fn new(nar_hash: NarHash, nar_size_bytes: u64) -> Self {
        Self {
            deriver: None,
            nar_hash,
            references: BTreeSet::new(),
            registration_time_s: 0,
            nar_size_bytes,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        }
    }

    /// Reads it, as in the answer to `QueryPathInfo`.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, WireError> {
        let deriver = read_optional_store_path(reader, "a deriver").await?;
        let hash = read_string(reader, "a NAR hash").await?;
        let nar_hash = crate::hash::Hash::parse_as(HashAlgorithm::Sha256, &hash).and_then(NarHash::try_from);
        Ok(Self {
            deriver,
            nar_hash: nar_hash.map_err(|_| WireError::bad_value("a NAR hash", hash))?,
            references: read_store_paths(reader, "a reference").await?,
            registration_time_s: read_u64(reader).await?,
            nar_size_bytes: read_u64(reader).await?,
            ultimate: read_bool(reader).await?,
            signatures: read_strings(reader, "a signature").await?.into_iter().collect(),
            content_address: {
                let text = read_string(reader, "a content address").await?;
                if text.is_empty() {
                    None
                } else {
                    Some(text.parse().map_err(|_| WireError::bad_value("a content address", text))?)
                }
            },
        })
    }

    /// Appends it.
    pub fn put(&self, buffer: &mut Vec<u8>) {
        put_optional_store_path(buffer, self.deriver.as_ref());
        put_bytes(buffer, self.nar_hash.to_base16());
        put_store_paths(buffer, &self.references);
        put_u64(buffer, self.registration_time_s);
        put_u64(buffer, self.nar_size_bytes);
        put_bool(buffer, self.ultimate);
        put_list(buffer, &self.signatures);
        put_bytes(buffer, self.content_address.map(|address| address.to_string()).unwrap_or_default());
    }
}

/// A valid path and what a store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidPathInfo {
    /// The path.
    pub path: StorePath,
    /// What is known of it.
    pub info: PathInfo,
}

impl ValidPathInfo {
    /// Reads it, as in `AddMultipleToStore` and the answer to `AddToStore`.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, WireError> {
        let path = read_store_path(reader, "a valid path").await?;
        Ok(Self { path, info: PathInfo::read(reader).await? })
    }

    /// Appends it.
    pub fn put(&self, buffer: &mut Vec<u8>) {
        put_store_path(buffer, &self.path);
        self.info.put(buffer);
    }
}

/// Which outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputNames {
    /// All of them.
    All,
    /// These.
    Named(BTreeSet<String>),
}

/// What can be asked to be realised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DerivedPath {
    /// A path, by substituting it.
    Opaque(StorePath),
    /// Outputs of a derivation, by building or substituting them.
    Built {
        /// The derivation.
        derivation: StorePath,
        /// Which outputs.
        outputs: OutputNames,
    },
}

impl DerivedPath {
    /// The text that travels. Before 1.30 all outputs are the path of the derivation alone, which therefore cannot itself be
    /// asked for: `None`.
    pub fn to_wire(&self, version: ProtocolVersion) -> Option<String> {
        match self {
            Self::Opaque(path) if version.minor < 30 && path.is_derivation() => None,
            Self::Opaque(path) => Some(path.to_string()),
            Self::Built { derivation, outputs: OutputNames::All } if version.minor < 30 => Some(derivation.to_string()),
            Self::Built { derivation, outputs: OutputNames::All } => Some(format!("{derivation}!*")),
            Self::Built { derivation, outputs: OutputNames::Named(names) } => {
                let names = names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
                Some(format!("{derivation}!{names}"))
            }
        }
    }

    /// Reads the text that travels.
    pub fn from_wire(text: &str, version: ProtocolVersion) -> Result<Self, WireError> {
        let bad = || WireError::bad_value("a derived path", text);
        let (path, outputs) = match text.split_once('!') {
            Some((path, "*")) => (path, Some(OutputNames::All)),
            Some((path, names)) => (path, Some(OutputNames::Named(names.split(',').map(str::to_owned).collect()))),
            None => (text, None),
        };
        let path: StorePath = path.parse().map_err(|_| bad())?;
        Ok(match outputs {
            Some(OutputNames::Named(names)) if names.iter().any(String::is_empty) => return Err(bad()),
            Some(outputs) => Self::Built { derivation: path, outputs },
            None if version.minor < 30 && path.is_derivation() => {
                Self::Built { derivation: path, outputs: OutputNames::All }
            }
            None => Self::Opaque(path),
        })
    }
}

/// How to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuildMode {
    /// What is not valid yet.
    #[default]
    Normal,
    /// Also what is valid but damaged.
    Repair,
    /// What is valid, once more, and compare.
    Check,
}

impl BuildMode {
    /// The number that travels.
    pub const fn code(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::Repair => 1,
            Self::Check => 2,
        }
    }

    /// Reads the number that travels.
    pub fn from_code(code: u64) -> Result<Self, WireError> {
        let found = [Self::Normal, Self::Repair, Self::Check].into_iter().find(|mode| mode.code() == code);
        found.ok_or_else(|| WireError::bad_value("a build mode", code))
    }
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStatus {
    /// It was built.
    Built,
    /// It was substituted.
    Substituted,
    /// It was there.
    AlreadyValid,
    /// The builder failed: it would fail again.
    PermanentFailure,
    /// The derivation cannot be built by anybody.
    InputRejected,
    /// The outputs are not what the derivation allows.
    OutputRejected,
    /// The builder failed, perhaps by accident (no space, killed).
    TransientFailure,
    /// It had failed before (not used by Nix any more).
    CachedFailure,
    /// It took too long, or was silent for too long.
    TimedOut,
    /// Something else.
    MiscFailure,
    /// A derivation that it needs failed.
    DependencyFailed,
    /// It printed too much.
    LogLimitExceeded,
    /// Two builds gave different outputs.
    NotDeterministic,
    /// A content-addressed derivation resolved to one whose outputs are there.
    ResolvesToAlreadyValid,
    /// No substituter has it.
    NoSubstituters,
    /// A status of a newer daemon.
    Unknown(u64),
}

impl BuildStatus {
    const KNOWN: [Self; 15] = [
        Self::Built,
        Self::Substituted,
        Self::AlreadyValid,
        Self::PermanentFailure,
        Self::InputRejected,
        Self::OutputRejected,
        Self::TransientFailure,
        Self::CachedFailure,
        Self::TimedOut,
        Self::MiscFailure,
        Self::DependencyFailed,
        Self::LogLimitExceeded,
        Self::NotDeterministic,
        Self::ResolvesToAlreadyValid,
        Self::NoSubstituters,
    ];

    /// The number that travels.
    pub fn code(self) -> u64 {
        match self {
            Self::Unknown(code) => code,
            known => Self::KNOWN.iter().position(|status| *status == known).map_or(u64::MAX, |code| code as u64),
        }
    }

    /// Reads the number that travels.
    pub fn from_code(code: u64) -> Self {
        let index = usize::try_from(code).unwrap_or(usize::MAX);
        Self::KNOWN.get(index).copied().unwrap_or(Self::Unknown(code))
    }

    /// Whether the outputs are there now.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::Substituted | Self::AlreadyValid | Self::ResolvesToAlreadyValid)
    }
}

/// An output that a build made or found; told since 1.28.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltOutput {
    /// Identity of the output: hash of the derivation, `!`, name of the output.
    pub id: String,
    /// Where it is.
    pub path: StorePath,
    /// All that was told, as JSON.
    pub realisation: String,
}

/// How a build ended, with details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    /// How it ended.
    pub status: BuildStatus,
    /// Why it failed, with terminal colours; empty on success.
    pub error_message: String,
    /// How often it was built now; told since 1.29, as are the next three.
    pub times_built: u64,
    /// Whether several builds differed.
    pub is_non_deterministic: bool,
    /// Seconds of Unix time, 0 when not built.
    pub start_time_s: u64,
    /// Seconds of Unix time, 0 when not built.
    pub stop_time_s: u64,
    /// Processor time of the builder; told since 1.37, where measured.
    pub cpu_user_us: Option<u64>,
    /// Processor time of the kernel for the builder; likewise.
    pub cpu_system_us: Option<u64>,
    /// Outputs by name.
    pub built_outputs: BTreeMap<String, BuiltOutput>,
}

impl BuildResult {
    /// The error message without terminal colours.
    pub fn plain_error_message(&self) -> String {
        super::stderr::strip_ansi(&self.error_message)
    }

    /// Reads it in the layout of `version`.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R, version: ProtocolVersion) -> Result<Self, WireError> {
        let mut result = Self {
            status: BuildStatus::from_code(read_u64(reader).await?),
            error_message: read_text(reader, "a build error").await?,
            times_built: 0,
            is_non_deterministic: false,
            start_time_s: 0,
            stop_time_s: 0,
            cpu_user_us: None,
            cpu_system_us: None,
            built_outputs: BTreeMap::new(),
        };
        if version.minor >= 29 {
            result.times_built = read_u64(reader).await?;
            result.is_non_deterministic = read_bool(reader).await?;
            result.start_time_s = read_u64(reader).await?;
            result.stop_time_s = read_u64(reader).await?;
        }
        if version.minor >= 37 {
            result.cpu_user_us = read_optional_u64(reader).await?;
            result.cpu_system_us = read_optional_u64(reader).await?;
        }
        if version.minor >= 28 {
            for _ in 0..read_count(reader, "built outputs").await? {
                let id = read_string(reader, "the identity of an output").await?;
                let realisation = read_text(reader, "a realisation").await?;
                let (name, output) = BuiltOutput::parse(id, realisation)?;
                result.built_outputs.insert(name, output);
            }
        }
        Ok(result)
    }

    /// Appends it in the layout of `version`.
    pub fn put(&self, buffer: &mut Vec<u8>, version: ProtocolVersion) {
        put_u64(buffer, self.status.code());
        put_bytes(buffer, &self.error_message);
        if version.minor >= 29 {
            put_u64(buffer, self.times_built);
            put_bool(buffer, self.is_non_deterministic);
            put_u64(buffer, self.start_time_s);
            put_u64(buffer, self.stop_time_s);
        }
        if version.minor >= 37 {
            put_optional_u64(buffer, self.cpu_user_us);
            put_optional_u64(buffer, self.cpu_system_us);
        }
        if version.minor >= 28 {
            put_u64(buffer, self.built_outputs.len() as u64);
            for output in self.built_outputs.values() {
                put_bytes(buffer, &output.id);
                put_bytes(buffer, &output.realisation);
            }
        }
    }
}

impl BuiltOutput {
    /// The name of the output, and the output.
    fn parse(id: String, realisation: String) -> Result<(String, Self), WireError> {
        #[derive(serde::Deserialize)]
        struct Realisation {
            #[serde(rename = "outPath")]
            out_path: String,
        }
        let Some((_, name)) = id.split_once('!') else {
            return Err(WireError::bad_value("the identity of an output", id));
        };
        let parsed: Option<Realisation> = serde_json::from_str(&realisation).ok();
        let path = parsed.and_then(|parsed| StorePath::from_base_name(&parsed.out_path).ok());
        let path = path.ok_or_else(|| WireError::bad_value("a realisation", &realisation))?;
        Ok((name.to_owned(), Self { id, path, realisation }))
    }
}

async fn read_optional_u64<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<u64>, WireError> {
    match read_u64(reader).await? {
        0 => Ok(None),
        1 => read_u64(reader).await.map(Some),
        other => Err(WireError::bad_value("whether a number follows", other)),
    }
}

fn put_optional_u64(buffer: &mut Vec<u8>, value: Option<u64>) {
    put_bool(buffer, value.is_some());
    if let Some(value) = value {
        put_u64(buffer, value);
    }
}

/// What a build would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingPaths {
    /// Derivations that would be built.
    pub will_build: BTreeSet<StorePath>,
    /// Paths that would be substituted.
    pub will_substitute: BTreeSet<StorePath>,
    /// Paths of which nobody knows how to get them.
    pub unknown: BTreeSet<StorePath>,
    /// Bytes to download.
    pub download_size_bytes: u64,
    /// Bytes when unpacked.
    pub nar_size_bytes: u64,
}

/// What the garbage collector should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcAction {
    /// Tell what is in use.
    ReturnLive,
    /// Tell what is not in use.
    ReturnDead,
    /// Delete what is not in use.
    DeleteDead,
    /// Delete some paths; fails when one is in use.
    DeleteSpecific,
}

impl GcAction {
    /// The number that travels.
    pub const fn code(self) -> u64 {
        match self {
            Self::ReturnLive => 0,
            Self::ReturnDead => 1,
            Self::DeleteDead => 2,
            Self::DeleteSpecific => 3,
        }
    }
}

/// A collection of garbage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcRequest {
    /// What to do.
    pub action: GcAction,
    /// Which paths, for [`GcAction::DeleteSpecific`].
    pub paths: BTreeSet<StorePath>,
    /// Delete also what is in use (by roots, not by other paths).
    pub ignore_liveness: bool,
    /// Stop when this many bytes are free.
    pub max_freed_bytes: u64,
}

impl GcRequest {
    /// Deletes everything that is not in use.
    pub fn delete_dead() -> Self {
        let action = GcAction::DeleteDead;
        Self { action, paths: BTreeSet::new(), ignore_liveness: false, max_freed_bytes: u64::MAX }
    }

    /// Deletes these paths; fails when one is in use.
    pub fn delete(paths: BTreeSet<StorePath>) -> Self {
        Self { action: GcAction::DeleteSpecific, paths, ..Self::delete_dead() }
    }
}

/// What the garbage collector did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcReport {
    /// Paths found or deleted. Text, since leftovers in the store that are no valid store paths are among them.
    pub paths: Vec<String>,
    /// Bytes that were freed.
    pub freed_bytes: u64,
}

/// A root of the garbage collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcRoot {
    /// Where it is: usually a symlink; `{censored}` for clients that are not trusted.
    pub link: BString,
    /// What it keeps alive.
    pub target: StorePath,
}

impl GcRoot {
    pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, WireError> {
        let link = read_bytes(reader, "a root", TEXT_BYTES_MAX).await?.into();
        Ok(Self { link, target: read_store_path(reader, "the target of a root").await? })
    }
}

/// Appends a derivation, as in `BuildDerivation`.
pub fn put_derivation(buffer: &mut Vec<u8>, derivation: &BasicDerivation) {
    put_u64(buffer, derivation.outputs.len() as u64);
    for (name, output) in &derivation.outputs {
        put_bytes(buffer, name);
        let [path, algorithm, hash] = output_fields(output);
        put_bytes(buffer, path);
        put_bytes(buffer, algorithm);
        put_bytes(buffer, hash);
    }
    put_store_paths(buffer, &derivation.input_srcs);
    put_bytes(buffer, &derivation.platform);
    put_bytes(buffer, &derivation.builder);
    put_list(buffer, &derivation.args);
    put_u64(buffer, derivation.env.len() as u64);
    for (name, value) in &derivation.env {
        put_bytes(buffer, name);
        put_bytes(buffer, value);
    }
}

/// Path, hash algorithm and hash of an output, as in the derivation's file.
fn output_fields(output: &DerivationOutput) -> [String; 3] {
    let none = String::new;
    match output {
        DerivationOutput::InputAddressed(path) => [path.to_string(), none(), none()],
        DerivationOutput::Fixed { path, address } => {
            let algorithm = format!("{}{}", address.method.prefix(), address.hash.algorithm());
            [path.to_string(), algorithm, address.hash.to_base16()]
        }
        DerivationOutput::Floating { method, algorithm } => [none(), format!("{}{algorithm}", method.prefix()), none()],
        DerivationOutput::Deferred => [none(), none(), none()],
        DerivationOutput::Impure { method, algorithm } => {
            [none(), format!("{}{algorithm}", method.prefix()), "impure".to_owned()]
        }
    }
}
