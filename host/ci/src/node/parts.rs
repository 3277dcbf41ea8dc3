//! What the roles are made of: connections, keys, options, from the configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harmonia_cache::{ObjectStore, ObjectStoreOptions};
use harmonia_core::Capability;
use harmonia_core::policy::Policy;
use harmonia_core::retry::WaitPolicy;
use harmonia_db::{Db, DbOptions};
use harmonia_nix::{PublicKey, SecretKey};
use harmonia_worker::builder::BuilderOptions;
use harmonia_worker::evaluator::{self, EvaluatorOptions};
use harmonia_worker::signer_client::SignerClient;
use url::Url;

use super::Identity;
use crate::config::load::{ConfigError, read_secret};
use crate::config::{Config, EngineChoice};
use crate::exit::{Failure, chain};

/// Uploads of one builder at the same time.
const PARALLEL_UPLOADS: u32 = 4;
/// zstd level of outputs: what `nix copy` users expect in speed, at a size near the default.
const COMPRESSION_LEVEL: i32 = 3;

/// URL of the database, from the configuration or its file.
fn database_url(config: &Config) -> Result<String, Failure> {
    let url = match (&config.database.url, &config.database.url_file) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage("both database.url and database.url_file are set").hint("keep one of them"));
        }
        (Some(url), None) => url.clone(),
        (None, Some(path)) => read_secret("the database URL", path)?,
        (None, None) => {
            return Err(Failure::usage("database.url is not set")
                .hint("postgres://user@host/database, or use database.url_file"));
        }
    };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Failure::usage("the database URL does not begin with postgres://"));
    }
    Ok(url)
}

/// Host, port and database of a URL: what an error may show.
fn server_of(url: &str) -> String {
    let Ok(url) = Url::parse(url) else { return "the database URL is no URL".to_owned() };
    let socket = url.query_pairs().find(|(name, _)| name == "host").map(|(_, folder)| folder.into_owned());
    let host = socket.or_else(|| url.host_str().map(str::to_owned)).unwrap_or_else(|| "localhost".to_owned());
    format!("{host}:{}, database {}", url.port().unwrap_or(5432), url.path().trim_start_matches('/'))
}

/// Connects to PostgreSQL.
pub(crate) async fn connect(config: &Config) -> Result<Db, Failure> {
    let options = DbOptions { url: database_url(config)?, max_connections: config.database.max_connections };
    Db::connect(&options).await.map_err(|error| {
        Failure::unreachable(format!("{} ({})", chain(&error), server_of(&options.url)))
            .hint("check that PostgreSQL runs there, and database.url with its user and database")
    })
}

/// Checks what can be checked without connecting anywhere.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    super::plugins::specs(config)?;
    database_url(config)?;
    public_keys(config, &secret_keys(config)?)?;
    if config.has(Capability::Signer) {
        if config.signer.key_files.is_empty() {
            return Err(Failure::usage("a signer needs signer.key_files").hint("make a key with `harmonia-ci keygen`"));
        }
        object_store_options(config)?;
    }
    Ok(())
}

fn secret_keys(config: &Config) -> Result<Vec<SecretKey>, Failure> {
    config.signer.key_files.iter().map(|path| secret_key(path).map_err(Failure::from)).collect()
}

fn secret_key(path: &Path) -> Result<SecretKey, ConfigError> {
    let text = read_secret("a signing key", path)?;
    SecretKey::parse(&text).map_err(|error| ConfigError::Key {
        what: "the signing key",
        path: path.to_owned(),
        source: Box::new(error),
    })
}

