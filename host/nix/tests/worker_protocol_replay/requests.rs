//! What a recorded client asked, read with the primitives that a server would use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use harmonia_nix::nar::{Decoder, Limits};
use harmonia_nix::worker_protocol::framed::FramedReader;
use harmonia_nix::worker_protocol::handshake::CLIENT_MAGIC;
use harmonia_nix::worker_protocol::wire::{
    TEXT_BYTES_MAX, read_bool, read_bytes, read_count, read_map, read_store_path, read_store_paths, read_string,
    read_strings, read_text, read_u64,
};
use harmonia_nix::worker_protocol::{
    BuildMode, ClientOptions, DerivedPath, GcAction, GcRequest, Operation, PathInfo, ProtocolVersion, ValidPathInfo,
};
use harmonia_nix::{BasicDerivation, ContentAddressMethod, DerivationOutput, HashAlgorithm, StorePath};
use tokio::io::AsyncReadExt;

pub(crate) enum Request {
    IsValidPath(StorePath),
    QueryReferrers(StorePath),
    AddToStore {
        name: String,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: BTreeSet<StorePath>,
        repair: bool,
        bytes: Vec<u8>,
    },
    BuildPaths(Vec<DerivedPath>, BuildMode),
    EnsurePath(StorePath),
    AddTempRoot(StorePath),
    AddIndirectRoot(PathBuf),
    FindRoots,
    SetOptions(ClientOptions),
    CollectGarbage(GcRequest),
    QueryAllValidPaths,
    QueryPathInfo(StorePath),
    QueryPathFromHashPart(String),
    QueryValidPaths(BTreeSet<StorePath>, bool),
    QueryValidDerivers(StorePath),
    OptimiseStore,
    VerifyStore {
        check_contents: bool,
        repair: bool,
    },
    BuildDerivation(StorePath, BasicDerivation, BuildMode),
    AddSignatures(StorePath, BTreeSet<String>),
    NarFromPath(StorePath),
    AddToStoreNar {
        info: ValidPathInfo,
        repair: bool,
        dont_check_signatures: bool,
        bytes: Vec<u8>,
    },
    QueryMissing(Vec<DerivedPath>),
    QueryDerivationOutputMap(StorePath),
    RegisterDrvOutput(String),
    QueryRealisation(String),
    AddMultipleToStore {
        repair: bool,
        dont_check_signatures: bool,
        paths: Vec<(ValidPathInfo, Vec<u8>)>,
    },
    AddBuildLog(StorePath, Vec<u8>),
    BuildPathsWithResults(Vec<DerivedPath>, BuildMode),
}

/// All that a client sent.
pub(crate) struct Conversation {
    pub(crate) client_version: ProtocolVersion,
    pub(crate) requests: Vec<Request>,
    /// The bytes, with bulk data in one frame each.
    pub(crate) with_single_frames: Vec<u8>,
}

/// The bytes of a client, and how far they were read.
struct Reader<'a> {
    all: &'a [u8],
    left: &'a [u8],
    /// Bytes up to here are in `with_single_frames`.
    copied: usize,
    with_single_frames: Vec<u8>,
}

impl Reader<'_> {
    fn position(&self) -> usize {
        self.all.len() - self.left.len()
    }

    async fn frames(&mut self) -> Vec<u8> {
        let start = self.position();
        let mut framed = FramedReader::new(&mut self.left);
        let mut bytes = Vec::new();
        framed.read_to_end(&mut bytes).await.expect("whole frames");
        assert!(framed.is_ended());
        self.with_single_frames.extend_from_slice(&self.all[self.copied..start]);
        self.with_single_frames.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.with_single_frames.extend_from_slice(&bytes);
        self.copied = self.position();
        bytes
    }

    async fn path(&mut self) -> StorePath {
        read_store_path(&mut self.left, "a path").await.expect("a path")
    }

    async fn paths(&mut self) -> BTreeSet<StorePath> {
        read_store_paths(&mut self.left, "paths").await.expect("paths")
    }

    async fn flag(&mut self) -> bool {
        read_bool(&mut self.left).await.expect("a flag")
    }

    async fn number(&mut self) -> u64 {
        read_u64(&mut self.left).await.expect("a number")
    }

    async fn string(&mut self) -> String {
        read_string(&mut self.left, "a string").await.expect("a string")
    }

    async fn mode(&mut self) -> BuildMode {
        BuildMode::from_code(self.number().await).expect("a mode")
    }

    async fn derived(&mut self, version: ProtocolVersion) -> Vec<DerivedPath> {
        let texts = read_strings(&mut self.left, "derived paths").await.expect("derived paths");
        texts.iter().map(|text| DerivedPath::from_wire(text, version).expect("a derived path")).collect()
    }
}

