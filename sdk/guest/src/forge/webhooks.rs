//! Incoming webhooks: bytes to events. Start reading at [`Webhooks`].
//!
//! Keep the thinking in a function over bytes that `cargo test` runs natively; the trait only verifies and hands on:
//!
//! ```
//! # use harmonia_plugin::forge::{Error, Webhooks, webhooks::{Delivery, Event, Request}};
//! # struct MyForge;
//! # fn my_events(_: &[u8]) -> Result<Vec<Event>, Error> { Ok(Vec::new()) }
//! impl Webhooks for MyForge {
//!     fn parse(request: Request) -> Result<Delivery, Error> {
//!         request.verify_hmac_sha256("webhook", "x-my-signature", "sha256=")?;
//!         let id = request.required_header("x-my-delivery")?.to_owned();
//!         Ok(Delivery { id, events: my_events(&request.body)? })
//!     }
//! }
//! ```

use serde::de::DeserializeOwned;

use super::Error;
use crate::bindings::{Adapter, webhooks};
use crate::panic::install_hook;
use crate::{encoding, secrets};

pub use webhooks::exports::harmonia::forge::webhooks::{
    Comment, CommentAction, Delivery, Event, Header, MergeGroup, PullRequestAction, PullRequestEvent, Push, Reference,
    Request, Rerun,
};

/// Interface `webhooks`.
pub trait Webhooks {
    /// Verifies a delivery over its raw bytes and normalises it: [`Error::Denied`] for a missing or wrong signature, no
    /// events for what concerns nobody. Called while the forge waits: `http` answers `denied`.
    fn parse(request: Request) -> Result<Delivery, Error>;
}

impl<T: Webhooks> webhooks::exports::harmonia::forge::webhooks::Guest for Adapter<T> {
    fn parse(request: Request) -> Result<Delivery, Error> {
        install_hook();
        T::parse(request)
    }
}

impl Request {
    /// The first header field of this name, compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
    }

    /// Like [`header`](Self::header), for one that has to be there.
    pub fn required_header(&self, name: &str) -> Result<&str, Error> {
        self.header(name).ok_or_else(|| Error::Invalid(format!("the delivery has no header `{name}`")))
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// Whether the header `name` holds the HMAC-SHA256 of the raw body under the secret `secret`, as hexadecimal behind
    /// `prefix` (`sha256=`, or nothing). [`Error::Denied`] when it does not, or is missing.
    pub fn verify_hmac_sha256(&self, secret: &str, name: &str, prefix: &str) -> Result<(), Error> {
        let mac = self.signature(name, prefix)?;
        if secrets::open(secret)?.verify_hmac_sha256(&self.body, &mac) {
            Ok(())
        } else {
            Err(Error::Denied(format!("the signature in `{name}` is not one by the secret `{secret}`")))
        }
    }

    fn signature(&self, name: &str, prefix: &str) -> Result<Vec<u8>, Error> {
        let value =
            self.header(name).ok_or_else(|| Error::Denied(format!("the delivery has no signature (`{name}`)")))?;
        let digits = value.trim().strip_prefix(prefix);
        digits.and_then(encoding::from_hex).ok_or_else(|| {
            Error::Denied(format!("`{name}` is no signature: expected `{prefix}` and hexadecimal digits"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let headers =
            headers.iter().map(|&(name, value)| Header { name: name.to_owned(), value: value.to_owned() }).collect();
        Request { headers, body: b"{\"a\":1}".to_vec() }
    }

    #[test]
    fn a_missing_or_odd_signature_is_denied() {
        let signature = |value| request(&[("x-sig", value)]).signature("X-Sig", "sha256=");
        assert_eq!(signature("sha256=00ff"), Ok(vec![0, 0xff]));
        for odd in ["00ff", "sha1=00ff", "sha256=0", "sha256=zz", ""] {
            assert!(matches!(signature(odd), Err(Error::Denied(_))), "{odd}");
        }
        assert!(matches!(request(&[]).signature("x-sig", ""), Err(Error::Denied(_))));
    }

    #[test]
    fn headers_and_body() {
        let request = request(&[("x-a", "1"), ("x-a", "2")]);
        assert_eq!(request.required_header("X-A"), Ok("1"));
        assert!(matches!(request.required_header("x-b"), Err(Error::Invalid(_))));
        assert_eq!(request.json(), Ok(std::collections::BTreeMap::from([("a".to_owned(), 1)])));
    }
}
