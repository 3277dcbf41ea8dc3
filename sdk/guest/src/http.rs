//! Outgoing HTTP, by the host, to the hosts of the plugin's `allow_hosts`. At most 30 requests a call, each at most 10 s;
//! bodies at most 4 MiB either way. Start reading at [`Request`].
//!
//! ```no_run
//! # use harmonia_plugin::{forge::Error, http, secrets, serde_json::Value};
//! # fn ask() -> Result<Value, Error> {
//! let token = secrets::open("token")?;
//! let repository: Value = http::Request::get("https://forge.example/api/repos/1")
//!     .header("accept", "application/json")
//!     .bearer(&token)
//!     .fetch()?       // sends; a status that is no success is an error
//!     .json()?;
//! # Ok(repository)
//! # }
//! ```
//!
//! [`Error`] turns into the errors of [`forge`](crate::forge) and [`reporter`](crate::reporter) by `?`.

mod address;
mod error;
mod paging;
mod response;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::bindings::imports::harmonia::plugin::http as host;
use crate::secrets::Secret;

pub use address::host_of;
pub use error::{Error, StatusError};
pub(crate) use error::{Meaning, plugin_errors};
pub use host::{Header, HttpError, Method, Place, Response};

/// Every byte but letters, digits, `-`, `.`, `_` and `~` (RFC 3986, unreserved).
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request under construction. Nothing happens before [`send`](Self::send) or [`fetch`](Self::fetch).
#[must_use = "a request is sent by `send` or `fetch`"]
pub struct Request<'a> {
    inner: host::Request<'a>,
    /// Why it cannot be sent; told when it would be.
    problem: Option<String>,
}

impl<'a> Request<'a> {
    /// A request for an absolute URL, without user and password. See [`url`] and [`query`].
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        let url = url.into();
        let inner =
            host::Request { method, url, headers: Vec::new(), body: None, auth: Vec::new(), capture: Vec::new() };
        Self { inner, problem: None }
    }

    /// `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::Get, url)
    }

    /// `POST`.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new(Method::Post, url)
    }

    /// `PUT`.
    pub fn put(url: impl Into<String>) -> Self {
        Self::new(Method::Put, url)
    }

    /// `PATCH`.
    pub fn patch(url: impl Into<String>) -> Self {
        Self::new(Method::Patch, url)
    }

    /// `DELETE`.
    pub fn delete(url: impl Into<String>) -> Self {
        Self::new(Method::Delete, url)
    }

    /// Adds a header field: at most 64. The host writes `Host`, `Content-Length`, `Transfer-Encoding`, `Connection` and
    /// `Cookie` itself, and refuses them here.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.inner.headers.push(Header { name: name.to_owned(), value: value.to_owned() });
        self
    }

    /// A body, with its content type.
    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.inner.body = Some(body.into());
        self.header("content-type", content_type)
    }

    /// A JSON body. What cannot be written as JSON (a map with keys that are no strings) is told when it is sent.
    pub fn json(mut self, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => self.body("application/json", body),
            Err(error) => {
                self.problem = Some(format!("the body cannot be written as JSON: {error}"));
                self
            }
        }
    }

    /// A form (`application/x-www-form-urlencoded`).
    pub fn form(self, fields: &[(&str, &str)]) -> Self {
        self.body("application/x-www-form-urlencoded", pairs(fields))
    }

    /// `Authorization: Bearer` with this secret. The host adds it, toward hosts that the secret is bound to.
    pub fn bearer(self, secret: &'a Secret) -> Self {
        self.secret_header(secret, "authorization", "Bearer ")
    }

    /// A header with this secret as its value, behind `prefix` (may be empty).
    pub fn secret_header(self, secret: &'a Secret, name: &str, prefix: &str) -> Self {
        self.auth(secret, Place::Header(Header { name: name.to_owned(), value: prefix.to_owned() }))
    }

    /// Basic authentication with this secret as password.
    pub fn basic(self, user: &str, secret: &'a Secret) -> Self {
        self.auth(secret, Place::Basic(user.to_owned()))
    }

    /// Puts this secret into the body wherever `placeholder` stands: 8 to 64 characters of `A-Z`, `0-9` and `_`. Escaped as
    /// JSON in JSON, as a form in a form. OAuth's `client_secret` goes this way.
    pub fn secret_in_body(self, secret: &'a Secret, placeholder: &str) -> Self {
        self.auth(secret, Place::Body(placeholder.to_owned()))
    }

    /// At most 4 secrets a request.
    fn auth(mut self, secret: &'a Secret, place: Place) -> Self {
        self.inner.auth.push(host::Auth { secret, place });
        self
    }

    /// Turns a string of the JSON answer into a secret ([`Response::captured_secret`]), bound to the host that answers. The
    /// plugin sees `[secret]` in its place. `pointer` is a JSON pointer (RFC 6901): `/access_token`.
    pub fn capture(self, pointer: &str) -> Self {
        self.capture_for(pointer, &[])
    }

    /// Like [`capture`](Self::capture), bound to these hosts, each within the plugin's `allow_hosts`.
    pub fn capture_for(mut self, pointer: &str, hosts: &[&str]) -> Self {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        self.inner.capture.push(host::Capture { pointer: pointer.to_owned(), hosts });
        self
    }

    /// Sends it and reads the whole answer, after at most 5 redirects. Any status is an answer.
    pub fn send(self) -> Result<Response, HttpError> {
        match self.problem {
            Some(problem) => Err(HttpError::Invalid(problem)),
            None => host::send(&self.inner),
        }
    }

    /// Sends it, and turns every status but 2xx into an error.
    pub fn fetch(self) -> Result<Response, Error> {
        Ok(self.send()?.success()?)
    }
}

