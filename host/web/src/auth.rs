//! Tokens that requests carry: random text shown once to its owner; the database keeps its SHA-256. Start at [`Tokens`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::ClaimToken;
use harmonia_db::{ClaimState, Db, DbError};
use sha2::{Digest, Sha256};

/// How long a token that may read is believed without asking again: one build asks for thousands of paths.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// Most tokens that are believed at once.
const BELIEVED_MAX: usize = 10_000;

/// What the database stores of an API token: SHA-256 of the text. Tokens are random and long, so no salt is needed.
pub fn api_token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The token of `Authorization: Bearer TOKEN`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = authorization(headers)?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The token of a reader: as above, or as the password of basic authentication, which is all that Nix (netrc) and browsers
/// can send.
pub(crate) fn readers_token(headers: &HeaderMap) -> Option<String> {
    let (scheme, value) = authorization(headers)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return bearer(headers).map(str::to_owned);
    }
    let decoded = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (_, password) = decoded.split_once(':')?;
    (!password.is_empty()).then(|| password.to_owned())
}

fn authorization(headers: &HeaderMap) -> Option<(&str, &str)> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some((scheme, value.trim()))
}

/// Which tokens were good a moment ago.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<[u8; 32], Instant>>);

impl Tokens {
    /// Whether this is an API token, or the token of a claim that is held: builders and evaluators read what they work on.
    pub(crate) async fn may_read(&self, db: &Db, token: &str) -> Result<bool, DbError> {
        let hash = api_token_hash(token);
        if self.is_believed(&hash) {
            return Ok(true);
        }
        let is_good = db.api_token_name(hash).await?.is_some()
            || match token.parse::<ClaimToken>() {
                Ok(claim) => db.claim_of(&claim).await? == Some(ClaimState::Held),
                Err(_) => false,
            };
        if is_good {
            self.believe(hash);
        }
        Ok(is_good)
    }

    fn is_believed(&self, hash: &[u8; 32]) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(hash).is_some_and(|since| since.elapsed() < BELIEVED_FOR)
    }

    fn believe(&self, hash: [u8; 32]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= BELIEVED_MAX {
            known.retain(|_, since| since.elapsed() < BELIEVED_FOR);
        }
        if known.len() < BELIEVED_MAX {
            known.insert(hash, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("a value"))])
    }

    #[test]
    fn bearer_tokens() {
        assert_eq!(bearer(&with("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with("bearer  abc ")), Some("abc"));
        for bad in ["", "Bearer", "Bearer ", "Basic abc", "abc"] {
            assert_eq!(bearer(&with(bad)), None, "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn readers_tokens() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (value, token) in [
            ("Bearer abc".to_owned(), Some("abc")),
            (basic("anybody:abc"), Some("abc")),
            (basic(":abc"), Some("abc")),
            (basic("a:b:c"), Some("b:c")),
            (basic("anybody:"), None),
            (basic("anybody"), None),
            ("Basic !!!".to_owned(), None),
            ("Digest abc".to_owned(), None),
        ] {
            assert_eq!(readers_token(&with(&value)).as_deref(), token, "{value}");
        }
    }
}
