//! One question to one binary cache over HTTP. Start at [`narinfo`].

use std::time::Duration;

use harmonia_core::without_credentials;
use harmonia_nix::store_path::References;
use harmonia_nix::{ContentAddressMethod, HashAlgorithm, NarInfo, PublicKey, StorePath};
use url::Url;

use super::SubstituteError;
use crate::binary_cache::BinaryCache;

/// A narinfo with as many references as any path may have fits.
const NARINFO_BYTES_MAX: usize = 4 << 20;
/// Time for a small object.
const SMALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time until the headers of an archive arrive.
const HEADERS_TIMEOUT: Duration = Duration::from_mins(1);

/// What went wrong with one answer of one cache.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke off.
    #[error("the connection failed")]
    Http(#[source] reqwest::Error),
    /// Nothing came for too long.
    #[error("nothing came for {seconds} s")]
    Stalled {
        /// How long we waited.
        seconds: u64,
    },
    /// An HTTP status that is neither success nor "not found".
    #[error("it answered HTTP {0}")]
    Status(u16),
    /// The narinfo names an archive that is not there.
    #[error("the archive {0} is not there")]
    NoArchive(String),
    /// More bytes than allowed.
    #[error("it is larger than {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: u64,
    },
    /// Not a narinfo.
    #[error("its narinfo is not valid")]
    NarInfo(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A narinfo of another path.
    #[error("its narinfo describes {0}")]
    OtherPath(StorePath),
    /// A URL that leads nowhere.
    #[error("it names an invalid URL '{0}'")]
    Url(String),
    /// A compression that we cannot undo.
    #[error(
        "the archive is compressed with '{0}', which is not supported (zstd, xz, gzip, bzip2, br, lz4 and none are)"
    )]
    Compression(String),
    /// The compressed bytes cannot be unpacked, or end early.
    #[error("the archive cannot be unpacked")]
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
    pub(crate) fn is_no_answer(&self) -> bool {
        match self {
            Self::Http(error) => error.is_timeout() || error.is_connect(),
            Self::Stalled { .. } => true,
            _ => false,
        }
    }
}

/// The URL of an object of the cache.
fn object_url(cache: &BinaryCache, name: &str) -> Result<Url, FetchError> {
    cache.object(name).ok_or_else(|| FetchError::Url(shown(name)))
}

/// What people are told of where a narinfo leads: a URL may be all that one needs to read there.
fn shown(name: &str) -> String {
    let name = without_credentials(name);
    name.split(['?', '#']).next().unwrap_or_default().chars().take(200).collect()
}

/// A small object; `None` when the cache says that it has none.
pub(super) async fn get_small(
    http: &reqwest::Client,
    cache: &BinaryCache,
    name: &str,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, FetchError> {
    Ok(get(http, cache, name, bytes_max).await?.ok())
}

/// A small object, or the status by which the cache says that it has none.
async fn get(
    http: &reqwest::Client,
    cache: &BinaryCache,
    name: &str,
    bytes_max: usize,
) -> Result<Result<Vec<u8>, u16>, FetchError> {
    let url = object_url(cache, name)?;
    // A proxy's memory of a 404 must not count.
    let get = || http.get(url.clone()).timeout(SMALL_TIMEOUT).header("cache-control", "no-cache");
    let mut response = match ask(cache, &url, get, |get| async { get.send().await.map_err(http_error) }).await? {
        Ok(response) => response,
        Err(status) => return Ok(Err(status)),
    };
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http_error)? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(FetchError::TooLarge { max: bytes_max as u64 });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Ok(bytes))
}

/// Begins to receive the archive of `info`.
pub(super) async fn get_archive(
    http: &reqwest::Client,
    cache: &BinaryCache,
    info: &NarInfo,
) -> Result<reqwest::Response, FetchError> {
    let url = object_url(cache, &info.url)?;
    let send = |get: reqwest::RequestBuilder| async {
        match tokio::time::timeout(HEADERS_TIMEOUT, get.send()).await {
            Ok(response) => response.map_err(http_error),
            Err(_) => Err(FetchError::Stalled { seconds: HEADERS_TIMEOUT.as_secs() }),
        }
    };
    let answer = ask(cache, &url, || http.get(url.clone()), send).await?;
    answer.map_err(|_| FetchError::NoArchive(shown(&info.url)))
}

