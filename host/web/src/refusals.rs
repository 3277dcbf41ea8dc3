//! Deliveries with a wrong signature: counted, said in the log at most once a minute for each forge, and shown on the Nodes
//! page for as long as they go on, so that neither a secret that differs from the forge's stays unnoticed nor a stranger fills
//! the log. Start at [`Refusals::note`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines about one forge.
const SAY_EVERY: Duration = Duration::from_mins(1);
/// After so long without another one they are over, and the next begins to be counted anew.
const OVER_AFTER: Duration = Duration::from_hours(1);

/// What was refused, by forge. Bounded: only forges that are configured get here.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<String, Refused>>);

#[derive(Debug)]
struct Refused {
    since_said: u64,
    said_at: Option<Instant>,
    count: u64,
    first: Instant,
    last: Instant,
}

/// Deliveries of one forge that were refused, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lately {
    pub(crate) count: u64,
    /// Time since the first.
    pub(crate) began: Duration,
    /// Time since the last.
    pub(crate) ended: Duration,
}

impl Refusals {
    /// Notes one. Returns how many there were since that was last said, when it is time to say so.
    pub(crate) fn note(&self, forge: &str, now: Instant) -> Option<u64> {
        let mut refused = self.lock();
        let new = Refused { since_said: 0, said_at: None, count: 0, first: now, last: now };
        let refused = refused.entry(forge.to_owned()).or_insert(new);
        if now.saturating_duration_since(refused.last) >= OVER_AFTER {
            (refused.count, refused.first) = (0, now);
        }
        refused.count += 1;
        refused.last = now;
        refused.since_said += 1;
        if refused.said_at.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY) {
            return None;
        }
        refused.said_at = Some(now);
        Some(std::mem::take(&mut refused.since_said))
    }

    /// Those of a forge that are not over.
    pub(crate) fn lately(&self, forge: &str, now: Instant) -> Option<Lately> {
        let refused = self.lock();
        let refused = refused.get(forge)?;
        let ended = now.saturating_duration_since(refused.last);
        let began = now.saturating_duration_since(refused.first);
        (ended < OVER_AFTER).then_some(Lately { count: refused.count, began, ended })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_then_how_many_once_a_minute() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.note("a", start), Some(1));
        for _ in 0..5 {
            assert_eq!(refusals.note("a", start + SAY_EVERY / 2), None);
        }
        assert_eq!(refusals.note("b", start + SAY_EVERY / 2), Some(1), "each forge by itself");
        assert_eq!(refusals.note("a", start + SAY_EVERY), Some(6));
        assert_eq!(refusals.note("a", start + SAY_EVERY), None);
    }

    #[test]
    fn they_are_shown_until_there_was_none_for_an_hour() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let minutes = |minutes| Duration::from_mins(minutes);
        assert_eq!(refusals.lately("a", start), None);
        for at in [0, 20, 75] {
            refusals.note("a", start + minutes(at));
        }
        let shown = Lately { count: 3, began: minutes(80), ended: minutes(5) };
        assert_eq!(refusals.lately("a", start + minutes(80)), Some(shown));
        assert_eq!(refusals.lately("b", start + minutes(80)), None, "each forge by itself");
        assert_eq!(refusals.lately("a", start + minutes(135)), None);
        refusals.note("a", start + minutes(135));
        let shown = Lately { count: 1, began: minutes(0), ended: minutes(0) };
        assert_eq!(refusals.lately("a", start + minutes(135)), Some(shown));
    }
}
