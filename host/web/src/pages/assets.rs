//! Stylesheet, scripts and icon, from memory.

use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use sha2::{Digest, Sha256};

use crate::error::{self, WebError};
use crate::extract::PathPart;

struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

const ASSETS: &[Asset] = &[
    Asset { name: "style.css", kind: "text/css; charset=utf-8", content: include_str!("../../assets/style.css") },
    Asset { name: "live.js", kind: "text/javascript; charset=utf-8", content: include_str!("../../assets/live.js") },
    Asset { name: "icon.svg", kind: "image/svg+xml", content: include_str!("../../assets/icon.svg") },
];

pub(crate) async fn show(PathPart(name): PathPart<String>, request: HeaderMap) -> Result<Response, WebError> {
    let asset =
        ASSETS.iter().find(|asset| asset.name == name).ok_or_else(|| WebError::not_found("there is no such file"))?;
    let etag = etag();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    // Asked again on each page, answered without a body while nothing changed.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(value) = HeaderValue::from_str(etag) {
        headers.insert(header::ETAG, value);
    }
    let known = request.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known.contains(etag)) {
        return Ok(error::not_modified(headers));
    }
    Ok(error::content(false, headers, Body::from(asset.content)))
}

/// One for all of them: they change together, with the binary.
fn etag() -> &'static str {
    static ETAG: OnceLock<String> = OnceLock::new();
    ETAG.get_or_init(|| {
        let mut hash = Sha256::new();
        for asset in ASSETS {
            hash.update(asset.content);
        }
        let digest = hash.finalize();
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("\"{number:016x}\"")
    })
}
