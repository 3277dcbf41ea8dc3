//! What holds for every combination of rows.

use proptest::prelude::*;

use super::*;

fn any_counts() -> impl Strategy<Value = AttrCounts> {
    (0_u64..3, 0_u64..3, 0_u64..2, 0_u64..2, 0_u64..2, 0_u64..2, 0_u64..2, 0_u64..2).prop_map(
        |(succeeded, failed, dep_failed, eval_errors, building, pending, cancelled, unaccounted)| AttrCounts {
            total: succeeded + failed + dep_failed + eval_errors + building + pending + cancelled + unaccounted,
            succeeded,
            failed,
            dep_failed,
            eval_errors,
            building,
            pending,
            cancelled,
        },
    )
}

fn any_state() -> impl Strategy<Value = AttrState> {
    proptest::sample::select(vec![
        AttrState::Error,
        AttrState::Failed,
        AttrState::DepFailed,
        AttrState::Cancelled,
        AttrState::Succeeded,
        AttrState::Building,
    ])
}

fn any_attrs() -> impl Strategy<Value = Vec<AttrReport>> {
    let one = (0_u8..6, any_state(), proptest::option::of("\\PC{0,300}"), any::<bool>()).prop_map(
        |(n, state, message, is_infrastructure)| {
            let mut attr = attr(&format!("{n}{}", "long".repeat(usize::from(n) * 40)), state);
            attr.message = message;
            if is_infrastructure && attr.kind.is_some() {
                attr.kind = Some(FailureKind::Infrastructure);
            }
            attr
        },
    );
    proptest::collection::vec(one, 0..6).prop_map(|mut attrs| {
        attrs.sort_by(|a, b| a.attr.cmp(&b.attr));
        attrs.dedup_by(|a, b| a.attr == b.attr);
        attrs
    })
}

prop_compose! {
    fn any_evaluation()(
        status in proptest::sample::select(EvalStatus::ALL),
        counts in any_counts(),
        (complete, allow_empty, is_reuse, is_superseded, is_closed) in any::<(bool, bool, bool, bool, bool)>(),
        (branch, is_tag, pull_request) in (0_u8..3, any::<bool>(), proptest::option::of(1_u64..3)),
        failed in any_attrs(),
        shown in any_attrs(),
        error in proptest::option::of("\\PC{0,300}"),
        deferred in proptest::option::of("\\PC{0,300}"),
        infrastructure in 0_u64..3,
    ) -> EvaluationReport {
        let mut eval = evaluation(0, status, counts);
        eval.facts.complete = complete;
        eval.facts.allow_empty = allow_empty;
        eval.facts.is_reuse = is_reuse;
        eval.facts.is_superseded = is_superseded || is_closed;
        eval.superseded_by = is_superseded.then_some(EvalId(1_000));
        eval.is_closed = is_closed;
        eval.branch = format!("b{branch}");
        eval.is_tag = is_tag && pull_request.is_none();
        eval.pull_request = pull_request;
        eval.error = error;
        eval.deferred = deferred;
        eval.infrastructure = infrastructure;
        eval.failed = failed.into_iter()
            .filter(|a| !matches!(a.state, AttrState::Succeeded | AttrState::Building)).collect();
        eval.shown = shown;
        eval
    }
}

