//! Reads: scopes of tokens, rows of paths, derivations and their outputs.

use std::collections::BTreeMap;

use harmonia_core::{AttemptId, ClaimToken, EvalId, JobId, ProjectId};
use harmonia_nix::store_path::StorePath;

use crate::connection::{Db, hash};
use crate::error::{DbError, parse};

/// What an attempt's token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptScope {
    /// The job.
    pub job: JobId,
    /// Its derivation.
    pub drv_path: StorePath,
    /// Output name → path; nothing else may be uploaded.
    pub outputs: BTreeMap<String, Option<StorePath>>,
    /// Whether a public project reaches it.
    pub drv_public: bool,
}

/// What an evaluation's token belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluationScope {
    /// The evaluation.
    pub eval: EvalId,
    /// Its project.
    pub project: ProjectId,
}

/// Where a path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Its objects are there and its row is fixed; not signed yet.
    Claimed,
    /// Signed and served.
    Published,
    /// Its object was found gone.
    Lost,
}

/// A row of `store_paths`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRow {
    /// The path.
    pub path: StorePath,
    /// `sha256:<nix base32>` of the NAR.
    pub nar_hash: String,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// `sha256:<nix base32>` of the compressed NAR; names the object.
    pub file_hash: String,
    /// Size of the compressed NAR in bytes.
    pub file_size: u64,
    /// What it refers to.
    pub references: Vec<StorePath>,
    /// Content address, in Nix's text form.
    pub ca: Option<String>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// The attempt that made it; `None` for sources and paths found on the side.
    pub producing_attempt: Option<AttemptId>,
    /// Counts losses: within a generation nothing above changes.
    pub generation: u32,
    /// Where it stands.
    pub state: PathState,
    /// Whether a public project reaches it.
    pub public: bool,
}

/// What a published path's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath {
    /// The path.
    pub path: StorePath,
    /// `sha256:<nix base32>` of the NAR.
    pub nar_hash: String,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
}

impl Db {
    /// What this token allows, or [`DbError::StaleClaim`].
    pub async fn attempt_scope(&self, attempt: AttemptId, token: &ClaimToken) -> Result<AttemptScope, DbError> {
        let row = self
            .run("check a claim", || {
                sqlx::query!(
                    r#"SELECT j.id, j.drv_path, d.public FROM build_jobs j JOIN derivations d USING (drv_path)
                       WHERE j.id = attempt_job($1, $2)"#,
                    attempt.0,
                    hash(token)
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let drv_path: StorePath = parse("derivation", &row.drv_path)?;
        let outputs = self.derivation_outputs(std::slice::from_ref(&drv_path)).await?;
        Ok(AttemptScope {
            job: JobId(row.id),
            drv_path,
            outputs: outputs.into_iter().map(|(_, name, path)| (name, path)).collect(),
            drv_public: row.public,
        })
    }

    /// What this token belongs to, or [`DbError::StaleClaim`].
    pub async fn evaluation_scope(&self, eval: EvalId, token: &ClaimToken) -> Result<EvaluationScope, DbError> {
        let project = self
            .run("check a claim", || {
                sqlx::query_scalar!(
                    "SELECT project_id FROM evaluations WHERE id = $1 AND evaluation_held($1, $2)",
                    eval.0,
                    hash(token)
                )
                .fetch_optional(&self.pool)
            })
            .await?
            .ok_or(DbError::StaleClaim)?;
        Ok(EvaluationScope { eval, project: ProjectId(project) })
    }

    /// The rows of these paths, as far as there are any, sorted by path.
    pub async fn path_rows(&self, paths: &[StorePath]) -> Result<Vec<PathRow>, DbError> {
        let wanted = strings(paths);
        let rows = self
            .run("read store paths", || {
                sqlx::query!(
                    "SELECT path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver, producing_attempt,
                         generation, state, public
                     FROM store_paths WHERE path = ANY ($1) ORDER BY path",
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(PathRow {
                    path: parse("store path", &row.path)?,
                    nar_hash: row.nar_hash,
                    nar_size: row.nar_size as u64,
                    file_hash: row.file_hash,
                    file_size: row.file_size as u64,
                    references: parse_all(&row.refs)?,
                    ca: row.ca,
                    deriver: row.deriver.map(|path| parse("deriver", &path)).transpose()?,
                    producing_attempt: row.producing_attempt.map(AttemptId),
                    generation: row.generation as u32,
                    state: match row.state.as_str() {
                        "claimed" => PathState::Claimed,
                        "published" => PathState::Published,
                        "lost" => PathState::Lost,
                        other => return Err(DbError::Corrupt { what: ["state of a path '", other, "'"].concat() }),
                    },
                    public: row.public,
                })
            })
            .collect()
    }

    /// Which of these paths are neither published nor, as far as an answer has not expired, in an upstream cache.
    pub async fn unavailable_references(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, DbError> {
        let wanted = strings(paths);
        let missing = self
            .run("check references", || {
                sqlx::query_scalar!(
                    r#"SELECT w.path AS "path!" FROM unnest($1::text[]) AS w(path)
                       WHERE NOT EXISTS (SELECT FROM store_paths s WHERE s.path = w.path AND s.state = 'published')
                           AND NOT EXISTS (SELECT FROM upstream_paths u WHERE u.path = w.path AND u.present
                               AND u.expires_at > now())"#,
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        parse_all(&missing)
    }

    /// (derivation, output name, path) of every output of these derivations that is known.
    pub async fn derivation_outputs(
        &self,
        drvs: &[StorePath],
    ) -> Result<Vec<(StorePath, String, Option<StorePath>)>, DbError> {
        let wanted = strings(drvs);
        let rows = self
            .run("read derivation outputs", || {
                sqlx::query!(
                    "SELECT drv_path, output_name, output_path FROM derivation_outputs
                     WHERE drv_path = ANY ($1) ORDER BY drv_path, output_name",
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                let path = row.output_path.map(|path| parse("output path", &path)).transpose()?;
                Ok((parse("derivation", &row.drv_path)?, row.output_name, path))
            })
            .collect()
    }
}

/// Full paths, as arguments.
pub(crate) fn strings(paths: &[StorePath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

pub(crate) fn parse_all(paths: &[String]) -> Result<Vec<StorePath>, DbError> {
    paths.iter().map(|path| parse("store path", path)).collect()
}
