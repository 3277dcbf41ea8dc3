//! Pull requests as last heard of, approvals of their heads, what forges said of permissions, and replies that we owe.

use std::time::Duration;

use harmonia_core::forge::{Permission, PullRequest};
use harmonia_core::{ProjectId, Timestamp};

use crate::connection::{Db, interval};
use crate::deliveries::DeliveryRowId;
use crate::error::DbError;
use crate::intake::number;
use crate::queue::text;

/// Most labels kept of a pull request.
const LABELS_MAX: usize = 50;

/// What is known of a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedPermission {
    /// The forge said so a short while ago, and nothing since told that permissions changed.
    Known(Permission),
    /// Ask the forge, then [`Db::remember_permission`] with this moment.
    Ask(Timestamp),
}

/// A pull request as last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPullRequest {
    /// As the forge described it.
    pub pull_request: PullRequest,
    /// Why it is not evaluated; `None`: it is, or was.
    pub waiting: Option<String>,
}

/// A head of a pull request that a delivery told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrivedHead {
    /// Full hash.
    pub commit: String,
    /// When that delivery arrived.
    pub arrived_at: Timestamp,
}

impl Db {
    /// Remembers a pull request and why it waits, unless something later is known. `seen`: the newest delivery that had
    /// arrived before the forge was asked. One whose head has an evaluation waits for nothing.
    pub async fn save_pull_request(
        &self,
        project: ProjectId,
        pull: &PullRequest,
        waiting: Option<&str>,
        seen: DeliveryRowId,
    ) -> Result<(), DbError> {
        let labels: Vec<String> = pull.labels.iter().take(LABELS_MAX).map(|label| text(label)).collect();
        self.run("remember a pull request", || {
            sqlx::query!(
                r#"WITH saved AS (INSERT INTO pull_requests AS p (project_id, number, title, author, head_commit, head_branch, head_ref,
                     base_branch, base_commit, is_open, is_draft, labels, waiting, as_of)
                 SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
                     CASE WHEN NOT EXISTS (SELECT FROM evaluations e
                         WHERE e.project_id = $1 AND e.pr_number = $2 AND e.pr_head_sha = $5 AND e.pr_base_branch = $8
                             AND e.superseded_by IS NULL AND e.closed_at IS NULL) THEN $13 END, $14
                 ON CONFLICT (project_id, number) DO UPDATE SET title = excluded.title, author = excluded.author,
                     head_commit = excluded.head_commit, head_branch = excluded.head_branch, head_ref = excluded.head_ref,
                     base_branch = excluded.base_branch, base_commit = excluded.base_commit, is_open = excluded.is_open,
                     is_draft = excluded.is_draft, labels = excluded.labels, waiting = excluded.waiting,
                     as_of = excluded.as_of, updated_at = now()
                 WHERE p.as_of <= excluded.as_of RETURNING waiting)
                 SELECT count(pg_notify('evaluations', '')) AS told FROM saved WHERE waiting IS NOT NULL"#,
                project.0,
                number(pull.number),
                text(&pull.title),
                text(&pull.author),
                text(&pull.head_commit),
                text(&pull.head_branch),
                text(&pull.head_ref),
                text(&pull.base_branch),
                text(&pull.base_commit),
                pull.is_open,
                pull.is_draft,
                &labels,
                waiting,
                seen.0,
            )
            .fetch_one(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// A pull request as last heard of.
    pub async fn pull_request(&self, project: ProjectId, pull: u64) -> Result<Option<SavedPullRequest>, DbError> {
        let row = self
            .run("look for a pull request", || {
                sqlx::query!(
                    "SELECT title, author, head_commit, head_branch, head_ref, base_branch, base_commit, is_open, is_draft,
                         labels, waiting
                     FROM pull_requests WHERE project_id = $1 AND number = $2",
                    project.0,
                    number(pull),
                )
                .fetch_optional(&self.pool)
            })
            .await?;
        Ok(row.map(|row| SavedPullRequest {
            pull_request: PullRequest {
                number: pull,
                title: row.title,
                author: row.author,
                is_open: row.is_open,
                is_draft: row.is_draft,
                labels: row.labels,
                head_commit: row.head_commit,
                head_branch: row.head_branch,
                head_repository: None,
                base_branch: row.base_branch,
                base_commit: row.base_commit,
                head_ref: row.head_ref,
            },
            waiting: row.waiting,
        }))
    }

    /// The head that deliveries before this one had told of.
    pub async fn head_before(
        &self,
        project: ProjectId,
        pull: u64,
        delivery: DeliveryRowId,
    ) -> Result<Option<ArrivedHead>, DbError> {
        self.run("look for a pull request's head", || {
            sqlx::query_as!(
                ArrivedHead,
                "SELECT head_commit AS commit, arrived_at FROM pull_request_heads
                 WHERE project_id = $1 AND number = $2 AND delivery_id < $3
                 ORDER BY delivery_id DESC LIMIT 1",
                project.0,
                number(pull),
                delivery.0,
            )
            .fetch_optional(&self.pool)
        })
        .await
    }

    /// Approves exactly this head. Once is enough: `false` when it was approved before.
    pub async fn approve_pull_request(
        &self,
        project: ProjectId,
        pull: u64,
        head: &str,
        by: &str,
        comment: &str,
    ) -> Result<bool, DbError> {
        self.run("approve a pull request", || {
            sqlx::query_scalar!(
                r#"WITH approved AS (
                       INSERT INTO pull_request_approvals (project_id, number, head_commit, approved_by, comment_id)
                       VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING head_commit
                   ), audit AS (
                       INSERT INTO audit_log (actor, action, subject, detail)
                       SELECT $4, 'approve', 'pull request ' || $2::bigint || ' of ' || p.name,
                           jsonb_build_object('head', a.head_commit, 'comment', $5::text)
                       FROM approved a JOIN projects p ON p.id = $1
                   ) SELECT EXISTS (SELECT FROM approved) AS "new!""#,
                project.0,
                number(pull),
                text(head),
                text(by),
                text(comment),
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// Whether this delivery is the one that brought a comment's command first. A comment that is delivered again, under
    /// another id, must not approve what its author never saw.
    pub async fn is_first_of_comment(
        &self,
        project: ProjectId,
        comment: &str,
        delivery: DeliveryRowId,
    ) -> Result<bool, DbError> {
        self.run("note a comment's command", || {
            sqlx::query_scalar!(
                r#"INSERT INTO pull_request_commands AS c (project_id, comment_id, delivery_id) VALUES ($1, $2, $3)
                   ON CONFLICT (project_id, comment_id) DO UPDATE SET delivery_id = least(c.delivery_id, excluded.delivery_id)
                   RETURNING delivery_id = $3 AS "is_first!""#,
                project.0,
                text(comment),
                delivery.0,
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// Whether somebody approved exactly this head.
    pub async fn is_approved(&self, project: ProjectId, pull: u64, head: &str) -> Result<bool, DbError> {
        self.run("look for an approval", || {
            sqlx::query_scalar!(
                r#"SELECT EXISTS (SELECT FROM pull_request_approvals
                       WHERE project_id = $1 AND number = $2 AND head_commit = $3) AS "is_approved!""#,
                project.0,
                number(pull),
                text(head),
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// What the forge said of a user within `lifetime`, unless a delivery that came since told that permissions changed.
    pub async fn known_permission(
        &self,
        repository: i64,
        user: &str,
        lifetime: Duration,
    ) -> Result<AskedPermission, DbError> {
        let row = self
            .run("look for a permission", || {
                sqlx::query!(
                    r#"SELECT now() AS "now!", (
                           SELECT f.permission FROM forge_permissions f JOIN repositories r ON r.id = f.repository_id
                           WHERE f.repository_id = $1 AND f.user_login = lower($2) AND f.asked_at > now() - $3::interval
                               AND NOT EXISTS (SELECT FROM webhook_deliveries d
                                   WHERE d.forge = r.forge AND d.received_at >= f.asked_at
                                       AND jsonb_path_exists(d.events, '$[*]."permissions-changed"'))) AS permission"#,
                    repository,
                    text(user),
                    interval(lifetime),
                )
                .fetch_one(&self.pool)
            })
            .await?;
        match row.permission {
            None => Ok(AskedPermission::Ask(row.now)),
            Some(name) => [Permission::None, Permission::Read, Permission::Write, Permission::Admin]
                .into_iter()
                .find(|permission| permission_name(*permission) == name)
                .map(AskedPermission::Known)
                .ok_or_else(|| DbError::Corrupt { what: ["permission ", &name].concat() }),
        }
    }

    /// Remembers what the forge said of a user; `asked_at` from [`AskedPermission::Ask`], so that a change that was told of
    /// while the forge answered is not overlooked.
    pub async fn remember_permission(
        &self,
        repository: i64,
        user: &str,
        permission: Permission,
        asked_at: Timestamp,
    ) -> Result<(), DbError> {
        self.run("remember a permission", || {
            sqlx::query!(
                "INSERT INTO forge_permissions AS f (repository_id, user_login, permission, asked_at)
                 VALUES ($1, lower($2), $3, $4)
                 ON CONFLICT (repository_id, user_login) DO UPDATE SET permission = excluded.permission,
                     asked_at = excluded.asked_at
                 WHERE f.asked_at <= excluded.asked_at",
                repository,
                text(user),
                permission_name(permission),
                asked_at,
            )
            .execute(&self.pool)
        })
        .await
        .map(|_| ())
    }

    /// Owes a pull request a comment, once for each key. `false`: it was owed or written before.
    pub async fn owe_comment(&self, repository: i64, pull: u64, key: &str, body: &str) -> Result<bool, DbError> {
        // Told to those who send comments, who listen to evaluations.
        self.run("owe a comment", || {
            sqlx::query_scalar!(
                r#"WITH owed AS (
                       INSERT INTO forge_comments (repository_id, number, key, body) VALUES ($1, $2, $3, $4)
                       ON CONFLICT DO NOTHING RETURNING id
                   ) SELECT count(pg_notify('evaluations', '')) > 0 AS "new!" FROM owed"#,
                repository,
                number(pull),
                text(key),
                text(body),
            )
            .fetch_one(&self.pool)
        })
        .await
    }
}

const fn permission_name(permission: Permission) -> &'static str {
    match permission {
        Permission::None => "none",
        Permission::Read => "read",
        Permission::Write => "write",
        Permission::Admin => "admin",
    }
}
