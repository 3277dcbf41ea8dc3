//! The chat reporter as a component, in the true plugin host: in Rust, and the same one in JavaScript and Python. What is
//! expected of one is expected of all. `./dev plugins` builds them.

use harmonia_core::Timestamp;
use harmonia_core::reporter::{Notification, NotificationKind, NotifiedFailure, ReportError};
use harmonia_plugin_harness::{Answer, Harness, Received, Running, component, conformance};
use serde_json::{Value, json};

const ALL: [&str; 3] = ["chat-reporter", "chat-reporter-js", "chat-reporter-py"];

fn harness(name: &str) -> Harness {
    Harness::new(component(&format!("examples/{name}")))
        .server_setting("url", "/hooks/builds")
        .secret("token", "hunter2")
}

async fn start(name: &str) -> Running {
    harness(name).setting("all", "true").start().await
}

fn notification(kind: NotificationKind) -> Notification {
    Notification {
        key: "7/builds".to_owned(),
        kind,
        project: "engine".to_owned(),
        branch: "main".to_owned(),
        pull_request: None,
        commit: "c0ffee".to_owned(),
        title: "Oil the \"wheel\" – ☃".to_owned(),
        author: "ada".to_owned(),
        url: "https://ci.example/eval/7".to_owned(),
        succeeded: 40,
        failed: 2,
        failures: vec![
            NotifiedFailure { attr: "x86_64-linux.a".to_owned(), message: "exit 1".to_owned(), url: String::new() },
            NotifiedFailure { attr: "b".to_owned(), message: "\\ and \" and\ttab".to_owned(), url: String::new() },
        ],
        failed_before: None,
        at: Timestamp::UNIX_EPOCH,
    }
}

/// What one reporter sent: method and path, the headers that mean something, and the body.
fn meaning(received: &Received) -> (String, String, Vec<Option<String>>, Value) {
    let header = |name: &str| received.header(name).map(str::to_owned);
    let headers = ["authorization", "idempotency-key", "content-type"].map(header).to_vec();
    (received.method.clone(), received.target.clone(), headers, received.json())
}

#[tokio::test]
async fn every_language_sends_the_same_messages() {
    use NotificationKind::{BuildsFailed, BuildsSucceeded, EvaluationFailed, EvaluationSucceeded};
    let mut of_pull_request = notification(BuildsFailed);
    of_pull_request.pull_request = Some(5);
    of_pull_request.title.clear();
    let told = [
        notification(BuildsFailed),
        of_pull_request,
        notification(BuildsSucceeded),
        notification(EvaluationFailed),
        notification(EvaluationSucceeded),
    ];
    let failures = "• x86_64-linux.a: exit 1\n• b: \\ and \" and\ttab";
    let title = " (Oil the \"wheel\" – ☃)";
    let headlines = [
        format!("engine main: 2 of 42 builds failed{title}"),
        "engine #5: 2 of 42 builds failed".to_owned(),
        format!("engine main: all 42 builds succeeded{title}"),
        format!("engine main: evaluation failed{title}"),
        format!("engine main: evaluation succeeded{title}"),
    ];
    let headers = ["Bearer hunter2", "7/builds", "application/json"].map(|text| Some(text.to_owned())).to_vec();
    let expected: Vec<_> = headlines
        .iter()
        .map(|headline| {
            let body = json!({ "text": format!("{headline}\n{failures}"), "link": "https://ci.example/eval/7" });
            ("POST".to_owned(), "/hooks/builds".to_owned(), headers.clone(), body)
        })
        .collect();
    for name in ALL {
        let plugin = start(name).await;
        plugin.server().answer_everything(Answer::text(204, ""));
        for notification in told.clone() {
            assert_eq!(plugin.reporter().report(notification).await, Ok(()), "{name}");
        }
        let sent: Vec<_> = plugin.server().requests().iter().map(meaning).collect();
        assert_eq!(sent, expected, "{name}");
        assert_eq!(plugin.status().failures, 0, "{name}");
    }
}

