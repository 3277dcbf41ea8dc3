//! The daemon's half of operations: [`Request`] is what a client asks, read in the layout of its version.
//!
//! Answers are put together with the functions of [`wire`](super::wire) and the `put`s of [`types`](super::types).

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::AsyncRead;

use super::handshake::ProtocolVersion;
use super::operations::Operation;
use super::types::{BuildMode, ClientOptions, DerivedPath, GcAction, GcRequest, ValidPathInfo, read_derivation};
use super::wire::{
    TEXT_BYTES_MAX, WireError, read_bool, read_bytes, read_count, read_store_path, read_store_paths, read_string,
    read_strings, read_u64,
};
use crate::content_address::{ContentAddress, ContentAddressMethod};
use crate::derivation::BasicDerivation;
use crate::hash::HashAlgorithm;
use crate::store_path::StorePath;

/// What a client asks. Where bulk data follows, it is not part of this and still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Whether a path is valid.
    IsValidPath(StorePath),
    /// Who refers to a path.
    QueryReferrers(StorePath),
    /// Adds content whose hash determines its path. Bulk data follows: framed since 1.25, an archive as it is before.
    AddToStore {
        /// What follows the hash in its path.
        name: String,
        /// What is hashed.
        method: ContentAddressMethod,
        /// With which algorithm.
        algorithm: HashAlgorithm,
        /// What it refers to.
        references: BTreeSet<StorePath>,
        /// Replace the files of a path that is valid.
        repair: bool,
    },
    /// Adds a text; of clients of old.
    AddTextToStore {
        /// What follows the hash in its path.
        name: String,
        /// The text.
        text: Vec<u8>,
        /// What it refers to.
        references: BTreeSet<StorePath>,
    },
    /// Makes these valid.
    BuildPaths(Vec<DerivedPath>, BuildMode),
    /// The same, with a result for each.
    BuildPathsWithResults(Vec<DerivedPath>, BuildMode),
    /// Builds a derivation that need not be in the store.
    BuildDerivation(StorePath, BasicDerivation, BuildMode),
    /// Makes a path valid by substituting it.
    EnsurePath(StorePath),
    /// Protects a path while the connection lasts.
    AddTempRoot(StorePath),
    /// Registers a symlink outside the store as a root.
    AddIndirectRoot(Vec<u8>),
    /// Makes such a symlink and registers it.
    AddPermRoot(StorePath, Vec<u8>),
    /// Nothing any more.
    SyncWithGC,
    /// All roots.
    FindRoots,
    /// Who made a path.
    QueryDeriver(StorePath),
    /// Settings of this client.
    SetOptions(ClientOptions),
    /// Collects garbage.
    CollectGarbage(GcRequest),
    /// Output paths of a derivation.
    QueryDerivationOutputs(StorePath),
    /// Output names of a derivation.
    QueryDerivationOutputNames(StorePath),
    /// Output names and paths of a derivation.
    QueryDerivationOutputMap(StorePath),
    /// Every valid path.
    QueryAllValidPaths,
    /// What the store knows of a path.
    QueryPathInfo(StorePath),
    /// The path that has a hash part.
    QueryPathFromHashPart(String),
    /// What caches know of paths, for some with their content address.
    QuerySubstitutablePathInfos(BTreeMap<StorePath, Option<ContentAddress>>),
    /// Which of these are valid, perhaps after substituting what can be.
    QueryValidPaths(BTreeSet<StorePath>, bool),
    /// Which of these caches have.
    QuerySubstitutablePaths(BTreeSet<StorePath>),
    /// Valid derivations that have a path as an output.
    QueryValidDerivers(StorePath),
    /// Makes files that are equal share their blocks.
    OptimiseStore,
    /// Checks the store against its database.
    VerifyStore {
        /// Also the hashes of all files.
        check_contents: bool,
        /// And mends what can be.
        repair: bool,
    },
    /// Adds signatures to a path.
    AddSignatures(StorePath, BTreeSet<String>),
    /// The archive of a path.
    NarFromPath(StorePath),
    /// Adds a path of which all is known. Its archive follows: framed since 1.23, to be asked for in pieces before.
    AddToStoreNar {
        /// What is known.
        valid: ValidPathInfo,
        /// Replace the files of a path that is valid.
        repair: bool,
        /// Whether signatures need not be checked.
        dont_check_signatures: bool,
    },
    /// Adds many such paths; they follow, framed.
    AddMultipleToStore {
        /// Replace the files of paths that are valid.
        repair: bool,
        /// Whether signatures need not be checked.
        dont_check_signatures: bool,
    },
    /// What a build would do.
    QueryMissing(Vec<DerivedPath>),
    /// Registers a realisation, as JSON.
    RegisterDrvOutput(String),
    /// Asks for a realisation.
    QueryRealisation(String),
    /// Stores the log of a build, which follows, framed.
    AddBuildLog(StorePath),
}

