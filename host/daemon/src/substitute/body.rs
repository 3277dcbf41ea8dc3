//! The bytes of an archive as they are stored: from a file, or from a server that may break off and be asked to go on.
//! Start at [`Body::of_server`].

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT_RANGES, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::FetchError;
use super::cache::http_error;

/// Time until the headers of an archive arrive.
const HEADERS_TIMEOUT: Duration = Duration::from_mins(1);
/// A server that sends nothing for this long is asked anew.
const STALL_TIMEOUT: Duration = Duration::from_mins(1);
/// How often one archive is gone on with where it broke off, and the first pause before that; it doubles.
const RESUMPTIONS_MAX: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const FILE_CHUNK_BYTES: usize = 128 << 10;

/// Where the bytes come from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) http: reqwest::Client,
    pub(super) url: Url,
    /// What people are told of the URL.
    pub(super) shown: String,
}

/// The bytes, chunk by chunk.
#[derive(Debug)]
pub(super) struct Body(Inner);

#[derive(Debug)]
enum Inner {
    File(tokio::fs::File),
    Server(Box<Remote>),
}

#[derive(Debug)]
struct Remote {
    source: Source,
    response: reqwest::Response,
    /// How many bytes came.
    offset: u64,
    /// What names exactly these bytes, when the server can go on in the middle.
    etag: Option<reqwest::header::HeaderValue>,
    resumptions: u32,
}

impl Body {
    pub(super) fn of_file(file: tokio::fs::File) -> Self {
        Self(Inner::File(file))
    }

    /// Begins to receive.
    pub(super) async fn of_server(source: Source) -> Result<Self, FetchError> {
        let response = headers(source.http.get(source.url.clone())).await?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 | 404 | 410 => return Err(FetchError::NoArchive(source.shown)),
            status => return Err(FetchError::Status(status)),
        }
        let etag = resumable(response.headers());
        Ok(Self(Inner::Server(Box::new(Remote { source, response, offset: 0, etag, resumptions: 0 }))))
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        match &mut self.0 {
            Inner::File(file) => {
                let mut buffer = BytesMut::with_capacity(FILE_CHUNK_BYTES);
                let read = file.read_buf(&mut buffer).await;
                let read = read.map_err(|cause| FetchError::File { path: "its archive".to_owned(), cause })?;
                Ok((read > 0).then(|| buffer.freeze()))
            }
            Inner::Server(remote) => remote.chunk().await,
        }
    }
}

impl Remote {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let error = match tokio::time::timeout(STALL_TIMEOUT, self.response.chunk()).await {
                Ok(Ok(chunk)) => {
                    self.offset += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                    return Ok(chunk);
                }
                Ok(Err(error)) => http_error(error),
                Err(_) => FetchError::Stalled { seconds: STALL_TIMEOUT.as_secs() },
            };
            self.resume(error).await?;
        }
    }

    /// Goes on where the bytes broke off, or gives back why they did.
    async fn resume(&mut self, mut error: FetchError) -> Result<(), FetchError> {
        let Some(etag) = self.etag.clone() else { return Err(error) };
        while self.resumptions < RESUMPTIONS_MAX {
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.resumptions)).await;
            self.resumptions += 1;
            let get = self.source.http.get(self.source.url.clone());
            let get = get.header(RANGE, format!("bytes={}-", self.offset)).header(IF_RANGE, &etag);
            match headers(get).await {
                Ok(response) if response.status() == 206 && begins_at(response.headers(), self.offset) => {
                    self.response = response;
                    return Ok(());
                }
                // Other bytes by now: they must be read from the start.
                Ok(_) => return Err(error),
                Err(again) => error = again,
            }
        }
        Err(error)
    }
}

async fn headers(get: reqwest::RequestBuilder) -> Result<reqwest::Response, FetchError> {
    match tokio::time::timeout(HEADERS_TIMEOUT, get.send()).await {
        Ok(response) => response.map_err(http_error),
        Err(_) => Err(FetchError::Stalled { seconds: HEADERS_TIMEOUT.as_secs() }),
    }
}

/// The strong name of the bytes, when the server can send a part of them.
fn resumable(headers: &HeaderMap) -> Option<reqwest::header::HeaderValue> {
    let takes_ranges = headers.get(ACCEPT_RANGES).is_some_and(|value| value == "bytes");
    let etag = headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"));
    etag.filter(|_| takes_ranges).cloned()
}

fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{offset}-")))
}

/// What passes on is read as by any other reader.
pub(super) fn into_io(error: FetchError) -> io::Error {
    io::Error::other(error)
}
