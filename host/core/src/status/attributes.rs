//! A status for each failed attribute, up to a limit, and its repair. Start at [`add`].

use std::collections::BTreeSet;

use crate::api::AttrState;
use crate::forge::StatusState;
use crate::state::EvalStatus;

use super::describe::ended_because;
use super::evaluation::failure_words;
use super::{AttrReport, DesiredStatus, EvaluationReport, StatusContext, View, Worst, annotations, summary};

/// Adds what should be said of single attributes: of all that have a status already, and of those that failed, until
/// the limit of failures is reached.
pub(super) fn add(view: &View<'_>, authoritative: &[&EvaluationReport], worst: &mut Worst) {
    let mut red = 0;
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let shown = view.report.shown.iter().filter_map(|shown| {
        let attr = shown.attr.as_deref()?;
        (StatusContext::Attribute(attr.to_owned()).name(view.prefix) == shown.context).then_some((attr, shown.state))
    });
    for (attr, state) in shown {
        known.insert(attr);
        let mut is_red = state == StatusState::Failure || state == StatusState::Error;
        for evaluation in authoritative {
            if let Some(status) = repaired(view, evaluation, attr, state) {
                is_red = status.state == StatusState::Failure || status.state == StatusState::Error;
                worst.add(Some(evaluation.id), status);
            }
        }
        red += usize::from(is_red);
    }
    for evaluation in authoritative {
        for attr in &evaluation.failed {
            if attr.state == AttrState::Cancelled || known.contains(attr.attr.as_str()) {
                continue;
            }
            let context = StatusContext::Attribute(attr.attr.clone()).name(view.prefix);
            if !worst.has(&context) {
                if red >= view.options.failed_attrs_max {
                    continue;
                }
                red += 1;
            }
            worst.add(Some(evaluation.id), of_attribute(view, evaluation, attr));
        }
    }
}

/// What an attribute that has a status should say now; `None`: what it says.
fn repaired(view: &View<'_>, evaluation: &EvaluationReport, attr: &str, shown: StatusState) -> Option<DesiredStatus> {
    let find = |attrs: &'_ [AttrReport]| attrs.iter().position(|report| report.attr == attr);
    let now = find(&evaluation.shown)
        .map(|at| &evaluation.shown[at])
        .or_else(|| find(&evaluation.failed).map(|at| &evaluation.failed[at]));
    let context = StatusContext::Attribute(attr.to_owned());
    let say = |state, text: &str| {
        let mut status = view.status(&context, state, text);
        status.target_url = Some(view.options.evaluation_url(view.report, evaluation.id));
        Some(status)
    };
    if let Some(now) = now.filter(|_| evaluation.facts.status != EvalStatus::Failed) {
        let is_in_flight = matches!(now.state, AttrState::Pending | AttrState::Building | AttrState::Uploading);
        if is_in_flight && !evaluation.stands() {
            return if shown == StatusState::Pending {
                say(StatusState::Error, &ended_because(evaluation))
            } else {
                None
            };
        }
        return Some(of_attribute(view, evaluation, now));
    }
    match evaluation.facts.status {
        EvalStatus::Queued | EvalStatus::Running => say(StatusState::Pending, "evaluated again"),
        EvalStatus::Failed => say(StatusState::Error, "the evaluation failed"),
        _ if evaluation.has_attributes() && evaluation.facts.complete => {
            say(StatusState::Success, "not among the attributes any more")
        }
        // A cancelled one says nothing of it; what is pending is ended by the caller.
        _ => None,
    }
}

fn of_attribute(view: &View<'_>, evaluation: &EvaluationReport, attr: &AttrReport) -> DesiredStatus {
    let (state, description) = match attr.state {
        AttrState::Cached => (StatusState::Success, "available".to_owned()),
        AttrState::Succeeded => (StatusState::Success, "built".to_owned()),
        AttrState::Pending => (StatusState::Pending, "waits to be built".to_owned()),
        AttrState::Building | AttrState::Uploading => (StatusState::Pending, "building".to_owned()),
        AttrState::Error | AttrState::Failed | AttrState::DepFailed | AttrState::Cancelled => failure_words(attr),
    };
    let mut status = view.status(&StatusContext::Attribute(attr.attr.clone()), state, &description);
    status.target_url = Some(view.options.failure_url(view.report, evaluation, attr));
    if let (StatusState::Failure | StatusState::Error, Some(message)) = (state, &attr.message) {
        status.summary = summary::error(message);
        status.annotations = annotations::of_attributes(std::iter::once(attr), evaluation.source_path.as_deref());
    }
    status
}
