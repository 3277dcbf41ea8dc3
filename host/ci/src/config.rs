//! The configuration of one node: one TOML file, every key with a default and an environment override.
//!
//! Start at [`load::load`]. The keys with their meaning are the table in [`keys`]; this file gives them types and
//! defaults, and a test holds the two together.

pub(crate) mod http;
pub(crate) mod keys;
pub(crate) mod load;
pub(crate) mod plugins;
pub(crate) mod upstream;
pub(crate) mod value;

use std::net::SocketAddr;
use std::path::PathBuf;

use harmonia_cache::Verify;
use harmonia_core::{Capability, SecretUrl};
use harmonia_egress::EgressGrant;
use serde::{Deserialize, Serialize};
use upstream::Upstream;
use value::{Bytes, Span};

/// Everything one node needs to know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) node: Node,
    pub(crate) http: http::Http,
    pub(crate) auth: Auth,
    pub(crate) database: Database,
    pub(crate) object_store: ObjectStore,
    pub(crate) signer: Signer,
    pub(crate) cache: Cache,
    pub(crate) store: Store,
    pub(crate) builder: Builder,
    pub(crate) build: Build,
    pub(crate) evaluator: Evaluator,
    pub(crate) eval: Eval,
    pub(crate) intervals: Intervals,
    pub(crate) forges: Forges,
    pub(crate) statuses: Statuses,
    pub(crate) log: Log,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) plugins: Vec<plugins::Plugin>,
    /// Where it was read from.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
}

/// Who this node is and what it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    pub(crate) name: Option<String>,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) listen: SocketAddr,
    pub(crate) endpoint: Option<SecretUrl>,
    pub(crate) public_url: Option<SecretUrl>,
    pub(crate) state_dir: PathBuf,
    pub(crate) plugins_dir: Option<PathBuf>,
}

/// Who may see what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Auth {
    /// Unset: private; of `up` on an address that only this machine reaches, public.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) local_projects: Option<Visibility>,
}

/// Who may see a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Visibility {
    /// Everybody.
    Public,
    /// Who has a token.
    Private,
}

/// Where PostgreSQL is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Database {
    pub(crate) url: Option<SecretUrl>,
    pub(crate) url_file: Option<PathBuf>,
    pub(crate) max_connections: u32,
}

/// Where the bucket is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ObjectStore {
    pub(crate) endpoint: Option<SecretUrl>,
    pub(crate) region: String,
    pub(crate) bucket: String,
    pub(crate) path_style: bool,
    pub(crate) access_key_file: Option<PathBuf>,
    pub(crate) secret_key_file: Option<PathBuf>,
}

/// With which keys paths are signed, and what is read before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Signer {
    pub(crate) key_files: Vec<PathBuf>,
    pub(crate) verify: Verify,
    pub(crate) small_objects: SmallObjects,
}

/// Where small logs and listings are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SmallObjects {
    /// In the database.
    #[default]
    Database,
    /// In the bucket, each an object.
    Bucket,
}

/// What clients and builders trust and ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cache {
    pub(crate) url: Option<SecretUrl>,
    pub(crate) public_keys: Vec<String>,
    pub(crate) substituters: Vec<Upstream>,
    pub(crate) priority: u32,
}

/// The local Nix store of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Store {
    pub(crate) daemon: StoreDaemon,
    pub(crate) daemon_socket: PathBuf,
    pub(crate) root: PathBuf,
}

/// Which store daemon `up` brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreDaemon {
    /// harmonia-daemon.
    Harmonia,
    /// The nix-daemon of an installed Nix.
    Nix,
}

/// What this node builds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Builder {
    pub(crate) max_jobs: u32,
    pub(crate) systems: Vec<String>,
    pub(crate) features: Vec<String>,
    pub(crate) min_free: Bytes,
    pub(crate) prepare_timeout: Span,
    pub(crate) upload_timeout: Span,
}

/// Bounds of one build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Build {
    pub(crate) timeout: Span,
    pub(crate) max_silent: Span,
    pub(crate) output_max: Bytes,
    pub(crate) log_max: Bytes,
    pub(crate) cores: u32,
}

/// How much this node evaluates at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Evaluator {
    pub(crate) max_evals: u32,
    pub(crate) workers: u32,
    pub(crate) mirrors_max: Bytes,
    pub(crate) mirrors_keep: Span,
}

