//! Binary caches: what they have, and getting it. Start at [`Caches::of`], the caches of a request, and [`Cache::narinfo`].
//!
//! What is read here proves itself only in part: an archive that ends has the size and hash that its narinfo promised;
//! whether the narinfo itself is to be believed is for the caller ([`is_trustworthy`]). Nothing is held in memory but small
//! objects, and nothing is remembered of what a cache does not have, since it may have it at any time. A cache that does not
//! answer at all is left alone for a while ([`Cache::narinfo`]), so that it costs one time-out and not one for each path.

mod archive;
mod body;
mod cache;
mod place;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use harmonia_nix::signature::PublicKey;
use harmonia_nix::store_path::References;
use harmonia_nix::{ContentAddressMethod, HashAlgorithm, NarInfo};

pub use archive::Archive;
pub use cache::{Cache, CacheInfo};
pub use place::CacheUriError;

/// Time until a connection stands, unless settings say otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle connections to one host that are kept, and how long.
const IDLE_CONNECTIONS: usize = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What went wrong with one answer of one cache.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke off.
    #[error("the connection failed: {}", chain(.0))]
    Http(#[source] reqwest::Error),
    /// A file of a cache in a folder cannot be read.
    #[error("cannot read {path}: {cause}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Nothing came for too long.
    #[error("nothing came for {seconds} s")]
    Stalled {
        /// How long we waited.
        seconds: u64,
    },
    /// The cache did not answer a short while ago and is left alone.
    #[error("it did not answer a short while ago")]
    LeftAlone,
    /// An HTTP status that is neither success nor "not found".
    #[error("it answered HTTP {0}")]
    Status(u16),
    /// The narinfo names an archive that is not there (any more).
    #[error("the archive {0} is not there")]
    NoArchive(String),
    /// More bytes than allowed.
    #[error("it is larger than {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: u64,
    },
    /// Not a narinfo.
    #[error("its narinfo is not valid: {0}")]
    NarInfo(String),
    /// A URL that leads nowhere.
    #[error("it names an invalid URL '{0}'")]
    Url(String),
    /// A compression that we cannot undo.
    #[error("the archive is compressed with '{0}', which is not supported (zstd, xz, gzip, bzip2, br and none are)")]
    Compression(String),
    /// The compressed bytes cannot be unpacked, or end early.
    #[error("the archive cannot be unpacked: {0}")]
    Unpack(#[source] std::io::Error),
    /// The archive has another size than promised.
    #[error("the archive has {found} bytes, {promised} were promised")]
    Size {
        /// Bytes received (at least).
        found: u64,
        /// Bytes promised.
        promised: u64,
    },
    /// The archive has another hash than promised.
    #[error("the {what} has hash {found}, {promised} was promised")]
    Hash {
        /// NAR or file.
        what: &'static str,
        /// Of what was received.
        found: String,
        /// Of the narinfo.
        promised: String,
    },
}

impl FetchError {
    /// Whether nothing at all came from there: asking for something else is no use now.
    fn is_no_answer(&self) -> bool {
        match self {
            Self::Http(error) => error.is_timeout() || error.is_connect(),
            Self::Stalled { .. } => true,
            _ => false,
        }
    }

    /// Whether the same question may get another answer soon.
    fn is_passing(&self) -> bool {
        match self {
            Self::Http(error) => !error.is_builder(),
            Self::Stalled { .. } | Self::Status(408 | 429 | 500..=599) => true,
            _ => false,
        }
    }

    /// Whether it is as if the cache had never had the path.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NoArchive(_))
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// All caches that were ever asked for, so that what is known of one (that it does not answer) is known to all requests.
#[derive(Debug)]
pub struct Caches {
    known: Mutex<HashMap<String, Arc<Cache>>>,
    http: Arc<OnceLock<reqwest::Client>>,
    connect_timeout: Duration,
}

impl Default for Caches {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Caches {
    /// None yet.
    pub fn new(connect_timeout: Option<Duration>) -> Self {
        Self {
            known: Mutex::default(),
            http: Arc::default(),
            connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        }
    }

    /// The caches at these URIs in the order in which they are to be asked (by their priority), and what is to be said of
    /// those that cannot be.
    pub async fn of(&self, uris: &[String]) -> (Vec<Arc<Cache>>, Vec<String>) {
        let (mut usable, mut warnings) = (Vec::new(), Vec::new());
        let asked = uris.iter().map(|uri| async move {
            let cache = self.get(uri).map_err(|error| error.to_string())?;
            let info = cache.info().await.map_err(|error| format!("cannot use the binary cache '{uri}': {error}"))?;
            Ok::<_, String>((info.priority, cache))
        });
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(cache) => usable.push(cache),
                Err(warning) => warnings.push(warning),
            }
        }
        usable.sort_by_key(|(priority, _)| *priority);
        (usable.into_iter().map(|(_, cache)| cache).collect(), warnings)
    }

    fn get(&self, uri: &str) -> Result<Arc<Cache>, CacheUriError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = known.get(uri) {
            return Ok(Arc::clone(cache));
        }
        let place = place::Place::parse(uri)?;
        let http = place.is_remote().then(|| self.http.get_or_init(|| client(self.connect_timeout)).clone());
        let cache = Arc::new(Cache::new(uri, place, http));
        known.insert(uri.to_owned(), Arc::clone(&cache));
        Ok(cache)
    }
}

fn client(connect_timeout: Duration) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("harmonia-daemon/", env!("CARGO_PKG_VERSION")));
    // It fails only where there is no TLS at all; plain HTTP still works then.
    builder.build().unwrap_or_default()
}

/// Whether what `info` says is to be believed: a trusted key has signed it, or the path follows from its content. That the
/// content is the one that the content address names is seen here only where that is the NAR's hash; the others (single
/// files, old hashes) are checked when the path is added.
pub fn is_trustworthy(info: &NarInfo, trusted_keys: &[PublicKey]) -> bool {
    info.is_signed_by(trusted_keys) || is_content_addressed(info)
}

fn is_content_addressed(info: &NarInfo) -> bool {
    let Some(address) = info.content_address else { return false };
    let references = References::of(&info.path, info.references.iter().cloned());
    let is_nar_hash = address.method == ContentAddressMethod::Recursive
        && address.hash.algorithm() == HashAlgorithm::Sha256
        && !references.to_self;
    (!is_nar_hash || address.hash == info.nar_hash.into()) && info.path.is_content_addressed_by(address, &references)
}
