//! Brings store paths with their closures from binary caches into the local store. Start at [`Substituter::plan`], which
//! finds out what is missing and where it is, and [`Substituter::import`], which fetches it.
//!
//! Caches are asked in order, ours first. Nothing is remembered of a "not found": a path may appear at any time. What a
//! cache says counts only with a signature of a trusted key (or when the path is addressed by its content), and what it
//! sends must have the promised size and hash. Archives stream from the network into the daemon; none is held in memory.

mod cache;
mod closure;
mod stream;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use harmonia_core::{ClaimToken, SecretUrl};
use harmonia_nix::worker_protocol::ClientError;
use harmonia_nix::{NarInfo, StorePath};

use crate::binary_cache::BinaryCache;
use crate::store_daemon::{ConnectError, StoreDaemon};

pub use cache::FetchError;
pub(crate) use cache::{Look, look};
pub(crate) use closure::examine;

/// How to substitute.
#[derive(Debug, Clone)]
pub struct SubstituterOptions {
    /// Binary caches in the order in which they are asked; ours comes first.
    pub caches: Vec<BinaryCache>,
    /// Largest NAR, in bytes.
    pub nar_bytes_max: u64,
    /// Narinfos asked for side by side.
    pub parallel_queries: usize,
    /// NARs fetched side by side.
    pub parallel_fetches: usize,
    /// How often the caches are asked again, with growing pauses, when one of them could not say.
    pub retries: u32,
}

impl SubstituterOptions {
    /// These caches; the usual bounds.
    pub fn new(caches: Vec<BinaryCache>) -> Self {
        Self { caches, nar_bytes_max: 64 << 30, parallel_queries: 16, parallel_fetches: 4, retries: 2 }
    }
}

/// Fetches store paths. Cheap to clone; clones never fetch one path at the same time.
#[derive(Debug, Clone)]
pub struct Substituter {
    http: reqwest::Client,
    daemon: StoreDaemon,
    options: Arc<SubstituterOptions>,
    /// Paths that some task fetches now.
    busy: Arc<Mutex<HashMap<StorePath, Weak<tokio::sync::Mutex<()>>>>>,
}

/// Missing paths and where each can be had, references included.
#[derive(Debug, Default)]
pub struct Plan {
    /// Everything looked at: what was asked for, and the references of what is missing.
    seen: BTreeSet<StorePath>,
    found: BTreeMap<StorePath, Offer>,
    /// What was asked for.
    roots: BTreeSet<StorePath>,
}

/// A cache that has a path, checked to be trustworthy.
#[derive(Debug, Clone)]
struct Offer {
    /// Which of the configured caches.
    index: usize,
    cache: BinaryCache,
    info: NarInfo,
}

impl Plan {
    /// What is to be fetched.
    pub fn missing(&self) -> impl Iterator<Item = &StorePath> {
        self.found.keys()
    }

    /// What must not be collected while it is fetched: that, what was asked for, and what it refers to.
    pub fn keep(&self) -> impl Iterator<Item = &StorePath> {
        self.seen.iter()
    }

    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// Why a path could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SubstituteError {
    /// Every cache answered that it does not have them.
    #[error("{} is in none of the {caches} configured caches, as far as they show it to this builder", shown(paths))]
    Missing {
        /// The paths, at least one.
        paths: Vec<StorePath>,
        /// How many caches were asked.
        caches: usize,
    },
    /// A cache that may have it could not be asked, or broke off.
    #[error("could not get {path} from {cache}")]
    Unavailable {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: SecretUrl,
        /// What happened.
        #[source]
        cause: FetchError,
    },
    /// A cache has it, but without a signature of a trusted key.
    #[error(
        "{cache} offers {path} without a signature of a trusted key: add its key to the trusted ones or remove the cache"
    )]
    BadSignature {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: SecretUrl,
    },
    /// What a cache sent is not what it promised, or cannot be unpacked.
    #[error("{cache} has a damaged {path}")]
    Corrupt {
        /// The path.
        path: StorePath,
        /// The cache.
        cache: SecretUrl,
        /// What is wrong.
        #[source]
        cause: FetchError,
    },
    /// The closure of what is missing exceeds a bound.
    #[error("more than {max} store paths are missing")]
    TooManyPaths {
        /// The bound.
        max: usize,
    },
    /// References go round in a circle: no cache with sound content says so.
    #[error("{path} cannot be imported: its references depend on itself")]
    Cycle {
        /// One path of the circle.
        path: StorePath,
    },
    /// The store daemon cannot be reached.
    #[error("no connection to the store daemon")]
    Connect(#[from] ConnectError),
    /// The store daemon refused, or went away.
    #[error("the store daemon did not take {path}")]
    Daemon {
        /// The path.
        path: StorePath,
        /// Its reason.
        #[source]
        cause: ClientError,
    },
    /// The store daemon could not be asked what it has.
    #[error("the store daemon could not be asked for valid paths")]
    Query(#[source] ClientError),
}

/// What a cache does not give although it was expected there, or is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The path.
    pub path: StorePath,
    /// The cache.
    pub cache: SecretUrl,
    /// Whether that is ours (the first one).
    pub is_own: bool,
    /// What is wrong.
    pub reason: String,
    /// What of that which was asked for has the path in its closure.
    pub roots: Vec<StorePath>,
}

