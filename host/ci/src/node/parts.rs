//! What the roles are made of: connections, keys, options, from the configuration.

use std::path::Path;
use std::sync::Arc;

use harmonia_cache::{ObjectStore, ObjectStoreOptions};
use harmonia_core::policy::Policy;
use harmonia_core::retry::WaitPolicy;
use harmonia_core::{Capability, SecretUrl};
use harmonia_db::{Db, DbOptions};
use harmonia_nix::{PublicKey, SecretKey};
use harmonia_worker::binary_cache::BinaryCache;
use harmonia_worker::builder::BuilderOptions;
use harmonia_worker::evaluator::{self, AttributeBounds, EvaluatorOptions, MirrorLimits};
use harmonia_worker::signer_client::SignerClient;
use url::Url;

use super::Identity;
use crate::config::load::{ConfigError, read_secret};
use crate::config::upstream::Upstream;
use crate::config::{Config, EngineChoice};
use crate::exit::{Failure, chain};

/// Uploads of one builder at the same time.
const PARALLEL_UPLOADS: u32 = 4;
/// zstd level of outputs: what `nix copy` users expect in speed, at a size near the default.
const COMPRESSION_LEVEL: i32 = 3;

/// URL of the database, from the configuration or its file.
fn database_url(config: &Config) -> Result<SecretUrl, Failure> {
    let url = match (&config.database.url, &config.database.url_file) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage("both database.url and database.url_file are set").hint("keep one of them"));
        }
        (Some(url), None) => url.clone(),
        (None, Some(path)) => {
            let text = read_secret("the database URL", path)?;
            text.parse().map_err(|error| {
                Failure::usage(format!("{} holds no URL of a database: {error}", path.display()))
                    .hint("postgres://user:password@host/database")
            })?
        }
        (None, None) => {
            return Err(Failure::usage("database.url is not set")
                .hint("postgres://user@host/database, or use database.url_file"));
        }
    };
    if !matches!(url.expose().scheme(), "postgres" | "postgresql") {
        return Err(Failure::usage("the database URL does not begin with postgres://"));
    }
    Ok(url)
}

/// Host, port and database of a URL: what an error may show.
fn server_of(url: &SecretUrl) -> String {
    let url = url.expose();
    let socket = url.query_pairs().find(|(name, _)| name == "host").map(|(_, folder)| folder.into_owned());
    let host = socket.or_else(|| url.host_str().map(str::to_owned)).unwrap_or_else(|| "localhost".to_owned());
    format!("{host}:{}, database {}", url.port().unwrap_or(5432), url.path().trim_start_matches('/'))
}

