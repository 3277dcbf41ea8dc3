//! Wire types between workers (builder, evaluator) and any live signer: JSON over HTTP.
//!
//! Every call carries `Authorization: Bearer <claim token>`; the body names what the token was given for
//! ([`Holder`]). Hashes travel as `sha256:<nix base32>`, store paths as full paths.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /api/upload-slots` | [`SlotsRequest`] | [`SlotsAnswer`] |
//! | `POST /api/drv-upload` | [`DrvUpload`] | [`DrvUploadAnswer`] |
//! | `POST /api/sources-complete` | [`SourcesComplete`] | [`SourcesCompleteAnswer`] |
//! | `POST /api/build-complete` | [`BuildComplete`] | [`BuildCompleteAnswer`] |
//! | `POST /api/build-failed` | [`BuildFailed`] | [`BuildFailedAnswer`] |
//!
//! An answer other than 200 carries [`crate::api::ApiError`]: 401 no token, 409 `stale-claim` (the token is void: drop
//! the work), 422 refused (permanent), 503 try again (also on another signer).

use serde::{Deserialize, Serialize};

use crate::ids::{AttemptId, EvalId};
use crate::state::FailureKind;

/// Whom the claim token of a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// A build attempt: may upload its derivation's declared outputs and its log.
    Attempt(AttemptId),
    /// An evaluation: may upload `.drv` files and content-addressed sources.
    Evaluation(EvalId),
}

/// What a worker knows of one store path it wants in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    /// Full store path.
    pub path: String,
    /// Hash of the NAR, `sha256:<nix base32>`.
    pub nar_hash: String,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// Hash of the zstd-compressed NAR, `sha256:<nix base32>`: also names the object.
    pub file_hash: String,
    /// Size of the compressed NAR in bytes.
    pub file_size: u64,
    /// Full store paths it refers to, sorted.
    pub references: Vec<String>,
    /// The derivation that made it, full path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deriver: Option<String>,
    /// Content address in Nix's text form (`fixed:r:sha256:…`), for sources and fixed outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The `.ls` listing (Nix's JSON), left out when larger than [`crate::limits::LISTING_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<String>,
}

/// The compressed log of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBlob {
    /// SHA-256 of the zstd bytes, `sha256:<nix base32>`.
    pub file_hash: String,
    /// Size of the zstd bytes.
    pub file_size: u64,
    /// The zstd bytes themselves, base64 with padding, when they are no more than
    /// [`crate::limits::SMALL_OBJECT_BYTES_MAX`]: then nothing is uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_base64: Option<String>,
}

/// Asks where to PUT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsRequest {
    /// Whose token.
    pub holder: Holder,
    /// Store paths (for an attempt: its outputs; for an evaluation: sources). `listing` is ignored here.
    pub paths: Vec<PathInfo>,
    /// The attempt's log, when it goes up.
    #[serde(default)]
    pub log: Option<LogBlob>,
}

/// Where one object goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Slot {
    /// The store has it already; nothing to do.
    Present,
    /// PUT the bytes there, with exactly these headers, within [`crate::limits::SLOT_SECONDS`].
    Put {
        /// Presigned URL.
        url: String,
        /// Signed headers (content length and type, checksum, write-once).
        headers: Vec<(String, String)>,
    },
}

/// Slots in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsAnswer {
    /// One for each path of the request.
    pub paths: Vec<Slot>,
    /// For the log, when one was asked for.
    #[serde(default)]
    pub log: Option<Slot>,
}

/// `.drv` files, inline: the signer recomputes their store paths and output paths and stores them itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrvUpload {
    /// Whose token.
    pub evaluation: EvalId,
    /// At most [`crate::limits::DRVS_PER_CALL_MAX`]; dependencies before dependents.
    pub drvs: Vec<DrvFile>,
}

/// One `.drv` file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrvFile {
    /// Full store path.
    pub path: String,
    /// Its bytes (ATerm), base64 with padding.
    pub aterm_base64: String,
}

/// All were stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrvUploadAnswer {
    /// How many were not in the cache before.
    pub stored: usize,
}

/// The sources' bytes are up: check, sign and publish them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcesComplete {
    /// Whose token.
    pub evaluation: EvalId,
    /// References before referrers.
    pub paths: Vec<PathInfo>,
}

/// All are published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcesCompleteAnswer {
    /// How many were not published before.
    pub published: usize,
}

/// One built output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputInfo {
    /// Output name (`out`, `dev`, …).
    pub name: String,
    /// Its path.
    #[serde(flatten)]
    pub info: PathInfo,
}

/// What an attempt used; for history and capacity figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct AttemptUsage {
    /// Wall-clock seconds of the build itself.
    #[serde(default)]
    pub build_seconds: f64,
    /// CPU seconds, when known.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// Peak memory in bytes, when known.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Uncompressed size of all outputs in bytes.
    #[serde(default)]
    pub output_bytes: u64,
}

/// All outputs of an attempt are up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildComplete {
    /// Whose token.
    pub attempt: AttemptId,
    /// Every output of the derivation, and nothing else.
    pub outputs: Vec<OutputInfo>,
    /// Paths that the outputs refer to and that no cache has, uploaded along (known derivations' outputs or sources).
    #[serde(default)]
    pub extra_paths: Vec<PathInfo>,
    /// The log: with its bytes, or uploaded before.
    #[serde(default)]
    pub log: Option<LogBlob>,
    /// What it took.
    #[serde(default)]
    pub usage: AttemptUsage,
}

/// The attempt is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum BuildCompleteAnswer {
    /// Published; the job succeeded.
    Published,
    /// The cache already had other bytes for these paths, which stay: drop the local ones and substitute.
    /// The job succeeded all the same.
    Canonical {
        /// Full paths whose local content differs from the published one.
        differs: Vec<String>,
    },
    /// Not published yet: these references are in no cache. Upload them as `extra_paths` and call again.
    MissingReferences {
        /// Full paths.
        paths: Vec<String>,
    },
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `None`: transient (the job is tried again). `Some`: permanent.
    pub kind: Option<FailureKind>,
    /// One or more lines for people: what failed and why.
    pub message: String,
    /// Exit code of the builder, when it exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
}

/// An attempt failed; its log is up (or could not be uploaded).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildFailed {
    /// Whose token.
    pub attempt: AttemptId,
    /// How.
    pub failure: Failure,
    /// The log: with its bytes, or uploaded before.
    #[serde(default)]
    pub log: Option<LogBlob>,
    /// What it took.
    #[serde(default)]
    pub usage: AttemptUsage,
}

/// What became of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailedAnswer {
    /// Whether it waits to be tried again.
    pub retried: bool,
}
