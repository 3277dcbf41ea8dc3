//! What reporters have not been told yet. Start at [`notifications`].

use crate::api::Verdict;
use crate::clock::Timestamp;
use crate::ids::EvalId;
use crate::limits::ATTR_BYTES_MAX;
use crate::reporter::{Notification, NotificationKind, NotifiedFailure};
use crate::state::EvalStatus;

use super::describe::{cut, failure, headline, line};
use super::{CommitReport, EvaluationReport, StatusOptions, authoritative};

/// Most failures that a notification lists.
const FAILURES_LISTED_MAX: usize = 10;
/// Longest title and branch in a notification, in characters.
const TEXT_CHARS_MAX: usize = 200;

/// What reporters were told of an evaluation, or would have been, had there been any: one that is configured later
/// hears nothing of the past.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notified {
    /// How the evaluation ended; `true`: well.
    pub evaluation: Option<bool>,
    /// How its builds ended.
    pub builds: Option<bool>,
    /// How often its builds' end was told. A rebuild may change it.
    pub rounds: u32,
}

/// What is to be told of one evaluation, and what counts as told afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNotifications {
    /// The evaluation.
    pub evaluation: EvalId,
    /// From now on.
    pub notified: Notified,
    /// In this order.
    pub notifications: Vec<Notification>,
}

/// What changed since reporters were told last. Of evaluations that were replaced, closed or cancelled nothing is told.
pub fn notifications(report: &CommitReport, options: &StatusOptions) -> Vec<NewNotifications> {
    let mut changed = Vec::new();
    for evaluation in authoritative(report).into_iter().filter(|evaluation| evaluation.stands()) {
        let mut notified = evaluation.notified;
        let mut notifications = Vec::new();
        let ended = match evaluation.facts.status {
            EvalStatus::Succeeded => Some(true),
            EvalStatus::Failed => Some(false),
            // Nothing was evaluated: what it stands for was told of before.
            EvalStatus::Skipped | EvalStatus::Queued | EvalStatus::Running | EvalStatus::Cancelled => None,
        };
        if let Some(well) = ended.filter(|_| notified.evaluation.is_none()) {
            notified.evaluation = Some(well);
            let kind = if well { NotificationKind::EvaluationSucceeded } else { NotificationKind::EvaluationFailed };
            let key = format!("evaluation-{}", evaluation.id);
            notifications.push(notification(report, options, evaluation, kind, key));
        }
        let built = match evaluation.verdict() {
            Verdict::Succeeded => Some(true),
            Verdict::Failed if evaluation.has_attributes() => Some(false),
            Verdict::Failed | Verdict::Running | Verdict::Cancelled => None,
        };
        if let Some(well) = built.filter(|_| notified.builds != built) {
            notified.builds = built;
            notified.rounds += 1;
            let kind = if well { NotificationKind::BuildsSucceeded } else { NotificationKind::BuildsFailed };
            let key = format!("builds-{}-{}", evaluation.id, notified.rounds);
            notifications.push(notification(report, options, evaluation, kind, key));
        }
        if notified != evaluation.notified {
            changed.push(NewNotifications { evaluation: evaluation.id, notified, notifications });
        }
    }
    changed.sort_by_key(|new| new.evaluation);
    changed
}

fn notification(
    report: &CommitReport,
    options: &StatusOptions,
    evaluation: &EvaluationReport,
    kind: NotificationKind,
    key: String,
) -> Notification {
    let counts = &evaluation.facts.counts;
    let is_of_builds = matches!(kind, NotificationKind::BuildsSucceeded | NotificationKind::BuildsFailed);
    let url = options.evaluation_url(report, evaluation.id);
    let failures = if kind == NotificationKind::EvaluationFailed {
        let message = line(&headline(evaluation.error.as_deref().unwrap_or_default()));
        vec![NotifiedFailure { attr: String::new(), message, url: url.clone() }]
    } else if is_of_builds {
        let failed = evaluation.failed.iter().take(FAILURES_LISTED_MAX);
        failed
            .map(|attr| NotifiedFailure {
                attr: cut(&attr.attr, ATTR_BYTES_MAX),
                message: line(&failure(attr)),
                url: options.failure_url(report, evaluation, attr),
            })
            .collect()
    } else {
        Vec::new()
    };
    let at: Timestamp =
        if is_of_builds { evaluation.builds_finished_at.max(evaluation.finished_at) } else { evaluation.finished_at }
            .unwrap_or(evaluation.created_at);
    Notification {
        key,
        kind,
        project: report.project.clone(),
        branch: cut(&evaluation.branch, TEXT_CHARS_MAX),
        pull_request: evaluation.pull_request,
        commit: report.commit.clone(),
        title: cut(evaluation.title.as_deref().unwrap_or_default(), TEXT_CHARS_MAX),
        author: cut(evaluation.author.as_deref().unwrap_or_default(), TEXT_CHARS_MAX),
        url,
        succeeded: u32::try_from(counts.succeeded).unwrap_or(u32::MAX),
        failed: u32::try_from(counts.failed + counts.dep_failed + counts.eval_errors).unwrap_or(u32::MAX),
        failures,
        failed_before: evaluation.failed_before,
        at,
    }
}
