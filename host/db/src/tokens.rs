//! Tokens: of the API, stored as SHA-256 and shown once by whoever makes them; and whether a claim token is one.

use harmonia_core::ClaimToken;

use crate::connection::{Db, hash};
use crate::error::DbError;

impl Db {
    /// Stores a token's hash under a name; the name's former token stops working.
    pub async fn create_api_token(&self, name: &str, hash: [u8; 32]) -> Result<(), DbError> {
        self.run("store an API token", || {
            sqlx::query!(
                "INSERT INTO api_tokens (name, token_hash) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET token_hash = excluded.token_hash, created_at = now(), expires_at = NULL",
                name,
                &hash[..]
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// The name of the unexpired token with this hash.
    pub async fn api_token_name(&self, hash: [u8; 32]) -> Result<Option<String>, DbError> {
        self.run("look up an API token", || {
            sqlx::query_scalar!(
                "SELECT name FROM api_tokens WHERE token_hash = $1 AND (expires_at IS NULL OR expires_at > now())",
                &hash[..]
            )
            .fetch_optional(&self.pool)
        })
        .await
    }

    /// Whether this token was ever given out for a claim, and whether that is still held. `None`: nobody ever had it.
    pub async fn claim_of(&self, token: &ClaimToken) -> Result<Option<ClaimState>, DbError> {
        let is_held = self
            .run("look up a claim token", || {
                sqlx::query_scalar!("SELECT claim_is_held($1)", hash(token)).fetch_one(&self.pool)
            })
            .await?;
        Ok(is_held.map(|is_held| if is_held { ClaimState::Held } else { ClaimState::Ended }))
    }
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimState {
    /// Its work goes on.
    Held,
    /// It was, once; its holder may ask for an answer again.
    Ended,
}