fn public_keys(config: &Config, secret_keys: &[SecretKey]) -> Result<Vec<PublicKey>, Failure> {
    let mut keys: Vec<PublicKey> = secret_keys.iter().map(SecretKey::public_key).collect();
    for text in &config.cache.public_keys {
        let key = text.parse::<PublicKey>().map_err(|error| {
            Failure::usage(format!("cache.public_keys holds '{text}', which is no public key: {error}"))
        })?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn object_store_options(config: &Config) -> Result<ObjectStoreOptions, Failure> {
    let store = &config.object_store;
    let (Some(access), Some(secret)) = (&store.access_key_file, &store.secret_key_file) else {
        return Err(Failure::usage("a signer needs object_store.access_key_file and object_store.secret_key_file"));
    };
    Ok(ObjectStoreOptions {
        endpoint: store.endpoint.clone(),
        region: store.region.clone(),
        bucket: store.bucket.clone(),
        access_key: read_secret("the object store's access key", access)?,
        secret_key: read_secret("the object store's secret key", secret)?,
        path_style: store.path_style,
    })
}

/// Connections and keys of this node.
pub(super) struct Parts {
    db: Db,
    pub(super) store: Option<ObjectStore>,
    pub(super) secret_keys: Vec<SecretKey>,
    pub(super) public_keys: Vec<PublicKey>,
    cache_url: Url,
    http: reqwest::Client,
    signer: SignerClient,
}

impl Parts {
    pub(super) async fn new(config: &Config, endpoint: &Url, db: Db) -> Result<Self, Failure> {
        check(config)?;
        let secret_keys = secret_keys(config)?;
        let public_keys = public_keys(config, &secret_keys)?;
        let store = if config.has(Capability::Signer) {
            let store = ObjectStore::new(object_store_options(config)?);
            store.check_bucket(false).await.map_err(|error| {
                Failure::unreachable(chain(&error)).hint("check object_store.endpoint, its bucket and its keys")
            })?;
            Some(store)
        } else {
            None
        };
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("harmonia-ci/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::failed(format!("could not set up HTTP: {}", chain(&error))))?;
        let signer = SignerClient::from_database(http.clone(), db.clone(), config.intervals.node_dead_after.0);
        let cache_url = config.cache.url.clone().unwrap_or_else(|| endpoint.clone());
        Ok(Self { db, store, secret_keys, public_keys, cache_url, http, signer })
    }

    pub(super) fn builder_options(
        &self,
        config: &Config,
        identity: &Identity,
        policy: Arc<dyn Policy>,
    ) -> Result<BuilderOptions, Failure> {
        Ok(BuilderOptions {
            node: identity.node.clone(),
            incarnation: identity.incarnation,
            db: self.db.clone(),
            signer: self.signer.clone(),
            http: self.http.clone(),
            cache_url: self.cache_url.clone(),
            substituters: config.cache.substituters.clone(),
            public_keys: self.public_keys.clone(),
            daemon_socket: config.store.daemon_socket.clone(),
            store_root: Some(config.store.root.clone()),
            spool_dir: state_folder(config, "spool")?,
            max_jobs: config.builder.max_jobs,
            parallel_uploads: PARALLEL_UPLOADS,
            cores: u64::from(config.build.cores),
            systems: config.builder.systems.clone(),
            features: config.builder.features.clone(),
            min_free_bytes: config.builder.min_free.0,
            compression_level: COMPRESSION_LEVEL,
            compression_threads: 1,
            policy,
        })
    }

    pub(super) fn evaluator_options(&self, config: &Config, identity: &Identity) -> Result<EvaluatorOptions, Failure> {
        let own = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("could not find this program's own file: {error}")))?;
        let engine = match config.eval.engine {
            EngineChoice::Auto => evaluator::EngineChoice::Auto,
            EngineChoice::Nix => evaluator::EngineChoice::Nix,
            EngineChoice::NixEvalJobs => evaluator::EngineChoice::NixEvalJobs(config.eval.nix_eval_jobs.clone()),
        };
        Ok(EvaluatorOptions {
            node: identity.node.clone(),
            incarnation: identity.incarnation,
            db: self.db.clone(),
            signer: self.signer.clone(),
            http: self.http.clone(),
            state_dir: state_folder(config, "evaluator")?,
            daemon_socket: config.store.daemon_socket.clone(),
            store_root: Some(config.store.root.clone()),
            engine,
            sandbox_helper: vec![own.into(), "sandbox-exec".into()],
            require_sandbox: config.eval.require_sandbox,
            network: config.eval.network,
            allow_file_urls: config.eval.allow_file_urls,
            workers: config.evaluator.workers as usize,
            max_evals: config.evaluator.max_evals as usize,
            timeout: config.eval.timeout.0,
            memory_bytes_max: config.eval.memory_max.0,
            allow_ifd: config.eval.allow_ifd,
            substituters: config.cache.substituters.clone(),
            silent_after: config.intervals.node_dead_after.0,
            waits: WaitPolicy { total_max: config.eval.wait_max.0, ..WaitPolicy::default() },
        })
    }
}

fn state_folder(config: &Config, name: &str) -> Result<std::path::PathBuf, Failure> {
    let path = config.node.state_dir.join(name);
    std::fs::create_dir_all(&path).map_err(|error| {
        Failure::failed(format!("could not make {}: {error}", path.display()))
            .hint("set node.state_dir to a folder this user may write")
    })?;
    Ok(path)
}