/// URLs that are stored and shown, or have their credentials elsewhere.
fn check_urls(config: &Config) -> Result<(), Failure> {
    for (key, url, instead) in [
        (
            "node.endpoint",
            &config.node.endpoint,
            "other nodes and everybody who sees the nodes page read it: leave them out",
        ),
        ("node.public_url", &config.node.public_url, "it is in every status and on every page: leave them out"),
        (
            "object_store.endpoint",
            &config.object_store.endpoint,
            "use object_store.access_key_file and secret_key_file",
        ),
    ] {
        if url.as_ref().is_some_and(SecretUrl::has_credentials) {
            return Err(Failure::usage(format!("{key} has a user or a password in it")).hint(instead));
        }
    }
    Ok(())
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
    check_urls(config)?;
    substituters(config, &secret_keys(config)?)?;
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

fn parse_keys(key: &str, texts: &[String]) -> Result<Vec<PublicKey>, Failure> {
    let parse = |text: &String| {
        let wrong = |error| Failure::usage(format!("{key} holds '{text}', which is no public key: {error}"));
        text.parse::<PublicKey>().map_err(wrong)
    };
    texts.iter().map(parse).collect()
}

/// Ours, and those of the configuration.
fn with_own(secret_keys: &[SecretKey], configured: Vec<PublicKey>) -> Vec<PublicKey> {
    let mut keys: Vec<PublicKey> = secret_keys.iter().map(SecretKey::public_key).collect();
    for key in configured {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Whose signatures count where no others are named.
fn trusted_keys(config: &Config, secret_keys: &[SecretKey]) -> Result<Vec<PublicKey>, Failure> {
    Ok(with_own(secret_keys, parse_keys("cache.public_keys", &config.cache.public_keys)?))
}

/// The upstream caches, each with whose signatures count there.
fn substituters(config: &Config, secret_keys: &[SecretKey]) -> Result<Vec<BinaryCache>, Failure> {
    let usual = trusted_keys(config, secret_keys)?;
    let one = |upstream: &Upstream| {
        let keys = match &upstream.public_keys {
            None => usual.clone(),
            Some(keys) => with_own(secret_keys, parse_keys("public_keys of cache.substituters", keys)?),
        };
        BinaryCache::new(&upstream.url, keys).map_err(|error| {
            Failure::usage(format!("cache.substituters: {error}")).hint("remove it, or write its HTTP address")
        })
    };
    config.cache.substituters.iter().map(one).collect()
}

fn object_store_options(config: &Config) -> Result<ObjectStoreOptions, Failure> {
    let store = &config.object_store;
    let (Some(access), Some(secret)) = (&store.access_key_file, &store.secret_key_file) else {
        return Err(Failure::usage("a signer needs object_store.access_key_file and object_store.secret_key_file"));
    };
    Ok(ObjectStoreOptions {
        endpoint: store.endpoint.as_ref().map(|url| url.expose().clone()),
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
    /// What pages show as the keys of our cache.
    pub(super) public_keys: Vec<PublicKey>,
    /// Ours, with whose signatures count in it.
    cache: BinaryCache,
    substituters: Vec<BinaryCache>,
    http: reqwest::Client,
    signer: SignerClient,
}

impl Parts {
    pub(super) async fn new(config: &Config, endpoint: &Url, db: Db) -> Result<Self, Failure> {
        check(config)?;
        let secret_keys = secret_keys(config)?;
        let substituters = substituters(config, &secret_keys)?;
        for cache in substituters.iter().filter(|cache| cache.wants_trust()) {
            tracing::warn!(
                "'?trusted=…' of {} has no effect: what a cache says counts only with a signature; add its key to cache.public_keys",
                cache.url()
            );
        }
        let store = if config.has(Capability::Signer) {
            let store = ObjectStore::new(object_store_options(config)?);
            store.check_bucket(false).await.map_err(|error| {
                Failure::unreachable(chain(&error)).hint("check object_store.endpoint, its bucket and its keys")
            })?;
            Some(store)
        } else {
            None
        };
        let http = super::http::client(config)?;
        let signer = SignerClient::from_database(http.clone(), db.clone(), config.intervals.node_dead_after.0);
        let cache_url = config.cache.url.clone().unwrap_or_else(|| endpoint.clone().into());
        // Those of upstream caches, which are trusted as well, are not ours.
        let public_keys = if secret_keys.is_empty() {
            let known = db.signer_keys().await;
            let known = known
                .map_err(|error| Failure::failed(format!("could not read the signers' keys: {}", chain(&error))))?;
            known.iter().filter_map(|key| key.parse().ok()).collect()
        } else {
            secret_keys.iter().map(SecretKey::public_key).collect()
        };
        let cache = BinaryCache::new(&cache_url, trusted_keys(config, &secret_keys)?)
            .map_err(|error| Failure::usage(format!("cache.url: {error}")))?;
        Ok(Self { db, store, secret_keys, public_keys, cache, substituters, http, signer })
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
            cache: self.cache.clone(),
            substituters: self.substituters.clone(),
            daemon_socket: config.store.daemon_socket.clone(),
            store_root: Some(config.store.root.clone()),
            spool_dir: state_folder(config, "spool")?,
            prepare_timeout: config.builder.prepare_timeout.0,
            upload_timeout: config.builder.upload_timeout.0,
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
            allow_hosts: config.eval.allow_hosts.clone(),
            allow_file_urls: config.eval.allow_file_urls,
            workers: config.evaluator.workers as usize,
            max_evals: config.evaluator.max_evals as usize,
            timeout: config.eval.timeout.0,
            fetch_timeout: config.eval.fetch_timeout.0,
            mirrors: MirrorLimits {
                bytes_max: config.evaluator.mirrors_max.0,
                unused_max: config.evaluator.mirrors_keep.0,
            },
            memory_bytes_max: config.eval.memory_max.0,
            allow_ifd: config.eval.allow_ifd,
            substituters: self.substituters.clone(),
            silent_after: config.intervals.node_dead_after.0,
            waits: WaitPolicy { total_max: config.eval.wait_max.0, ..WaitPolicy::default() },
            bounds: AttributeBounds::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys whose values are URLs: a new one is told apart by its meaning.
    const URL_KEYS: [&str; 6] = [
        "node.endpoint",
        "node.public_url",
        "database.url",
        "object_store.endpoint",
        "cache.url",
        "cache.substituters",
    ];

    #[test]
    fn a_password_in_any_url_of_the_configuration_is_shown_nowhere() {
        for (key, meaning) in crate::config::keys::KEYS {
            assert_eq!(
                meaning.contains("URL") && *key != "database.url_file" && *key != "eval.allow_file_urls",
                URL_KEYS.contains(key),
                "{key}: does it hold URLs? then it belongs to URL_KEYS, and its type is SecretUrl"
            );
        }
        for key in URL_KEYS {
            for url in ["https://ci:hunter2@h.example/sub", "postgres://ci:hunter2@h.example/ci", "s3://ci:hunter2@h/x"]
            {
                let (section, name) = key.split_once('.').expect("section.key");
                let value = if key == "cache.substituters" { format!("[\"{url}\"]") } else { format!("\"{url}\"") };
                let mut text = format!("[{section}]\n{name} = {value}\n");
                if section != "database" {
                    text.push_str("[database]\nurl = \"postgres://u:hunter2@h/x\"\n");
                }
                let config: Config = toml::from_str(&text).expect("loads");
                let shown = format!("{config:?} {}", toml::to_string(&config).expect("serialises"));
                assert!(!shown.contains("hunter2"), "{key}: {shown}");
                let said = match check(&config) {
                    Ok(()) => String::new(),
                    Err(failure) => format!("{failure:?}"),
                };
                assert!(!said.contains("hunter2"), "{key}: {said}");
                let is_shown_to_all = matches!(key, "node.endpoint" | "node.public_url" | "object_store.endpoint");
                assert!(!is_shown_to_all || said.contains(key), "{key} with a password is refused by name: {said}");
            }
        }
    }

    #[test]
    fn a_cache_has_its_own_keys_or_those_of_all() {
        let keys = ["a-1", "b-1", "own-1"].map(|name| SecretKey::from_seed(name, &[7; 32]).expect("a key"));
        let [a, b, own] = keys.each_ref().map(SecretKey::public_key);
        let text = format!(
            "[cache]\npublic_keys = [\"{a}\"]\nsubstituters = [\"https://a.example?priority=3\", \
             {{ url = \"https://b.example\", public_keys = [\"{b}\"] }}]\n"
        );
        let config: Config = toml::from_str(&text).expect("loads");
        let caches = substituters(&config, &keys[2..]).expect("sound");
        assert_eq!(caches[0].trusted_keys(), [own.clone(), a]);
        assert_eq!(caches[1].trusted_keys(), [own, b]);
        let text = "[cache]\nsubstituters = [{ url = \"https://b.example\", public_keys = [\"nonsense\"] }]\n";
        let failure = substituters(&toml::from_str(text).expect("loads"), &[]).expect_err("no key");
        assert!(failure.message().contains("public_keys of cache.substituters holds 'nonsense'"), "{failure:?}");
    }
}
