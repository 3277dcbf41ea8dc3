//! What a build is asked for, and how it ended.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::AsyncRead;

use crate::derivation::{BasicDerivation, DerivationOutput};
use crate::store_path::StorePath;
use crate::worker_protocol::handshake::ProtocolVersion;
use crate::worker_protocol::stderr::strip_ansi;
use crate::worker_protocol::wire::{
    TEXT_BYTES_MAX, WireError, put_bool, put_bytes, put_list, put_store_paths, put_u64, read_bool, read_bytes,
    read_count, read_store_paths, read_string, read_text, read_u64,
};

/// Which outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
        strip_ansi(&self.error_message)
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

/// Appends a derivation, as in `BuildDerivation`.
pub fn put_derivation(buffer: &mut Vec<u8>, derivation: &BasicDerivation) {
    put_u64(buffer, derivation.outputs.len() as u64);
    for (name, output) in &derivation.outputs {
        put_bytes(buffer, name);
        let (path, algorithm, hash) = output.to_fields();
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

/// Reads a derivation, as in `BuildDerivation`; its name is that of the `.drv` file.
pub async fn read_derivation<R: AsyncRead + Unpin>(
    reader: &mut R,
    path: &StorePath,
) -> Result<BasicDerivation, WireError> {
    let name = path.derivation_name().ok_or_else(|| WireError::bad_value("a derivation's path", path))?.to_owned();
    let mut outputs = BTreeMap::new();
    for _ in 0..read_count(reader, "outputs").await? {
        let output = read_string(reader, "an output's name").await?;
        let path = read_string(reader, "an output's path").await?;
        let algorithm = read_string(reader, "an output's hash algorithm").await?;
        let hash = read_string(reader, "an output's hash").await?;
        let parsed = DerivationOutput::from_fields(&path, &algorithm, &hash);
        outputs.insert(output, parsed.map_err(|error| WireError::bad_value("an output", error))?);
    }
    let input_srcs = read_store_paths(reader, "an input").await?;
    let platform = read_string(reader, "a platform").await?;
    let builder = read_bytes(reader, "a builder", TEXT_BYTES_MAX).await?.into();
    let mut args = Vec::new();
    for _ in 0..read_count(reader, "arguments").await? {
        args.push(read_bytes(reader, "an argument", TEXT_BYTES_MAX).await?.into());
    }
    let mut env = BTreeMap::new();
    for _ in 0..read_count(reader, "environment variables").await? {
        let variable = read_bytes(reader, "an environment variable", TEXT_BYTES_MAX).await?.into();
        env.insert(variable, read_bytes(reader, "an environment variable", TEXT_BYTES_MAX).await?.into());
    }
    Ok(BasicDerivation { name, outputs, input_srcs, platform, builder, args, env })
}
