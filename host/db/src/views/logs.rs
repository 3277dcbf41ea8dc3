//! What live logs follow: the newest attempt of each watched job and the end of its log. Start at [`Db::log_states`].

use harmonia_core::{AttemptId, JobId, JobStatus};
use harmonia_nix::StorePath;

use super::state;
use crate::error::parse;
use crate::{Db, DbError};

/// What a follower has seen of one job: [`Db::log_states`] answers only where something is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogMark {
    job: JobId,
    status: &'static str,
    public: bool,
    attempt: i64,
    outcome: String,
    end_offset: i64,
}

impl LogMark {
    /// Nothing seen yet.
    pub fn unread(job: JobId) -> Self {
        Self { job, status: "", public: false, attempt: 0, outcome: String::new(), end_offset: -1 }
    }
}

/// A job and its newest attempt, as far as its log is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// The job.
    pub job: JobId,
    /// Its state.
    pub status: JobStatus,
    /// Whether everybody may see it now.
    pub public: bool,
    /// Its derivation: stored logs are named after it.
    pub drv_path: StorePath,
    /// The newest try; `None` when nobody ever tried.
    pub attempt: Option<LogAttempt>,
    /// The end of that try's log, as long as the database keeps it.
    pub tail: Option<LogTailView>,
}

/// One try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogAttempt {
    /// Its id.
    pub id: AttemptId,
    /// Whether it goes on.
    pub is_running: bool,
    /// Object key of its stored log.
    pub log_key: Option<String>,
    outcome: String,
}

/// The last bytes of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTailView {
    /// Where they begin in the whole log.
    pub start_offset: u64,
    /// They.
    pub bytes: Vec<u8>,
}

impl LogState {
    /// What has been seen with this.
    pub fn mark(&self) -> LogMark {
        LogMark {
            job: self.job,
            status: self.status.as_str(),
            public: self.public,
            attempt: self.attempt.as_ref().map_or(0, |attempt| attempt.id.0),
            outcome: self.attempt.as_ref().map_or_else(String::new, |attempt| attempt.outcome.clone()),
            end_offset: self.tail.as_ref().map_or(-1, |tail| (tail.start_offset + tail.bytes.len() as u64) as i64),
        }
    }
}

impl Db {
    /// The states of those jobs of which more is known than their mark says. Jobs that do not exist, or that are not for
    /// this viewer, are left out.
    pub async fn log_states(&self, marks: &[LogMark]) -> Result<Vec<LogState>, DbError> {
        let jobs: Vec<i64> = marks.iter().map(|mark| mark.job.0).collect();
        let statuses: Vec<String> = marks.iter().map(|mark| mark.status.to_owned()).collect();
        let public: Vec<bool> = marks.iter().map(|mark| mark.public).collect();
        let attempts: Vec<i64> = marks.iter().map(|mark| mark.attempt).collect();
        let outcomes: Vec<String> = marks.iter().map(|mark| mark.outcome.clone()).collect();
        let ends: Vec<i64> = marks.iter().map(|mark| mark.end_offset).collect();
        let rows = sqlx::query!(
            r#"SELECT j.id, j.status, j.drv_path, d.public,
                      a.id AS "attempt?", a.outcome AS "outcome?", a.log_key AS "log_key?",
                      t.start_offset AS "start_offset?", t.bytes AS "bytes?"
               FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $7::boolean[])
                    AS seen (job, status, attempt, outcome, end_offset, public)
               JOIN build_jobs j ON j.id = seen.job
               JOIN derivations d ON d.drv_path = j.drv_path
               LEFT JOIN LATERAL (
                   SELECT b.id, b.outcome, b.log_key FROM build_attempts b WHERE b.job_id = j.id ORDER BY b.id DESC LIMIT 1
               ) a ON true
               LEFT JOIN build_log_tails t ON t.attempt_id = a.id
               WHERE (d.public OR $6)
                 AND (j.status <> seen.status OR d.public <> seen.public OR coalesce(a.id, 0) <> seen.attempt OR coalesce(a.outcome, '') <> seen.outcome
                      OR coalesce(t.start_offset + length(t.bytes), -1) > seen.end_offset)"#,
            &jobs,
            &statuses,
            &attempts,
            &outcomes,
            &ends,
            self.sees_all(),
            &public,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read the state of logs", error))?;
        rows.into_iter()
            .map(|row| {
                let attempt = row.attempt.zip(row.outcome).map(|(id, outcome)| LogAttempt {
                    id: AttemptId(id),
                    is_running: outcome == "running",
                    log_key: row.log_key,
                    outcome,
                });
                let tail = row
                    .start_offset
                    .zip(row.bytes)
                    .map(|(start, bytes)| LogTailView { start_offset: super::count(start), bytes });
                let drv_path = parse("derivation path", &row.drv_path)?;
                let status = state(&row.status)?;
                Ok(LogState { job: JobId(row.id), status, public: row.public, drv_path, attempt, tail })
            })
            .collect()
    }
}
