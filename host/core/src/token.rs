//! Claim tokens: the right to write the result of one attempt or one evaluation (fencing).
//!
//! A token is 32 random bytes, shown to its holder only. The database keeps its SHA-256, so that who can read the
//! tables still cannot act for another node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The secret that its holder shows with every call about what it claimed. 64 hexadecimal digits on the wire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimToken([u8; 32]);

/// SHA-256 of a [`ClaimToken`]: what the database stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// One run of a node's process. A node that registers with a new incarnation takes back what the older one held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub i64);

/// Text that is not a claim token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a claim token: expected 64 hexadecimal digits")]
pub struct ParseTokenError;

impl ClaimToken {
    /// A token from 32 bytes of a cryptographic random source.
    pub const fn from_random(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What the database stores of this token.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }

    /// The text form that its holder sends.
    pub fn to_hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimToken(…)")
    }
}

impl FromStr for ClaimToken {
    type Err = ParseTokenError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(ParseTokenError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or(ParseTokenError);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).map_err(|_| ParseTokenError)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for ClaimToken {
    type Error = ParseTokenError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClaimToken> for String {
    fn from(token: ClaimToken) -> Self {
        token.to_hex()
    }
}

/// What a node keeps for itself: its name belongs to whoever has it. The database stores its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeSecret(pub [u8; 32]);

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_wire_and_never_shows_in_debug() {
        let token = ClaimToken::from_random(std::array::from_fn(|i| u8::try_from(i * 7 % 256).expect("below 256")));
        assert_eq!(token.to_hex().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.to_hex()[..8]));
        assert_ne!(token.hash().0, token.0);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert_eq!(bad.parse::<ClaimToken>(), Err(ParseTokenError));
        }
    }
}
