use time::Duration;

use super::*;
use crate::api::AttrCounts;
use crate::reporter::NotificationKind;

mod properties;

const HASH: &str = "0123456789012345678901234567890123456789";

fn options() -> StatusOptions {
    StatusOptions::new("https://ci.example/")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::seconds(seconds)
}

fn counts(total: u64, succeeded: u64) -> AttrCounts {
    AttrCounts { total, succeeded, ..AttrCounts::default() }
}

fn evaluation(id: i64, status: EvalStatus, counts: AttrCounts) -> EvaluationReport {
    EvaluationReport {
        id: EvalId(id),
        branch: "main".to_owned(),
        is_tag: false,
        pull_request: None,
        facts: Facts {
            status,
            complete: status == EvalStatus::Succeeded,
            allow_empty: false,
            is_superseded: false,
            is_reuse: false,
            counts,
        },
        superseded_by: None,
        is_closed: false,
        reuses: None,
        error: None,
        deferred: None,
        infrastructure: 0,
        failed: Vec::new(),
        shown: Vec::new(),
        source_path: Some("/nix/store/s-source".to_owned()),
        title: Some("a title".to_owned()),
        author: Some("ann".to_owned()),
        created_at: at(1),
        started_at: Some(at(2)),
        finished_at: status.is_terminal().then(|| at(3)),
        builds_finished_at: None,
        notified: Notified::default(),
        failed_before: None,
    }
}

fn attr(name: &str, state: AttrState) -> AttrReport {
    AttrReport {
        attr: name.to_owned(),
        state,
        kind: (state == AttrState::Failed || state == AttrState::DepFailed).then_some(FailureKind::Build),
        dependency: (state == AttrState::DepFailed).then(|| "libfoo".to_owned()),
        message: (state == AttrState::Failed).then(|| "builder failed".to_owned()),
        job: (state != AttrState::Error && state != AttrState::Cached).then_some(JobId(7)),
    }
}

fn report(evaluations: Vec<EvaluationReport>) -> CommitReport {
    CommitReport { project: "acme/web".to_owned(), commit: HASH.to_owned(), evaluations, ..CommitReport::default() }
}

/// `context: state description -> url`, one a line, without what all have in common.
fn said(report: &CommitReport) -> Vec<String> {
    desired(report, &options())
        .into_iter()
        .map(|status| {
            let context = status.context.strip_prefix("harmonia-ci/").unwrap_or(&status.context);
            let url = status.target_url.unwrap_or_default().replace("https://ci.example/ci/acme/web", "");
            format!("{context}: {} {} -> {url}", status.state.as_str(), status.description)
        })
        .collect()
}

fn shown(context: &str, attr: Option<&str>, state: StatusState) -> ShownStatus {
    ShownStatus { context: format!("harmonia-ci/{context}"), attr: attr.map(str::to_owned), state }
}

#[test]
fn an_evaluation_on_its_way() {
    use EvalStatus::{Queued, Running, Succeeded};
    let cases: Vec<(EvaluationReport, &[&str])> = vec![
        (evaluation(1, Queued, counts(0, 0)), &["nix-eval: pending waits for an evaluator -> /eval/1"]),
        (
            EvaluationReport {
                deferred: Some("git fetch failed:\nerror: the forge answered 503".to_owned()),
                ..evaluation(1, Queued, counts(0, 0))
            },
            &["nix-eval: pending put off: the forge answered 503 -> /eval/1"],
        ),
        (evaluation(1, Running, counts(0, 0)), &["nix-eval: pending evaluating -> /eval/1"]),
        (
            evaluation(1, Running, AttrCounts { pending: 2, building: 1, ..counts(5, 2) }),
            &["nix-build: pending 2/5 done, still evaluating -> /eval/1", "nix-eval: pending evaluating -> /eval/1"],
        ),
        (
            evaluation(1, Succeeded, AttrCounts { pending: 38, building: 1, ..counts(42, 3) }),
            &["nix-build: pending 3/42 done -> /eval/1", "nix-eval: success 42 attributes -> /eval/1"],
        ),
        (
            evaluation(1, Succeeded, counts(42, 42)),
            &[
                "nix-build: success 42 attributes built or available -> /eval/1",
                "nix-eval: success 42 attributes -> /eval/1",
            ],
        ),
        (
            EvaluationReport {
                facts: Facts { allow_empty: true, ..evaluation(1, Succeeded, counts(0, 0)).facts },
                ..evaluation(1, Succeeded, counts(0, 0))
            },
            &["nix-build: success nothing to build -> /eval/1", "nix-eval: success 0 attributes -> /eval/1"],
        ),
    ];
    for (evaluation, expected) in cases {
        assert_eq!(said(&report(vec![evaluation.clone()])), expected, "{:?}", evaluation.facts);
    }
}

