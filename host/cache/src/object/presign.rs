//! Presigned PUTs: the right to store exactly one object, given to somebody without credentials.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::presigning::PresigningConfig;
use harmonia_core::Timestamp;
use harmonia_nix::Sha256Hash;

use super::{ObjectError, ObjectStore};

/// What a presigned PUT allows and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutContract<'a> {
    /// Where.
    pub key: &'a str,
    /// How many bytes.
    pub length: u64,
    /// With which SHA-256.
    pub sha256: Sha256Hash,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
    /// Only while there is no such object (`If-None-Match: *`).
    pub write_once: bool,
}

/// A URL to PUT to and the headers that must go along unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresignedPut {
    /// The URL; whoever has it may use it, so it is never logged.
    pub url: String,
    /// Signed headers.
    pub headers: Vec<(String, String)>,
}

impl ObjectStore {
    /// Signs a PUT, valid for `valid_for` from `now` on. Nothing is sent.
    pub async fn presign_put(
        &self,
        contract: &PutContract<'_>,
        now: Timestamp,
        valid_for: Duration,
    ) -> Result<PresignedPut, ObjectError> {
        let action = format!("sign an upload to '{}'", contract.key);
        let refused = |cause: aws_sdk_s3::error::BoxError| ObjectError::Refused {
            action: action.clone(),
            code: "invalid request".to_owned(),
            cause,
        };
        let config = PresigningConfig::builder().start_time(SystemTime::from(now)).expires_in(valid_for).build();
        let length = i64::try_from(contract.length).map_err(|error| refused(error.into()))?;
        let request = self
            .inner
            .client
            .put_object()
            .bucket(self.bucket())
            .key(contract.key)
            .content_length(length)
            .content_type(contract.content_type)
            .set_content_encoding(contract.content_encoding.map(str::to_owned))
            .set_if_none_match(contract.write_once.then(|| "*".to_owned()))
            .checksum_sha256(contract.sha256.to_base64())
            .presigned(config.map_err(|error| refused(error.into()))?)
            .await
            .map_err(|error| refused(error.into()))?;
        let headers = request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(PresignedPut { url: request.uri().to_owned(), headers })
    }
}
