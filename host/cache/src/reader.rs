//! How a path gets out of the cache. Start at [`Reader::narinfo`].
//!
//! `None` means that the path is known to be absent (or hidden from this viewer); whatever is not known is a
//! [`ReadError`], never `None`. Absence is not remembered: a publication that was finished before a question was asked is
//! always seen by its answer, on every node.

mod memory;
mod visibility;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use harmonia_core::limits::LISTING_BYTES_MAX;
use harmonia_core::{Clock, SystemClock, Viewer};
use harmonia_db::{Db, DbError};
use harmonia_nix::{NarInfo, PublicKey, STORE_DIR, StorePath, store_path};

use crate::flight::Flights;
use crate::{ByteRange, ObjectBody, ObjectError, ObjectStore, keys};
use memory::Memory;

/// Largest narinfo that is read (the limit of the parser).
const NARINFO_BYTES_MAX: usize = 4 << 20;
/// What one question to the store tells all who asked it at the same time.
type Answer<T> = Result<T, Arc<ReadError>>;

/// How a reader works.
#[derive(Clone)]
pub struct ReaderOptions {
    /// The keys that narinfos are signed with, for those who want to tell their users.
    pub public_keys: Vec<PublicKey>,
    /// Which cache Nix asks first; lower is earlier (cache.nixos.org has 40).
    pub priority: u32,
    /// Most memory for narinfos, in bytes.
    pub memory_bytes: u64,
    /// How long a narinfo may be served from memory before the bucket is asked again. A path changes only after its
    /// object was lost.
    pub fresh_for: Duration,
    /// How long a path that was public may be served after it was hidden.
    pub public_for: Duration,
    /// How long a path that was hidden stays hidden after it became public.
    pub hidden_for: Duration,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            public_keys: Vec::new(),
            priority: 30,
            memory_bytes: 32 << 20,
            fresh_for: Duration::from_mins(1),
            public_for: Duration::from_secs(5),
            hidden_for: Duration::from_secs(1),
            clock: Arc::new(SystemClock),
        }
    }
}

impl fmt::Debug for ReaderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderOptions")
            .field("public_keys", &self.public_keys)
            .field("priority", &self.priority)
            .field("memory_bytes", &self.memory_bytes)
            .finish_non_exhaustive()
    }
}

/// Why a question has no answer: not "absent" but "not known".
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bucket did not answer.
    #[error("the cache cannot read its bucket")]
    Store(#[from] ObjectError),
    /// The database did not answer.
    #[error("the cache cannot ask its database who may see this")]
    Database(#[from] DbError),
    /// An object in the bucket is not what belongs there.
    #[error("the object '{key}' in the bucket is damaged")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The same question was asked by others at the same time, and failed.
    #[error("the cache cannot answer")]
    Shared(#[source] Arc<ReadError>),
}

impl ReadError {
    /// Whether the range asked for lies beyond the end of the object (HTTP 416).
    pub fn is_range(&self) -> bool {
        match self {
            Self::Store(ObjectError::Range { .. }) => true,
            Self::Shared(error) => error.is_range(),
            _ => false,
        }
    }
}

/// An object on its way to a client.
#[derive(Debug)]
pub struct Body {
    /// Offset of the first byte in the object.
    pub offset: u64,
    /// Bytes that follow.
    pub length: u64,
    /// Bytes of the whole object.
    pub total: u64,
    /// Whether this is a part (HTTP 206).
    pub is_partial: bool,
    /// Entity tag, with its quotes.
    pub etag: Option<String>,
    /// `Content-Encoding` of the bytes.
    pub content_encoding: Option<String>,
    object: ObjectBody,
}

impl Body {
    /// Takes the first piece before anything is promised to the client.
    async fn open(mut object: ObjectBody) -> Result<Self, ReadError> {
        object.prime().await?;
        Ok(Self::of(object))
    }

    fn of(object: ObjectBody) -> Self {
        Self {
            offset: object.offset,
            length: object.length,
            total: object.total,
            is_partial: object.is_partial,
            etag: object.etag.clone(),
            content_encoding: object.content_encoding.clone(),
            object,
        }
    }

    /// The bytes, piece by piece with constant memory. Ends with an error rather than early.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ObjectError>> + Send + 'static {
        self.object.into_stream()
    }
}

/// Size and tag of an object, for HEAD requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyHead {
    /// Bytes of the whole object.
    pub total: u64,
    /// Entity tag, with its quotes.
    pub etag: Option<String>,
}