/// Why paths could not be had, and what each cache has to do with it.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct SubstituteFailure {
    /// What to tell.
    pub cause: SubstituteError,
    /// What is to be looked at.
    pub faults: Vec<Fault>,
}

impl From<SubstituteError> for SubstituteFailure {
    fn from(cause: SubstituteError) -> Self {
        Self { cause, faults: Vec::new() }
    }
}

impl SubstituteFailure {
    /// Adds to each fault which of `roots` need its path, as far as narinfos in `found` tell.
    fn below(mut self, roots: &BTreeSet<StorePath>, found: &BTreeMap<StorePath, Offer>) -> Self {
        for fault in &mut self.faults {
            fault.roots = roots.iter().filter(|root| reaches(root, &fault.path, found)).cloned().collect();
        }
        self
    }
}

fn reaches(root: &StorePath, wanted: &StorePath, found: &BTreeMap<StorePath, Offer>) -> bool {
    let mut seen = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(path) = open.pop() {
        if path == wanted {
            return true;
        }
        let references = found.get(path).into_iter().flat_map(|offer| &offer.info.references);
        open.extend(references.filter(|reference| seen.insert(reference)));
    }
    false
}

impl Substituter {
    /// Fetches into the store of `daemon`, which must trust us.
    pub fn new(http: reqwest::Client, daemon: StoreDaemon, options: SubstituterOptions) -> Self {
        Self { http, daemon, options: Arc::new(options), busy: Arc::default() }
    }

    /// For the holder of this claim: our cache (the first one) is shown its token.
    #[must_use]
    pub fn for_claim(&self, token: &ClaimToken) -> Self {
        let mut options = SubstituterOptions::clone(&self.options);
        if let Some(own) = options.caches.first_mut() {
            *own = own.with_claim(token);
        }
        Self { options: Arc::new(options), ..self.clone() }
    }

    /// Makes all of these valid in the local store, with their closures: [`Substituter::plan`], then
    /// [`Substituter::import`].
    pub async fn substitute(&self, paths: &BTreeSet<StorePath>) -> Result<(), SubstituteError> {
        let plan = self.plan(paths).await.map_err(|failure| failure.cause)?;
        self.import(plan).await.map_err(|failure| failure.cause)
    }

    /// The bytes of an object of our cache (the first one), at most `bytes_max`; `None` when it says that there is none.
    pub async fn own_object(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, FetchError> {
        match self.options.caches.first() {
            Some(cache) => cache::get_small(&self.http, cache, name, bytes_max).await,
            None => Ok(None),
        }
    }

    /// Waits until nobody else fetches `path`.
    async fn alone(&self, path: &StorePath) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            if busy.len() > 1_000 {
                busy.retain(|_, lock| lock.strong_count() > 0);
            }
            let entry = busy.entry(path.clone()).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                *entry = Arc::downgrade(&lock);
                lock
            })
        };
        lock.lock_owned().await
    }
}

/// How the caches' answers about one path add up to one error. The order is what a reader should look at first: a cache
/// that could not say may well have it.
fn verdict(path: &StorePath, caches: &[BinaryCache], errors: Vec<SubstituteError>) -> SubstituteFailure {
    let rank = |error: &SubstituteError| match error {
        SubstituteError::Unavailable { .. } => 0,
        SubstituteError::Corrupt { .. } => 1,
        SubstituteError::BadSignature { .. } => 2,
        _ => 3,
    };
    let own = caches.first().map(BinaryCache::url);
    let fault = |cache: &SecretUrl, reason| Fault {
        path: path.clone(),
        cache: cache.clone(),
        is_own: own == Some(cache),
        reason,
        roots: Vec::new(),
    };
    let faults = errors
        .iter()
        .filter_map(|error| match error {
            SubstituteError::Corrupt { cache, cause, .. } => Some(fault(cache, harmonia_core::chain(cause))),
            SubstituteError::BadSignature { cache, .. } => {
                Some(fault(cache, "no signature of a trusted key".to_owned()))
            }
            _ => None,
        })
        .collect();
    match errors.into_iter().min_by_key(rank) {
        Some(cause) => SubstituteFailure { cause, faults },
        None => SubstituteFailure {
            cause: SubstituteError::Missing { paths: vec![path.clone()], caches: caches.len() },
            faults: caches.iter().skip(1).map(|cache| fault(cache.url(), "it is not there".to_owned())).collect(),
        },
    }
}

/// The first path, and how many more there are.
fn shown(paths: &[StorePath]) -> String {
    match paths {
        [] => "a path".to_owned(),
        [path] => path.to_string(),
        [path, more @ ..] => format!("{path} (and {} more)", more.len()),
    }
}
