//! The binary cache at the root: what Nix asks, answered as Nix takes it. 404 only for what is known to be absent; 503
//! before the first byte for what cannot be delivered now.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::Response;
use harmonia_cache::{ByteRange, Reader};
use harmonia_core::Viewer;
use harmonia_nix::store_path;

use crate::error::{self, WebError};
use crate::extract::{CacheUser, PathPart};
use crate::logs;
use crate::pages;
use crate::state::AppState;
use conditions::{Conditions, Outcome};

mod conditions;

/// Names that hold their content's hash never mean anything else.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// Narinfos may get more signatures, listings and logs may be written again.
const SHORT: &str = "public, max-age=60";

pub(crate) async fn landing(State(state): State<AppState>) -> Result<Response, WebError> {
    pages::landing::show(&state)
}

pub(crate) async fn nix_cache_info(State(state): State<AppState>) -> Result<Response, WebError> {
    let text = reader(&state)?.nix_cache_info();
    Ok(error::content(false, headers("text/x-nix-cache-info", SHORT), Body::from(text)))
}

/// `<hash>.narinfo` or `<hash>.ls`: anything else is a 404 without I/O.
pub(crate) enum RootFile {
    Narinfo(String),
    Listing(String),
}

impl std::str::FromStr for RootFile {
    type Err = ();

    fn from_str(file: &str) -> Result<Self, ()> {
        let (hash, extension) = file.split_once('.').ok_or(())?;
        if !store_path::is_hash_part(hash) {
            return Err(());
        }
        match extension {
            "narinfo" => Ok(Self::Narinfo(hash.to_owned())),
            "ls" => Ok(Self::Listing(hash.to_owned())),
            _ => Err(()),
        }
    }
}

pub(crate) async fn root_file(
    State(state): State<AppState>,
    CacheUser(viewer): CacheUser,
    PathPart(file): PathPart<RootFile>,
) -> Result<Response, WebError> {
    let reader = reader(&state)?;
    let (found, kind) = match &file {
        RootFile::Narinfo(hash) => (reader.narinfo(viewer, hash).await?, "text/x-nix-narinfo"),
        RootFile::Listing(hash) => (reader.listing(viewer, hash).await?, "application/json"),
    };
    let text = found.ok_or_else(absent)?;
    Ok(error::content(false, headers(kind, kept(viewer, SHORT)), Body::from(text)))
}

