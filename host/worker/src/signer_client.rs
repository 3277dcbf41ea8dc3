//! Talks to whichever signer is alive. Start at [`SignerClient`]; [`upload`](SignerClient::upload) is what moves bytes.
//!
//! Every call is tried on each live signer in turn, with growing pauses, until one answers or the patience is over.
//! What an answer means is decided in one place ([`judge`]): some end the work (stale claim, refused), the others
//! are tried again.

mod complete;
mod directory;
mod put;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harmonia_core::api::ApiError;
use harmonia_core::limits::SIGNER_BODY_BYTES_MAX;
use harmonia_core::ports::PortFuture;
use harmonia_core::retry::Backoff;
use harmonia_core::signer_api::{
    BuildComplete, BuildCompleteAnswer, BuildFailed, BuildFailedAnswer, DrvUpload, DrvUploadAnswer, SlotsAnswer,
    SlotsRequest, SourcesComplete, SourcesCompleteAnswer,
};
use harmonia_core::token::ClaimToken;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use complete::Upload;
pub use directory::DatabaseDirectory;
pub use put::{PutOutcome, UploadSource};

/// Time one call to one signer may take. A bulk of `.drv` files needs a moment; a signer that is stuck must not eat
/// the whole patience.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Where live signers are found.
pub trait SignerDirectory: Send + Sync + 'static {
    /// Base URLs (`http://host:port`) of signers that were heard of lately.
    fn signers(&self) -> PortFuture<'_, Result<Vec<String>, BoxError>>;

    /// Not one of them answered: whatever is remembered of them may be out of date.
    fn none_answered(&self) {}
}

/// Any error of a [`SignerDirectory`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How patient a [`SignerClient`] is.
#[derive(Debug, Clone, Copy)]
pub struct SignerOptions {
    /// How long a call goes on trying when no signer (or no object store) answers.
    pub patience: Duration,
    /// First pause between two rounds; doubles up to [`SignerOptions::pause_max`].
    pub pause_min: Duration,
    /// Longest pause between two rounds.
    pub pause_max: Duration,
    /// PUTs of one [`SignerClient::upload`] that run side by side.
    pub parallel_puts: usize,
}

impl Default for SignerOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_mins(5),
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
            parallel_puts: 8,
        }
    }
}

/// Why a call to the signers, or a PUT with what they handed out, did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The claim is void (cancelled, reaped, superseded): drop the work, report nothing.
    #[error("the claim is no longer held: the work was cancelled or given to another node")]
    StaleClaim,
    /// A signer understood the call and refuses it: trying again cannot help.
    #[error("the signer refused {call} ({code}): {message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// Stable word of the answer.
        code: String,
        /// The signer's sentence.
        message: String,
    },
    /// What was uploaded is not in the object store as declared when it is to be completed.
    #[error("the signer did {call} not, for objects are missing in the store or differ: {message}")]
    NotUploaded {
        /// Which call.
        call: &'static str,
        /// The signer's sentence, with the objects.
        message: String,
    },
    /// The object store refuses the bytes: trying again cannot help.
    #[error("the object store refused an upload with HTTP {status}: {message}")]
    PutRefused {
        /// HTTP status.
        status: u16,
        /// Beginning of the store's answer.
        message: String,
    },
    /// Nobody answered in time.
    #[error("{call} did not succeed within {} s; is a signer (and its object store) running and reachable?", patience.as_secs())]
    Unavailable {
        /// Which call.
        call: &'static str,
        /// How long it was tried.
        patience: Duration,
        /// The last thing that went wrong.
        #[source]
        last: Box<TryError>,
    },
    /// The local file to upload could not be read.
    #[error("could not read the file to upload")]
    Source(#[source] std::io::Error),
}

impl SignerError {
    /// Whether another try, later, may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NotUploaded { .. } | Self::Source(_))
    }
}

