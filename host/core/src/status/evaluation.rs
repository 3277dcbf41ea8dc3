//! The two statuses of an evaluation: of itself, and of all its builds.

use std::fmt::Write as _;

use crate::api::{AttrState, Verdict};
use crate::forge::StatusState;
use crate::state::EvalStatus;

use super::describe::{attributes, ended_because, failure, headline, is_infrastructure, line, with_names};
use super::{AttrReport, DesiredStatus, EvaluationReport, ShownStatus, StatusContext, View, WaitingPullRequest};
use super::{annotations, summary};

impl View<'_> {
    /// `nix-eval`.
    pub(super) fn evaluation_status(&self, evaluation: &EvaluationReport) -> DesiredStatus {
        let (state, description) = evaluation_words(evaluation);
        let mut status = self.status(&StatusContext::Evaluation, state, &description);
        status.target_url = Some(self.options.evaluation_url(self.report, evaluation.id));
        status.started_at = evaluation.started_at;
        status.finished_at = evaluation.finished_at;
        match state {
            StatusState::Failure if evaluation.facts.status == EvalStatus::Failed => {
                let error = evaluation.error.as_deref().unwrap_or_default();
                status.summary = summary::error(error);
                status.annotations = annotations::of_error(error, evaluation.source_path.as_deref(), None);
            }
            StatusState::Failure => {
                let errors = || evaluation.failed.iter().filter(|attr| attr.state == AttrState::Error);
                status.summary = summary::failures(self, evaluation, errors(), evaluation.facts.counts.eval_errors);
                status.annotations = annotations::of_attributes(errors(), evaluation.source_path.as_deref());
            }
            StatusState::Success | StatusState::Pending | StatusState::Error => {}
        }
        status
    }

    /// `nix-build`; nothing while no attribute is known.
    pub(super) fn builds_status(&self, evaluation: &EvaluationReport) -> Option<DesiredStatus> {
        let counts = &evaluation.facts.counts;
        let verdict = evaluation.verdict();
        let is_evaluating = matches!(evaluation.facts.status, EvalStatus::Queued | EvalStatus::Running);
        if is_evaluating && counts.total == 0 {
            return None;
        }
        let (state, description) = match verdict {
            Verdict::Running => (StatusState::Pending, progress(evaluation, is_evaluating)),
            Verdict::Succeeded => (StatusState::Success, reused(evaluation, &succeeded(counts.total))),
            Verdict::Failed => failed(evaluation),
            Verdict::Cancelled => (StatusState::Error, stopped(evaluation)),
        };
        let mut status = self.status(&StatusContext::Builds, state, &description);
        let first = evaluation.failed.first();
        status.target_url = Some(match (state, first) {
            (StatusState::Failure | StatusState::Error, Some(first)) => {
                self.options.failure_url(self.report, evaluation, first)
            }
            _ => self.options.evaluation_url(self.report, evaluation.id),
        });
        status.started_at = evaluation.started_at;
        if state != StatusState::Pending {
            status.finished_at = evaluation.builds_finished_at.max(evaluation.finished_at);
        }
        if evaluation.has_attributes() || state == StatusState::Pending {
            let total = counts.failed + counts.dep_failed + counts.eval_errors;
            status.summary = summary::failures(self, evaluation, evaluation.failed.iter(), total);
        }
        Some(status)
    }

    /// `nix-build` of an evaluation that has not come so far, where the commit has such a status.
    pub(super) fn builds_to_come(&self, evaluation: &EvaluationReport) -> DesiredStatus {
        let mut status =
            self.status(&StatusContext::Builds, StatusState::Pending, "waits for the evaluation to find what to build");
        status.target_url = Some(self.options.evaluation_url(self.report, evaluation.id));
        status
    }

    /// `nix-eval` of a pull request that nobody may run yet.
    pub(super) fn waiting_status(&self, waiting: &WaitingPullRequest) -> DesiredStatus {
        let mut status = self.status(&StatusContext::Evaluation, StatusState::Pending, &waiting.reason);
        status.target_url = Some(format!("{}/ci/{}", self.options.public_url, self.report.project));
        status.summary = format!("Pull request {} waits: {}", waiting.number, line(&waiting.reason));
        status
    }

    /// A status that says "pending" and that nothing is going to end.
    pub(super) fn abandoned(&self, shown: &ShownStatus, last: Option<&EvaluationReport>) -> DesiredStatus {
        let reason = last.map_or_else(|| "nothing evaluates this commit any more".to_owned(), ended_because);
        let mut status = self.status(&StatusContext::Evaluation, StatusState::Error, &reason);
        status.context.clone_from(&shown.context);
        status.attr.clone_from(&shown.attr);
        status.target_url = last.map(|evaluation| self.options.evaluation_url(self.report, evaluation.id));
        status
    }
}

