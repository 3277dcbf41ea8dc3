//! Git bundles sent by `eval PATH`: stored in chunks of at most 1 MiB, so that nobody holds a whole one.

use harmonia_core::limits::BUNDLE_BYTES_MAX;

use crate::connection::Db;
use crate::error::DbError;

/// Largest chunk in bytes.
pub(super) const CHUNK_BYTES_MAX: usize = 1 << 20;

impl Db {
    /// Begins a bundle; its id.
    pub async fn begin_bundle(&self) -> Result<i64, DbError> {
        self.run("begin a bundle", || {
            sqlx::query_scalar!("INSERT INTO bundles DEFAULT VALUES RETURNING id").fetch_one(&self.pool)
        })
        .await
    }

    /// Stores chunk number `seq` (from 0). Refused when empty, larger than 1 MiB, or beyond the largest bundle.
    pub async fn append_bundle(&self, bundle: i64, seq: u32, bytes: &[u8]) -> Result<(), DbError> {
        if bytes.is_empty() || bytes.len() > CHUNK_BYTES_MAX {
            return Err(DbError::Refused { reason: "a bundle's chunk has 1 byte to 1 MiB".to_owned() });
        }
        if u64::from(seq) > BUNDLE_BYTES_MAX {
            return Err(DbError::Refused { reason: "the bundle has too many chunks".to_owned() });
        }
        let stored = self
            .run("store a chunk of a bundle", || {
                sqlx::query!(
                    "INSERT INTO bundle_chunks (bundle_id, seq, bytes)
                     SELECT id, $2, $3 FROM bundles WHERE id = $1 AND size_bytes IS NULL",
                    bundle,
                    seq as i32,
                    bytes
                )
                .execute(&self.pool)
            })
            .await?;
        if stored.rows_affected() == 0 {
            return Err(DbError::NotFound { what: ["bundle ", &bundle.to_string(), " (unfinished)"].concat() });
        }
        Ok(())
    }

    /// Ends a bundle. Refused unless chunks 0, 1, … are all there and their sizes add up to `size_bytes`.
    pub async fn finish_bundle(&self, bundle: i64, size_bytes: u64, sha256: [u8; 32]) -> Result<(), DbError> {
        let done = self
            .run("finish a bundle", || {
                sqlx::query!(
                    "UPDATE bundles SET size_bytes = $2, sha256 = $3
                     WHERE id = $1 AND size_bytes IS NULL AND EXISTS (
                         SELECT FROM bundle_chunks WHERE bundle_id = $1
                         HAVING sum(length(bytes)) = $2 AND max(seq) + 1 = count(*))",
                    bundle,
                    crate::queue::size(size_bytes),
                    &sha256[..]
                )
                .execute(&self.pool)
            })
            .await?;
        if done.rows_affected() == 0 {
            return Err(DbError::Refused {
                reason: ["bundle ", &bundle.to_string(), " is not complete: send it again"].concat(),
            });
        }
        Ok(())
    }

    /// Chunk number `seq` of a complete bundle; `None` after the last one (and for a bundle that is gone).
    pub async fn read_bundle(&self, bundle: i64, seq: u32) -> Result<Option<Vec<u8>>, DbError> {
        self.run("read a bundle", || {
            sqlx::query_scalar!(
                "SELECT c.bytes FROM bundle_chunks c JOIN bundles b ON b.id = c.bundle_id
                 WHERE c.bundle_id = $1 AND c.seq = $2 AND b.size_bytes IS NOT NULL",
                bundle,
                seq as i32
            )
            .fetch_optional(&self.pool)
        })
        .await
    }

    /// Size and SHA-256 of a complete bundle.
    pub async fn bundle_digest(&self, bundle: i64) -> Result<Option<(u64, [u8; 32])>, DbError> {
        let row = self
            .run("read a bundle's hash", || {
                sqlx::query!(
                    r#"SELECT size_bytes AS "size!", sha256 AS "sha256!" FROM bundles WHERE id = $1 AND size_bytes IS NOT NULL"#,
                    bundle
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        Ok(row.and_then(|row| Some((row.size as u64, row.sha256.try_into().ok()?))))
    }

    /// Drops a bundle that was not sent to its end.
    pub async fn abandon_bundle(&self, bundle: i64) -> Result<(), DbError> {
        self.run("drop a bundle", || {
            sqlx::query!("DELETE FROM bundles WHERE id = $1 AND size_bytes IS NULL", bundle).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