pub(crate) async fn nar(
    State(state): State<AppState>,
    CacheUser(viewer): CacheUser,
    method: Method,
    PathPart(file): PathPart<String>,
    request: HeaderMap,
) -> Result<Response, WebError> {
    let reader = reader(&state)?;
    let conditions = Conditions::read(&request);
    let mut range = request.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(ByteRange::parse);
    if method == Method::HEAD || !conditions.are_none() {
        let head = reader.nar_head(viewer, &file).await?.ok_or_else(absent)?;
        let mut answer = nar_headers(viewer, head.etag.as_deref());
        match conditions.outcome(head.etag.as_deref()) {
            Outcome::Failed => return Err(WebError::precondition_failed()),
            Outcome::NotModified => return Ok(error::not_modified(answer)),
            Outcome::SendWhole => range = None,
            Outcome::Send => {}
        }
        if method == Method::HEAD {
            answer.insert(header::CONTENT_LENGTH, HeaderValue::from(head.total));
            return Ok(error::content(false, answer, Body::empty()));
        }
    }
    let body = match reader.nar(viewer, &file, range).await {
        Ok(body) => body.ok_or_else(absent)?,
        Err(error) if error.is_range() => {
            let total = reader.nar_head(viewer, &file).await?.ok_or_else(absent)?.total;
            return Err(WebError::range_not_satisfiable(total));
        }
        Err(error) => return Err(error.into()),
    };
    let mut answer = nar_headers(viewer, body.etag.as_deref());
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(body.length));
    if body.is_partial {
        let last = body.offset + body.length.saturating_sub(1);
        if let Ok(value) = format!("bytes {}-{last}/{}", body.offset, body.total).parse() {
            answer.insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(error::content(body.is_partial, answer, Body::from_stream(body.into_stream())))
}

fn nar_headers(viewer: Viewer, etag: Option<&str>) -> HeaderMap {
    let mut answer = headers("application/x-nix-nar", kept(viewer, IMMUTABLE));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(value) = etag.and_then(|etag| etag.parse().ok()) {
        answer.insert(header::ETAG, value);
    }
    answer
}

pub(crate) async fn log(
    State(state): State<AppState>,
    CacheUser(viewer): CacheUser,
    PathPart(drv): PathPart<String>,
    request: HeaderMap,
) -> Result<Response, WebError> {
    let body = reader(&state)?.log(viewer, &drv).await?.ok_or_else(absent)?;
    let mut answer = headers("text/plain; charset=utf-8", kept(viewer, SHORT));
    answer.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let is_zstd = body.content_encoding.as_deref() == Some("zstd");
    if is_zstd && accepts_zstd(&request) {
        answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        answer.insert(header::CONTENT_LENGTH, HeaderValue::from(body.length));
        return Ok(error::content(false, answer, Body::from_stream(body.into_stream())));
    }
    let decoded = logs::decode(body).await?;
    Ok(error::content(false, answer, Body::from_stream(decoded)))
}

pub(crate) async fn drv(
    State(state): State<AppState>,
    CacheUser(viewer): CacheUser,
    PathPart(file): PathPart<String>,
) -> Result<Response, WebError> {
    let name = file.strip_suffix(".zst").ok_or_else(absent)?;
    let body = reader(&state)?.drv(viewer, name).await?.ok_or_else(absent)?;
    let mut answer = headers("application/zstd", kept(viewer, IMMUTABLE));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(body.length));
    Ok(error::content(false, answer, Body::from_stream(body.into_stream())))
}

/// What was shown to somebody with a token is nothing that a proxy may keep for others.
const fn kept(viewer: Viewer, by_all: &'static str) -> &'static str {
    match viewer {
        Viewer::Public => by_all,
        Viewer::Token => "private, no-cache",
    }
}

fn reader(state: &AppState) -> Result<&Reader, WebError> {
    state.options().reader.as_ref().ok_or_else(|| WebError::no_such_service("this node serves no binary cache"))
}

fn absent() -> WebError {
    WebError::not_found("not in this cache")
}

fn headers(kind: &'static str, cache_control: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    headers
}

/// Whether an `Accept-Encoding` names zstd, not with weight 0.
fn accepts_zstd(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_zstd = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
        let is_refused = parts.any(|parameter| {
            let weight = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
            weight.and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0)
        });
        is_zstd && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_files() {
        let hash = "0123456789abcdfghijklmnpqrsvwxyz";
        assert!(matches!(format!("{hash}.narinfo").parse(), Ok(RootFile::Narinfo(h)) if h == hash));
        assert!(matches!(format!("{hash}.ls").parse(), Ok(RootFile::Listing(h)) if h == hash));
        for bad in [
            "",
            ".narinfo",
            "narinfo",
            "favicon.ico",
            &format!("{hash}.narinfo.gz"),
            &format!("{hash}x.narinfo"),
            &format!("{}.narinfo", &hash[1..]),
            &format!("{}e.narinfo", &hash[1..]),
            &format!("{}.narinfo", hash.to_uppercase()),
            &format!("{hash}.NARINFO"),
            &format!("../{hash}.narinfo"),
        ] {
            assert!(bad.parse::<RootFile>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_client_accepts() {
        let accepts = |value: &'static str| {
            let mut request = HeaderMap::new();
            request.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_zstd(&request)
        };
        assert!(accepts("zstd"));
        assert!(accepts("gzip, deflate, br, zstd"));
        assert!(accepts("gzip;q=0.5, ZSTD;q=0.1"));
        assert!(!accepts("zstd;q=0, gzip"));
        assert!(!accepts("zstd;q=0.0"));
        assert!(!accepts("gzip"));
        assert!(!accepts("xzstd"));
        assert!(!accepts_zstd(&HeaderMap::new()));
    }
}