/// `base` with segments behind it, each percent-encoded: `url("https://x/api", &["repos", "a b"])` is
/// `https://x/api/repos/a%20b`. A segment never leaves its place, whatever it holds; `.` and `..`, which no name may be, become `_`.
pub fn url(base: &str, segments: &[&str]) -> String {
    let mut url = base.trim_end_matches('/').to_owned();
    for segment in segments {
        url.push('/');
        match *segment {
            // Everything that normalises URLs, the host too, resolves these even when they are encoded.
            "." | ".." => url.push('_'),
            other => url.push_str(&component(other)),
        }
    }
    url
}

/// `url` with parameters behind it, percent-encoded.
pub fn query(url: &str, parameters: &[(&str, &str)]) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{}", pairs(parameters))
}

/// Percent-encodes all but letters, digits, `-`, `.`, `_` and `~`.
pub fn component(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

fn pairs(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(&component(name));
        text.push('=');
        text.push_str(&component(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_stay_in_their_place() {
        assert_eq!(url("https://x/api/", &["repos", "a b", "c/d?e#f"]), "https://x/api/repos/a%20b/c%2Fd%3Fe%23f");
        assert_eq!(url("https://x", &["..", ".", "..."]), "https://x/_/_/...");
        assert_eq!(url("https://x", &[]), "https://x");
    }

    #[test]
    fn parameters_are_encoded_and_joined() {
        assert_eq!(query("https://x/y", &[("a", "1&2"), ("é", "=")]), "https://x/y?a=1%262&%C3%A9=%3D");
        assert_eq!(query("https://x/y?z=0", &[("a", "1")]), "https://x/y?z=0&a=1");
    }

    #[test]
    fn bodies_carry_their_type() {
        let form = Request::post("https://x").form(&[("grant_type", "code"), ("secret", "CLIENT_SECRET")]);
        assert_eq!(form.inner.body.as_deref(), Some(b"grant_type=code&secret=CLIENT_SECRET".as_slice()));
        assert_eq!(form.inner.headers[0].value, "application/x-www-form-urlencoded");
        let json = Request::put("https://x").json(&serde_json::json!({"a": [1]})).header("accept", "*/*");
        assert_eq!(json.inner.body.as_deref(), Some(br#"{"a":[1]}"#.as_slice()));
        assert_eq!(json.inner.headers.len(), 2);
    }

    #[test]
    fn what_is_no_json_is_told_when_sent() {
        let odd = std::collections::BTreeMap::from([(vec![1], 2)]);
        let error = Request::post("https://x").json(&odd).send().expect_err("keys are strings");
        assert!(matches!(error, HttpError::Invalid(text) if text.contains("JSON")));
    }
}
