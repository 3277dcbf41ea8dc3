//! Writes: claiming and publishing paths, and healing what was lost.

use std::collections::BTreeMap;

use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{AttemptId, ClaimToken, EvalId, JobId};
use harmonia_nix::store_path::StorePath;

use super::rows::{PathRow, RawColumns, RawRow, strings};
use crate::connection::{Db, hash};
use crate::error::{DbError, parse};
use crate::queue::size;

/// A path whose object is in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPath {
    /// The path.
    pub path: StorePath,
    /// `sha256:<nix base32>` of the NAR.
    pub nar_hash: String,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// `sha256:<nix base32>` of the compressed NAR.
    pub file_hash: String,
    /// Size of the compressed NAR in bytes.
    pub file_size: u64,
    /// What it refers to.
    pub references: Vec<StorePath>,
    /// Content address, in Nix's text form.
    pub ca: Option<String>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
}

/// The rows that count from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// One for each path: ours, or the one that was there first.
    pub rows: Vec<PathRow>,
    /// Paths whose content differs from what was there first.
    pub divergent: Vec<StorePath>,
    /// References that are in no cache, for which nothing was claimed.
    pub missing: Vec<StorePath>,
}

/// A job ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// How many jobs became ready by it.
    pub readied: u64,
}

/// A job whose outputs are claimed and that nobody has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedPublication {
    /// The job.
    pub job: JobId,
    /// The attempt that holds it.
    pub attempt: AttemptId,
    /// Its derivation.
    pub drv_path: StorePath,
    /// The rows of all its outputs.
    pub rows: Vec<PathRow>,
}

/// What came of a path found gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healed {
    /// Its job is pending again (or was on its way already).
    Rebuilding,
    /// Lost too often within the hour: its job is an infrastructure failure.
    LimitReached,
    /// No job makes it; what waits for it is an infrastructure failure, which the next evaluation tries again.
    NoProducer,
    /// It was not published (any more).
    NotPublished,
}

/// What goes with a claim of outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alongside {
    /// Must be published, or in an upstream cache, or nothing is claimed.
    pub references: Vec<StorePath>,
    /// The attempt's log, compressed, when it is too small for an object of its own.
    pub log: Option<Vec<u8>>,
    /// Listings by path, likewise.
    pub listings: BTreeMap<StorePath, String>,
}

/// Columns for `unnest`.
struct Columns {
    paths: Vec<String>,
    nar_hashes: Vec<String>,
    nar_sizes: Vec<i64>,
    file_hashes: Vec<String>,
    file_sizes: Vec<i64>,
    references: Vec<String>,
    cas: Vec<Option<String>>,
    derivers: Vec<Option<String>>,
}

impl Columns {
    fn of(paths: &[NewPath]) -> Self {
        Self {
            paths: paths.iter().map(|p| p.path.to_string()).collect(),
            nar_hashes: paths.iter().map(|p| p.nar_hash.clone()).collect(),
            nar_sizes: paths.iter().map(|p| size(p.nar_size)).collect(),
            file_hashes: paths.iter().map(|p| p.file_hash.clone()).collect(),
            file_sizes: paths.iter().map(|p| size(p.file_size)).collect(),
            references: paths
                .iter()
                .map(|p| p.references.iter().map(StorePath::as_str).collect::<Vec<_>>().join(" "))
                .collect(),
            cas: paths.iter().map(|p| p.ca.clone()).collect(),
            derivers: paths.iter().map(|p| p.deriver.as_ref().map(ToString::to_string)).collect(),
        }
    }
}

/// A path that somebody could not get out of our cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingPath {
    /// The path.
    pub path: StorePath,
    /// It is there, and its bytes are not what its narinfo says.
    pub damaged: bool,
}

impl Db {
    /// Keeps the sweep away from these paths' objects for a day.
    pub async fn renew_leases(&self, paths: &[StorePath]) -> Result<(), DbError> {
        let paths = strings(paths);
        self.run("renew leases", || sqlx::query!("SELECT renew_leases($1)", &paths).execute(&self.pool))
            .await
            .map(|_| ())
    }

