//! Why an evaluation does not go on: what it waits for itself, and its jobs that wait for no other job. Start at
//! [`Db::view_waits`].

use harmonia_core::api::EvaluationWaits;
use harmonia_core::{EvalId, EvalStatus, JobId, Timestamp};

use super::{count, state};
use crate::connection::interval;
use crate::{Db, DbError};

/// Most jobs in one answer: the first of them tell what the others wait for.
const JOBS_MAX: u32 = 50;

/// An evaluator, as far as queued evaluations care.
#[derive(Debug, Clone, Default)]
struct Evaluator {
    id: String,
    online: bool,
    draining: bool,
    max: u64,
    running: u64,
}

impl Db {
    /// What an evaluation waits for now, and at most `limit` (and never more than 50) of its jobs that wait for no other job;
    /// `None` when there is no such evaluation that this viewer may see.
    pub async fn view_waits(&self, id: EvalId, limit: u32, now: Timestamp) -> Result<Option<EvaluationWaits>, DbError> {
        let row = sqlx::query!(
            r#"SELECT e.status, coalesce(e.not_before > now(), false) AS "put_off!", e.wait_reason,
                      (SELECT count(*) FROM evaluations o WHERE o.status || '' = 'queued' AND o.id < e.id
                          AND (o.not_before IS NULL OR o.not_before <= now())) AS "ahead!"
               FROM evaluations e JOIN projects p ON p.id = e.project_id WHERE e.id = $1 AND (p.is_public OR $2)"#,
            id.0,
            self.sees_all(),
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("read what an evaluation waits for", error))?;
        let Some(row) = row else { return Ok(None) };
        let mut waits = EvaluationWaits::default();
        if state::<EvalStatus>(&row.status)? == EvalStatus::Queued {
            let put_off = row.wait_reason.filter(|_| row.put_off);
            waits.evaluation = match put_off {
                Some(reason) => vec![reason],
                None => queued(&self.evaluators().await?, count(row.ahead)),
            };
        }
        waits.jobs = self.waiting_below(id, i64::from(limit.min(JOBS_MAX))).await?;
        let ids: Vec<JobId> = waits.jobs.iter().map(|job| job.id).collect();
        let mut why = self.why(&ids, now).await?;
        for job in &mut waits.jobs {
            job.why = why.remove(&job.id).unwrap_or_default();
        }
        Ok(Some(waits))
    }

    async fn evaluators(&self) -> Result<Vec<Evaluator>, DbError> {
        let rows = sqlx::query!(
            r#"SELECT n.id, n.last_seen > now() - $1::interval AS "online!", n.draining, n.max_evals,
                      (SELECT count(*) FROM evaluations e WHERE e.status || '' = 'running' AND e.claimed_by = n.id) AS "running!"
               FROM nodes n WHERE 'evaluator' = ANY (n.capabilities) AND NOT n.stopped ORDER BY n.id"#,
            interval(super::why::SILENT_AFTER),
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| DbError::from_sqlx("list evaluators", error))?;
        Ok(rows
            .into_iter()
            .map(|row| Evaluator {
                id: row.id,
                online: row.online,
                draining: row.draining,
                max: u64::try_from(row.max_evals).unwrap_or(0),
                running: count(row.running),
            })
            .collect())
    }
}

/// Why an evaluation that may be taken is still queued, the decisive reason first.
fn queued(evaluators: &[Evaluator], ahead: u64) -> Vec<String> {
    let online: Vec<&Evaluator> = evaluators.iter().filter(|node| node.online).collect();
    if online.is_empty() {
        let known: Vec<&str> = evaluators.iter().map(|node| node.id.as_str()).collect();
        return vec![if known.is_empty() {
            "no node is an evaluator".to_owned()
        } else {
            format!("no evaluator is online (known: {})", known.join(", "))
        }];
    }
    if online.iter().any(|node| !node.draining && node.running < node.max) {
        return vec!["the next evaluator with a free slot takes it".to_owned()];
    }
    let mut reasons: Vec<String> = online
        .iter()
        .map(|node| {
            if node.draining {
                format!("{} is draining and takes no new work", node.id)
            } else {
                format!("{} is full ({} of {} evaluations)", node.id, node.running, node.max)
            }
        })
        .collect();
    match ahead {
        0 => {}
        1 => reasons.push("1 older evaluation is queued".to_owned()),
        ahead => reasons.push(format!("{ahead} older evaluations are queued")),
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_evaluation_says_who_could_take_it() {
        let free = Evaluator { id: "a".into(), online: true, draining: false, max: 2, running: 1 };
        let full = Evaluator { running: 2, ..free.clone() };
        let away = Evaluator { online: false, ..free.clone() };
        let draining = Evaluator { id: "b".into(), draining: true, ..free.clone() };
        let cases: [(&[Evaluator], u64, &str); 5] = [
            (&[], 3, "no node is an evaluator"),
            (std::slice::from_ref(&away), 0, "no evaluator is online (known: a)"),
            (&[full.clone(), free], 0, "the next evaluator with a free slot takes it"),
            (
                &[full.clone(), draining],
                1,
                "a is full (2 of 2 evaluations); b is draining and takes no new work; 1 older evaluation is queued",
            ),
            (&[full, away.clone()], 12, "a is full (2 of 2 evaluations); 12 older evaluations are queued"),
        ];
        for (evaluators, ahead, expected) in cases {
            assert_eq!(queued(evaluators, ahead).join("; "), expected);
        }
    }
}
