//! Outgoing HTTP of plugins. Start at [`CallState::http_send`]: it checks the request, sends it hop by hop, and cleans the
//! answer. `harmonia_egress` says which hosts and addresses, `binding` where secrets may go, `place` puts secrets in, `capture` takes them out, `limiter`
//! holds back requests to hosts that asked for it.

mod address;
mod binding;
mod capture;
mod client;
mod exchange;
mod limiter;
mod place;
mod request;

use std::time::Duration;

pub use client::{HttpClient, HttpClientError, HttpClientOptions};

pub(super) use binding::{Binding, BoundHost};
pub(super) use limiter::HeldBack;

use harmonia_egress::Target;

use super::secrets::SecretHandle;
use super::{CallState, Shared};

/// Request method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// `PATCH`.
    Patch,
    /// `DELETE`.
    Delete,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Name; compared without case.
    pub name: String,
    /// Value without line breaks.
    pub value: String,
}

/// Where a secret goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Into a header; its value is what stands before the secret.
    Header(Header),
    /// As password of basic authentication with this user.
    Basic(String),
    /// Into the body, in the place of this placeholder.
    Body(String),
}

/// A secret that goes out with a request.
#[derive(Debug, Clone)]
pub(crate) struct Auth {
    /// Which.
    pub secret: SecretHandle,
    /// Where.
    pub place: Place,
}

/// A field of a JSON answer that becomes a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capture {
    /// JSON pointer (RFC 6901) of a string.
    pub pointer: String,
    /// Hosts that it may be sent to; empty: who answered.
    pub hosts: Vec<String>,
}

/// What to send.
#[derive(Debug, Clone)]
pub(crate) struct HttpRequest {
    /// Method.
    pub method: Method,
    /// Absolute URL.
    pub url: String,
    /// Headers.
    pub headers: Vec<Header>,
    /// Body.
    pub body: Option<Vec<u8>>,
    /// Secrets.
    pub auth: Vec<Auth>,
    /// What becomes a secret.
    pub capture: Vec<Capture>,
}

/// What came back, without secrets.
#[derive(Debug, Clone)]
pub(crate) struct HttpResponse {
    /// HTTP status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<Header>,
    /// Body.
    pub body: Vec<u8>,
    /// One for each capture.
    pub captured: Vec<Option<SecretHandle>>,
}

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpError {
    /// Not granted; the text names the missing grant.
    #[error("{0}")]
    Denied(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The host asked us to wait so many seconds; nothing was sent.
    #[error("the host asked to wait for {0} s")]
    RetryAfter(u32),
    /// Nothing is known of the effect.
    #[error("{0}")]
    Unavailable(String),
    /// Its time is over; it may have had its effect.
    #[error("the request took too long")]
    Timeout,
    /// A bound is reached; the text names it.
    #[error("{0}")]
    Limit(String),
}

impl HttpError {
    /// The same with another text.
    fn with_text(self, change: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Denied(text) => Self::Denied(change(&text)),
            Self::Invalid(text) => Self::Invalid(change(&text)),
            Self::Unavailable(text) => Self::Unavailable(change(&text)),
            Self::Limit(text) => Self::Limit(change(&text)),
            other @ (Self::RetryAfter(_) | Self::Timeout) => other,
        }
    }
}

/// Longest text of an error.
const ERROR_BYTES_MAX: usize = 2048;

impl CallState {
    /// Sends one request and reads the whole answer.
    pub(crate) async fn http_send(&mut self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let result = self.send(request).await;
        // Libraries put URLs and headers into their errors; what leaves is searched like any answer.
        result.map_err(|error| error.with_text(|text| super::log::head(&self.redact(text), ERROR_BYTES_MAX).to_owned()))
    }

    async fn send(&mut self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !self.network {
            let text = "this call has no network: what it answers must follow from what it was given";
            return Err(HttpError::Denied(text.to_owned()));
        }
        let limits = self.limits();
        let (most, timeout) = (limits.requests_per_call, Duration::from_millis(limits.request_timeout_ms));
        if self.requests >= most {
            let key = self.shared.grants.limit("requests_per_call");
            return Err(HttpError::Limit(format!("more than {most} requests in one call: {key}")));
        }
        self.requests += 1;
        let request = request::check(self, request)?;
        tokio::time::timeout(timeout, self.exchange(request)).await.unwrap_or(Err(HttpError::Timeout))
    }
}

impl Shared {
    /// Says that a secret is not bound to a host, and what would bind it.
    pub(super) fn unbound(&self, secret: &SecretHandle, target: &Target) -> String {
        use super::secrets::Origin;
        let (origin, host) = (secret.origin(), target.as_grant());
        match origin {
            Origin::Granted(name) => {
                let key = self.grants.key(&format!("secrets.{name}.hosts"));
                format!("{origin} is not bound to `{host}`: add it to {key}")
            }
            Origin::Captured => {
                format!(
                    "{origin} is not bound to `{host}`: name the host when capturing it, or grant it to what it repeats"
                )
            }
            Origin::Derived => format!("{origin} is not bound to `{host}`, because its key is not"),
        }
    }
}

#[cfg(test)]
mod tests;