    /// Claims all outputs of an attempt in one transaction; the first writer of a path wins. Refused unless `outputs` are
    /// exactly the derivation's. Nothing is claimed while references are missing. From here on the job is finished by signers, whatever happens to the builder.
    pub async fn claim_outputs(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        outputs: &[NewPath],
        along: &Alongside,
    ) -> Result<Claimed, DbError> {
        let columns = Columns::of(outputs);
        let listing = |path: &NewPath| along.listings.get(&path.path).map(|listing| listing.clone().into_bytes());
        let references = strings(&along.references);
        let listings: Vec<Option<Vec<u8>>> = outputs.iter().map(listing).collect();
        let found = self
            .run("claim outputs", || {
                sqlx::query!(
                    r#"SELECT path AS "path!", nar_hash, nar_size, file_hash, file_size, refs, ca, deriver, producing_attempt, generation,
                           state, public, differs
                       FROM claim_outputs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"#,
                    attempt.0,
                    hash(token),
                    &columns.paths,
                    &columns.nar_hashes,
                    &columns.nar_sizes,
                    &columns.file_hashes,
                    &columns.file_sizes,
                    &columns.references,
                    &columns.cas as &[Option<String>],
                    &columns.derivers as &[Option<String>],
                    along.log.as_deref(),
                    &listings as &[Option<Vec<u8>>],
                    &references,
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let (mut rows, mut divergent, mut missing) = (Vec::with_capacity(found.len()), Vec::new(), Vec::new());
        for row in found {
            let differs = row.differs == Some(true);
            let raw = RawRow::of(RawColumns {
                path: Some(row.path.clone()),
                nar_hash: row.nar_hash,
                nar_size: row.nar_size,
                file_hash: row.file_hash,
                file_size: row.file_size,
                refs: row.refs,
                ca: row.ca,
                deriver: row.deriver,
                producing_attempt: row.producing_attempt,
                generation: row.generation,
                state: row.state,
                public: row.public,
            });
            let Some(raw) = raw else {
                missing.push(parse("store path", &row.path)?);
                continue;
            };
            let parsed = raw.parse()?;
            if differs {
                divergent.push(parsed.path.clone());
            }
            rows.push(parsed);
        }
        Ok(Claimed { rows, divergent, missing })
    }

    /// Keeps a small log of an attempt that is held.
    pub async fn keep_log(&self, attempt: AttemptId, token: &ClaimToken, log: &[u8]) -> Result<(), DbError> {
        self.run("keep a log", || {
            sqlx::query!("SELECT keep_log($1, $2, $3)", attempt.0, hash(token), log).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// What is kept here under a key of the bucket, since it is small.
    pub async fn small_object(&self, key: &str) -> Result<Option<Vec<u8>>, DbError> {
        self.run("read a small object", || {
            sqlx::query_scalar!("SELECT bytes FROM small_objects WHERE key = $1", key).fetch_optional(&self.pool)
        })
        .await
    }

    /// The log of the newest attempt at a derivation that ended with one, when that is small.
    pub async fn latest_small_log(&self, drv_path: &StorePath) -> Result<Option<Vec<u8>>, DbError> {
        self.run("read a small log", || {
            sqlx::query_scalar!(
                "SELECT s.bytes FROM build_jobs j
                 CROSS JOIN LATERAL (SELECT a.log_key FROM build_attempts a
                     WHERE a.job_id = j.id AND a.outcome IN ('succeeded', 'failed', 'transient') ORDER BY a.id DESC LIMIT 1) a
                 JOIN small_objects s ON s.key = a.log_key
                 WHERE j.drv_path = $1",
                drv_path.as_str()
            )
            .fetch_optional(&self.pool)
        })
        .await
    }

    /// Claims an evaluation's sources; the first writer of a path wins.
    pub async fn claim_paths(
        &self,
        eval: EvalId,
        token: &ClaimToken,
        paths: &[NewPath],
    ) -> Result<Vec<PathRow>, DbError> {
        self.claim_side_paths(Some(eval), None, token, paths).await
    }

    /// Claims paths that an attempt's outputs refer to and that no cache has.
    pub async fn claim_extra_paths(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        paths: &[NewPath],
    ) -> Result<Vec<PathRow>, DbError> {
        self.claim_side_paths(None, Some(attempt), token, paths).await
    }

    async fn claim_side_paths(
        &self,
        eval: Option<EvalId>,
        attempt: Option<AttemptId>,
        token: &ClaimToken,
        paths: &[NewPath],
    ) -> Result<Vec<PathRow>, DbError> {
        let columns = Columns::of(paths);
        self.run("claim paths", || {
            sqlx::query!(
                "SELECT claim_side_paths($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                eval.map(|id| id.0),
                attempt.map(|id| id.0),
                hash(token),
                &columns.paths,
                &columns.nar_hashes,
                &columns.nar_sizes,
                &columns.file_hashes,
                &columns.file_sizes,
                &columns.references,
                &columns.cas as &[Option<String>],
                &columns.derivers as &[Option<String>],
            )
            .execute(&self.pool)
        })
        .await?;
        let paths: Vec<StorePath> = paths.iter().map(|path| path.path.clone()).collect();
        self.path_rows(&paths).await
    }

    /// Ends a job whose outputs are claimed: rows published, attempt and job succeeded, dependents readied and their
    /// builders told; one transaction. Idempotent; needs no token, so that any signer finishes what another began.
    pub async fn publish_outputs(
        &self,
        job: JobId,
        outputs: &[StorePath],
        usage: &AttemptUsage,
        log_key: Option<&str>,
    ) -> Result<Finished, DbError> {
        let paths = strings(outputs);
        let readied = self
            .run("publish outputs", || {
                sqlx::query_scalar!(
                    r#"SELECT publish_outputs($1, $2, $3, $4, $5, $6, $7) AS "readied!""#,
                    job.0,
                    &paths,
                    log_key,
                    usage.build_seconds,
                    usage.cpu_seconds,
                    usage.peak_memory_bytes.map(size),
                    size(usage.output_bytes)
                )
                .fetch_one(&self.pool)
            })
            .await?;
        Ok(Finished { readied: readied as u64 })
    }

    /// Publishes claimed paths that are no job's outputs (sources, paths found on the side).
    pub async fn publish_paths(&self, paths: &[StorePath]) -> Result<(), DbError> {
        let paths = strings(paths);
        self.run("publish paths", || sqlx::query_scalar!("SELECT publish_paths($1)", &paths).fetch_one(&self.pool))
            .await
            .map(|_| ())
    }

    /// Jobs that a signer left between claiming and publishing, oldest first.
    pub async fn unfinished_publications(&self, limit: u32) -> Result<Vec<UnfinishedPublication>, DbError> {
        let rows = self
            .run("look for unfinished publications", || {
                sqlx::query!(
                    r#"SELECT job_id AS "job!", attempt_id AS "attempt!", drv_path AS "drv_path!"
                       FROM unfinished_publications($1)"#,
                    i32::try_from(limit).unwrap_or(i32::MAX)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let mut unfinished = Vec::with_capacity(rows.len());
        for row in rows {
            let drv_path: StorePath = parse("derivation", &row.drv_path)?;
            let outputs = self.derivation_outputs(std::slice::from_ref(&drv_path)).await?;
            let paths: Vec<StorePath> = outputs.into_iter().filter_map(|(_, _, path)| path).collect();
            let rows = self.path_rows(&paths).await?;
            unfinished.push(UnfinishedPublication {
                job: JobId(row.job),
                attempt: AttemptId(row.attempt),
                drv_path,
                rows,
            });
        }
        Ok(unfinished)
    }

    /// Paths that builders found in no cache, or damaged in ours, oldest report first: for a signer to look at.
    pub async fn missing_paths(&self, limit: u32) -> Result<Vec<MissingPath>, DbError> {
        let rows = self
            .run("list missing paths", || {
                sqlx::query!(
                    "SELECT path, damaged FROM missing_path_reports ORDER BY reported_at LIMIT $1",
                    i64::from(limit)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let missing = |path: &str, damaged| Ok(MissingPath { path: parse("store path", path)?, damaged });
        rows.into_iter().map(|row| missing(&row.path, row.damaged)).collect()
    }

    /// A reader met a narinfo that is none: signers look at its path.
    pub async fn report_damaged_narinfo(&self, hash_part: &str) -> Result<(), DbError> {
        self.run("report a damaged narinfo", || {
            sqlx::query!("SELECT report_damaged_narinfo($1)", hash_part).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// A signer saw that the path's object is gone: it is lost, and the job that makes it is pending again.
    pub async fn confirm_lost_path(&self, path: &StorePath) -> Result<Healed, DbError> {
        let outcome = self
            .run("heal a lost path", || {
                sqlx::query_scalar!(r#"SELECT confirm_lost_path($1) AS "outcome!""#, path.as_str())
                    .fetch_one(&self.pool)
            })
            .await?;
        Ok(match outcome.as_str() {
            "healed" => Healed::Rebuilding,
            "limit" => Healed::LimitReached,
            "no-producer" => Healed::NoProducer,
            _ => Healed::NotPublished,
        })
    }

    /// A signer saw that the object of a claimed row is gone before anybody published it: the row is lost, and what waited to
    /// be finished with it is built again, but for `completing`. `false`: the row is not claimed any more.
    pub async fn give_up_claimed_path(&self, path: &StorePath, completing: Option<AttemptId>) -> Result<bool, DbError> {
        self.run("give up a claimed path", || {
            sqlx::query_scalar!(
                r#"SELECT give_up_claimed_path($1, $2) AS "was_claimed!""#,
                path.as_str(),
                completing.map(|attempt| attempt.0)
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// A signer saw that the path's object is there after all.
    pub async fn dismiss_missing_path(&self, path: &StorePath) -> Result<(), DbError> {
        self.run("dismiss a missing path", || {
            sqlx::query!("SELECT dismiss_missing_path($1)", path.as_str()).execute(&self.pool)
        })
        .await
        .map(|_| ())
    }
}
