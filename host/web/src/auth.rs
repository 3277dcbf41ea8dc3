//! API tokens: random text shown once to its owner; the database keeps its SHA-256.

use sha2::{Digest, Sha256};

/// What the database stores of an API token: SHA-256 of the text. Tokens are random and long, so no salt is needed.
pub fn api_token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
