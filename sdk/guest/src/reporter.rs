//! Tells people: chat, mail, dashboards. A reporter implements [`Plugin`](crate::Plugin) and [`Reporter`].

use crate::bindings::{Adapter, reporter};
use crate::http::{Meaning, plugin_errors};
use crate::panic::install_hook;

pub use reporter::exports::harmonia::reporter::reporter::{Error, Event, Failure, Kind};

/// Interface `reporter`.
pub trait Reporter {
    /// Tells it. Called again after an error or a lost answer, in the order in which things happened, project by project:
    /// `event.key` is the same when it is told again. The error says whether and when to try again.
    fn report(event: Event) -> Result<(), Error>;
}

impl<T: Reporter> reporter::exports::harmonia::reporter::reporter::Guest for Adapter<T> {
    fn report(event: Event) -> Result<(), Error> {
        install_hook();
        T::report(event)
    }
}

plugin_errors!(Error);

impl From<Meaning> for Error {
    fn from(meaning: Meaning) -> Self {
        match meaning {
            // The address is wrong, or its grant is gone: an operator has to act.
            Meaning::Denied(text) | Meaning::NotFound(text) => Self::Denied(text),
            Meaning::RetryAfter(seconds) => Self::RetryAfter(seconds),
            Meaning::Invalid(text) => Self::Invalid(text),
            Meaning::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl Event {
    /// One line for people, without formatting: `harmonia main: 2 of 42 builds failed (Fix the frobnicator)`.
    pub fn headline(&self) -> String {
        let place = match self.pull_request {
            Some(number) => format!("{} #{number}", self.project),
            None => format!("{} {}", self.project, self.branch),
        };
        let all = self.succeeded + self.failed;
        let what = match self.kind {
            Kind::EvaluationSucceeded => "evaluation succeeded".to_owned(),
            Kind::EvaluationFailed => "evaluation failed".to_owned(),
            Kind::BuildsSucceeded => format!("all {all} builds succeeded"),
            Kind::BuildsFailed => format!("{} of {all} builds failed", self.failed),
        };
        if self.title.is_empty() { format!("{place}: {what}") } else { format!("{place}: {what} ({})", self.title) }
    }

    /// Whether somebody wants to know: a failure, or the first success after one.
    pub fn is_news(&self) -> bool {
        match self.kind {
            Kind::EvaluationFailed | Kind::BuildsFailed => true,
            Kind::EvaluationSucceeded => false,
            Kind::BuildsSucceeded => self.failed_before == Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, failed_before: Option<bool>) -> Event {
        Event {
            key: "7/builds".to_owned(),
            kind,
            project: "harmonia".to_owned(),
            branch: "main".to_owned(),
            pull_request: None,
            commit: "c0ffee".to_owned(),
            title: "Fix it".to_owned(),
            author: "ada".to_owned(),
            url: "https://ci.example/eval/7".to_owned(),
            succeeded: 40,
            failed: 2,
            failures: Vec::new(),
            failed_before,
            at_ms: 0,
        }
    }

    #[test]
    fn headlines() {
        assert_eq!(event(Kind::BuildsFailed, None).headline(), "harmonia main: 2 of 42 builds failed (Fix it)");
        let mut of_pull_request = event(Kind::EvaluationFailed, None);
        of_pull_request.pull_request = Some(5);
        of_pull_request.title.clear();
        assert_eq!(of_pull_request.headline(), "harmonia #5: evaluation failed");
    }

    #[test]
    fn only_news_are_news() {
        assert!(event(Kind::BuildsFailed, Some(true)).is_news());
        assert!(event(Kind::BuildsSucceeded, Some(true)).is_news());
        assert!(!event(Kind::BuildsSucceeded, Some(false)).is_news());
        assert!(!event(Kind::EvaluationSucceeded, Some(true)).is_news());
    }

    #[test]
    fn a_missing_address_is_for_the_operator() {
        let gone = crate::http::StatusError { status: 404, retry_after_s: None, message: "no such hook".to_owned() };
        assert_eq!(Error::from(gone), Error::Denied("HTTP 404: no such hook".to_owned()));
    }
}