#[test]
fn failures_name_what_failed_and_lead_there() {
    let mut some = evaluation(1, EvalStatus::Succeeded, AttrCounts { failed: 1, dep_failed: 1, ..counts(5, 3) });
    some.failed = vec![attr("checks.x86_64-linux.foo", AttrState::Failed), attr("checks.bar", AttrState::DepFailed)];
    assert_eq!(
        said(&report(vec![some.clone()])),
        [
            "nix-build: failure 2 failed: checks.x86_64-linux.foo, checks.bar -> /build/7",
            "nix-build/checks.bar: failure the dependency libfoo failed -> /build/7",
            "nix-build/checks.x86_64-linux.foo: failure failed: builder failed -> /build/7",
            "nix-eval: success 5 attributes -> /eval/1",
        ]
    );
    // The rest still builds: red already where it is certain, but not as a whole.
    let mut building = some.clone();
    building.facts.counts.succeeded = 1;
    building.facts.counts.pending = 2;
    assert_eq!(
        said(&report(vec![building]))[0],
        "nix-build: pending 3/5 done, 2 failed: checks.x86_64-linux.foo, checks.bar -> /eval/1"
    );
    // Our own fault is told apart.
    let mut ours = some.clone();
    ours.infrastructure = 2;
    ours.failed[0].kind = Some(FailureKind::Infrastructure);
    ours.failed[1].kind = Some(FailureKind::Unsupported);
    assert_eq!(
        said(&report(vec![ours.clone()]))[..3],
        [
            "nix-build: error 2 could not be built (infrastructure): checks.x86_64-linux.foo, checks.bar -> /build/7",
            "nix-build/checks.bar: error the dependency libfoo could not be built (infrastructure) -> /build/7",
            "nix-build/checks.x86_64-linux.foo: error could not be built (infrastructure): builder failed -> /build/7",
        ]
    );
    ours.infrastructure = 1;
    assert_eq!(
        said(&report(vec![ours]))[0],
        "nix-build: failure 1 failed, 1 could not be built (infrastructure): checks.x86_64-linux.foo, checks.bar -> /build/7"
    );
}

#[test]
fn what_does_not_evaluate_fails_the_evaluation_and_is_annotated() {
    let mut eval = evaluation(1, EvalStatus::Succeeded, AttrCounts { eval_errors: 2, ..counts(4, 2) });
    eval.failed = vec![attr("a", AttrState::Error), attr("b", AttrState::Error)];
    eval.failed[0].message =
        Some("error: undefined variable 'x'\n\n at /nix/store/s-source/nix/a.nix:4:2:\n".to_owned());
    let report = report(vec![eval]);
    assert_eq!(
        said(&report),
        [
            "nix-build: failure 2 did not evaluate: a, b -> /eval/1",
            "nix-build/a: failure did not evaluate: undefined variable 'x' -> /eval/1",
            "nix-build/b: failure did not evaluate: no message -> /eval/1",
            "nix-eval: failure 2 of 4 attributes did not evaluate: a, b -> /eval/1",
        ]
    );
    let statuses = desired(&report, &options());
    let eval = statuses.iter().find(|status| status.context == "harmonia-ci/nix-eval").expect("there");
    let annotation = &eval.annotations[0];
    assert_eq!((annotation.path.as_str(), annotation.line), ("nix/a.nix", 4));
    assert_eq!(annotation.message, "a: undefined variable 'x'");
    assert_eq!(
        eval.summary,
        "| attribute | what happened |\n|---|---|\n\
         | [`a`](https://ci.example/ci/acme/web/eval/1) | `did not evaluate: undefined variable 'x'` |\n\
         | [`b`](https://ci.example/ci/acme/web/eval/1) | `did not evaluate: no message` |\n"
    );
}

