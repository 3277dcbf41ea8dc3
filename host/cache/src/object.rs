//! The bucket: every S3 call. Start at [`ObjectStore`].
//!
//! An answer says "absent" only when the store said so. Whatever else goes wrong is an [`ObjectError`]: unknown is never
//! absent.

mod body;
mod error;
mod presign;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, ChecksumMode, CreateBucketConfiguration};
use bytes::Bytes;
use harmonia_nix::{Hash, HashAlgorithm, Sha256Hash};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

pub use body::{ByteRange, ObjectBody};
pub use error::ObjectError;
pub use presign::{PresignedPut, PutContract};

/// The region that stores without regions expect in signatures.
pub const DEFAULT_REGION: &str = "us-east-1";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the head of the answer; bodies have a timeout per piece (`body.rs`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest object that is copied through our memory, where the store cannot copy by itself.
const COPY_BYTES_MAX: usize = 128 << 20;
/// How long the knowledge that the bucket exists may serve to believe a 404 for an object.
const BUCKET_SEEN_FOR: Duration = Duration::from_secs(10);

/// Which bucket, where, and as whom.
#[derive(Clone)]
pub struct ObjectStoreOptions {
    /// Base URL of the store; `None`: Amazon's, by region.
    pub endpoint: Option<Url>,
    /// Region in signatures; empty: [`DEFAULT_REGION`].
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Access key id.
    pub access_key: String,
    /// Secret key; never printed.
    pub secret_key: String,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`: what most stores other than Amazon's need.
    pub path_style: bool,
}

impl fmt::Debug for ObjectStoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreOptions")
            .field("endpoint", &self.endpoint.as_ref().map(Url::as_str))
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("path_style", &self.path_style)
            .finish_non_exhaustive()
    }
}

/// What the store says of an object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the bytes, if the store keeps one (not for multipart uploads, not every store).
    pub sha256: Option<Sha256Hash>,
    /// Entity tag.
    pub etag: Option<String>,
}

/// How an object is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions<'a> {
    /// `Content-Type`.
    pub content_type: &'a str,
    /// `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
    /// `Cache-Control`.
    pub cache_control: Option<&'a str>,
    /// Leave an object that exists as it is (`If-None-Match: *`).
    pub write_once: bool,
}

/// What a PUT did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object has these bytes.
    Stored,
    /// `write_once`, and there was one already.
    AlreadyThere,
}

/// One bucket of an S3 store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    bucket: String,
    /// When the bucket was last seen to exist.
    bucket_seen: Mutex<Option<Instant>>,
    /// The store said that it knows no copying.
    cannot_copy: AtomicBool,
}