#[tokio::test]
async fn every_language_tells_only_news_unless_asked() {
    let repaired = Notification { failed_before: Some(true), ..notification(NotificationKind::BuildsSucceeded) };
    let fine = Notification { failed_before: Some(false), ..notification(NotificationKind::BuildsSucceeded) };
    for name in ALL {
        let plugin = harness(name).start().await;
        plugin.server().answer_everything(Answer::text(200, "ok"));
        let told = [
            (fine.clone(), 0),
            (notification(NotificationKind::EvaluationSucceeded), 0),
            (notification(NotificationKind::BuildsFailed), 1),
            (repaired.clone(), 2),
            (notification(NotificationKind::EvaluationFailed), 3),
        ];
        for (notification, sent) in told {
            let kind = notification.kind;
            assert_eq!(plugin.reporter().report(notification).await, Ok(()), "{name} {kind:?}");
            assert_eq!(plugin.server().requests().len(), sent, "{name} {kind:?}");
        }
    }
}

/// The error without its text, which each language words for itself.
fn kind(outcome: &Result<(), ReportError>) -> &'static str {
    match outcome {
        Ok(()) => "ok",
        Err(ReportError::Denied(_)) => "denied",
        Err(ReportError::Invalid(_)) => "invalid",
        Err(ReportError::RetryAfter(_)) => "retry-after",
        Err(ReportError::Unavailable(_)) => "unavailable",
        Err(ReportError::Plugin(_)) => "a fault of the plugin",
    }
}

#[tokio::test]
async fn every_language_says_the_same_of_a_server_that_does_not_take_it() {
    let cases = [
        (Answer::text(500, "down"), "unavailable"),
        (Answer::text(502, "down"), "unavailable"),
        (Answer::text(403, "no"), "denied"),
        (Answer::text(404, "no such hook"), "denied"),
        (Answer::text(401, "who?"), "denied"),
        (Answer::text(400, "what?"), "invalid"),
        (Answer::text(200, ""), "ok"),
        (Answer::nothing(), "unavailable"),
    ];
    for name in ALL {
        let plugin = start(name).await;
        for (answer, expected) in cases.clone() {
            let shown = format!("{name}: {answer:?}");
            plugin.server().answer("POST", "/hooks/builds", answer);
            let outcome = plugin.reporter().report(notification(NotificationKind::BuildsFailed)).await;
            assert_eq!(kind(&outcome), expected, "{shown} {outcome:?}");
        }
        // Last, since the host leaves the server alone from then on.
        plugin.server().answer("POST", "/hooks/builds", Answer::text(429, "slow down").header("retry-after", "70"));
        for _ in 0..2 {
            let outcome = plugin.reporter().report(notification(NotificationKind::BuildsFailed)).await;
            let Err(ReportError::RetryAfter(seconds)) = outcome else { panic!("{name}: {outcome:?}") };
            assert!((60..=70).contains(&seconds), "{name}: {seconds}");
        }
        assert_eq!(plugin.server().requests().len(), cases.len() + 1, "{name}");
        assert_eq!(plugin.status().failures, 0, "{name}: answers are no faults");
    }
}

#[tokio::test]
async fn every_language_names_the_missing_grant() {
    for name in ALL {
        let file = component(&format!("examples/{name}"));
        let plugin =
            Harness::new(file).setting("url", "https://chat.example/hook").secret("token", "hunter2").start().await;
        let outcome = plugin.reporter().report(notification(NotificationKind::BuildsFailed)).await;
        let Err(ReportError::Denied(text)) = &outcome else { panic!("{name}: {outcome:?}") };
        assert!(text.contains("chat.example") && text.contains("`allow_hosts` of the plugin"), "{name}: {text}");
        // At once where operators look, not only once it was refused for a while.
        let status = plugin.status();
        let (whole, public) = (status.last_error.expect("said"), status.last_failure.expect("said"));
        assert!(whole.contains("reporter.report is refused") && whole.contains(text), "{name}: {whole}");
        assert!(public.contains("refused") && !public.contains("chat.example"), "{name}: {public}");
    }
}

#[tokio::test]
async fn every_language_refuses_to_start_without_what_it_needs() {
    for name in ALL {
        let file = component(&format!("examples/{name}"));
        let Err(reason) = Harness::new(file).server_setting("url", "/").try_start().await else { panic!("{name}") };
        assert!(reason.contains("the secret 'token'") && reason.contains("`secrets`"), "{name}: {reason}");
    }
}

#[tokio::test]
async fn every_language_conforms() {
    for name in ALL {
        let failed = conformance(&start(name).await).await;
        assert!(failed.is_empty(), "{name}: {failed:#?}");
    }
}