#[test]
fn an_evaluation_that_came_to_nothing() {
    let with = |status, change: &dyn Fn(&mut EvaluationReport)| {
        let mut eval = evaluation(1, status, counts(0, 0));
        change(&mut eval);
        said(&report(vec![eval]))
    };
    let failed = with(EvalStatus::Failed, &|eval| eval.error = Some("error: no flake.nix".to_owned()));
    assert_eq!(
        failed,
        ["nix-build: error not built: the evaluation failed -> /eval/1", "nix-eval: failure no flake.nix -> /eval/1"]
    );
    let cancelled = with(EvalStatus::Cancelled, &|eval| eval.error = Some("cancelled by bob".to_owned()));
    assert_eq!(
        cancelled,
        ["nix-build: error cancelled by bob -> /eval/1", "nix-eval: error cancelled by bob -> /eval/1"]
    );
    let superseded = with(EvalStatus::Cancelled, &|eval| eval.superseded_by = Some(EvalId(2)));
    assert_eq!(superseded[1], "nix-eval: error superseded by a newer push -> /eval/1");
    let closed = with(EvalStatus::Cancelled, &|eval| eval.is_closed = true);
    assert_eq!(closed[1], "nix-eval: error its branch or pull request was closed -> /eval/1");
    let skipped = with(EvalStatus::Skipped, &|eval| eval.error = Some("no path of interest".to_owned()));
    assert_eq!(skipped[1], "nix-eval: error skipped: no path of interest -> /eval/1");
    let empty = with(EvalStatus::Succeeded, &|_| {});
    assert_eq!(
        empty,
        [
            "nix-build: failure the evaluation found no attribute -> /eval/1",
            "nix-eval: failure the evaluation found no attribute -> /eval/1"
        ]
    );
    let incomplete = with(EvalStatus::Succeeded, &|eval| {
        eval.facts.complete = false;
        eval.facts.counts = counts(2, 2);
    });
    assert_eq!(
        incomplete,
        [
            "nix-build: failure the evaluation is not complete -> /eval/1",
            "nix-eval: failure the evaluation is not complete -> /eval/1"
        ]
    );
}

#[test]
fn what_was_superseded_keeps_its_result_and_loses_its_hope() {
    let mut eval = evaluation(1, EvalStatus::Succeeded, counts(2, 2));
    eval.superseded_by = Some(EvalId(9));
    eval.facts.is_superseded = true;
    assert_eq!(said(&report(vec![eval.clone()]))[0], "nix-build: success 2 attributes built or available -> /eval/1");
    eval.facts.counts = AttrCounts { pending: 1, ..counts(2, 1) };
    assert_eq!(
        said(&report(vec![eval.clone()])),
        ["nix-build: error superseded by a newer push -> /eval/1", "nix-eval: success 2 attributes -> /eval/1"]
    );
    // Not while another branch has the same commit.
    let mut other = evaluation(2, EvalStatus::Succeeded, counts(2, 2));
    other.branch = "release/1".to_owned();
    assert_eq!(said(&report(vec![eval, other]))[0], "nix-build: success 2 attributes built or available -> /eval/2");
}

#[test]
fn a_reused_result_is_there_at_once() {
    let mut eval = evaluation(5, EvalStatus::Skipped, counts(3, 3));
    eval.facts.is_reuse = true;
    eval.facts.complete = true;
    eval.reuses = Some(EvalId(4));
    assert_eq!(
        said(&report(vec![eval.clone()])),
        [
            "nix-build: success 3 attributes built or available (same tree as evaluation 4) -> /eval/5",
            "nix-eval: success 3 attributes (same tree as evaluation 4) -> /eval/5"
        ]
    );
    assert!(notifications(&report(vec![eval]), &options())[0].notifications.len() == 1, "only its builds");
}

#[test]
fn the_worst_of_a_commits_live_evaluations_shows() {
    let branch = evaluation(1, EvalStatus::Succeeded, counts(2, 2));
    let mut pull = evaluation(2, EvalStatus::Succeeded, AttrCounts { failed: 1, ..counts(2, 1) });
    pull.branch = "pull/7".to_owned();
    pull.failed = vec![attr("x", AttrState::Failed)];
    let both = report(vec![pull.clone(), branch.clone()]);
    assert_eq!(said(&both)[0], "nix-build: failure 1 failed: x -> /build/7");
    // One that has not come so far keeps the other one's green back.
    let mut queued = evaluation(3, EvalStatus::Queued, counts(0, 0));
    queued.branch = "pull/7".to_owned();
    let both = report(vec![queued.clone(), pull.clone(), branch.clone()]);
    assert_eq!(
        said(&both),
        [
            "nix-build: pending waits for the evaluation to find what to build -> /eval/3",
            "nix-eval: pending waits for an evaluator -> /eval/3"
        ]
    );
    // A newer attempt of the same branch replaces the older one's word, also a failed one that nothing supersedes.
    let mut again = evaluation(4, EvalStatus::Running, counts(0, 0));
    again.branch = "pull/7".to_owned();
    let failed = evaluation(2, EvalStatus::Failed, counts(0, 0));
    let failed = EvaluationReport { branch: "pull/7".to_owned(), ..failed };
    assert_eq!(said(&report(vec![again, failed])), ["nix-eval: pending evaluating -> /eval/4"]);
}

