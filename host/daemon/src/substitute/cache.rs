//! One binary cache. Start at [`Cache::narinfo`].

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harmonia_nix::store_path::hash_part_elsewhere;
use harmonia_nix::{ContentAddress, NarInfo, STORE_DIR, StorePath};
use tokio::time::Instant;

use super::archive::Archive;
use super::body::{Body, Source};
use super::place::{Place, PlaceKind, file_of, url_of};
use super::{FetchError, is_trustworthy};

/// A narinfo with as many references as any path may have fits.
const NARINFO_BYTES_MAX: usize = 4 << 20;
const CACHE_INFO_BYTES_MAX: usize = 64 << 10;
/// Time for a small object.
const SMALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a cache that does not answer is left alone.
const LEFT_ALONE: Duration = Duration::from_mins(1);
/// How often a small object is asked for when the answer may be another one soon, and the first pause; it doubles.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// What caches that do not say are asked after others that do.
const DEFAULT_PRIORITY: u64 = 50;

/// What a cache says of itself (`nix-cache-info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// Those with lower numbers are asked first.
    pub priority: u64,
    /// Where the paths that it has belong, when that is not `/nix/store`.
    pub other_store_dir: Option<String>,
}

/// A binary cache.
#[derive(Debug)]
pub struct Cache {
    uri: String,
    place: Place,
    http: Option<reqwest::Client>,
    state: Mutex<State>,
    /// One question about itself at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    info: Option<CacheInfo>,
    left_alone_until: Option<Instant>,
}

impl Cache {
    pub(super) fn new(uri: &str, place: Place, http: Option<reqwest::Client>) -> Self {
        Self { uri: uri.to_owned(), place, http, state: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// Where it is, as it was configured.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether what it has counts without a signature (`?trusted=true`).
    pub fn is_trusted(&self) -> bool {
        self.place.is_trusted
    }

    /// Whether what it says of a path is to be believed.
    pub fn is_believed(&self, info: &NarInfo, trusted_keys: &[harmonia_nix::PublicKey]) -> bool {
        self.place.is_trusted || is_trustworthy(info, trusted_keys)
    }

    /// What it says of itself. A folder or server without `nix-cache-info` is taken for an empty cache.
    pub async fn info(&self) -> Result<CacheInfo, FetchError> {
        let _one = self.asking.lock().await;
        if let Some(info) = &self.state().info {
            return Ok(info.clone());
        }
        let text = self.small("nix-cache-info", CACHE_INFO_BYTES_MAX).await?.unwrap_or_default();
        let mut info = CacheInfo { priority: DEFAULT_PRIORITY, other_store_dir: None };
        for line in String::from_utf8_lossy(&text).lines() {
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("StoreDir", dir)) => info.other_store_dir = (dir != STORE_DIR).then(|| dir.to_owned()),
                Some(("Priority", value)) => info.priority = value.parse().unwrap_or(DEFAULT_PRIORITY),
                _ => {}
            }
        }
        if let Some(priority) = self.place.priority {
            info.priority = priority;
        }
        // An absent file may appear in a folder; servers are spared the question.
        if !text.is_empty() || self.place.is_remote() {
            self.state().info = Some(info.clone());
        }
        Ok(info)
    }

    /// What it says of `path`; `None` when it does not have it. Nobody has checked whether that is to be believed.
    ///
    /// What is addressed by its content can also come from the store of another directory.
    pub async fn narinfo(
        &self,
        path: &StorePath,
        address: Option<ContentAddress>,
    ) -> Result<Option<NarInfo>, FetchError> {
        let Some(dir) = self.info().await?.other_store_dir else {
            let info = self.narinfo_of(path.hash_part(), STORE_DIR).await?;
            // The cache has something else with this hash.
            return Ok(info.filter(|info| info.path == *path));
        };
        let Some(address) = address else { return Ok(None) };
        let info = self.narinfo_of(&hash_part_elsewhere(&dir, path.name(), address), &dir).await?;
        let is_same = |info: &NarInfo| info.content_address == Some(address) && info.references.is_empty();
        Ok(info.filter(is_same).map(|info| NarInfo { path: path.clone(), deriver: None, ..info }))
    }