/// The reading side of the cache. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    store: ObjectStore,
    db: Db,
    options: ReaderOptions,
    memory: Memory,
    narinfos: Flights<String, Answer<Option<Arc<Entry>>>>,
}

/// A narinfo in memory.
#[derive(Debug)]
struct Entry {
    text: Bytes,
    path: StorePath,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Reader {
    /// Serves what is in this bucket.
    pub fn new(store: ObjectStore, db: Db, options: ReaderOptions) -> Self {
        let memory = Memory::new(options.memory_bytes);
        Self { inner: Arc::new(Inner { store, db, options, memory, narinfos: Flights::default() }) }
    }

    /// The text of `/nix-cache-info`.
    pub fn nix_cache_info(&self) -> String {
        format!("StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: {}\n", self.inner.options.priority)
    }

    /// The keys that narinfos are signed with.
    pub fn public_keys(&self) -> &[PublicKey] {
        &self.inner.options.public_keys
    }

    /// The signed text of `/<hash part>.narinfo`. Anything but 32 base32 digits is absent without asking anybody.
    pub async fn narinfo(&self, viewer: Viewer, hash_part: &str) -> Result<Option<Bytes>, ReadError> {
        Ok(self.visible_entry(viewer, hash_part).await?.map(|entry| entry.text.clone()))
    }

    /// `/nar/<file>`, or the part of it that `range` names.
    ///
    /// Its name is the hash of its content, which only the narinfo tells; who may no longer see that, may not see this.
    /// Fails rather than begin what the bucket cannot deliver ([`ReadError::is_range`]: the range is beyond the end).
    pub async fn nar(&self, viewer: Viewer, file: &str, range: Option<ByteRange>) -> Result<Option<Body>, ReadError> {
        let Some(hash) = keys::parse_nar_file(file) else { return Ok(None) };
        // The bucket first: what is not there needs no database to say so.
        let Some(body) = self.open(&keys::nar(&hash), range).await? else { return Ok(None) };
        Ok(self.is_visible_nar(viewer, &hash).await?.then_some(body))
    }

    /// For HEAD of `/nar/<file>`.
    pub async fn nar_head(&self, viewer: Viewer, file: &str) -> Result<Option<BodyHead>, ReadError> {
        let Some(hash) = keys::parse_nar_file(file) else { return Ok(None) };
        let Some(head) = self.inner.store.head(&keys::nar(&hash)).await? else { return Ok(None) };
        Ok(self
            .is_visible_nar(viewer, &hash)
            .await?
            .then_some(head)
            .map(|head| BodyHead { total: head.size, etag: head.etag }))
    }

    /// `/<hash part>.ls`, as JSON.
    pub async fn listing(&self, viewer: Viewer, hash_part: &str) -> Result<Option<Bytes>, ReadError> {
        let Some(entry) = self.visible_entry(viewer, hash_part).await? else { return Ok(None) };
        let key = keys::listing(&entry.path);
        if let Some(small) = self.inner.db.small_object(&key).await? {
            return Ok(Some(small.into()));
        }
        // The JSON may grow a little when it is normalised.
        Ok(self.inner.store.get_bytes(&key, 2 * LISTING_BYTES_MAX).await?)
    }

    /// The latest log of a derivation, `name` being its base name (`<hash>-<name>.drv`). Its `content_encoding` says how
    /// it is compressed.
    pub async fn log(&self, viewer: Viewer, name: &str) -> Result<Option<Body>, ReadError> {
        let Some(drv) = self.visible_derivation(viewer, name).await? else { return Ok(None) };
        let key = keys::log(&drv);
        match self.inner.db.latest_small_log(&drv).await? {
            Some(small) => Ok(Some(self.small_log(&key, small))),
            None => self.open(&key, None).await,
        }
    }

    /// The log at a key that the database gave (`log/<name>.drv.<attempt>`), for pages that checked who asks.
    pub async fn log_at(&self, key: &str) -> Result<Option<Body>, ReadError> {
        if !key.starts_with("log/") {
            return Ok(None);
        }
        match self.inner.db.small_object(key).await? {
            Some(small) => Ok(Some(self.small_log(key, small))),
            None => self.open(key, None).await,
        }
    }

    fn small_log(&self, key: &str, bytes: Vec<u8>) -> Body {
        Body::of(ObjectBody::small(&self.inner.store, key, bytes.into(), "zstd"))
    }

    /// The last bytes of the object of such a log.
    pub async fn log_end_at(&self, key: &str, bytes_max: usize) -> Result<Option<Bytes>, ReadError> {
        if !key.starts_with("log/") {
            return Ok(None);
        }
        if let Some(small) = self.inner.db.small_object(key).await? {
            let small = Bytes::from(small);
            return Ok(Some(small.slice(small.len().saturating_sub(bytes_max)..)));
        }
        match self.inner.store.get(key, Some(ByteRange::Last(bytes_max as u64))).await {
            Ok(Some(object)) => Ok(Some(object.read_all(key, bytes_max).await?)),
            Ok(None) => Ok(None),
            // An empty object has no last bytes.
            Err(ObjectError::Range { .. }) => Ok(Some(Bytes::new())),
            Err(error) => Err(error.into()),
        }
    }

    /// A `.drv` file compressed with zstd, `name` being its base name.
    pub async fn drv(&self, viewer: Viewer, name: &str) -> Result<Option<Body>, ReadError> {
        let Some(drv) = self.visible_derivation(viewer, name).await? else { return Ok(None) };
        self.open(&keys::derivation(&drv), None).await
    }

    /// Forgets what was known of paths that were just published.
    pub fn published(&self, paths: &[StorePath]) {
        for path in paths {
            self.inner.memory.forget(path);
        }
    }

    async fn open(&self, key: &str, range: Option<ByteRange>) -> Result<Option<Body>, ReadError> {
        match self.inner.store.get(key, range).await? {
            Some(object) => Body::open(object).await.map(Some),
            None => Ok(None),
        }
    }

    async fn visible_entry(&self, viewer: Viewer, hash_part: &str) -> Result<Option<Arc<Entry>>, ReadError> {
        if !store_path::is_hash_part(hash_part) {
            return Ok(None);
        }
        let Some(entry) = self.entry(hash_part).await? else { return Ok(None) };
        let is_visible = viewer == Viewer::Token || self.is_public(&entry.path).await?;
        Ok(is_visible.then_some(entry))
    }

    async fn entry(&self, hash_part: &str) -> Result<Option<Arc<Entry>>, ReadError> {
        let not_before = self.now() - self.inner.options.fresh_for;
        if let Some(entry) = self.inner.memory.entry(hash_part, not_before) {
            return Ok(Some(entry));
        }
        // Absence that others began to look for before we asked may be out of date: look once more, together with all
        // who are in the same position.
        for _ in 0..2 {
            let look = || async { self.load(hash_part).await.map_err(Arc::new) };
            let (answer, is_older) = self.inner.narinfos.run(hash_part.to_owned(), look).await;
            match answer.map_err(ReadError::Shared)? {
                None if is_older => {}
                entry => return Ok(entry),
            }
        }
        self.load(hash_part).await
    }

    async fn load(&self, hash_part: &str) -> Result<Option<Arc<Entry>>, ReadError> {
        let key = format!("{hash_part}.narinfo");
        // Before the bucket is asked, so that a publication meanwhile is not overwritten by what was read before it.
        let ticket = self.inner.memory.ticket();
        let Some(text) = self.inner.store.get_bytes(&key, NARINFO_BYTES_MAX).await? else { return Ok(None) };
        match Self::read_entry(hash_part, key, text) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                self.inner.memory.remember(hash_part, Arc::clone(&entry), self.now(), ticket);
                Ok(Some(entry))
            }
            Err(error) => {
                // A signer writes it again.
                if let Err(error) = self.inner.db.report_damaged_narinfo(hash_part).await {
                    tracing::warn!(
                        hash_part,
                        error = &error as &dyn std::error::Error,
                        "could not report a damaged narinfo"
                    );
                }
                Err(error)
            }
        }
    }

    fn read_entry(hash_part: &str, key: String, text: Bytes) -> Result<Entry, ReadError> {
        let damaged = |cause| ReadError::Damaged { key: key.clone(), cause };
        let narinfo = std::str::from_utf8(&text).map_err(|error| damaged(error.into()))?;
        let narinfo = NarInfo::parse(narinfo).map_err(|error| damaged(error.into()))?;
        if narinfo.path.hash_part() != hash_part {
            return Err(damaged(format!("it is about {}", narinfo.path).into()));
        }
        Ok(Entry { text, path: narinfo.path })
    }
}