/// The answer of a cache, or the status by which it says that it has none: first as to anybody, so that proxies may give it; then, if that is nothing, as to
/// the holder of a claim.
async fn ask<F: Future<Output = Result<reqwest::Response, FetchError>>>(
    cache: &BinaryCache,
    url: &Url,
    get: impl Fn() -> reqwest::RequestBuilder,
    send: impl Fn(reqwest::RequestBuilder) -> F,
) -> Result<Result<reqwest::Response, u16>, FetchError> {
    let response = send(get()).await?;
    let refused = match response.status().as_u16() {
        200 => return Ok(Ok(response)),
        // Buckets that may not be listed answer 403 for what they do not have; stock Nix reads it so, too. And what wants
        // a login that we do not have is not there for us.
        status @ (401 | 403 | 404 | 410) => status,
        status => return Err(FetchError::Status(status)),
    };
    // It is for no other server than that of the cache.
    let Some(claim) = cache.claim().filter(|_| url.origin() == cache.url().expose().origin()) else {
        return Ok(Err(refused));
    };
    let response = send(get().bearer_auth(claim.to_hex())).await?;
    match response.status().as_u16() {
        200 => Ok(Ok(response)),
        // A bucket in the place of our own server makes nothing of the token.
        status @ (400 | 403 | 404 | 410) => Ok(Err(status)),
        // Also 401: the claim is over, which says nothing of the path.
        status => Err(FetchError::Status(status)),
    }
}

/// What a cache says of a path.
#[derive(Debug)]
pub(crate) enum Look {
    /// It has it, and is to be believed.
    Found(Box<NarInfo>),
    /// It does not have it.
    Absent {
        /// Since it wants a login, or refuses (401, 403).
        refused: Option<u16>,
    },
}

/// What `cache` says of `path`, if it has it and is to be believed.
pub(super) async fn narinfo(
    http: &reqwest::Client,
    cache: &BinaryCache,
    path: &StorePath,
) -> Result<Option<NarInfo>, SubstituteError> {
    match look(http, cache, path).await? {
        Look::Found(info) => Ok(Some(*info)),
        Look::Absent { .. } => Ok(None),
    }
}

/// The same, with why it is absent.
pub(crate) async fn look(
    http: &reqwest::Client,
    cache: &BinaryCache,
    path: &StorePath,
) -> Result<Look, SubstituteError> {
    let name = format!("{}.narinfo", path.hash_part());
    let unavailable = |cause| SubstituteError::Unavailable { path: path.clone(), cache: cache.url().clone(), cause };
    let corrupt = |cause| SubstituteError::Corrupt { path: path.clone(), cache: cache.url().clone(), cause };
    let bytes = match get(http, cache, &name, NARINFO_BYTES_MAX).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(status)) => {
            return Ok(Look::Absent { refused: Some(status).filter(|status| matches!(status, 401 | 403)) });
        }
        Err(cause @ FetchError::TooLarge { .. }) => return Err(corrupt(cause)),
        Err(cause) => return Err(unavailable(cause)),
    };
    let text = String::from_utf8(bytes).map_err(|error| corrupt(FetchError::NarInfo(Box::new(error))))?;
    let info = NarInfo::parse(&text).map_err(|error| corrupt(FetchError::NarInfo(Box::new(error))))?;
    if info.path != *path {
        return Err(corrupt(FetchError::OtherPath(info.path)));
    }
    check_compression(&info.compression).map_err(corrupt)?;
    if is_trustworthy(&info, cache.trusted_keys()) {
        Ok(Look::Found(Box::new(info)))
    } else {
        Err(SubstituteError::BadSignature { path: path.clone(), cache: cache.url().clone() })
    }
}

/// Whether we can undo it.
fn check_compression(compression: &str) -> Result<(), FetchError> {
    match compression {
        "" | "none" | "zstd" | "xz" | "gzip" | "bzip2" | "br" | "lz4" => Ok(()),
        other => Err(FetchError::Compression(other.chars().take(40).collect())),
    }
}

/// Signed by a trusted key, or addressed by its content, in which case the path itself proves it.
fn is_trustworthy(info: &NarInfo, trusted_keys: &[PublicKey]) -> bool {
    info.is_signed_by(trusted_keys) || is_content_addressed(info)
}

/// Whether the content address is the one that the path was made from. That the content has this address is seen from the
/// NAR's hash where the two are the same; for the others (single files, old hashes) the daemon checks it on import.
fn is_content_addressed(info: &NarInfo) -> bool {
    let Some(address) = info.content_address else { return false };
    let mut others = info.references.clone();
    let to_self = others.remove(&info.path);
    if address.method == ContentAddressMethod::Recursive
        && address.hash.algorithm() == HashAlgorithm::Sha256
        && !to_self
        && address.hash != info.nar_hash.into()
    {
        return false;
    }
    let made = StorePath::make_fixed_output(info.path.name(), address, &References { others, to_self });
    made.is_ok_and(|path| path == info.path)
}

pub(super) fn http_error(error: reqwest::Error) -> FetchError {
    FetchError::Http(error.without_url())
}