#[test]
fn a_pull_request_that_waits_says_why_and_is_let_go() {
    let mut waiting = report(Vec::new());
    waiting.waiting.push(WaitingPullRequest { number: 3, reason: "waits for a collaborator's /ci run".to_owned() });
    assert_eq!(said(&waiting), ["nix-eval: pending waits for a collaborator's /ci run -> "]);
    assert!(!is_settled(&waiting));
    let mut gone = report(Vec::new());
    gone.shown.push(shown("nix-eval", None, StatusState::Pending));
    assert_eq!(said(&gone), ["nix-eval: error nothing evaluates this commit any more -> "]);
    gone.shown[0].state = StatusState::Success;
    assert_eq!(said(&gone), Vec::<String>::new());
}

/// Whoever opens a pull request with the head of another one takes nothing away from it.
#[test]
fn a_pull_request_that_waits_talks_over_nobodys_result() {
    use EvalStatus::{Cancelled, Failed, Queued, Running, Skipped, Succeeded};
    let of = |status, counts| EvaluationReport {
        branch: "pull/7".to_owned(),
        pull_request: Some(7),
        ..evaluation(1, status, counts)
    };
    let past = |closed: bool| EvaluationReport {
        superseded_by: (!closed).then_some(EvalId(9)),
        is_closed: closed,
        facts: Facts { is_superseded: true, ..evaluation(1, Succeeded, counts(2, 2)).facts },
        ..of(Succeeded, counts(2, 2))
    };
    let waits = "nix-eval: pending waiting for a collaborator -> ";
    let cases: Vec<(&str, Vec<EvaluationReport>, &str)> = vec![
        ("nobody else", vec![], waits),
        ("green", vec![of(Succeeded, counts(2, 2))], "nix-eval: success 2 attributes -> /eval/1"),
        (
            "red",
            vec![of(Succeeded, AttrCounts { eval_errors: 1, ..counts(2, 1) })],
            "nix-eval: failure 1 of 2 attributes did not evaluate -> /eval/1",
        ),
        (
            "failed",
            vec![EvaluationReport { error: Some("error: x".to_owned()), ..of(Failed, counts(0, 0)) }],
            "nix-eval: failure x -> /eval/1",
        ),
        ("queued", vec![of(Queued, counts(0, 0))], "nix-eval: pending waits for an evaluator -> /eval/1"),
        ("running", vec![of(Running, counts(0, 0))], "nix-eval: pending evaluating -> /eval/1"),
        ("cancelled by hand", vec![of(Cancelled, counts(0, 0))], "nix-eval: error cancelled -> /eval/1"),
        (
            "skipped",
            vec![EvaluationReport { error: Some("nothing to do".to_owned()), ..of(Skipped, counts(0, 0)) }],
            "nix-eval: error skipped: nothing to do -> /eval/1",
        ),
        ("another head since", vec![past(false)], waits),
        ("closed", vec![past(true)], waits),
        (
            "closed, but a branch is there",
            vec![past(true), EvaluationReport { id: EvalId(2), ..evaluation(2, Succeeded, counts(1, 1)) }],
            "nix-eval: success 1 attribute -> /eval/2",
        ),
    ];
    for (name, evaluations, expected) in cases {
        let mut report = report(evaluations);
        for number in [9, 8] {
            report.waiting.push(WaitingPullRequest { number, reason: "waiting for a collaborator".to_owned() });
        }
        let lines = said(&report);
        assert_eq!(
            lines.iter().find(|line| line.starts_with("nix-eval:")).map(String::as_str),
            Some(expected),
            "{name}"
        );
        assert_eq!(is_settled(&report), !expected.contains("pending"), "{name}");
        if expected == waits {
            let statuses = desired(&report, &options());
            let evaluation = statuses.iter().find(|status| status.context.ends_with("nix-eval")).expect("it waits");
            assert_eq!(evaluation.summary, "Pull request 8 waits: waiting for a collaborator", "{name}");
        }
    }
}

