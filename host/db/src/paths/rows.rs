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

/// An input of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInput {
    /// Which output of which derivation it is; `None`: a path asked for.
    pub output: Option<(StorePath, String)>,
    /// Where it is, when that is known.
    pub path: Option<StorePath>,
    /// `sha256:<nix base32>` of what the cache published there; `None`: nothing.
    pub nar_hash: Option<String>,
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

/// What a signer has to know when an attempt's outputs are uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadScope {
    /// What the token allows.
    pub scope: AttemptScope,
    /// The rows of the paths asked for, as far as there are any, sorted by path.
    pub rows: Vec<PathRow>,
    /// Which of the references asked for are neither published nor in an upstream cache.
    pub missing: Vec<StorePath>,
}

/// A row of `store_paths` as it comes.
pub(super) struct RawRow {
    pub(super) path: String,
    pub(super) nar_hash: String,
    pub(super) nar_size: i64,
    pub(super) file_hash: String,
    pub(super) file_size: i64,
    pub(super) refs: Vec<String>,
    pub(super) ca: Option<String>,
    pub(super) deriver: Option<String>,
    pub(super) producing_attempt: Option<i64>,
    pub(super) generation: i32,
    pub(super) state: String,
    pub(super) public: bool,
}

/// The same of a statement that may have none.
pub(super) struct RawColumns {
    pub(super) path: Option<String>,
    pub(super) nar_hash: Option<String>,
    pub(super) nar_size: Option<i64>,
    pub(super) file_hash: Option<String>,
    pub(super) file_size: Option<i64>,
    pub(super) refs: Option<Vec<String>>,
    pub(super) ca: Option<String>,
    pub(super) deriver: Option<String>,
    pub(super) producing_attempt: Option<i64>,
    pub(super) generation: Option<i32>,
    pub(super) state: Option<String>,
    pub(super) public: Option<bool>,
}

impl RawRow {
    /// `None`: there is no row.
    pub(super) fn of(columns: RawColumns) -> Option<Self> {
        Some(Self {
            path: columns.path?,
            nar_hash: columns.nar_hash?,
            nar_size: columns.nar_size?,
            file_hash: columns.file_hash?,
            file_size: columns.file_size?,
            refs: columns.refs?,
            ca: columns.ca,
            deriver: columns.deriver,
            producing_attempt: columns.producing_attempt,
            generation: columns.generation?,
            state: columns.state?,
            public: columns.public?,
        })
    }

    pub(super) fn parse(self) -> Result<PathRow, DbError> {
        Ok(PathRow {
            path: parse("store path", &self.path)?,
            nar_hash: self.nar_hash,
            nar_size: self.nar_size as u64,
            file_hash: self.file_hash,
            file_size: self.file_size as u64,
            references: parse_all(&self.refs)?,
            ca: self.ca,
            deriver: self.deriver.map(|path| parse("deriver", &path)).transpose()?,
            producing_attempt: self.producing_attempt.map(AttemptId),
            generation: self.generation as u32,
            state: match self.state.as_str() {
                "claimed" => PathState::Claimed,
                "published" => PathState::Published,
                "lost" => PathState::Lost,
                other => return Err(DbError::Corrupt { what: ["state of a path '", other, "'"].concat() }),
            },
            public: self.public,
        })
    }
}

impl Db {
    /// What this token allows, or [`DbError::StaleClaim`].
    pub async fn attempt_scope(&self, attempt: AttemptId, token: &ClaimToken) -> Result<AttemptScope, DbError> {
        self.upload_scope(attempt, token, &[], &[], false).await.map(|found| found.scope)
    }

