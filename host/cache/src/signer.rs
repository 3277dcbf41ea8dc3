//! How a path gets into the cache: slots, verification, claim, signature, publication. Start at [`Signer`].
//!
//! A signer keeps nothing between calls: what is claimed is in the database, what is uploaded in the bucket, and every
//! step may be repeated. The decisions are pure (`rules`), texts become values at the edge (`wire`); the rest fetches
//! facts for the one and does what the other says:
//!
//! | call | module |
//! |---|---|
//! | upload slots | `slots` |
//! | `.drv` files | `derivations` |
//! | sources | `sources` |
//! | a finished build | `complete`, then `publish` |
//! | what is read of it | `content`, `references` |
//! | a failed build | `fail` |
//! | after a crash | `publish` ([`Signer::finish_unfinished`]) |
//! | what the store enforces | `probe` |

mod complete;
mod content;
mod derivations;
mod error;
mod fail;
mod objects;
mod probe;
mod publish;
mod references;
mod rows;
mod rules;
mod slots;
mod sources;
mod verify;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harmonia_core::signer_api::{BuildCompleteAnswer, BuildFailedAnswer};
use harmonia_core::{AttemptId, ClaimToken, Clock, SystemClock, TokenHash};
use harmonia_db::{AttemptScope, Db};
use harmonia_nix::{DerivationOutput, PublicKey, SecretKey, StorePath};
use quick_cache::sync::Cache;

use crate::ObjectStore;
use crate::flight::Flights;

pub use error::{NotUploaded, ObjectDifference, Refusal, SignError, SignErrorKind};
pub use probe::ProbeReport;
pub use verify::{Verify, VerifyError};

/// Store requests that one call of a signer keeps under way.
const PARALLEL_REQUESTS: usize = 16;

/// Most derivations whose outputs are remembered.
const OUTPUTS_MAX: usize = 20_000;
/// Most attempts that are remembered between their slots and their completion.
const SCOPES_MAX: usize = 10_000;
/// Most answers kept for callers that ask again.
const ANSWERS_MAX: usize = 10_000;

/// Outputs of a derivation, by name.
type Outputs = BTreeMap<String, DerivationOutput>;

/// How an attempt ended.
#[derive(Debug, Clone)]
enum Answered {
    Completed(BuildCompleteAnswer),
    Failed(BuildFailedAnswer),
}

/// Is told which paths were just published, so that readers forget what they knew of them.
pub type PublishedHook = Arc<dyn Fn(&[StorePath]) + Send + Sync>;

/// How a signer works.
#[derive(Clone)]
pub struct SignerOptions {
    /// Whether archives are read again.
    pub verify: Verify,
    /// Called after each publication; usually [`crate::Reader::published`] of the same process.
    pub on_published: Option<PublishedHook>,
    /// Small logs and listings become objects, too, instead of being kept in the database: for clients that read the bucket
    /// without [`crate::Reader`].
    pub small_in_bucket: bool,
    /// Where presigned URLs begin to be valid.
    pub clock: Arc<dyn Clock>,
}

impl Default for SignerOptions {
    fn default() -> Self {
        Self { verify: Verify::default(), on_published: None, small_in_bucket: false, clock: Arc::new(SystemClock) }
    }
}

impl fmt::Debug for SignerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignerOptions").field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// The holder of the signing keys and of the bucket's credentials. Cheap to clone.
///
/// Every method takes the claim token of whoever calls and checks it in the database: a stale one is
/// [`SignError::StaleClaim`] at every step. Every method may be called again with the same arguments.
#[derive(Clone)]
pub struct Signer {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    store: ObjectStore,
    keys: Vec<SecretKey>,
    options: SignerOptions,
    /// Looks at objects that are under way, by key.
    looks: Flights<objects::Look, objects::LookAnswer>,
    /// What derivations make, as their `.drv` files say; read for every completion, and always the same.
    outputs: Cache<StorePath, Arc<Outputs>>,
    /// What was found out for attempts whose outputs were uploaded with slots from here: the same for as long as the token holds.
    scopes: Cache<(AttemptId, TokenHash), AttemptScope>,
    /// How calls that ended an attempt were answered, for callers that did not get the answer: their token is void by then.
    /// Another signer does not know; to it, such a call is a stale one.
    answered: Cache<(AttemptId, TokenHash), Answered>,
    /// Whether the store takes `If-None-Match`; believed until a probe says otherwise.
    write_once: AtomicBool,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("keys", &self.inner.keys).finish_non_exhaustive()
    }
}

impl Signer {
    /// Signs with each of the keys (several during a rotation) what goes into this bucket.
    pub fn new(db: Db, store: ObjectStore, keys: Vec<SecretKey>, options: SignerOptions) -> Self {
        let inner = Inner {
            db,
            store,
            keys,
            options,
            looks: Flights::default(),
            outputs: Cache::new(OUTPUTS_MAX),
            scopes: Cache::new(SCOPES_MAX),
            answered: Cache::new(ANSWERS_MAX),
            write_once: AtomicBool::new(true),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The halves of the keys that everybody may know.
    pub fn public_keys(&self) -> Vec<PublicKey> {
        self.inner.keys.iter().map(SecretKey::public_key).collect()
    }

    fn db(&self) -> &Db {
        &self.inner.db
    }

    fn store(&self) -> &ObjectStore {
        &self.inner.store
    }

    fn is_write_once(&self) -> bool {
        self.inner.write_once.load(Ordering::Relaxed)
    }

    fn answered(&self, attempt: AttemptId, token: &ClaimToken) -> Option<Answered> {
        self.inner.answered.get(&(attempt, token.hash()))
    }

    /// What a completion has to know of an attempt whose slots came from here, of whose paths there was nothing then.
    fn scope_of_new(&self, attempt: AttemptId, token: &ClaimToken) -> Option<AttemptScope> {
        self.inner.scopes.get(&(attempt, token.hash()))
    }

    fn remember_scope(&self, attempt: AttemptId, token: &ClaimToken, scope: Option<AttemptScope>) {
        let key = (attempt, token.hash());
        match scope {
            Some(scope) => self.inner.scopes.insert(key, scope),
            None => drop(self.inner.scopes.remove(&key)),
        }
    }

    fn remember_answer(&self, attempt: AttemptId, token: &ClaimToken, answer: Answered) {
        self.inner.answered.insert((attempt, token.hash()), answer);
    }

    fn tell_published(&self, paths: &[StorePath]) {
        if let Some(hook) = &self.inner.options.on_published {
            hook(paths);
        }
    }
}