/// Why one try failed, although another may succeed.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// `nodes` lists no live signer.
    #[error("no live signer is known")]
    NoSigner,
    /// The list of signers could not be read.
    #[error("could not look up the live signers")]
    Directory(#[source] BoxError),
    /// The connection failed or broke.
    #[error("could not reach {url}")]
    Connection {
        /// Without its query, which holds a signature.
        url: String,
        /// The HTTP client's error.
        #[source]
        cause: reqwest::Error,
    },
    /// An answer that says "not now".
    #[error("{url} answered HTTP {status}: {message}")]
    Status {
        /// Without its query.
        url: String,
        /// HTTP status.
        status: u16,
        /// Beginning of the answer.
        message: String,
    },
    /// An answer that is not what the interface says.
    #[error("{url} answered something that is no valid answer")]
    Answer {
        /// Without its query.
        url: String,
        /// The parser's error.
        #[source]
        cause: serde_json::Error,
    },
}

/// Calls live signers with claim tokens. Cheap to clone.
#[derive(Clone)]
pub struct SignerClient {
    http: reqwest::Client,
    directory: Arc<dyn SignerDirectory>,
    options: SignerOptions,
    /// Spreads calls over signers, and moves on from one that failed.
    turn: Arc<AtomicUsize>,
}

impl SignerClient {
    /// A client over whatever signers the directory names at the time of each call.
    pub fn new(http: reqwest::Client, directory: Arc<dyn SignerDirectory>, options: SignerOptions) -> Self {
        Self { http, directory, options, turn: Arc::default() }
    }

    /// `POST /api/upload-slots`: where to PUT. Most callers want [`SignerClient::upload`].
    pub async fn slots(&self, token: &ClaimToken, request: &SlotsRequest) -> Result<SlotsAnswer, SignerError> {
        self.call("upload-slots", token, request).await
    }

    /// `POST /api/drv-upload`.
    pub async fn drv_upload(&self, token: &ClaimToken, request: &DrvUpload) -> Result<DrvUploadAnswer, SignerError> {
        self.call("drv-upload", token, request).await
    }

    /// `POST /api/sources-complete`.
    pub async fn sources_complete(
        &self,
        token: &ClaimToken,
        request: &SourcesComplete,
    ) -> Result<SourcesCompleteAnswer, SignerError> {
        self.call("sources-complete", token, request).await
    }

    /// `POST /api/build-complete`.
    pub async fn build_complete(
        &self,
        token: &ClaimToken,
        request: &BuildComplete,
    ) -> Result<BuildCompleteAnswer, SignerError> {
        self.call("build-complete", token, request).await
    }

    /// `POST /api/build-failed`.
    pub async fn build_failed(
        &self,
        token: &ClaimToken,
        request: &BuildFailed,
    ) -> Result<BuildFailedAnswer, SignerError> {
        self.call("build-failed", token, request).await
    }