prop_compose! {
    fn any_report()(
        mut evaluations in proptest::collection::vec(any_evaluation(), 0..4),
        waiting in proptest::option::of("\\PC{0,300}"),
        shown in proptest::collection::vec((0_u8..6, 0_u8..4), 0..8),
    ) -> CommitReport {
        for (place, evaluation) in evaluations.iter_mut().enumerate() {
            evaluation.id = EvalId(place as i64 + 1);
        }
        let mut report = report(evaluations);
        report.waiting = waiting.map(|reason| WaitingPullRequest { number: 1, reason }).into_iter().collect();
        let states = [StatusState::Success, StatusState::Pending, StatusState::Error, StatusState::Failure];
        for (n, state) in shown {
            let (context, attr) = match n {
                0 => (StatusContext::Evaluation, None),
                1 => (StatusContext::Builds, None),
                n => {
                    let attr = format!("{n}{}", "long".repeat(usize::from(n) * 40));
                    (StatusContext::Attribute(attr.clone()), Some(attr))
                }
            };
            let context = context.name("harmonia-ci");
            if report.shown.iter().all(|shown| shown.context != context) {
                report.shown.push(ShownStatus { context, attr, state: states[usize::from(state)] });
            }
        }
        report
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Invariant 5 of database.md, over every combination of rows.
    #[test]
    fn green_is_never_shown_without_every_condition(report in any_report()) {
        let authoritative = authoritative(&report);
        for status in desired(&report, &options()) {
            prop_assert!(status.description.chars().count() <= DESCRIPTION_CHARS_MAX);
            prop_assert!(!status.description.chars().any(char::is_control));
            prop_assert!(status.context.len() <= CONTEXT_BYTES_MAX);
            prop_assert!(status.summary.len() < 60 << 10);
            if status.state != StatusState::Success {
                continue;
            }
            prop_assert!(!authoritative.is_empty());
            for evaluation in &authoritative {
                let facts = &evaluation.facts;
                let is_evaluated = matches!(facts.status, EvalStatus::Succeeded)
                    || (facts.status == EvalStatus::Skipped && facts.is_reuse);
                match StatusContext::parse("harmonia-ci", &status.context) {
                    Some(StatusContext::Builds) => {
                        prop_assert!(is_evaluated && facts.complete);
                        prop_assert!(facts.counts.total > 0 || facts.allow_empty);
                        prop_assert_eq!(facts.counts.succeeded, facts.counts.total);
                        prop_assert_eq!(evaluation.verdict(), Verdict::Succeeded);
                    }
                    Some(StatusContext::Evaluation) => {
                        prop_assert!(is_evaluated && facts.complete && facts.counts.eval_errors == 0);
                        prop_assert!(facts.counts.total > 0 || facts.allow_empty);
                        prop_assert!(report.waiting.is_empty() || authoritative.iter().any(|e| e.is_current()));
                    }
                    Some(StatusContext::Attribute(_)) => {
                        let attr = status.attr.as_deref().unwrap_or_default();
                        let first = evaluation.shown.iter().chain(&evaluation.failed).find(|a| a.attr == attr);
                        prop_assert!(first.is_none_or(|a| matches!(a.state, AttrState::Succeeded | AttrState::Cached)
                            || (a.state == AttrState::Building && !evaluation.stands())));
                    }
                    None => prop_assert!(false, "an unknown context {}", status.context),
                }
            }
        }
    }

    /// Every pending status that is shown and has an end gets one, and what is computed twice is the same.
    #[test]
    fn a_settled_commit_has_nothing_pending(report in any_report()) {
        let statuses = desired(&report, &options());
        prop_assert_eq!(&statuses, &desired(&report, &options()));
        if is_settled(&report) {
            for status in &statuses {
                let attr = status.attr.as_deref();
                let builds = authoritative(&report).iter().any(|e| {
                    e.shown.iter().any(|a| Some(a.attr.as_str()) == attr && a.state == AttrState::Building)
                });
                prop_assert!(status.state != StatusState::Pending || builds, "{:?}", status);
            }
            for shown in report.shown.iter().filter(|shown| shown.state == StatusState::Pending) {
                prop_assert!(statuses.iter().any(|status| status.context == shown.context), "{:?} stays", shown);
            }
        }
    }

    /// The order in which evaluations are read does not matter: the worst is one.
    #[test]
    fn the_worst_is_total(report in any_report()) {
        let mut turned = report.clone();
        turned.evaluations.reverse();
        let states = |report: &CommitReport| {
            desired(report, &options()).into_iter().map(|s| (s.context, s.state, s.description)).collect::<Vec<_>>()
        };
        prop_assert_eq!(states(&report), states(&turned));
    }
}