#[test]
fn a_branch_a_tag_and_a_pull_request_of_one_name_speak_each_for_itself() {
    let red = EvaluationReport {
        failed: vec![attr("x", AttrState::Failed)],
        ..evaluation(1, EvalStatus::Succeeded, AttrCounts { failed: 1, ..counts(2, 1) })
    };
    let green = evaluation(2, EvalStatus::Succeeded, counts(2, 2));
    // The newer one of the same branch has the word, and takes it from nothing else.
    let cases: [(&str, bool, Option<u64>, &str); 3] = [
        ("main", false, None, "nix-build: success 2 attributes built or available -> /eval/2"),
        ("main", true, None, "nix-build: failure 1 failed: x -> /build/7"),
        ("main", false, Some(7), "nix-build: failure 1 failed: x -> /build/7"),
    ];
    for (branch, is_tag, pull_request, expected) in cases {
        let green = EvaluationReport { branch: branch.to_owned(), is_tag, pull_request, ..green.clone() };
        assert_eq!(said(&report(vec![green, red.clone()]))[0], expected, "{branch} {is_tag} {pull_request:?}");
    }
}

#[test]
fn a_rebuild_repairs_each_status_it_had_broken() {
    let mut eval = evaluation(1, EvalStatus::Succeeded, AttrCounts { building: 1, ..counts(2, 1) });
    eval.shown = vec![attr("x", AttrState::Building), attr("y", AttrState::Succeeded)];
    let mut report = report(vec![eval]);
    report.shown = vec![
        shown("nix-build", None, StatusState::Failure),
        shown("nix-build/x", Some("x"), StatusState::Failure),
        shown("nix-build/y", Some("y"), StatusState::Failure),
        shown("nix-build/gone", Some("gone"), StatusState::Failure),
    ];
    assert_eq!(
        said(&report)[..4],
        [
            "nix-build: pending 1/2 done -> /eval/1",
            "nix-build/gone: success not among the attributes any more -> /eval/1",
            "nix-build/x: pending building -> /build/7",
            "nix-build/y: success built -> /build/7",
        ]
    );
    // A new attempt at the evaluation: nothing keeps an older colour, green least of all.
    report.evaluations.insert(0, evaluation(2, EvalStatus::Running, counts(0, 0)));
    report.shown[0].state = StatusState::Success;
    report.shown[3].state = StatusState::Success;
    for line in said(&report) {
        assert!(line.contains(": pending "), "{line}");
    }
    report.evaluations[0].facts.status = EvalStatus::Failed;
    for line in said(&report) {
        assert!(line.contains(": error ") || line.contains(": failure "), "{line}");
    }
}

#[test]
fn only_so_many_failures_get_a_status_of_their_own() {
    let mut eval = evaluation(1, EvalStatus::Succeeded, AttrCounts { failed: 30, ..counts(30, 0) });
    eval.failed = (0..30).map(|n| attr(&format!("a{n:02}"), AttrState::Failed)).collect();
    let mut report = report(vec![eval]);
    assert_eq!(said(&report).len(), 2 + 25);
    // One of those is repaired: the next one has room.
    report.shown = (0..25)
        .map(|n| shown(&format!("nix-build/a{n:02}"), Some(&format!("a{n:02}")), StatusState::Failure))
        .collect();
    let eval = &mut report.evaluations[0];
    eval.failed.remove(0);
    eval.facts.counts = AttrCounts { failed: 29, ..counts(30, 1) };
    eval.shown = vec![attr("a00", AttrState::Succeeded)];
    let lines = said(&report);
    assert_eq!(lines.iter().filter(|line| line.starts_with("nix-build/") && line.contains(": failure ")).count(), 25);
    assert!(lines.contains(&"nix-build/a00: success built -> /build/7".to_owned()));
    assert!(lines.iter().any(|line| line.starts_with("nix-build/a25: failure")));
}

