//! Cases of reporters.

use harmonia_core::Timestamp;
use harmonia_core::ports::Reporter;
use harmonia_core::reporter::{Notification, NotificationKind, NotifiedFailure, ReportError};

use super::Report;

pub(super) async fn check(reporter: &dyn Reporter, report: &mut Report<'_>) {
    let kinds = [
        NotificationKind::EvaluationSucceeded,
        NotificationKind::EvaluationFailed,
        NotificationKind::BuildsSucceeded,
        NotificationKind::BuildsFailed,
    ];
    for kind in kinds {
        let case = format!("{kind:?} is answered without a network");
        report.add(case, answered(reporter.report(notification(kind, 1)).await));
    }
    let long = notification(NotificationKind::BuildsFailed, 20);
    report.add("long and strange texts are answered", answered(reporter.report(long).await));
}

fn answered(answer: Result<(), ReportError>) -> Result<(), String> {
    match answer {
        Err(ReportError::Plugin(text)) => Err(text),
        _ => Ok(()),
    }
}

fn notification(kind: NotificationKind, failures: usize) -> Notification {
    let strange = "\u{1f980}\"\\<b>&\u{202e}\n\u{0}".repeat(failures * 10);
    Notification {
        key: "conformance".into(),
        kind,
        project: "owner/name".into(),
        branch: "main".into(),
        pull_request: (failures > 1).then_some(7),
        commit: String::new(),
        title: strange.clone(),
        author: strange.clone(),
        url: "https://ci.example/evaluation/1".into(),
        succeeded: 0,
        failed: failures as u32,
        failures: vec![
            NotifiedFailure {
                attr: strange.clone(),
                message: strange,
                url: "https://ci.example/build/1".into()
            };
            failures
        ],
        failed_before: None,
        at: Timestamp::UNIX_EPOCH,
    }
}
