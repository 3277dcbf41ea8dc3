//! Deliveries with a wrong signature: counted, and said in the log at most once a minute for each forge, so that neither a
//! secret that differs from the forge's stays unnoticed nor a stranger fills the log. Start at [`Refusals::note`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines about one forge.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// What was refused, by forge. Bounded: only forges that are configured get here.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<String, Refused>>);

#[derive(Debug)]
struct Refused {
    since_said: u64,
    said_at: Option<Instant>,
}

impl Refusals {
    /// Notes one. Returns how many there were since that was last said, when it is time to say so.
    pub(crate) fn note(&self, forge: &str, now: Instant) -> Option<u64> {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refused.entry(forge.to_owned()).or_insert(Refused { since_said: 0, said_at: None });
        refused.since_said += 1;
        if refused.said_at.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY) {
            return None;
        }
        refused.said_at = Some(now);
        Some(std::mem::take(&mut refused.since_said))
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
}