#[test]
fn contexts_are_read_back_and_stay_apart() {
    for context in [StatusContext::Evaluation, StatusContext::Builds, StatusContext::Attribute("a.\"b/c\"".to_owned())]
    {
        assert_eq!(StatusContext::parse("x/y", &context.name("x/y")), Some(context.clone()));
        assert_eq!(StatusContext::parse("x", &context.name("x/y")), None);
    }
    let long = |last: char| StatusContext::Attribute(format!("{}{last}", "ä".repeat(300))).name("harmonia-ci");
    assert!(long('a').len() <= CONTEXT_BYTES_MAX && long('a') != long('b'));
    let odd = |attr: &str| StatusContext::Attribute(attr.to_owned()).name("x");
    assert!(
        odd("a\u{202e}b").starts_with("x/nix-build/ab…") && odd("a\u{202e}b") != odd("a\u{202d}b"),
        "{}",
        odd("a\u{202e}b")
    );
}

#[test]
fn a_project_may_have_names_of_its_own() {
    let mut report = report(vec![evaluation(1, EvalStatus::Queued, counts(0, 0))]);
    report.prefix = Some("buildbot".to_owned());
    // What another prefix left is not ours to touch.
    report.shown.push(shown("nix-build", None, StatusState::Pending));
    let statuses = desired(&report, &options());
    assert_eq!(statuses.iter().map(|status| status.context.as_str()).collect::<Vec<_>>(), ["buildbot/nix-eval"]);
}

#[test]
fn the_digest_covers_everything_a_forge_shows() {
    let base = desired(&report(vec![evaluation(1, EvalStatus::Succeeded, counts(1, 1))]), &options()).remove(0);
    let changes: [&dyn Fn(&mut DesiredStatus); 7] = [
        &|status| status.state = StatusState::Error,
        &|status| status.description.push('x'),
        &|status| status.target_url = None,
        &|status| status.summary.push('x'),
        &|status| {
            status.annotations = annotations::of_error("error: x at /s/a:1:", Some("/s"), None);
        },
        &|status| status.started_at = None,
        &|status| status.finished_at = Some(at(99)),
    ];
    let mut digests = std::collections::BTreeSet::from([base.digest()]);
    for change in changes {
        let mut status = base.clone();
        change(&mut status);
        assert!(digests.insert(status.digest()), "{status:?}");
    }
    assert_eq!(base.digest(), base.clone().digest());
}

#[test]
fn reporters_are_told_once_and_again_when_a_rebuild_changes_it() {
    let mut report = report(vec![evaluation(1, EvalStatus::Running, counts(0, 0))]);
    assert_eq!(notifications(&report, &options()), []);
    let step = |report: &mut CommitReport, expected: &[(&str, NotificationKind)]| {
        let told = notifications(report, &options());
        let keys: Vec<_> = told.iter().flat_map(|told| &told.notifications).map(|n| (n.key.as_str(), n.kind)).collect();
        assert_eq!(keys, expected);
        for told in told {
            report.evaluations[0].notified = told.notified;
        }
    };
    report.evaluations[0] = evaluation(1, EvalStatus::Succeeded, AttrCounts { pending: 1, ..counts(2, 1) });
    step(&mut report, &[("evaluation-1", NotificationKind::EvaluationSucceeded)]);
    step(&mut report, &[]);
    report.evaluations[0].facts.counts = AttrCounts { failed: 1, ..counts(2, 1) };
    report.evaluations[0].failed = vec![attr("x\u{202e}", AttrState::Failed)];
    let told = notifications(&report, &options());
    let told = &told[0].notifications[0];
    assert_eq!(told.failures[0].attr, "x");
    assert_eq!((told.succeeded, told.failed, told.failures.len()), (1, 1, 1));
    assert_eq!(told.failures[0].message, "failed: builder failed");
    step(&mut report, &[("builds-1-1", NotificationKind::BuildsFailed)]);
    report.evaluations[0].facts.counts = AttrCounts { building: 1, ..counts(2, 1) };
    step(&mut report, &[]);
    report.evaluations[0].facts.counts = counts(2, 2);
    step(&mut report, &[("builds-1-2", NotificationKind::BuildsSucceeded)]);
    step(&mut report, &[]);

    for quiet in [
        EvaluationReport { superseded_by: Some(EvalId(2)), ..evaluation(1, EvalStatus::Succeeded, counts(1, 1)) },
        EvaluationReport { is_closed: true, ..evaluation(1, EvalStatus::Succeeded, counts(1, 1)) },
        evaluation(1, EvalStatus::Cancelled, counts(0, 0)),
    ] {
        report.evaluations = vec![quiet];
        step(&mut report, &[]);
    }
    report.evaluations = vec![evaluation(3, EvalStatus::Failed, counts(0, 0))];
    step(&mut report, &[("evaluation-3", NotificationKind::EvaluationFailed)]);
}