fn evaluation_words(evaluation: &EvaluationReport) -> (StatusState, String) {
    let facts = &evaluation.facts;
    let counts = &facts.counts;
    match facts.status {
        EvalStatus::Queued => {
            let why = evaluation.deferred.as_deref().map(|reason| format!("put off: {}", headline(reason)));
            (StatusState::Pending, why.unwrap_or_else(|| "waits for an evaluator".to_owned()))
        }
        EvalStatus::Running => (StatusState::Pending, "evaluating".to_owned()),
        EvalStatus::Failed => (StatusState::Failure, headline(evaluation.error.as_deref().unwrap_or_default())),
        EvalStatus::Cancelled => (StatusState::Error, ended_because(evaluation)),
        EvalStatus::Skipped if !facts.is_reuse => (StatusState::Error, ended_because(evaluation)),
        EvalStatus::Succeeded | EvalStatus::Skipped if counts.eval_errors > 0 => {
            let names = evaluation.failed.iter().filter(|attr| attr.state == AttrState::Error).map(|a| a.attr.as_str());
            let start = format!("{} of {} did not evaluate", counts.eval_errors, attributes(counts.total));
            (StatusState::Failure, with_names(&start, counts.eval_errors, names))
        }
        EvalStatus::Succeeded | EvalStatus::Skipped => {
            if !facts.complete {
                return (StatusState::Failure, INCOMPLETE.to_owned());
            }
            if counts.total == 0 && !facts.allow_empty {
                return (StatusState::Failure, EMPTY.to_owned());
            }
            (StatusState::Success, reused(evaluation, &attributes(counts.total)))
        }
    }
}

const INCOMPLETE: &str = "the evaluation is not complete";
const EMPTY: &str = "the evaluation found no attribute";

fn reused(evaluation: &EvaluationReport, text: &str) -> String {
    match (evaluation.reuses, evaluation.error.as_deref()) {
        (Some(_), Some(reason)) => format!("{text} ({reason})"),
        (Some(id), None) => format!("{text} (same tree as evaluation {id})"),
        (None, _) => text.to_owned(),
    }
}

fn succeeded(total: u64) -> String {
    if total == 0 { "nothing to build".to_owned() } else { format!("{} built or available", attributes(total)) }
}

fn progress(evaluation: &EvaluationReport, is_evaluating: bool) -> String {
    let counts = &evaluation.facts.counts;
    let done = counts.total.saturating_sub(counts.pending + counts.building);
    let failed = counts.failed + counts.dep_failed + counts.eval_errors;
    let mut text = format!("{done}/{} done", counts.total);
    if failed > 0 {
        let _ = write!(text, ", {failed} failed");
    }
    if is_evaluating {
        text.push_str(", still evaluating");
    }
    if failed > 0 {
        return with_names(&text, failed, evaluation.failed.iter().map(|attr| attr.attr.as_str()));
    }
    text
}

fn failed(evaluation: &EvaluationReport) -> (StatusState, String) {
    let counts = &evaluation.facts.counts;
    if evaluation.facts.status == EvalStatus::Failed {
        return (StatusState::Error, "not built: the evaluation failed".to_owned());
    }
    let builds = counts.failed + counts.dep_failed;
    if builds + counts.eval_errors == 0 {
        let text = if evaluation.facts.complete && counts.total == 0 { EMPTY } else { INCOMPLETE };
        return (StatusState::Failure, text.to_owned());
    }
    let ours = evaluation.infrastructure.min(builds);
    let theirs = builds - ours;
    let mut parts = Vec::new();
    if theirs > 0 {
        parts.push(format!("{theirs} failed"));
    }
    if counts.eval_errors > 0 {
        parts.push(format!("{} did not evaluate", counts.eval_errors));
    }
    if ours > 0 {
        parts.push(format!("{ours} could not be built (infrastructure)"));
    }
    let names = evaluation.failed.iter().map(|attr| attr.attr.as_str());
    let text = with_names(&parts.join(", "), builds + counts.eval_errors, names);
    let is_ours = theirs + counts.eval_errors == 0;
    (if is_ours { StatusState::Error } else { StatusState::Failure }, text)
}

fn stopped(evaluation: &EvaluationReport) -> String {
    let counts = &evaluation.facts.counts;
    if evaluation.stands() && counts.cancelled > 0 {
        let names = evaluation.failed.iter().filter(|attr| attr.state == AttrState::Cancelled).map(|a| a.attr.as_str());
        return with_names(&format!("{} cancelled", counts.cancelled), counts.cancelled, names);
    }
    ended_because(evaluation)
}

/// State and words of one failed attribute.
pub(super) fn failure_words(attr: &AttrReport) -> (StatusState, String) {
    let is_ours = is_infrastructure(attr) || attr.state == AttrState::Cancelled;
    (if is_ours { StatusState::Error } else { StatusState::Failure }, failure(attr))
}
