//! What travels in operations and answers. Each type knows its layout in every protocol version that is spoken.
//! Builds are in `types/build.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;
use tokio::io::AsyncRead;

use super::wire::{
    TEXT_BYTES_MAX, WireError, put_bool, put_bytes, put_list, put_optional_store_path, put_store_path, put_store_paths,
    put_u64, read_bool, read_bytes, read_map, read_optional_store_path, read_store_path, read_store_paths, read_string,
    read_strings, read_u64,
};
use crate::content_address::ContentAddress;
use crate::hash::{HashAlgorithm, NarHash};
use crate::store_path::StorePath;

mod build;

pub use build::{
    BuildMode, BuildResult, BuildStatus, BuiltOutput, DerivedPath, OutputNames, put_derivation, read_derivation,
};

/// Settings of a client. What the daemon makes of them depends on its trust.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches, each its own field on the wire")]
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

    pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, WireError> {
        let keep_failed = read_bool(reader).await?;
        let keep_going = read_bool(reader).await?;
        let try_fallback = read_bool(reader).await?;
        let verbosity = read_u64(reader).await?;
        let max_build_jobs = read_u64(reader).await?;
        let max_silent_time_s = read_u64(reader).await?;
        read_u64(reader).await?; // use build hook, obsolete
        let verbose_build = read_u64(reader).await?;
        read_u64(reader).await?; // type of log, obsolete
        read_u64(reader).await?; // print build trace, obsolete
        let build_cores = read_u64(reader).await?;
        let use_substitutes = read_bool(reader).await?;
        let overrides = read_map(reader, "a setting").await?;
        Ok(Self {
            keep_failed,
            keep_going,
            try_fallback,
            verbosity,
            max_build_jobs,
            max_silent_time_s,
            verbose_build,
            build_cores,
            use_substitutes,
            overrides,
        })
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

    /// Reads the number that travels.
    pub fn from_code(code: u64) -> Result<Self, WireError> {
        let all = [Self::ReturnLive, Self::ReturnDead, Self::DeleteDead, Self::DeleteSpecific];
        let found = all.into_iter().find(|action| action.code() == code);
        found.ok_or_else(|| WireError::bad_value("an action of the garbage collector", code))
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

impl MissingPaths {
    /// Appends it.
    pub fn put(&self, buffer: &mut Vec<u8>) {
        put_store_paths(buffer, &self.will_build);
        put_store_paths(buffer, &self.will_substitute);
        put_store_paths(buffer, &self.unknown);
        put_u64(buffer, self.download_size_bytes);
        put_u64(buffer, self.nar_size_bytes);
    }
}

impl GcRoot {
    /// Appends it.
    pub fn put(&self, buffer: &mut Vec<u8>) {
        put_bytes(buffer, &self.link);
        put_store_path(buffer, &self.target);
    }

    pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, WireError> {
        let link = read_bytes(reader, "a root", TEXT_BYTES_MAX).await?.into();
        Ok(Self { link, target: read_store_path(reader, "the target of a root").await? })
    }
}