impl Conversation {
    pub(crate) async fn parse(bytes: &[u8]) -> Self {
        let mut reader = Reader { all: bytes, left: bytes, copied: 0, with_single_frames: Vec::new() };
        assert_eq!(reader.number().await, CLIENT_MAGIC);
        let client_version = ProtocolVersion::from_code(reader.number().await).expect("a version");
        if client_version.minor >= 38 {
            let features = read_strings(&mut reader.left, "features").await.expect("features");
            assert_eq!(features, Vec::<String>::new());
        }
        assert_eq!((reader.number().await, reader.number().await), (0, 0));
        let mut requests = Vec::new();
        while !reader.left.is_empty() {
            requests.push(Request::read(&mut reader, client_version).await);
        }
        reader.with_single_frames.extend_from_slice(&bytes[reader.copied..]);
        Self { client_version, requests, with_single_frames: reader.with_single_frames }
    }
}

impl Request {
    async fn read(r: &mut Reader<'_>, version: ProtocolVersion) -> Self {
        let operation = Operation::try_from(r.number().await).expect("an operation");
        match operation {
            Operation::IsValidPath => Self::IsValidPath(r.path().await),
            Operation::QueryReferrers => Self::QueryReferrers(r.path().await),
            Operation::AddToStore => {
                let name = r.string().await;
                let text = r.string().await;
                let (method, algorithm) = ContentAddressMethod::split_prefix(text.trim_start_matches("fixed:"));
                let algorithm = algorithm.parse().expect("an algorithm");
                let references = r.paths().await;
                let repair = r.flag().await;
                Self::AddToStore { name, method, algorithm, references, repair, bytes: r.frames().await }
            }
            Operation::BuildPaths => Self::BuildPaths(r.derived(version).await, r.mode().await),
            Operation::BuildPathsWithResults => Self::BuildPathsWithResults(r.derived(version).await, r.mode().await),
            Operation::EnsurePath => Self::EnsurePath(r.path().await),
            Operation::AddTempRoot => Self::AddTempRoot(r.path().await),
            Operation::AddIndirectRoot => Self::AddIndirectRoot(r.string().await.into()),
            Operation::FindRoots => Self::FindRoots,
            Operation::SetOptions => Self::SetOptions(options(r).await),
            Operation::CollectGarbage => {
                let code = r.number().await;
                let actions =
                    [GcAction::ReturnLive, GcAction::ReturnDead, GcAction::DeleteDead, GcAction::DeleteSpecific];
                let action = actions.into_iter().find(|action| action.code() == code).expect("an action");
                let paths = r.paths().await;
                let ignore_liveness = r.flag().await;
                let max_freed_bytes = r.number().await;
                assert_eq!([r.number().await, r.number().await, r.number().await], [0; 3]);
                Self::CollectGarbage(GcRequest { action, paths, ignore_liveness, max_freed_bytes })
            }
            Operation::QueryAllValidPaths => Self::QueryAllValidPaths,
            Operation::QueryPathInfo => Self::QueryPathInfo(r.path().await),
            Operation::QueryPathFromHashPart => Self::QueryPathFromHashPart(r.string().await),
            Operation::QueryValidPaths => Self::QueryValidPaths(r.paths().await, r.flag().await),
            Operation::QueryValidDerivers => Self::QueryValidDerivers(r.path().await),
            Operation::OptimiseStore => Self::OptimiseStore,
            Operation::VerifyStore => Self::VerifyStore { check_contents: r.flag().await, repair: r.flag().await },
            Operation::BuildDerivation => {
                let path = r.path().await;
                Self::BuildDerivation(path, derivation(r).await, r.mode().await)
            }
            Operation::AddSignatures => {
                let path = r.path().await;
                let signatures = read_strings(&mut r.left, "signatures").await.expect("signatures");
                Self::AddSignatures(path, signatures.into_iter().collect())
            }
            Operation::NarFromPath => Self::NarFromPath(r.path().await),
            Operation::AddToStoreNar => {
                let info = ValidPathInfo::read(&mut r.left).await.expect("a path");
                let (repair, dont_check_signatures) = (r.flag().await, r.flag().await);
                Self::AddToStoreNar { info, repair, dont_check_signatures, bytes: r.frames().await }
            }
            Operation::QueryMissing => Self::QueryMissing(r.derived(version).await),
            Operation::QueryDerivationOutputMap => Self::QueryDerivationOutputMap(r.path().await),
            Operation::RegisterDrvOutput => {
                Self::RegisterDrvOutput(read_text(&mut r.left, "a realisation").await.expect("a realisation"))
            }
            Operation::QueryRealisation => Self::QueryRealisation(r.string().await),
            Operation::AddMultipleToStore => {
                let (repair, dont_check_signatures) = (r.flag().await, r.flag().await);
                let paths = archives(&r.frames().await).await;
                Self::AddMultipleToStore { repair, dont_check_signatures, paths }
            }
            Operation::AddBuildLog => {
                let derivation = StorePath::from_base_name(&r.string().await).expect("a base name");
                Self::AddBuildLog(derivation, r.frames().await)
            }
            other => panic!("{other} is not in the recordings"),
        }
    }