impl Request {
    /// The operation.
    pub fn operation(&self) -> Operation {
        match self {
            Self::IsValidPath(_) => Operation::IsValidPath,
            Self::QueryReferrers(_) => Operation::QueryReferrers,
            Self::AddToStore { .. } => Operation::AddToStore,
            Self::AddTextToStore { .. } => Operation::AddTextToStore,
            Self::BuildPaths(..) => Operation::BuildPaths,
            Self::BuildPathsWithResults(..) => Operation::BuildPathsWithResults,
            Self::BuildDerivation(..) => Operation::BuildDerivation,
            Self::EnsurePath(_) => Operation::EnsurePath,
            Self::AddTempRoot(_) => Operation::AddTempRoot,
            Self::AddIndirectRoot(_) => Operation::AddIndirectRoot,
            Self::AddPermRoot(..) => Operation::AddPermRoot,
            Self::SyncWithGC => Operation::SyncWithGC,
            Self::FindRoots => Operation::FindRoots,
            Self::QueryDeriver(_) => Operation::QueryDeriver,
            Self::SetOptions(_) => Operation::SetOptions,
            Self::CollectGarbage(_) => Operation::CollectGarbage,
            Self::QueryDerivationOutputs(_) => Operation::QueryDerivationOutputs,
            Self::QueryDerivationOutputNames(_) => Operation::QueryDerivationOutputNames,
            Self::QueryDerivationOutputMap(_) => Operation::QueryDerivationOutputMap,
            Self::QueryAllValidPaths => Operation::QueryAllValidPaths,
            Self::QueryPathInfo(_) => Operation::QueryPathInfo,
            Self::QueryPathFromHashPart(_) => Operation::QueryPathFromHashPart,
            Self::QuerySubstitutablePathInfos(_) => Operation::QuerySubstitutablePathInfos,
            Self::QueryValidPaths(..) => Operation::QueryValidPaths,
            Self::QuerySubstitutablePaths(_) => Operation::QuerySubstitutablePaths,
            Self::QueryValidDerivers(_) => Operation::QueryValidDerivers,
            Self::OptimiseStore => Operation::OptimiseStore,
            Self::VerifyStore { .. } => Operation::VerifyStore,
            Self::AddSignatures(..) => Operation::AddSignatures,
            Self::NarFromPath(_) => Operation::NarFromPath,
            Self::AddToStoreNar { .. } => Operation::AddToStoreNar,
            Self::AddMultipleToStore { .. } => Operation::AddMultipleToStore,
            Self::QueryMissing(_) => Operation::QueryMissing,
            Self::RegisterDrvOutput(_) => Operation::RegisterDrvOutput,
            Self::QueryRealisation(_) => Operation::QueryRealisation,
            Self::AddBuildLog(_) => Operation::AddBuildLog,
        }
    }

