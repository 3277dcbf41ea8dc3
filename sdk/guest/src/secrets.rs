//! Secrets, as handles: nothing here returns a secret's bytes. A secret is used by [`http`](crate::http), which puts it into
//! a request on the way out, or by its own methods: [`Secret::verify_hmac_sha256`], [`Secret::sign_rs256`],
//! [`Secret::derive_jwt_rs256`].
//!
//! A token that an answer holds becomes a secret by [`Request::capture`](crate::http::Request::capture), and stays for later
//! calls by [`Secret::keep`] and [`kept`]:
//!
//! ```no_run
//! # use harmonia_plugin::{forge::Error, http, secrets};
//! # fn token(url: &str) -> Result<secrets::Secret, Error> {
//! if let Some(token) = secrets::kept("token") {
//!     return Ok(token);
//! }
//! let app = secrets::open("app")?;
//! let mut answer = http::Request::post(url).bearer(&app).capture("/token").fetch()?;
//! let token = answer.captured_secret(0)?;
//! token.keep("token", 3_300)?;
//! # Ok(token)
//! # }
//! ```

pub use crate::bindings::imports::harmonia::plugin::secrets::{Secret, SecretError, kept, open};

impl SecretError {
    /// A sentence for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::NotGranted(text) | Self::Unusable(text) | Self::Limit(text) => text.clone(),
            Self::Expired => "a secret's time is over".to_owned(),
        }
    }
}