/// Bounds of one evaluation.
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own")]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Eval {
    pub(crate) engine: EngineChoice,
    pub(crate) nix_eval_jobs: PathBuf,
    pub(crate) allow_ifd: bool,
    pub(crate) allow_file_urls: bool,
    pub(crate) timeout: Span,
    pub(crate) fetch_timeout: Span,
    pub(crate) wait_max: Span,
    pub(crate) memory_max: Bytes,
    pub(crate) network: bool,
    pub(crate) allow_hosts: Vec<EgressGrant>,
    pub(crate) require_sandbox: bool,
}

/// Which program evaluates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineChoice {
    /// nix-eval-jobs when it is on PATH, else nix.
    Auto,
    /// Plain Nix, 2.8 or newer.
    Nix,
    /// nix-eval-jobs.
    NixEvalJobs,
}

/// How often loops look; tests set them to fractions of a second.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Intervals {
    pub(crate) heartbeat: Span,
    pub(crate) node_dead_after: Span,
    pub(crate) chores: Span,
    pub(crate) unsupported_after: Span,
    pub(crate) charging: Span,
    pub(crate) discovery: Span,
    pub(crate) forge_loops: Span,
    pub(crate) reports: Span,
    pub(crate) plugin_reload: Span,
}

/// What holds for every forge.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Forges {
    pub(crate) merge_branches: Vec<String>,
}

/// How commits' statuses are named and how many there are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Statuses {
    pub(crate) prefix: String,
    pub(crate) failed_attributes_max: u32,
}

/// What is logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: None,
            capabilities: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8060)),
            endpoint: None,
            public_url: None,
            state_dir: PathBuf::from("/var/lib/harmonia-ci"),
            plugins_dir: None,
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { url: None, url_file: None, max_connections: 16 }
    }
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            bucket: "harmonia-ci".to_owned(),
            path_style: true,
            access_key_file: None,
            secret_key_file: None,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { url: None, public_keys: Vec::new(), substituters: Vec::new(), priority: 30 }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            daemon: StoreDaemon::Nix,
            daemon_socket: PathBuf::from("/nix/var/nix/daemon-socket/socket"),
            root: PathBuf::from("/"),
        }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            max_jobs: u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1),
            systems: vec![current_system()],
            features: ["benchmark", "big-parallel", "nixos-test"].map(str::to_owned).to_vec(),
            min_free: Bytes(2 << 30),
            prepare_timeout: Span::seconds(2 * 3600),
            upload_timeout: Span::seconds(6 * 3600),
        }
    }
}

impl Default for Build {
    fn default() -> Self {
        Self {
            timeout: Span::seconds(4 * 3600),
            max_silent: Span::seconds(30 * 60),
            output_max: Bytes(4 << 30),
            log_max: Bytes(64 << 20),
            cores: 0,
        }
    }
}

impl Default for Evaluator {
    fn default() -> Self {
        Self { max_evals: 1, workers: 2, mirrors_max: Bytes(20 << 30), mirrors_keep: Span::seconds(30 * 24 * 3600) }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            nix_eval_jobs: PathBuf::from("nix-eval-jobs"),
            allow_ifd: true,
            allow_file_urls: false,
            timeout: Span::seconds(3600),
            fetch_timeout: Span::seconds(20 * 60),
            wait_max: Span::seconds(24 * 3600),
            memory_max: Bytes(4 << 30),
            network: true,
            allow_hosts: Vec::new(),
            require_sandbox: false,
        }
    }
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            heartbeat: Span::seconds(30),
            node_dead_after: Span::seconds(120),
            chores: Span::seconds(30),
            unsupported_after: Span::seconds(30 * 60),
            charging: Span::seconds(5),
            discovery: Span::seconds(15 * 60),
            forge_loops: Span::seconds(5),
            reports: Span::seconds(5),
            plugin_reload: Span::seconds(2),
        }
    }
}

impl Default for Forges {
    fn default() -> Self {
        Self { merge_branches: ["gh-readonly-queue/*", "staging", "trying"].map(str::to_owned).to_vec() }
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self { prefix: "harmonia-ci".to_owned(), failed_attributes_max: 25 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Pretty }
    }
}

/// The Nix name of the machine this binary was built for (`x86_64-linux`).
pub(crate) fn current_system() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

impl Config {
    /// Whether this node has the capability.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.node.capabilities.contains(&capability)
    }
}