impl ObjectStore {
    /// Makes the client; nothing is sent yet.
    pub fn new(options: ObjectStoreOptions) -> Self {
        let ObjectStoreOptions { endpoint, region, bucket, access_key, secret_key, path_style } = options;
        let region = if region.is_empty() { DEFAULT_REGION.to_owned() } else { region };
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region))
            .credentials_provider(Credentials::new(access_key, secret_key, None, None, "configuration"))
            .force_path_style(path_style)
            // Stores other than Amazon's know the checksums that are asked for, not those the library adds by itself.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(100)))
            .timeout_config(
                TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(ANSWER_TIMEOUT).build(),
            )
            // A client of ours that reads slowly is no stall of the store; `body.rs` watches the store itself.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint.as_str().trim_end_matches('/'));
        }
        let client = Client::from_conf(config.build());
        Self {
            inner: Arc::new(Inner {
                client,
                bucket,
                bucket_seen: Mutex::default(),
                cannot_copy: AtomicBool::new(false),
            }),
        }
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }

    /// Fails unless the bucket exists and may be used; with `create`, makes it when it is missing.
    pub async fn check_bucket(&self, create: bool) -> Result<(), ObjectError> {
        match self.look_for_bucket().await {
            Err(ObjectError::BucketMissing { .. }) if create => self.create_bucket().await,
            found => found,
        }
    }

    async fn look_for_bucket(&self) -> Result<(), ObjectError> {
        let action = format!("look at the bucket '{}'", self.bucket());
        let found = self.inner.client.head_bucket().bucket(self.bucket()).send().await;
        match found.map_err(|error| ObjectError::classify(action, self.bucket(), error)) {
            Ok(_) => {
                *self.inner.bucket_seen.lock().await = Some(Instant::now());
                Ok(())
            }
            Err(ObjectError::NotFound { action, .. }) => {
                Err(ObjectError::BucketMissing { action, bucket: self.bucket().to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    async fn create_bucket(&self) -> Result<(), ObjectError> {
        let region = self.inner.client.config().region().map(|region| region.as_ref().to_owned());
        // The default region is the one that must not be named.
        let location = region.filter(|region| region != DEFAULT_REGION).map(|region| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region.as_str()))
                .build()
        });
        let request = self.inner.client.create_bucket().bucket(self.bucket()).set_create_bucket_configuration(location);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let action = format!("create the bucket '{}'", self.bucket());
                let error = ObjectError::classify(action, self.bucket(), error);
                // Another node may have been first.
                self.look_for_bucket().await.map_err(|_| error)
            }
        }
    }

    /// Size and checksum of an object; `None` when the store knows that there is none.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectHead>, ObjectError> {
        let request = self.inner.client.head_object().bucket(self.bucket()).key(key);
        match request.checksum_mode(ChecksumMode::Enabled).send().await {
            Ok(found) => Ok(Some(ObjectHead {
                size: length(found.content_length),
                sha256: found.checksum_sha256.as_deref().and_then(parse_checksum),
                etag: found.e_tag,
            })),
            Err(error) => {
                match ObjectError::classify(format!("look at the object '{key}'"), self.bucket(), error) {
                    // A HEAD has no body that could tell a missing object from a missing bucket.
                    ObjectError::NotFound { .. } => self.believe_in_bucket().await.map(|()| None),
                    error => Err(error),
                }
            }
        }
    }

    async fn believe_in_bucket(&self) -> Result<(), ObjectError> {
        let seen = *self.inner.bucket_seen.lock().await;
        if seen.is_some_and(|seen| seen.elapsed() < BUCKET_SEEN_FOR) { Ok(()) } else { self.look_for_bucket().await }
    }

    /// Streams an object or a part of it; `None` when the store knows that there is none.
    ///
    /// A stream that breaks off is taken up again where it stopped, as long as the object is the same.
    pub async fn get(&self, key: &str, range: Option<ByteRange>) -> Result<Option<ObjectBody>, ObjectError> {
        body::open(self, key, range).await
    }

    /// Reads a whole object of at most `bytes_max`; `None` when the store knows that there is none.
    pub async fn get_bytes(&self, key: &str, bytes_max: usize) -> Result<Option<Bytes>, ObjectError> {
        let Some(body) = self.get(key, None).await? else { return Ok(None) };
        body.read_all(key, bytes_max).await.map(Some)
    }

    /// Stores `bytes`; the store checks their SHA-256.
    pub async fn put(&self, key: &str, bytes: Bytes, options: PutOptions<'_>) -> Result<PutOutcome, ObjectError> {
        let checksum = Sha256Hash::of(&bytes).to_base64();
        let request = self
            .inner
            .client
            .put_object()
            .bucket(self.bucket())
            .key(key)
            .content_type(options.content_type)
            .set_content_encoding(options.content_encoding.map(str::to_owned))
            .set_cache_control(options.cache_control.map(str::to_owned))
            .set_if_none_match(options.write_once.then(|| "*".to_owned()))
            .checksum_sha256(checksum)
            .body(ByteStream::from(bytes));
        match request.send().await {
            Ok(_) => Ok(PutOutcome::Stored),
            Err(error) if options.write_once && error::is_precondition_failure(&error) => Ok(PutOutcome::AlreadyThere),
            Err(error) => Err(ObjectError::classify(format!("store the object '{key}'"), self.bucket(), error)),
        }
    }

    /// Copies an object, with its headers, over whatever is at `to`. For small ones: a store that cannot copy by itself
    /// gets the bytes through us, of which there may then be 128 MiB.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), ObjectError> {
        if !self.inner.cannot_copy.load(Ordering::Relaxed) {
            match self.copy_inside(from, to).await {
                Err(ObjectError::Refused { code, .. }) if code == "NotImplemented" => {
                    self.inner.cannot_copy.store(true, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        let Some(body) = self.get(from, None).await? else {
            let action = format!("copy the object '{from}' to '{to}'");
            return Err(ObjectError::NotFound { action, cause: "no such object".into() });
        };
        let (content_type, content_encoding) = (body.content_type.clone(), body.content_encoding.clone());
        let options = PutOptions {
            content_type: content_type.as_deref().unwrap_or("application/octet-stream"),
            content_encoding: content_encoding.as_deref(),
            ..PutOptions::default()
        };
        self.put(to, body.read_all(from, COPY_BYTES_MAX).await?, options).await.map(drop)
    }

    async fn copy_inside(&self, from: &str, to: &str) -> Result<(), ObjectError> {
        let source = format!("{}/{}", percent_encode(self.bucket()), percent_encode(from));
        let request = self.inner.client.copy_object().bucket(self.bucket()).copy_source(source).key(to);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(ObjectError::classify(format!("copy the object '{from}' to '{to}'"), self.bucket(), error))
            }
        }
    }

    /// Deletes an object; it is no error when there is none.
    pub async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match self.inner.client.delete_object().bucket(self.bucket()).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match ObjectError::classify(format!("delete the object '{key}'"), self.bucket(), error) {
                ObjectError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// SHA-256 and size of an object, by reading all of it: for stores that keep no checksum.
    pub async fn hash(&self, key: &str) -> Result<Option<(Sha256Hash, u64)>, ObjectError> {
        let Some(mut body) = self.get(key, None).await? else { return Ok(None) };
        let mut hasher = harmonia_nix::hash::Hasher::new(HashAlgorithm::Sha256);
        let mut size = 0;
        while let Some(piece) = body.next().await? {
            hasher.update(&piece);
            size += piece.len() as u64;
        }
        let hash = Sha256Hash::try_from(hasher.finish()).map_err(|error| ObjectError::Refused {
            action: format!("hash the object '{key}'"),
            code: "hash".to_owned(),
            cause: error.into(),
        })?;
        Ok(Some((hash, size)))
    }
}

fn length(found: Option<i64>) -> u64 {
    found.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

/// The checksum of a multipart object is one of checksums, with `-<parts>` after it: nothing to compare with.
fn parse_checksum(base64: &str) -> Option<Sha256Hash> {
    Hash::parse_as(HashAlgorithm::Sha256, &format!("sha256-{base64}")).ok()?.try_into().ok()
}

/// Leaves letters, digits, `-_.~` and `/`; what S3 wants of a copy's source.
fn percent_encode(key: &str) -> String {
    use fmt::Write as _;
    key.bytes().fold(String::with_capacity(key.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let options = ObjectStoreOptions {
            endpoint: None,
            region: String::new(),
            bucket: "b".to_owned(),
            access_key: "id".to_owned(),
            secret_key: "hidden".to_owned(),
            path_style: true,
        };
        assert!(!format!("{options:?}").contains("hidden"));
        assert!(!format!("{:?}", ObjectStore::new(options)).contains("hidden"));
    }

    #[test]
    fn checksums_of_whole_objects_only() {
        let hash = Sha256Hash::of(b"x");
        assert_eq!(parse_checksum(&hash.to_base64()), Some(hash));
        assert_eq!(parse_checksum(&format!("{}-2", hash.to_base64())), None);
        assert_eq!(parse_checksum(""), None);
    }

    #[test]
    fn names_with_odd_bytes() {
        assert_eq!(percent_encode("log/a+b?c=d é.drv.1"), "log/a%2Bb%3Fc%3Dd%20%C3%A9.drv.1");
    }
}
