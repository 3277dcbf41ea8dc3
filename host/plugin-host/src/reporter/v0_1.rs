//! Track 0.1 of `wit/reporter`.

use std::sync::Arc;

use harmonia_core::Timestamp;
use harmonia_core::ports::{PortFuture, Reporter};
use harmonia_core::reporter::{Notification, NotificationKind, NotifiedFailure, ReportError};

use self::bindings::exports::harmonia::reporter::reporter as wit;
use crate::call::{Caller, Network};
use crate::error::CallError;

/// What `bindgen!` makes of the track.
mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/plugin/0.1", "../../wit/reporter/0.1"],
        inline: "package harmonia:host; world reporter { export harmonia:reporter/reporter@0.1.0; }",
        world: "harmonia:host/reporter",
        exports: { default: async },
    });
}

/// A reporter that speaks track 0.1.
pub(crate) struct Adapter {
    caller: Arc<Caller>,
    reporter: wit::GuestIndices,
}

impl Adapter {
    /// The error says which function is missing.
    pub(crate) fn new(caller: Arc<Caller>) -> wasmtime::Result<Self> {
        Ok(Self { reporter: wit::GuestIndices::new(&caller.instances)?, caller })
    }

    /// Checks the types of its functions.
    pub(crate) async fn check_types(&self) -> Result<(), CallError> {
        let check = self.caller.call("reporter", Network::Closed, |guest| {
            Box::pin(async { self.reporter.load(guest.store, guest.instance).map(drop) })
        });
        check.await
    }
}

impl Reporter for Adapter {
    fn report(&self, notification: Notification) -> PortFuture<'_, Result<(), ReportError>> {
        let event = event(notification);
        Box::pin(async move {
            let answer = self
                .caller
                .call("reporter.report", Network::Granted, |guest| {
                    Box::pin(async move {
                        self.reporter.load(&mut *guest.store, guest.instance)?.call_report(guest.store, &event).await
                    })
                })
                .await?;
            answer.map_err(|error| match error {
                wit::Error::Invalid(text) => ReportError::Invalid(text),
                wit::Error::Denied(text) => {
                    self.caller.stats.note_refused("reporter.report", &text);
                    ReportError::Denied(text)
                }
                wit::Error::RetryAfter(seconds) => ReportError::RetryAfter(seconds),
                wit::Error::Unavailable(text) => ReportError::Unavailable(text),
            })
        })
    }
}

fn event(notification: Notification) -> wit::Event {
    wit::Event {
        key: notification.key,
        kind: match notification.kind {
            NotificationKind::EvaluationSucceeded => wit::Kind::EvaluationSucceeded,
            NotificationKind::EvaluationFailed => wit::Kind::EvaluationFailed,
            NotificationKind::BuildsSucceeded => wit::Kind::BuildsSucceeded,
            NotificationKind::BuildsFailed => wit::Kind::BuildsFailed,
        },
        project: notification.project,
        branch: notification.branch,
        pull_request: notification.pull_request,
        commit: notification.commit,
        title: notification.title,
        author: notification.author,
        url: notification.url,
        succeeded: notification.succeeded,
        failed: notification.failed,
        failures: notification
            .failures
            .into_iter()
            .map(|NotifiedFailure { attr, message, url }| wit::Failure { attr, message, url })
            .collect(),
        failed_before: notification.failed_before,
        at_ms: milliseconds(notification.at),
    }
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from((at - Timestamp::UNIX_EPOCH).whole_milliseconds()).unwrap_or(0)
}