    /// Reads what follows the code of the operation.
    pub async fn read<R: AsyncRead + Unpin>(
        reader: &mut R,
        operation: Operation,
        version: ProtocolVersion,
    ) -> Result<Self, WireError> {
        Ok(match operation {
            Operation::IsValidPath => Self::IsValidPath(path(reader).await?),
            Operation::QueryReferrers => Self::QueryReferrers(path(reader).await?),
            Operation::AddToStore if version.minor >= 25 => read_add_to_store(reader).await?,
            Operation::AddToStore => read_add_to_store_of_old(reader).await?,
            Operation::AddTextToStore => Self::AddTextToStore {
                name: read_string(reader, "a name").await?,
                text: read_bytes(reader, "a text", TEXT_BYTES_MAX).await?,
                references: read_store_paths(reader, "a reference").await?,
            },
            Operation::BuildPaths => Self::BuildPaths(derived_paths(reader, version).await?, mode(reader).await?),
            Operation::BuildPathsWithResults => {
                Self::BuildPathsWithResults(derived_paths(reader, version).await?, mode(reader).await?)
            }
            Operation::BuildDerivation => {
                let path = path(reader).await?;
                let derivation = read_derivation(reader, &path).await?;
                Self::BuildDerivation(path, derivation, mode(reader).await?)
            }
            Operation::EnsurePath => Self::EnsurePath(path(reader).await?),
            Operation::AddTempRoot => Self::AddTempRoot(path(reader).await?),
            Operation::AddIndirectRoot => Self::AddIndirectRoot(file(reader).await?),
            Operation::AddPermRoot => Self::AddPermRoot(path(reader).await?, file(reader).await?),
            Operation::SyncWithGC => Self::SyncWithGC,
            Operation::FindRoots => Self::FindRoots,
            Operation::QueryDeriver => Self::QueryDeriver(path(reader).await?),
            Operation::SetOptions => Self::SetOptions(ClientOptions::read(reader).await?),
            Operation::CollectGarbage => Self::CollectGarbage(read_gc_request(reader).await?),
            Operation::QueryDerivationOutputs => Self::QueryDerivationOutputs(path(reader).await?),
            Operation::QueryDerivationOutputNames => Self::QueryDerivationOutputNames(path(reader).await?),
            Operation::QueryDerivationOutputMap => Self::QueryDerivationOutputMap(path(reader).await?),
            Operation::QueryAllValidPaths => Self::QueryAllValidPaths,
            Operation::QueryPathInfo => Self::QueryPathInfo(path(reader).await?),
            Operation::QueryPathFromHashPart => Self::QueryPathFromHashPart(read_string(reader, "a hash part").await?),
            Operation::QuerySubstitutablePathInfos => {
                Self::QuerySubstitutablePathInfos(read_addressed_paths(reader, version).await?)
            }
            Operation::QueryValidPaths => {
                let paths = read_store_paths(reader, "a path").await?;
                let substitute = version.minor >= 27 && read_bool(reader).await?;
                Self::QueryValidPaths(paths, substitute)
            }
            Operation::QuerySubstitutablePaths => {
                Self::QuerySubstitutablePaths(read_store_paths(reader, "a path").await?)
            }
            Operation::QueryValidDerivers => Self::QueryValidDerivers(path(reader).await?),
            Operation::OptimiseStore => Self::OptimiseStore,
            Operation::VerifyStore => {
                let check_contents = read_bool(reader).await?;
                Self::VerifyStore { check_contents, repair: read_bool(reader).await? }
            }
            Operation::AddSignatures => {
                let path = path(reader).await?;
                Self::AddSignatures(path, read_strings(reader, "a signature").await?.into_iter().collect())
            }
            Operation::NarFromPath => Self::NarFromPath(path(reader).await?),
            Operation::AddToStoreNar => Self::AddToStoreNar {
                valid: ValidPathInfo::read(reader).await?,
                repair: read_bool(reader).await?,
                dont_check_signatures: read_bool(reader).await?,
            },
            Operation::AddMultipleToStore => Self::AddMultipleToStore {
                repair: read_bool(reader).await?,
                dont_check_signatures: read_bool(reader).await?,
            },
            Operation::QueryMissing => Self::QueryMissing(derived_paths(reader, version).await?),
            Operation::RegisterDrvOutput => {
                let bytes = read_bytes(reader, "a realisation", TEXT_BYTES_MAX).await?;
                let text = String::from_utf8(bytes);
                Self::RegisterDrvOutput(text.map_err(|_| WireError::NotUtf8 { what: "a realisation" })?)
            }
            Operation::QueryRealisation => {
                Self::QueryRealisation(read_string(reader, "the identity of an output").await?)
            }
            Operation::AddBuildLog => {
                let name = read_string(reader, "a derivation").await?;
                // Clients send the base name; older texts of the protocol had the full path.
                let path = StorePath::from_base_name(&name).or_else(|_| name.parse());
                Self::AddBuildLog(path.map_err(|_| WireError::bad_value("a derivation", &name))?)
            }
        })
    }
}

