//! Moving bytes to presigned URLs. Start at [`SignerClient::upload`].

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use harmonia_core::signer_api::{LogBlob, PathInfo, Slot, SlotsRequest};
use harmonia_core::token::ClaimToken;
use tokio_util::io::ReaderStream;

use super::{Retry, SignerClient, SignerError, TryError, beginning, read_bounded, retry_after};

/// How often slots are asked for again because they expired (or were refused) before a PUT got through.
const RENEWALS_MAX: u32 = 3;
/// A PUT may take this long, and longer in proportion to its size.
const PUT_TIMEOUT_MIN: Duration = Duration::from_mins(1);
/// Slower than this is given up and tried again.
const PUT_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// The bytes of one object, to be read anew for every try.
#[derive(Debug, Clone)]
pub enum UploadSource {
    /// A file.
    File(PathBuf),
    /// In memory, for small things.
    Bytes(Bytes),
}

/// How a PUT ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is in the store.
    Stored,
    /// The URL is no longer valid: ask for another slot.
    Expired,
}

impl UploadSource {
    async fn body(&self) -> Result<(reqwest::Body, u64), SignerError> {
        match self {
            Self::Bytes(bytes) => Ok((bytes.clone().into(), bytes.len() as u64)),
            Self::File(path) => {
                let file = tokio::fs::File::open(path).await.map_err(SignerError::Source)?;
                let length = file.metadata().await.map_err(SignerError::Source)?.len();
                Ok((reqwest::Body::wrap_stream(ReaderStream::with_capacity(file, 256 << 10)), length))
            }
        }
    }
}

impl SignerClient {
    /// Brings the objects of a slots request into the store: asks for slots, PUTs what is not there, several side by
    /// side, and asks again for those that expired. `sources` belong to `request.paths` in order; `log` to
    /// `request.log`. Completing (signing) is another call.
    pub async fn upload(
        &self,
        token: &ClaimToken,
        request: &SlotsRequest,
        sources: &[UploadSource],
        log: Option<&UploadSource>,
    ) -> Result<(), SignerError> {
        let mut paths: Vec<(&PathInfo, &UploadSource)> = request.paths.iter().zip(sources).collect();
        let mut log: Option<(LogBlob, &UploadSource)> = request.log.clone().zip(log);
        for _ in 0..=RENEWALS_MAX {
            if paths.is_empty() && log.is_none() {
                return Ok(());
            }
            let answer = self
                .slots(
                    token,
                    &SlotsRequest {
                        holder: request.holder,
                        paths: paths.iter().map(|(info, _)| PathInfo { listing: None, ..(*info).clone() }).collect(),
                        log: log.as_ref().map(|(blob, _)| blob.clone()),
                    },
                )
                .await?;
            if answer.paths.len() != paths.len() || answer.log.is_some() != log.is_some() {
                return Err(SignerError::Refused {
                    call: "upload-slots",
                    code: "wrong-answer".to_owned(),
                    message: "the answer has another number of slots than was asked for".to_owned(),
                });
            }
            if let (Some(slot), Some((_, source))) = (&answer.log, &log)
                && self.put(slot, source).await? == PutOutcome::Stored
            {
                log = None;
            }
            let put = |((info, source), slot)| async move {
                Ok::<_, SignerError>(match self.put(&slot, source).await? {
                    PutOutcome::Stored => None,
                    PutOutcome::Expired => Some((info, source)),
                })
            };
            // Futures made before the stream: made within, they could not be sent between threads.
            let puts: Vec<_> = paths.into_iter().zip(answer.paths).map(put).collect();
            paths = stream::iter(puts)
                .buffer_unordered(self.options.parallel_puts.max(1))
                .try_filter_map(|left| async move { Ok(left) })
                .try_collect()
                .await?;
        }
        if paths.is_empty() && log.is_none() {
            return Ok(());
        }
        Err(SignerError::PutRefused {
            status: 403,
            message: format!(
                "refused with {RENEWALS_MAX} renewed slots; are the clocks of signer and object store right?"
            ),
        })
    }

    /// One PUT with exactly the headers of the slot, tried again while the store says "slow down" or cannot be reached.
    pub async fn put(&self, slot: &Slot, source: &UploadSource) -> Result<PutOutcome, SignerError> {
        let Slot::Put { url, headers } = slot else { return Ok(PutOutcome::Stored) };
        let shown = url.split('?').next().unwrap_or_default().to_owned();
        let mut retry = Retry::new("PUT", self.options);
        loop {
            let (body, length) = source.body().await?;
            let mut call =
                self.http.put(url).timeout(PUT_TIMEOUT_MIN + Duration::from_secs(length / PUT_BYTES_PER_SECOND_MIN));
            let mut has_length = false;
            for (name, value) in headers {
                // The URL decides the host.
                if !name.eq_ignore_ascii_case("host") {
                    has_length |= name.eq_ignore_ascii_case("content-length");
                    call = call.header(name, value);
                }
            }
            if !has_length {
                call = call.header("content-length", length);
            }
            let response = match call.body(body).send().await {
                Ok(response) => response,
                Err(cause) => {
                    let cause = cause.without_url();
                    retry.pause(TryError::Connection { url: shown.clone(), cause }, None).await?;
                    continue;
                }
            };
            let status = response.status().as_u16();
            let asked_wait = retry_after(response.headers());
            let answer = match status {
                // 412, write-once: somebody else stored these very bytes (the key is their hash).
                200..=299 | 412 => return Ok(PutOutcome::Stored),
                403 => return Ok(PutOutcome::Expired),
                _ => read_bounded(response, 16 << 10).await.unwrap_or_default(),
            };
            let message = beginning(&answer);
            // 409: another conditional write of the same key is under way. 400 is answered for several things, of which
            // these two pass.
            let passes = matches!(status, 408 | 409 | 425 | 429 | 500..=599)
                || (status == 400 && (message.contains("RequestTimeout") || message.contains("SlowDown")));
            if !passes {
                return Err(SignerError::PutRefused { status, message });
            }
            retry.pause(TryError::Status { url: shown.clone(), status, message }, asked_wait).await?;
        }
    }
}