    async fn call<Q, A>(&self, call: &'static str, token: &ClaimToken, request: &Q) -> Result<A, SignerError>
    where
        Q: Serialize + Sync,
        A: DeserializeOwned,
    {
        let body = bytes::Bytes::from(serde_json::to_vec(request).map_err(|error| SignerError::Refused {
            call,
            code: "unserializable".to_owned(),
            message: error.to_string(),
        })?);
        let mut retry = Retry::new(call, self.options);
        loop {
            let mut last = TryError::NoSigner;
            let mut wait = None;
            match self.directory.signers().await {
                Err(cause) => last = TryError::Directory(cause),
                Ok(signers) => {
                    let first = self.turn.fetch_add(1, Ordering::Relaxed);
                    for index in 0..signers.len() {
                        let base = &signers[(first + index) % signers.len()];
                        match self.call_one(call, base, token, body.clone()).await? {
                            Ok(answer) => return Ok(answer),
                            Err((error, asked_wait)) => {
                                tracing::debug!(signer = %base, call, %error, "A signer did not answer, trying the next");
                                last = error;
                                wait = wait.max(asked_wait);
                            }
                        }
                    }
                }
            }
            self.directory.none_answered();
            retry.pause(last, wait).await?;
        }
    }

    /// The outer error ends the call, the inner one moves on to the next signer.
    async fn call_one<A: DeserializeOwned>(
        &self,
        call: &'static str,
        base: &str,
        token: &ClaimToken,
        body: bytes::Bytes,
    ) -> Result<Result<A, (TryError, Option<Duration>)>, SignerError> {
        let url = format!("{}/api/{call}", base.trim_end_matches('/'));
        let sent = self
            .http
            .post(&url)
            .timeout(CALL_TIMEOUT)
            .bearer_auth(token.to_hex())
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await;
        let response = match sent {
            Ok(response) => response,
            Err(cause) => return Ok(Err((TryError::Connection { url, cause: cause.without_url() }, None))),
        };
        let status = response.status().as_u16();
        let asked_wait = retry_after(response.headers());
        let bytes = match read_bounded(response, SIGNER_BODY_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(cause) => return Ok(Err((TryError::Connection { url, cause: cause.without_url() }, None))),
        };
        match judge(call, status, &bytes)? {
            Judged::Answer => {
                Ok(serde_json::from_slice(&bytes).map_err(|cause| (TryError::Answer { url, cause }, None)))
            }
            Judged::TryAgain => Ok(Err((TryError::Status { url, status, message: beginning(&bytes) }, asked_wait))),
        }
    }
}

enum Judged {
    Answer,
    TryAgain,
}

/// What an HTTP status of a signer means for the work.
fn judge(call: &'static str, status: u16, body: &[u8]) -> Result<Judged, SignerError> {
    let error = || {
        serde_json::from_slice::<ApiError>(body).unwrap_or_else(|_| ApiError {
            code: format!("http-{status}"),
            message: beginning(body),
            request_id: None,
        })
    };
    match status {
        200..=299 => Ok(Judged::Answer),
        408 | 425 | 429 | 500..=599 => Ok(Judged::TryAgain),
        409 if matches!(error().code.as_str(), "stale-claim" | "http-409") => Err(SignerError::StaleClaim),
        409 if error().code == "not-uploaded" => Err(SignerError::NotUploaded { call, message: error().message }),
        _ => {
            let ApiError { code, message, .. } = error();
            Err(SignerError::Refused { call, code, message })
        }
    }
}

/// Pauses between rounds, until the patience is over.
struct Retry {
    call: &'static str,
    options: SignerOptions,
    started: Instant,
    failures: u32,
}

impl Retry {
    fn new(call: &'static str, options: SignerOptions) -> Self {
        Self { call, options, started: Instant::now(), failures: 0 }
    }

    /// Waits before the next try, at least as long as the other side asked for; an error when the patience is over.
    async fn pause(&mut self, last: TryError, asked: Option<Duration>) -> Result<(), SignerError> {
        // Half to one and a half: workers that lost the same signer must not come back all at once.
        self.failures = self.failures.saturating_add(1);
        let pause = Backoff::doubling(self.options.pause_min, self.options.pause_max).after(self.failures, 1.0);
        let spread = pause.mul_f64(rand::random_range(0.5..1.5));
        let wait = asked.map_or(spread, |asked| spread.max(asked));
        if self.started.elapsed() + wait > self.options.patience {
            return Err(SignerError::Unavailable {
                call: self.call,
                patience: self.options.patience,
                last: Box::new(last),
            });
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What the other side asks for, at most a minute.
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    crate::evaluator::transient::retry_after(headers).map(|pause| pause.min(Duration::from_mins(1)))
}

/// Reads a body; what lies beyond the bound is dropped, which makes the answer invalid rather than us large.
async fn read_bounded(mut response: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max.saturating_sub(bytes.len());
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            break;
        }
    }
    Ok(bytes)
}

fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2_000)]);
    match serde_json::from_str::<ApiError>(&text) {
        Ok(error) => error.message,
        Err(_) => text.trim().chars().take(500).collect(),
    }
}

#[cfg(test)]
mod tests;