async fn path<R: AsyncRead + Unpin>(reader: &mut R) -> Result<StorePath, WireError> {
    read_store_path(reader, "a store path").await
}

async fn file<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Vec<u8>, WireError> {
    read_bytes(reader, "the path of a root", super::wire::STRING_BYTES_MAX).await
}

async fn mode<R: AsyncRead + Unpin>(reader: &mut R) -> Result<BuildMode, WireError> {
    BuildMode::from_code(read_u64(reader).await?)
}

async fn derived_paths<R: AsyncRead + Unpin>(
    reader: &mut R,
    version: ProtocolVersion,
) -> Result<Vec<DerivedPath>, WireError> {
    let mut paths = Vec::new();
    for text in read_strings(reader, "a derived path").await? {
        paths.push(DerivedPath::from_wire(&text, version)?);
    }
    Ok(paths)
}

async fn read_add_to_store<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Request, WireError> {
    let name = read_string(reader, "a name").await?;
    let kind = read_string(reader, "a content address method").await?;
    let references = read_store_paths(reader, "a reference").await?;
    let repair = read_bool(reader).await?;
    let (method, algorithm) = ContentAddressMethod::split_prefix(kind.strip_prefix("fixed:").unwrap_or(&kind));
    let algorithm =
        algorithm.parse().ok().filter(|_| (method == ContentAddressMethod::Text) != kind.starts_with("fixed:"));
    let algorithm = algorithm.ok_or_else(|| WireError::bad_value("a content address method", &kind))?;
    Ok(Request::AddToStore { name, method, algorithm, references, repair })
}

async fn read_add_to_store_of_old<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Request, WireError> {
    let name = read_string(reader, "a name").await?;
    let is_fixed = read_bool(reader).await?;
    let is_recursive = read_bool(reader).await?;
    let algorithm = read_string(reader, "a hash algorithm").await?;
    let (method, algorithm) = match (is_fixed, is_recursive) {
        // What clients of clients of old meant by it.
        (false, _) => (ContentAddressMethod::Recursive, "sha256"),
        (true, true) => (ContentAddressMethod::Recursive, algorithm.as_str()),
        (true, false) => (ContentAddressMethod::Flat, algorithm.as_str()),
    };
    let algorithm = algorithm.parse().map_err(|_| WireError::bad_value("a hash algorithm", algorithm))?;
    Ok(Request::AddToStore { name, method, algorithm, references: BTreeSet::new(), repair: false })
}

async fn read_gc_request<R: AsyncRead + Unpin>(reader: &mut R) -> Result<GcRequest, WireError> {
    let request = GcRequest {
        action: GcAction::from_code(read_u64(reader).await?)?,
        paths: read_store_paths(reader, "a path").await?,
        ignore_liveness: read_bool(reader).await?,
        max_freed_bytes: read_u64(reader).await?,
    };
    for _ in 0..3 {
        read_u64(reader).await?; // obsolete settings
    }
    Ok(request)
}

async fn read_addressed_paths<R: AsyncRead + Unpin>(
    reader: &mut R,
    version: ProtocolVersion,
) -> Result<BTreeMap<StorePath, Option<ContentAddress>>, WireError> {
    let mut paths = BTreeMap::new();
    for _ in 0..read_count(reader, "paths").await? {
        let path = path(reader).await?;
        let address = if version.minor >= 22 { read_string(reader, "a content address").await? } else { String::new() };
        let address = if address.is_empty() {
            None
        } else {
            Some(address.parse().map_err(|_| WireError::bad_value("a content address", &address))?)
        };
        paths.insert(path, address);
    }
    Ok(paths)
}
