//! Who may do what: one key pair may do everything, nobody else anything.
//!
//! The protocol layer has verified the signature when [`Gate::check`] is asked. What it leaves open is closed here:
//! expiry by our own clock, headers that were slipped in beside the signed ones, and older signature schemes.

use std::sync::Arc;

use harmonia_core::Clock;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use time::macros::format_description;
use time::{Duration, PrimitiveDateTime};

/// The bound of S3 for presigned requests.
const PRESIGNED_SECONDS_MAX: i64 = 7 * 24 * 3600;

pub(crate) struct OneKeyPair {
    pub(crate) access_key: String,
    pub(crate) secret_key: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for OneKeyPair {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            Ok(self.secret_key.clone())
        } else {
            Err(s3_error!(InvalidAccessKeyId, "this endpoint does not know the access key"))
        }
    }
}

pub(crate) struct Gate {
    pub(crate) clock: Arc<dyn Clock>,
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "requests must be signed"));
        }
        let query = context.uri().query().unwrap_or_default();
        let signed_headers = match query_value(query, "X-Amz-SignedHeaders") {
            Some(names) => {
                self.check_expiry(query)?;
                names
            }
            None => context
                .headers()
                .get("authorization")
                .and_then(|value| value.to_str().ok())
                .filter(|value| value.starts_with("AWS4-HMAC-SHA256"))
                .and_then(|value| value.split_once("SignedHeaders="))
                .map(|(_, rest)| rest.split(',').next().unwrap_or_default().trim().to_owned())
                .ok_or_else(|| {
                    s3_error!(AccessDenied, "only AWS Signature Version 4 is accepted, in header or query")
                })?,
        };
        for name in context.headers().keys() {
            // The digest of the body says nothing but what the body is, and is checked against it.
            if name.as_str().starts_with("x-amz-")
                && name.as_str() != "x-amz-content-sha256"
                && !signed_headers.split(';').any(|signed| signed.eq_ignore_ascii_case(name.as_str()))
            {
                return Err(s3_error!(AccessDenied, "the header {name} is not among the signed ones"));
            }
        }
        Ok(())
    }
}

impl Gate {
    fn check_expiry(&self, query: &str) -> S3Result<()> {
        let malformed = || s3_error!(AuthorizationQueryParametersError, "X-Amz-Date or X-Amz-Expires is malformed");
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let date = query_value(query, "X-Amz-Date").ok_or_else(malformed)?;
        let signed_at = PrimitiveDateTime::parse(&date, format).map_err(|_| malformed())?.assume_utc();
        let expires: i64 =
            query_value(query, "X-Amz-Expires").and_then(|value| value.parse().ok()).ok_or_else(malformed)?;
        if !(1..=PRESIGNED_SECONDS_MAX).contains(&expires) {
            return Err(malformed());
        }
        if self.clock.now() > signed_at + Duration::seconds(expires) {
            return Err(s3_error!(AccessDenied, "Request has expired"));
        }
        Ok(())
    }
}

/// The value of a query parameter whose characters need no encoding but for `;` and `/`.
fn query_value(query: &str, name: &str) -> Option<String> {
    let (_, value) = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name)?;
    Some(value.replace("%3B", ";").replace("%3b", ";"))
}
