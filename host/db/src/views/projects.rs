//! Projects with their newest evaluation.

use std::collections::HashMap;

use harmonia_core::EvalId;
use harmonia_core::api::{Evaluation, Project};
use harmonia_nix::StorePath;

use crate::{Db, DbError};

/// Most projects on one page.
const PROJECTS_MAX: i64 = 500;

impl Db {
    /// Projects, those with the newest evaluation first.
    pub async fn view_projects(&self) -> Result<Vec<Project>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT p.name, p.kind, newest.id AS "newest?"
               FROM projects p
               LEFT JOIN LATERAL (
                   SELECT e.id FROM evaluations e WHERE e.project_id = p.id ORDER BY e.id DESC LIMIT 1
               ) newest ON true
               WHERE (p.is_public OR $2) AND p.enabled
               ORDER BY newest.id DESC NULLS LAST, p.name LIMIT $1"#,
            PROJECTS_MAX,
            self.sees_all(),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list projects", error))?;
        let ids: Vec<i64> = rows.iter().filter_map(|row| row.newest).collect();
        let mut newest: HashMap<EvalId, Evaluation> =
            self.evaluations_listed(&ids).await?.into_iter().map(|evaluation| (evaluation.id, evaluation)).collect();
        Ok(rows
            .into_iter()
            .map(|row| Project {
                name: row.name,
                kind: row.kind,
                last_evaluation: row.newest.and_then(|id| newest.remove(&EvalId(id))),
            })
            .collect())
    }

    /// Whether there is such a project and this viewer may see it.
    pub async fn is_project_visible(&self, name: &str) -> Result<bool, DbError> {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM projects WHERE name = $1 AND (is_public OR $2)) AS "exists!""#,
            name,
            self.sees_all()
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look for a project", error))
    }

    /// Whether everybody may see this derivation, its log and its file: a public project's evaluation reached it.
    pub async fn derivation_public(&self, drv: &StorePath) -> Result<bool, DbError> {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM derivations WHERE drv_path = $1 AND public) AS "exists!""#,
            drv.as_str()
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look who may see a derivation", error))
    }

    /// Whether everybody may see the archive with this key: a path that is public has it.
    pub async fn nar_public(&self, object_key: &str) -> Result<bool, DbError> {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM store_paths WHERE object_key = $1 AND public) AS "exists!""#,
            object_key
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("look who may see an archive", error))
    }
}
