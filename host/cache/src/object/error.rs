//! What can go wrong with the bucket, told apart by what helps.

use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};

/// Why the object store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// No answer, a broken one, or the store says that it cannot now.
    #[error(
        "cannot {action}: the object store does not answer properly ({code}); check that it runs and that `endpoint` \
         is right, then try again"
    )]
    Unavailable {
        /// What was to be done.
        action: String,
        /// S3's error code, HTTP status, or kind of failure.
        code: String,
        /// What the client library said.
        #[source]
        cause: BoxError,
    },
    /// Wrong credentials, no right, or clocks too far apart.
    #[error(
        "cannot {action}: the object store denies access ({code}); check access key and secret key, the rights of \
         that key on the bucket, and the clock"
    )]
    Denied {
        /// What was to be done.
        action: String,
        /// S3's error code.
        code: String,
        /// What the client library said.
        #[source]
        cause: BoxError,
    },
    /// The bucket does not exist.
    #[error("cannot {action}: there is no bucket '{bucket}'; create it or correct `bucket` in the configuration")]
    BucketMissing {
        /// What was to be done.
        action: String,
        /// Its name.
        bucket: String,
    },
    /// The object does not exist. Only operations that need one say so (a copy); reads answer `None`.
    #[error("cannot {action}: there is no such object")]
    NotFound {
        /// What was to be done.
        action: String,
        /// What the client library said.
        #[source]
        cause: BoxError,
    },
    /// The store understood and refused: sending the same again would not help.
    #[error("cannot {action}: the object store refused it ({code})")]
    Refused {
        /// What was to be done.
        action: String,
        /// S3's error code or HTTP status.
        code: String,
        /// What the client library said.
        #[source]
        cause: BoxError,
    },
    /// The range asked for begins beyond the end of the object.
    #[error("cannot {action}: the range begins beyond its end")]
    Range {
        /// What was to be done.
        action: String,
    },
    /// An object is larger than anything that belongs there.
    #[error("cannot read the object '{key}': it has more than {bytes_max} bytes")]
    TooLarge {
        /// Its key.
        key: String,
        /// The bound.
        bytes_max: usize,
    },
}

impl ObjectError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(crate) fn unavailable(action: String, code: &str, cause: impl Into<BoxError>) -> Self {
        Self::Unavailable { action, code: code.to_owned(), cause: cause.into() }
    }

    pub(crate) fn classify<E>(action: String, bucket: &str, error: SdkError<E>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (status, code) = match &error {
            SdkError::ServiceError(answer) => (answer.raw().status().as_u16(), answer.err().code()),
            SdkError::ConstructionFailure(_) => {
                return Self::Refused { action, code: "invalid request".to_owned(), cause: error.into() };
            }
            SdkError::TimeoutError(_) => return Self::unavailable(action, "timeout", error),
            SdkError::DispatchFailure(_) => return Self::unavailable(action, "no connection", error),
            _ => return Self::unavailable(action, "broken answer", error),
        };
        let kind = kind_of(status, code);
        let code = code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
        let cause = error.into();
        match kind {
            Kind::BucketMissing => Self::BucketMissing { action, bucket: bucket.to_owned() },
            Kind::NotFound => Self::NotFound { action, cause },
            Kind::Denied => Self::Denied { action, code, cause },
            Kind::Range => Self::Range { action },
            Kind::Unavailable => Self::Unavailable { action, code, cause },
            Kind::Refused => Self::Refused { action, code, cause },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BucketMissing,
    NotFound,
    Denied,
    Range,
    Unavailable,
    Refused,
}

/// S3's codes first, since gateways disagree about the status that goes with them.
fn kind_of(status: u16, code: Option<&str>) -> Kind {
    match (status, code) {
        (_, Some("NoSuchBucket")) => Kind::BucketMissing,
        (
            _,
            Some(
                "SlowDown"
                | "ServiceUnavailable"
                | "InternalError"
                | "RequestTimeout"
                | "Throttling"
                | "ThrottlingException"
                | "TooManyRequests"
                | "OperationAborted",
            ),
        ) => Kind::Unavailable,
        (_, Some("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "RequestTimeTooSkewed"))
        | (401 | 403, _) => Kind::Denied,
        // A proxy's 404 page for a wrong endpoint has no code, but HEAD answers have none either: callers of those check
        // the bucket as well.
        (404, _) => Kind::NotFound,
        (416, _) => Kind::Range,
        (408 | 425 | 429, _) => Kind::Unavailable,
        // "Not implemented" will not change by asking again.
        (501 | 400..=499, _) => Kind::Refused,
        _ => Kind::Unavailable,
    }
}

/// The answer to a write-once PUT when there is an object, or somebody else is writing one at the same time.
pub(crate) fn is_precondition_failure<E>(error: &SdkError<E>) -> bool {
    error.raw_response().is_some_and(|answer| answer.status().as_u16() == 412)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (status, code, kind) in [
            (404, None, Kind::NotFound),
            (404, Some("NoSuchKey"), Kind::NotFound),
            (404, Some("NoSuchBucket"), Kind::BucketMissing),
            (403, Some("SignatureDoesNotMatch"), Kind::Denied),
            (400, Some("InvalidAccessKeyId"), Kind::Denied),
            (403, None, Kind::Denied),
            (400, Some("BadDigest"), Kind::Refused),
            (412, Some("PreconditionFailed"), Kind::Refused),
            (416, Some("InvalidRange"), Kind::Range),
            (429, None, Kind::Unavailable),
            (503, Some("SlowDown"), Kind::Unavailable),
            (500, None, Kind::Unavailable),
            (501, Some("NotImplemented"), Kind::Refused),
            (301, Some("PermanentRedirect"), Kind::Unavailable),
        ] {
            assert_eq!(kind_of(status, code), kind, "{status} {code:?}");
        }
    }
}
