//! API tokens: stored as SHA-256, shown once by whoever makes them.

use crate::connection::Db;
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
}