    async fn narinfo_of(&self, hash_part: &str, store_dir: &str) -> Result<Option<NarInfo>, FetchError> {
        let name = format!("{hash_part}.narinfo");
        let Some(bytes) = self.small(&name, NARINFO_BYTES_MAX).await? else { return Ok(None) };
        let mut text = String::from_utf8(bytes).map_err(|error| FetchError::NarInfo(error.to_string()))?;
        if store_dir != STORE_DIR {
            text = text.replacen(&format!("StorePath: {store_dir}/"), &format!("StorePath: {STORE_DIR}/"), 1);
        }
        NarInfo::parse(&text).map(Some).map_err(|error| FetchError::NarInfo(super::chain(&error)))
    }

    /// The archive that `info` promises; it begins to arrive.
    pub async fn archive(&self, info: &NarInfo) -> Result<Archive, FetchError> {
        let body = match &self.place.kind {
            PlaceKind::Folder(folder) => {
                let path = file_of(folder, &info.url).ok_or_else(|| FetchError::Url(shown(&info.url)))?;
                match tokio::fs::File::open(&path).await {
                    Ok(file) => Body::of_file(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(FetchError::NoArchive(shown(&info.url)));
                    }
                    Err(cause) => return Err(FetchError::File { path: path.display().to_string(), cause }),
                }
            }
            PlaceKind::Server(base) => {
                let url = url_of(base, &info.url).ok_or_else(|| FetchError::Url(shown(&info.url)))?;
                let source = Source { http: self.client()?, url, shown: shown(&info.url) };
                self.noticed(Body::of_server(source).await)?
            }
        };
        Archive::new(body, info)
    }

    /// A small object; `None` when the cache says that it has none.
    async fn small(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, FetchError> {
        match &self.place.kind {
            PlaceKind::Folder(folder) => {
                let path = file_of(folder, name).ok_or_else(|| FetchError::Url(shown(name)))?;
                match tokio::fs::read(&path).await {
                    Ok(bytes) if bytes.len() > bytes_max => Err(FetchError::TooLarge { max: bytes_max as u64 }),
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(cause) => Err(FetchError::File { path: path.display().to_string(), cause }),
                }
            }
            PlaceKind::Server(base) => {
                let url = url_of(base, name).ok_or_else(|| FetchError::Url(shown(name)))?;
                let http = self.client()?;
                let mut pause = FIRST_PAUSE;
                for _ in 1..TRIES {
                    match self.noticed(get_small(&http, &url, bytes_max).await) {
                        // What gave no answer at all has cost its time-out already.
                        Err(error) if error.is_passing() && !error.is_no_answer() => tokio::time::sleep(pause).await,
                        answer => return answer,
                    }
                    pause *= 2;
                }
                self.noticed(get_small(&http, &url, bytes_max).await)
            }
        }
    }

    /// The client for requests, unless the server is left alone.
    fn client(&self) -> Result<reqwest::Client, FetchError> {
        let is_left_alone = self.state().left_alone_until.is_some_and(|until| Instant::now() < until);
        match &self.http {
            Some(http) if !is_left_alone => Ok(http.clone()),
            _ => Err(FetchError::LeftAlone),
        }
    }

    /// Leaves the server alone when this is no answer.
    fn noticed<T>(&self, answer: Result<T, FetchError>) -> Result<T, FetchError> {
        if answer.as_ref().is_err_and(FetchError::is_no_answer) {
            self.state().left_alone_until = Some(Instant::now() + LEFT_ALONE);
        }
        answer
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn get_small(http: &reqwest::Client, url: &url::Url, bytes_max: usize) -> Result<Option<Vec<u8>>, FetchError> {
    // A proxy's memory of a 404 must not count.
    let get = http.get(url.clone()).timeout(SMALL_TIMEOUT).header("cache-control", "no-cache");
    let mut response = get.send().await.map_err(http_error)?;
    match response.status().as_u16() {
        200 => {}
        // Buckets that may not be listed answer 403 for what they do not have.
        401 | 403 | 404 | 410 => return Ok(None),
        status => return Err(FetchError::Status(status)),
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http_error)? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(FetchError::TooLarge { max: bytes_max as u64 });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

pub(super) fn http_error(error: reqwest::Error) -> FetchError {
    FetchError::Http(error.without_url())
}

/// What people are told of where a narinfo leads: a URL may be all that one needs to read there.
fn shown(name: &str) -> String {
    name.split(['?', '#']).next().unwrap_or_default().chars().take(200).collect()
}
