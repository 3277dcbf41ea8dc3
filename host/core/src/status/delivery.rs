//! What follows an answer of a forge or a reporter: pure decisions. Start at [`after_forge_error`].

use std::time::Duration;

use crate::forge::ForgeError;
use crate::reporter::ReportError;
use crate::retry::Backoff;

/// No delay is longer, however long a forge is away.
pub const DELAY_MAX: Duration = Duration::from_mins(10);
/// Longest wait that a forge may ask for.
const ASKED_DELAY_MAX: Duration = Duration::from_hours(2);
/// A forge that says "there is no such thing" may be wrong for a while: it takes time until all its parts know of a push.
const NOT_FOUND_TRIES_MAX: u32 = 8;
/// Tries of what is worth nothing for ever (comments, notifications): more than half a day.
pub const TRIES_MAX: u32 = 100;

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Tried again.
    Again {
        /// Not before.
        after: Duration,
        /// It may have happened, so that it is asserted again.
        is_ambiguous: bool,
    },
    /// Refused until somebody changes a grant, a credential or a permission: shown at once, and tried again now and then,
    /// which tells whether it was changed.
    Denied {
        /// Not before.
        after: Duration,
    },
    /// Whoever was asked wants to be left alone for so long: nothing at all is sent there.
    Pause {
        /// So long.
        during: Duration,
    },
    /// Given up: somebody has to look at it.
    Dead,
}

/// After a forge's error. `failures` counts those before this one; `tries_max` of `None`: a status, which is never given
/// up while there is hope. `jitter` between 0 and 1.
pub fn after_forge_error(error: &ForgeError, failures: u32, tries_max: Option<u32>, jitter: f64) -> Next {
    let is_last = tries_max.is_some_and(|max| failures.saturating_add(1) >= max);
    match error {
        ForgeError::Invalid(_) => Next::Dead,
        ForgeError::RetryAfter(seconds) => pause(*seconds),
        _ if is_last => Next::Dead,
        ForgeError::NotFound if failures.saturating_add(1) >= NOT_FOUND_TRIES_MAX => Next::Dead,
        ForgeError::NotFound => again(failures, false, jitter),
        ForgeError::Denied(_) | ForgeError::Unsupported(_) => Next::Denied { after: DELAY_MAX },
        ForgeError::Unavailable(_) | ForgeError::Plugin(_) => again(failures, true, jitter),
    }
}

/// After a reporter's error.
pub fn after_report_error(error: &ReportError, failures: u32, jitter: f64) -> Next {
    let is_last = failures.saturating_add(1) >= TRIES_MAX;
    match error {
        ReportError::Invalid(_) => Next::Dead,
        _ if is_last => Next::Dead,
        ReportError::RetryAfter(seconds) => pause(*seconds),
        ReportError::Denied(_) => Next::Denied { after: DELAY_MAX },
        ReportError::Unavailable(_) | ReportError::Plugin(_) => again(failures, true, jitter),
    }
}

fn pause(seconds: u32) -> Next {
    Next::Pause { during: Duration::from_secs(u64::from(seconds.max(1))).min(ASKED_DELAY_MAX) }
}

fn again(failures: u32, is_ambiguous: bool, jitter: f64) -> Next {
    let backoff = Backoff::doubling(Duration::from_secs(5), DELAY_MAX);
    Next::Again { after: backoff.after(failures.saturating_add(1), jitter), is_ambiguous }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn again_after(seconds: u64, is_ambiguous: bool) -> Next {
        Next::Again { after: Duration::from_secs(seconds), is_ambiguous }
    }

    const DENIED: Next = Next::Denied { after: Duration::from_mins(10) };

    #[test]
    fn each_error_of_a_forge_has_its_consequence() {
        let away = || ForgeError::Unavailable("away".to_owned());
        let cases = [
            (away(), 0, None, again_after(5, true)),
            (away(), 3, None, again_after(40, true)),
            (away(), 9, None, again_after(600, true)),
            (away(), u32::MAX, None, again_after(600, true)),
            (away(), 99, Some(100), Next::Dead),
            (ForgeError::Plugin("trapped".to_owned()), 1, None, again_after(10, true)),
            (ForgeError::Invalid("what".to_owned()), 0, None, Next::Dead),
            (ForgeError::Denied("no".to_owned()), 1_000, None, DENIED),
            (ForgeError::Unsupported("statuses"), 0, None, DENIED),
            (ForgeError::NotFound, 0, None, again_after(5, false)),
            (ForgeError::NotFound, 7, None, Next::Dead),
            (ForgeError::RetryAfter(0), 0, None, Next::Pause { during: Duration::from_secs(1) }),
            (ForgeError::RetryAfter(60), 500, Some(100), Next::Pause { during: Duration::from_mins(1) }),
            (ForgeError::RetryAfter(u32::MAX), 0, None, Next::Pause { during: ASKED_DELAY_MAX }),
        ];
        for (error, failures, tries_max, expected) in cases {
            assert_eq!(after_forge_error(&error, failures, tries_max, 1.0), expected, "{error} after {failures}");
        }
        assert_eq!(
            after_forge_error(&away(), 0, None, 0.0),
            Next::Again { after: Duration::from_millis(3_750), is_ambiguous: true }
        );
    }

    #[test]
    fn each_error_of_a_reporter_has_its_consequence() {
        let cases = [
            (ReportError::Unavailable("away".to_owned()), 0, again_after(5, true)),
            (ReportError::Plugin("trapped".to_owned()), 98, again_after(600, true)),
            (ReportError::Unavailable("away".to_owned()), 99, Next::Dead),
            (ReportError::Denied("no".to_owned()), 0, DENIED),
            (ReportError::Denied("no".to_owned()), 99, Next::Dead),
            (ReportError::Invalid("what".to_owned()), 0, Next::Dead),
            (ReportError::RetryAfter(7), 0, Next::Pause { during: Duration::from_secs(7) }),
        ];
        for (error, failures, expected) in cases {
            assert_eq!(after_report_error(&error, failures, 1.0), expected, "{error} after {failures}");
        }
    }
}
