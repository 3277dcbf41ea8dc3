//! Why a request did not do what it should, and what that means to the host.

use std::error;
use std::fmt;

use super::HttpError;

/// An answer whose status is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusError {
    /// HTTP status code.
    pub status: u16,
    /// `Retry-After` in seconds, where the answer has one; 60 where its rate limit is exhausted and it does not say until
    /// when (the host knows, and holds back the next request).
    pub retry_after_s: Option<u32>,
    /// The beginning of the answer's body, for people.
    pub message: String,
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl error::Error for StatusError {}

/// Why [`Request::fetch`](super::Request::fetch) has nothing to give.
#[derive(Debug)]
pub enum Error {
    /// There is no answer.
    Http(HttpError),
    /// The answer is no success.
    Status(StatusError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => f.write_str(&error.text()),
            Self::Status(error) => error.fmt(f),
        }
    }
}

impl error::Error for Error {}

impl From<HttpError> for Error {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

impl From<StatusError> for Error {
    fn from(error: StatusError) -> Self {
        Self::Status(error)
    }
}

impl HttpError {
    /// A sentence for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Denied(text) | Self::Invalid(text) | Self::Unavailable(text) | Self::Limit(text) => text.clone(),
            Self::RetryAfter(seconds) => format!("asked to wait {seconds} s"),
            Self::Timeout => "no answer in time".to_owned(),
        }
    }
}

/// What an error means, whatever the kind of plugin: the common ground of the errors of forges and reporters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Denied(String),
    NotFound(String),
    RetryAfter(u32),
    Invalid(String),
    Unavailable(String),
}

impl From<HttpError> for Meaning {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Denied(text) => Self::Denied(text),
            HttpError::RetryAfter(seconds) => Self::RetryAfter(seconds),
            // The same call would meet the same bound again.
            HttpError::Invalid(text) | HttpError::Limit(text) => Self::Invalid(text),
            HttpError::Unavailable(_) | HttpError::Timeout => Self::Unavailable(error.text()),
        }
    }
}

impl From<StatusError> for Meaning {
    fn from(error: StatusError) -> Self {
        let text = error.to_string();
        match (error.status, error.retry_after_s) {
            (403 | 429 | 503, Some(seconds)) => Self::RetryAfter(seconds),
            (429, None) => Self::RetryAfter(60),
            (401 | 402 | 403 | 407 | 451, _) => Self::Denied(text),
            (404 | 410, _) => Self::NotFound(text),
            (408 | 425 | 500.., _) => Self::Unavailable(text),
            _ => Self::Invalid(text),
        }
    }
}

impl From<Error> for Meaning {
    fn from(error: Error) -> Self {
        match error {
            Error::Http(error) => error.into(),
            Error::Status(error) => error.into(),
        }
    }
}

/// The conversions that make `?` work in the exports of a kind.
macro_rules! plugin_errors {
    ($error:ty) => {
        impl From<$crate::http::HttpError> for $error {
            fn from(error: $crate::http::HttpError) -> Self {
                $crate::http::Meaning::from(error).into()
            }
        }

        impl From<$crate::http::StatusError> for $error {
            fn from(error: $crate::http::StatusError) -> Self {
                $crate::http::Meaning::from(error).into()
            }
        }

        impl From<$crate::http::Error> for $error {
            fn from(error: $crate::http::Error) -> Self {
                $crate::http::Meaning::from(error).into()
            }
        }

        impl From<$crate::secrets::SecretError> for $error {
            fn from(error: $crate::secrets::SecretError) -> Self {
                use $crate::secrets::SecretError;
                let text = error.text();
                match error {
                    SecretError::NotGranted(_) | SecretError::Unusable(_) => Self::Denied(text),
                    SecretError::Expired | SecretError::Limit(_) => Self::Unavailable(text),
                }
            }
        }

        impl From<$crate::kv::KvError> for $error {
            fn from(error: $crate::kv::KvError) -> Self {
                use $crate::kv::KvError;
                match error {
                    KvError::Conflict => Self::Unavailable("another call wrote the same key".to_owned()),
                    KvError::Limit(text) => Self::Invalid(text),
                    KvError::Unavailable(text) => Self::Unavailable(text),
                }
            }
        }

        impl From<$crate::settings::Missing> for $error {
            fn from(error: $crate::settings::Missing) -> Self {
                Self::Denied(error.to_string())
            }
        }

        /// Input, or an answer, that is not the JSON that was expected.
        impl From<serde_json::Error> for $error {
            fn from(error: serde_json::Error) -> Self {
                Self::Invalid(error.to_string())
            }
        }
    };
}
pub(crate) use plugin_errors;
