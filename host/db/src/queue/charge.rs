//! The books of the scheduling policy: which seconds were built for whom, each booked once, and how they fade. Start at
//! [`Db::uncharged_attempts`], [`Db::book_charges`]; then [`Db::decay_due`], [`Db::book_decay`].
//!
//! The caller reads, asks the policy, and books what it says; a booking holds only when everything still is as it was read.

use harmonia_core::policy::ProjectLoad;
use harmonia_core::{AttemptId, ProjectId, Timestamp};

use crate::connection::Db;
use crate::error::DbError;

/// An attempt with seconds that may not be charged yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnchargedAttempt {
    /// The attempt.
    pub attempt: AttemptId,
    /// Who pays.
    pub project: ProjectId,
    /// Seconds charged so far.
    pub charged_seconds: f64,
    /// Seconds from its claim until it uploaded or ended, or until now.
    pub elapsed_seconds: f64,
    /// No further seconds will come.
    pub ended: bool,
}

impl UnchargedAttempt {
    /// Seconds to charge.
    pub fn seconds(&self) -> f64 {
        (self.elapsed_seconds - self.charged_seconds).max(0.0)
    }
}

/// What the consumption of a project becomes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Booking {
    /// The project.
    pub project: ProjectId,
    /// As it was read.
    pub consumed_seconds: f64,
    /// As it shall be: finite, not negative.
    pub becomes_seconds: f64,
}

/// A decay to book.
#[derive(Debug, Clone, PartialEq)]
pub struct DecayDue {
    /// When consumption last decayed.
    pub decayed_at: Timestamp,
    /// Seconds since then.
    pub seconds: f64,
    /// Projects that consumed anything, with what.
    pub consumed: Vec<(ProjectId, f64)>,
}

impl Db {
    /// Up to `limit` attempts with an id above `after` that run or ended, and are not charged to their end, by id.
    pub async fn uncharged_attempts(&self, after: AttemptId, limit: u32) -> Result<Vec<UnchargedAttempt>, DbError> {
        let rows = self
            .run("read uncharged attempts", || {
                sqlx::query!(
                    r#"SELECT attempt_id AS "attempt!", project_id AS "project!", charged_seconds AS "charged!",
                           elapsed_seconds AS "elapsed!", ended AS "ended!" FROM uncharged_attempts($1, $2)"#,
                    after.0,
                    i32::try_from(limit).unwrap_or(i32::MAX)
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| UnchargedAttempt {
                attempt: AttemptId(row.attempt),
                project: ProjectId(row.project),
                charged_seconds: row.charged,
                elapsed_seconds: row.elapsed,
                ended: row.ended,
            })
            .collect())
    }

    /// What a policy may know of these projects.
    pub async fn project_loads(&self, projects: &[ProjectId]) -> Result<Vec<ProjectLoad>, DbError> {
        let projects: Vec<i64> = projects.iter().map(|project| project.0).collect();
        let rows = self
            .run("look at project loads", || {
                sqlx::query!(
                    r#"SELECT project_id AS "project!", shares AS "shares!", consumed_seconds AS "consumed!",
                           running AS "running!" FROM project_loads($1)"#,
                    &projects
                )
                .fetch_all(&self.pool)
            })
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| ProjectLoad {
                project: ProjectId(row.project),
                shares: row.shares as u32,
                consumed_seconds: row.consumed,
                running: row.running as u32,
            })
            .collect())
    }

    /// Charges these attempts up to their elapsed seconds, and books what that makes of the projects, in one transaction.
    /// `false`, and nothing booked, when an attempt or a project is not as it was read: read again.
    pub async fn book_charges(&self, attempts: &[UnchargedAttempt], bookings: &[Booking]) -> Result<bool, DbError> {
        let ids: Vec<i64> = attempts.iter().map(|attempt| attempt.attempt.0).collect();
        let charged: Vec<f64> = attempts.iter().map(|attempt| attempt.charged_seconds).collect();
        let elapsed: Vec<f64> = attempts.iter().map(|attempt| attempt.elapsed_seconds).collect();
        let ended: Vec<bool> = attempts.iter().map(|attempt| attempt.ended).collect();
        let (projects, consumed, becomes) = columns(bookings);
        self.run("book build seconds", || {
            sqlx::query_scalar!(
                r#"SELECT charge_attempts($1, $2, $3, $4, $5, $6, $7) AS "booked!""#,
                &ids,
                &charged,
                &elapsed,
                &ended,
                &projects,
                &consumed,
                &becomes
            )
            .fetch_one(&self.pool)
        })
        .await
    }

    /// What has to decay.
    pub async fn decay_due(&self) -> Result<DecayDue, DbError> {
        let row = self
            .run("look when consumption last decayed", || {
                sqlx::query!(
                    r#"SELECT decayed_at AS "decayed_at!", seconds AS "seconds!", projects AS "projects!",
                           consumed AS "consumed!" FROM decay_due()"#
                )
                .fetch_one(&self.pool)
            })
            .await?;
        let consumed = row.projects.into_iter().map(ProjectId).zip(row.consumed).collect();
        Ok(DecayDue { decayed_at: row.decayed_at, seconds: row.seconds, consumed })
    }

    /// Books a decay over the seconds of `due`. `false`, and nothing booked, when somebody else did, or a project is not as
    /// it was read.
    pub async fn book_decay(&self, due: &DecayDue, bookings: &[Booking]) -> Result<bool, DbError> {
        let (projects, consumed, becomes) = columns(bookings);
        self.run("book the decay of consumption", || {
            sqlx::query_scalar!(
                r#"SELECT decay_projects($1, $2, $3, $4, $5) AS "booked!""#,
                due.decayed_at,
                due.seconds,
                &projects,
                &consumed,
                &becomes
            )
            .fetch_one(&self.pool)
        })
        .await
    }
}

fn columns(bookings: &[Booking]) -> (Vec<i64>, Vec<f64>, Vec<f64>) {
    (
        bookings.iter().map(|booking| booking.project.0).collect(),
        bookings.iter().map(|booking| booking.consumed_seconds).collect(),
        bookings.iter().map(|booking| booking.becomes_seconds).collect(),
    )
}