    pub(crate) fn operation(&self) -> Operation {
        match self {
            Self::IsValidPath(_) => Operation::IsValidPath,
            Self::QueryReferrers(_) => Operation::QueryReferrers,
            Self::AddToStore { .. } => Operation::AddToStore,
            Self::BuildPaths(..) => Operation::BuildPaths,
            Self::EnsurePath(_) => Operation::EnsurePath,
            Self::AddTempRoot(_) => Operation::AddTempRoot,
            Self::AddIndirectRoot(_) => Operation::AddIndirectRoot,
            Self::FindRoots => Operation::FindRoots,
            Self::SetOptions(_) => Operation::SetOptions,
            Self::CollectGarbage(_) => Operation::CollectGarbage,
            Self::QueryAllValidPaths => Operation::QueryAllValidPaths,
            Self::QueryPathInfo(_) => Operation::QueryPathInfo,
            Self::QueryPathFromHashPart(_) => Operation::QueryPathFromHashPart,
            Self::QueryValidPaths(..) => Operation::QueryValidPaths,
            Self::QueryValidDerivers(_) => Operation::QueryValidDerivers,
            Self::OptimiseStore => Operation::OptimiseStore,
            Self::VerifyStore { .. } => Operation::VerifyStore,
            Self::BuildDerivation(..) => Operation::BuildDerivation,
            Self::AddSignatures(..) => Operation::AddSignatures,
            Self::NarFromPath(_) => Operation::NarFromPath,
            Self::AddToStoreNar { .. } => Operation::AddToStoreNar,
            Self::QueryMissing(_) => Operation::QueryMissing,
            Self::QueryDerivationOutputMap(_) => Operation::QueryDerivationOutputMap,
            Self::RegisterDrvOutput(_) => Operation::RegisterDrvOutput,
            Self::QueryRealisation(_) => Operation::QueryRealisation,
            Self::AddMultipleToStore { .. } => Operation::AddMultipleToStore,
            Self::AddBuildLog(..) => Operation::AddBuildLog,
            Self::BuildPathsWithResults(..) => Operation::BuildPathsWithResults,
        }
    }
}

async fn options(r: &mut Reader<'_>) -> ClientOptions {
    let keep_failed = r.flag().await;
    let keep_going = r.flag().await;
    let try_fallback = r.flag().await;
    let verbosity = r.number().await;
    let max_build_jobs = r.number().await;
    let max_silent_time_s = r.number().await;
    assert_eq!(r.number().await, 1);
    let verbose_build = r.number().await;
    assert_eq!((r.number().await, r.number().await), (0, 0));
    ClientOptions {
        keep_failed,
        keep_going,
        try_fallback,
        verbosity,
        max_build_jobs,
        max_silent_time_s,
        verbose_build,
        build_cores: r.number().await,
        use_substitutes: r.flag().await,
        overrides: read_map(&mut r.left, "overrides").await.expect("overrides"),
    }
}

async fn derivation(r: &mut Reader<'_>) -> BasicDerivation {
    let mut outputs = BTreeMap::new();
    for _ in 0..r.number().await {
        let name = r.string().await;
        let path = r.path().await;
        assert_eq!((r.string().await.as_str(), r.string().await.as_str()), ("", ""), "only such outputs are recorded");
        outputs.insert(name, DerivationOutput::InputAddressed(path));
    }
    let input_srcs = r.paths().await;
    let platform = r.string().await;
    let builder = r.string().await.into();
    let args = read_strings(&mut r.left, "arguments").await.expect("arguments").into_iter().map(Into::into).collect();
    let mut env = BTreeMap::new();
    for _ in 0..read_count(&mut r.left, "environment").await.expect("a count") {
        let name = read_bytes(&mut r.left, "a name", TEXT_BYTES_MAX).await.expect("a name");
        let value = read_bytes(&mut r.left, "a value", TEXT_BYTES_MAX).await.expect("a value");
        env.insert(name.into(), value.into());
    }
    BasicDerivation { name: "remote".to_owned(), outputs, input_srcs, platform, builder, args, env }
}

/// What is inside the frames of `AddMultipleToStore`.
async fn archives(mut bytes: &[u8]) -> Vec<(ValidPathInfo, Vec<u8>)> {
    let mut found = Vec::new();
    for _ in 0..read_u64(&mut bytes).await.expect("a count") {
        let path = read_store_path(&mut bytes, "a path").await.expect("a path");
        let info = PathInfo::read(&mut bytes).await.expect("what is known of it");
        let mut decoder = Decoder::new(Limits::of_size(1 << 20));
        let start = bytes;
        while !decoder.is_done() {
            bytes = &bytes[decoder.push(bytes).expect("an archive").consumed..];
        }
        found.push((ValidPathInfo { path, info }, start[..start.len() - bytes.len()].to_vec()));
    }
    assert!(bytes.is_empty());
    found
}
