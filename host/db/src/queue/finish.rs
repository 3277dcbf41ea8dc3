//! What happens to a claim: uploading, failed, released, voided; and the tails of running logs. Success is in `paths`.

use harmonia_core::limits::LOG_TAIL_BYTES;
use harmonia_core::signer_api::{AttemptUsage, Failure};
use harmonia_core::{AttemptId, ClaimToken, NodeId, Timestamp};
use harmonia_nix::store_path::StorePath;

use crate::connection::{Db, hash};
use crate::error::DbError;
use crate::paths::CanonicalPath;

/// What became of a failed attempt's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailOutcome {
    /// Transient: pending again.
    Retried {
        /// Not claimable before.
        not_before: Timestamp,
    },
    /// Failed.
    Failed {
        /// How many pending jobs that depend on it are dep-failed now.
        dependents: u64,
    },
}

/// The end of a running build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTail {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its token.
    pub token: ClaimToken,
    /// Offset of the first byte of `bytes` in the whole log.
    pub start_offset: u64,
    /// At most [`LOG_TAIL_BYTES`]; more is cut at the front.
    pub bytes: Vec<u8>,
}

impl Db {
    /// The build is done and its outputs travel: the job no longer takes a build slot.
    pub async fn attempt_uploading(&self, attempt: AttemptId, token: &ClaimToken) -> Result<(), DbError> {
        self.run("mark an attempt uploading", || {
            sqlx::query!("SELECT attempt_uploading($1, $2)", attempt.0, hash(token)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Ends an attempt as failed. Transient failures (no kind) are tried again as the retry policy says, then they are
    /// infrastructure failures. Refused once the outputs were accepted.
    pub async fn fail_attempt(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        failure: &Failure,
        usage: &AttemptUsage,
        log_key: Option<&str>,
    ) -> Result<FailOutcome, DbError> {
        let jitter: f64 = rand::random_range(0.0..1.0);
        let delays_ms: Vec<i64> =
            self.retry.delays(jitter).into_iter().map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)).collect();
        let row = self
            .run("fail an attempt", || {
                sqlx::query!(
                    r#"SELECT retry_at, dependents AS "dependents!"
                       FROM fail_attempt($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"#,
                    attempt.0,
                    hash(token),
                    failure.kind.map(harmonia_core::FailureKind::as_str),
                    text(&failure.message),
                    failure.exit_code,
                    log_key,
                    usage.build_seconds,
                    usage.cpu_seconds,
                    usage.peak_memory_bytes.map(size),
                    size(usage.output_bytes),
                    &delays_ms
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(match row.retry_at {
            Some(not_before) => FailOutcome::Retried { not_before },
            None => FailOutcome::Failed { dependents: row.dependents as u64 },
        })
    }

    /// Aborted (shutdown, drain): pending again, nothing counted. When the outputs were accepted already, the job stays
    /// for a signer to finish.
    pub async fn release_attempt(&self, attempt: AttemptId, token: &ClaimToken, reason: &str) -> Result<(), DbError> {
        self.run("release an attempt", || {
            sqlx::query!("SELECT release_attempt($1, $2, $3)", attempt.0, hash(token), text(reason)).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Which of these are no longer held (cancelled, reaped, ended): their work must stop.
    pub async fn void_claims(&self, held: &[(AttemptId, ClaimToken)]) -> Result<Vec<AttemptId>, DbError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let attempts: Vec<i64> = held.iter().map(|(attempt, _)| attempt.0).collect();
        let hashes: Vec<Vec<u8>> = held.iter().map(|(_, token)| hash(token)).collect();
        let ids = self
            .run("check claims", || {
                sqlx::query_scalar!(r#"SELECT a AS "id!" FROM void_claims($1, $2) AS a"#, &attempts, &hashes)
                    .fetch_all(&self.pool)
            })
            .await?;
        Ok(ids.into_iter().map(AttemptId).collect())
    }

    /// Stores the tails of a node's running logs: one statement and one notification, however many. Tails of attempts
    /// that are no longer held are dropped.
    pub async fn write_log_tails(&self, node: &NodeId, tails: &[LogTail]) -> Result<(), DbError> {
        if tails.is_empty() {
            return Ok(());
        }
        let attempts: Vec<i64> = tails.iter().map(|tail| tail.attempt.0).collect();
        let hashes: Vec<Vec<u8>> = tails.iter().map(|tail| hash(&tail.token)).collect();
        let (mut offsets, mut bytes) = (Vec::with_capacity(tails.len()), Vec::with_capacity(tails.len()));
        for tail in tails {
            let cut = tail.bytes.len().saturating_sub(LOG_TAIL_BYTES);
            offsets.push(size(tail.start_offset + cut as u64));
            bytes.push(tail.bytes[cut..].to_vec());
        }
        self.run("write log tails", || {
            sqlx::query!("SELECT write_log_tails($1, $2, $3, $4, $5)", node.0, &attempts, &hashes, &offsets, &bytes)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Healing: this attempt found an input in no cache, or `damaged` in ours. A signer looks at it (`missing_paths`, then
    /// `confirm_lost_path` or `dismiss_missing_path`). The attempt goes on to hold its job: end it as a transient failure.
    pub async fn report_missing_path(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        path: &StorePath,
        damaged: bool,
    ) -> Result<(), DbError> {
        self.run("report a missing path", || {
            sqlx::query!("SELECT report_missing_path($1, $2, $3, $4)", attempt.0, hash(token), path.as_str(), damaged)
                .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// What the cache says these paths are, for those that are published: to check local copies against.
    pub async fn canonical_paths(&self, paths: &[StorePath]) -> Result<Vec<CanonicalPath>, DbError> {
        let wanted: Vec<String> = paths.iter().map(ToString::to_string).collect();
        let rows = self
            .run("read canonical hashes", || {
                sqlx::query!(
                    "SELECT path, nar_hash, nar_size FROM store_paths WHERE path = ANY ($1) AND state = 'published'",
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(CanonicalPath {
                    path: crate::error::parse("store path", &row.path)?,
                    nar_hash: row.nar_hash,
                    nar_size: row.nar_size as u64,
                })
            })
            .collect()
    }
}

/// PostgreSQL's text cannot hold NUL, and what a build printed may.
pub(crate) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Sizes are `bigint` in the database.
pub(crate) fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
