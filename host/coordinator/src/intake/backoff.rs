//! A forge that fails again and again is left alone for some moments. Else a backlog of deliveries, each tried in its turn,
//! asks it hundreds of times a second, and takes the processors from those that are just arriving.

use std::collections::HashMap;
use std::time::Duration;

use harmonia_core::retry::Backoff;
use tokio::time::Instant;

/// So many failures in a row, and as many more before each longer pause.
const IN_A_ROW: u32 = 8;
/// How long the backoff are.
const PAUSE: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(30));

/// Forges that fail.
#[derive(Debug, Default)]
pub(super) struct ForgeBackoff(HashMap<String, Failing>);

#[derive(Debug, Default)]
struct Failing {
    in_a_row: u32,
    until: Option<Instant>,
}

impl ForgeBackoff {
    /// A delivery's events were dealt with.
    pub(super) fn answered(&mut self, forge: &str) {
        self.0.remove(forge);
    }

    /// A forge did not answer, or said that it cannot. A pause that begins now.
    pub(super) fn failed(&mut self, forge: &str, now: Instant) -> Option<Duration> {
        let failing = self.0.entry(forge.to_owned()).or_default();
        failing.in_a_row = failing.in_a_row.saturating_add(1);
        if !failing.in_a_row.is_multiple_of(IN_A_ROW) {
            return None;
        }
        let pause = PAUSE.after(failing.in_a_row / IN_A_ROW, 1.0);
        failing.until = Some(now + pause);
        Some(pause)
    }

    /// Whether nothing is to be asked of it now.
    pub(super) fn is_paused(&self, forge: &str, now: Instant) -> bool {
        self.0.get(forge).and_then(|failing| failing.until).is_some_and(|until| until > now)
    }

    /// Time until the next pause ends.
    pub(super) fn next_end(&self, now: Instant) -> Option<Duration> {
        let ends = self.0.values().filter_map(|failing| failing.until);
        ends.filter(|until| *until > now).min().map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_after_some_failures_grow_and_end_with_an_answer() {
        let now = Instant::now();
        let mut backoff = ForgeBackoff::default();
        let mut seen = Vec::new();
        for _ in 0..7 * IN_A_ROW {
            seen.extend(backoff.failed("down", now).map(|pause| pause.as_secs()));
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 30, 30]);
        assert!(backoff.is_paused("down", now + PAUSE.max / 2) && !backoff.is_paused("down", now + PAUSE.max));
        assert!(!backoff.is_paused("other", now));
        assert_eq!((backoff.next_end(now), backoff.next_end(now + PAUSE.max)), (Some(PAUSE.max), None));
        backoff.answered("down");
        assert!(!backoff.is_paused("down", now));
        for _ in 1..IN_A_ROW {
            assert_eq!(backoff.failed("down", now), None, "counted from the beginning");
        }
        assert_eq!(backoff.failed("down", now), Some(PAUSE.first));
    }

    #[test]
    fn failures_among_answers_pause_nothing() {
        let now = Instant::now();
        let mut backoff = ForgeBackoff::default();
        for number in 0..100 {
            assert_eq!(backoff.failed("one", now), None);
            if number % 2 == 0 {
                backoff.answered("one");
            }
        }
    }
}
