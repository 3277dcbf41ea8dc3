//! The circuit breaker: a plugin that keeps failing is not called for a growing time. Pure; the registry holds one a
//! plugin.

use harmonia_core::Timestamp;
use time::Duration;

use crate::limits::{BREAK_S_MAX, BREAK_S_MIN, FAULTS_BEFORE_BREAK};

/// How a plugin fared lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    faults_in_a_row: u32,
    open_until: Option<Timestamp>,
}

impl Breaker {
    /// Whether a call may be made; else the seconds until the next try, rounded up.
    ///
    /// When a break is over one call goes through as a probe; others wait for what becomes of it, but not longer than
    /// another break, in case that its caller went away.
    pub(crate) fn admit(&mut self, now: Timestamp) -> Result<(), u64> {
        let Some(until) = self.open_until else { return Ok(()) };
        if now < until {
            return Err(seconds_until(now, until));
        }
        self.open_until = Some(now + self.pause());
        Ok(())
    }

    /// Notes that a call ended well, or with an answer that is no fault of the plugin.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Notes a fault; true when it broke the circuit.
    pub(crate) fn failed(&mut self, now: Timestamp) -> bool {
        self.faults_in_a_row = self.faults_in_a_row.saturating_add(1);
        let breaks = self.faults_in_a_row >= FAULTS_BEFORE_BREAK;
        if breaks {
            self.open_until = Some(now + self.pause());
        }
        breaks
    }

    /// Seconds until the next try; `None` when calls are made.
    pub(crate) fn broken_for_s(&self, now: Timestamp) -> Option<u64> {
        self.open_until.filter(|until| now < *until).map(|until| seconds_until(now, until))
    }

    fn pause(&self) -> Duration {
        let breaks = self.faults_in_a_row.saturating_sub(FAULTS_BEFORE_BREAK).min(20);
        Duration::seconds((BREAK_S_MIN << breaks).min(BREAK_S_MAX) as i64)
    }
}

fn seconds_until(now: Timestamp, until: Timestamp) -> u64 {
    let left = until - now;
    u64::try_from(left.whole_seconds()).unwrap_or(0) + u64::from(left.subsec_nanoseconds() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn broken(now: i64) -> Breaker {
        let mut breaker = Breaker::default();
        for n in 1..=FAULTS_BEFORE_BREAK {
            assert_eq!(breaker.admit(at(now)), Ok(()), "fault {n}");
            assert_eq!(breaker.failed(at(now)), n == FAULTS_BEFORE_BREAK);
        }
        breaker
    }

    #[test]
    fn it_breaks_after_faults_in_a_row_and_lets_one_probe_through() {
        let mut breaker = broken(0);
        assert_eq!(breaker.admit(at(3)), Err(7));
        assert_eq!(breaker.broken_for_s(at(3)), Some(7));
        assert_eq!(breaker.admit(at(10)), Ok(()), "the probe");
        assert_eq!(breaker.admit(at(10)), Err(10), "others wait for it");
        breaker.succeeded();
        assert_eq!(breaker.admit(at(11)), Ok(()));
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_failed_probe_doubles_the_break_up_to_a_bound() {
        let mut breaker = broken(0);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = breaker.broken_for_s(at(now)).expect("broken");
            waits.push(wait);
            now += wait as i64;
            assert_eq!(breaker.admit(at(now)), Ok(()));
            assert!(breaker.failed(at(now)));
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
    }

    #[test]
    fn a_probe_whose_caller_went_away_is_tried_again() {
        let mut breaker = broken(0);
        assert_eq!(breaker.admit(at(10)), Ok(()));
        assert_eq!(breaker.admit(at(19)), Err(1));
        assert_eq!(breaker.admit(at(20)), Ok(()));
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            for _ in 1..FAULTS_BEFORE_BREAK {
                assert!(!breaker.failed(at(0)));
            }
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(at(0)), Ok(()));
    }
}