    /// What this token allows, or [`DbError::StaleClaim`]; with what is known of `paths`, and which of `references` are in no
    /// cache. `uploading`: the job no longer takes a build slot, as [`Db::attempt_uploading`].
    pub async fn upload_scope(
        &self,
        attempt: AttemptId,
        token: &ClaimToken,
        paths: &[StorePath],
        references: &[StorePath],
        uploading: bool,
    ) -> Result<UploadScope, DbError> {
        let (paths, references) = (strings(paths), strings(references));
        let found = self
            .run("check a claim", || {
                sqlx::query!(
                    r#"SELECT j.id, j.drv_path, d.public AS drv_public,
                           ARRAY(SELECT o.output_name FROM derivation_outputs o WHERE o.drv_path = j.drv_path
                               ORDER BY o.output_name) AS "output_names!",
                           ARRAY(SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = j.drv_path
                               ORDER BY o.output_name) AS "output_paths!: Vec<Option<String>>",
                           ARRAY(SELECT w.path FROM unnest($5::text[]) AS w(path)
                               WHERE NOT EXISTS (SELECT FROM store_paths p WHERE p.path = w.path AND p.state = 'published')
                                   AND NOT EXISTS (SELECT FROM upstream_paths u WHERE u.path = w.path AND u.present
                                       AND u.expires_at > now())) AS "missing!",
                           s.path AS "path?", s.nar_hash AS "nar_hash?", s.nar_size AS "nar_size?", s.file_hash AS "file_hash?",
                           s.file_size AS "file_size?", s.refs AS "refs?", s.ca AS "ca?", s.deriver AS "deriver?",
                           s.producing_attempt AS "producing_attempt?", s.generation AS "generation?", s.state AS "state?",
                           s.public AS "public?"
                       FROM upload_job($1, $2, $3) AS u(job)
                       JOIN build_jobs j ON j.id = u.job JOIN derivations d ON d.drv_path = j.drv_path
                       LEFT JOIN store_paths s ON s.path = ANY ($4)
                       ORDER BY s.path"#,
                    attempt.0,
                    hash(token),
                    uploading,
                    &paths,
                    &references
                )
                .fetch_all(&self.pool)
            })
            .await?;
        let Some(first) = found.first() else { return Err(DbError::StaleClaim) };
        let mut outputs = BTreeMap::new();
        for (name, path) in first.output_names.iter().zip(&first.output_paths) {
            let path = path.as_ref().map(|path| parse("output path", path)).transpose()?;
            outputs.insert(name.clone(), path);
        }
        let scope = AttemptScope {
            job: JobId(first.id),
            drv_path: parse("derivation", &first.drv_path)?,
            outputs,
            drv_public: first.drv_public,
        };
        let missing = parse_all(&first.missing)?;
        // Without any such path there is one row, of nulls.
        let raw = found.into_iter().filter_map(|row| {
            RawRow::of(RawColumns {
                path: row.path,
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
            })
        });
        Ok(UploadScope { scope, rows: raw.map(RawRow::parse).collect::<Result<_, _>>()?, missing })
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
                sqlx::query_as!(
                    RawRow,
                    "SELECT path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver, producing_attempt,
                         generation, state, public
                     FROM store_paths WHERE path = ANY ($1) ORDER BY path",
                    &wanted
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter().map(RawRow::parse).collect()
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

    /// Every output of these derivations that is known, and `paths`, each with what the cache published under it: what a build
    /// needs to know of its inputs.
    pub async fn build_inputs(&self, drvs: &[StorePath], paths: &[StorePath]) -> Result<Vec<BuildInput>, DbError> {
        let (drvs, paths) = (strings(drvs), strings(paths));
        let rows = self
            .run("read a build's inputs", || {
                sqlx::query!(
                    r#"SELECT o.drv_path AS "drv_path?", o.output_name AS "output_name?", o.output_path AS "path?",
                           s.nar_hash AS "nar_hash?"
                       FROM derivation_outputs o LEFT JOIN store_paths s ON s.path = o.output_path AND s.state = 'published'
                       WHERE o.drv_path = ANY ($1)
                       UNION ALL
                       SELECT NULL, NULL, w.path, s.nar_hash
                       FROM unnest($2::text[]) AS w(path)
                       LEFT JOIN store_paths s ON s.path = w.path AND s.state = 'published'"#,
                    &drvs,
                    &paths
                )
                .fetch_all(&self.pool)
            })
            .await?;
        rows.into_iter()
            .map(|row| {
                let drv_path = row.drv_path.map(|path| parse("derivation", &path)).transpose()?;
                Ok(BuildInput {
                    output: drv_path.zip(row.output_name),
                    path: row.path.map(|path| parse("store path", &path)).transpose()?,
                    nar_hash: row.nar_hash,
                })
            })
            .collect()
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
