//! When what failed is tried again: pure decisions over counts. Delays grow by [`Backoff`], everywhere. Start at
//! [`RetryPolicy::after_failure`] (jobs, deliveries) and [`WaitPolicy::pause`] (evaluations whose source cannot be had now).

use std::time::Duration;

use time::macros::format_description;

use crate::Timestamp;
use crate::limits::TRANSIENT_TRIES_MAX;

/// Delays that grow from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// How much longer each further one is.
    pub factor: u32,
    /// None is longer.
    pub max: Duration,
}

impl Backoff {
    /// Each delay is twice as long as the one before.
    pub const fn doubling(first: Duration, max: Duration) -> Self {
        Self { first, factor: 2, max }
    }

    /// The delay after so many failures in a row (1 is the first). `jitter` between 0 and 1 spreads it over its last
    /// quarter, so that what failed together does not come back together; 1: the whole delay.
    pub fn after(&self, failures: u32, jitter: f64) -> Duration {
        let factor = self.factor.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let delay = self.first.checked_mul(factor).unwrap_or(self.max).min(self.max);
        delay.mul_f64(0.75 + 0.25 * jitter.clamp(0.0, 1.0))
    }
}

/// What `Retry-After` asks for (RFC 9110, 10.2.3): seconds, or a date, of which `now` is subtracted. `None`: neither. The
/// caller bounds it.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let date = time::PrimitiveDateTime::parse(value, format).ok()?.assume_utc();
    Some(Duration::try_from(date - now).unwrap_or_default())
}

/// How often and how soon jobs are tried again after transient failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries altogether; after the last one the job is an infrastructure failure. At least 1.
    pub tries_max: u32,
    /// Delay after the first failure; each further one multiplies it by [`RetryPolicy::FACTOR`].
    pub first_delay: Duration,
    /// No delay is longer.
    pub delay_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries_max: TRANSIENT_TRIES_MAX,
            first_delay: Duration::from_secs(10),
            delay_max: Duration::from_mins(15),
        }
    }
}

impl RetryPolicy {
    /// Growth of the delay from one failure to the next.
    pub const FACTOR: u32 = 4;

    /// What follows the `failures`-th transient failure (1 is the first): the delay before the next try, or `None` when
    /// there is none. `jitter` between 0 and 1 spreads the delay over its last quarter, so that jobs that failed together
    /// do not come back together.
    pub fn after_failure(&self, failures: u32, jitter: f64) -> Option<Duration> {
        if failures == 0 || failures >= self.tries_max {
            return None;
        }
        let backoff = Backoff { first: self.first_delay, factor: Self::FACTOR, max: self.delay_max };
        Some(backoff.after(failures, jitter))
    }

    /// The delays after the first, second, … failure, one for each that is followed by another try.
    pub fn delays(&self, jitter: f64) -> Vec<Duration> {
        // Bounded, whatever a configuration says.
        (1..self.tries_max.min(100)).filter_map(|failures| self.after_failure(failures, jitter)).collect()
    }
}

/// How long something waits for others that are away or ask to be left alone, before it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitPolicy {
    /// Pause after the first failure; each further one doubles it.
    pub first_pause: Duration,
    /// No pause of our own is longer; the other side may ask for a longer one.
    pub pause_max: Duration,
    /// Time from the first failure to the last try. Zero: nothing waits.
    pub total_max: Duration,
}

impl Default for WaitPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(15),
            pause_max: Duration::from_mins(15),
            total_max: Duration::from_hours(24),
        }
    }
}

impl WaitPolicy {
    /// The pause before the next try of what has been put off `waits` times already, for the first time `waited` ago;
    /// `None` when it has waited long enough. `asked` is what the other side wants us to wait at least. The last pause
    /// ends with the total, so that there is one last try then. `jitter` between 0 and 1 spreads our own pauses over
    /// their last quarter.
    pub fn pause(&self, waits: u32, waited: Duration, asked: Option<Duration>, jitter: f64) -> Option<Duration> {
        let left = self.total_max.checked_sub(waited).filter(|left| !left.is_zero())?;
        let own = Backoff::doubling(self.first_pause, self.pause_max).after(waits.saturating_add(1), jitter);
        Some(own.max(asked.unwrap_or_default()).min(left))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn what_servers_ask_for_is_read_in_both_forms() {
        let now = datetime!(2026-11-22 01:00:00 UTC);
        let cases = [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("Sun, 22 Nov 2026 01:02:00 GMT", Some(120)),
            ("Sun, 22 Nov 2026 00:59:00 GMT", Some(0)), // over
            ("-1", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
            ("Sun, 22 Nov 2026 01:02:00 CET", None),
        ];
        for (value, expected) in cases {
            assert_eq!(retry_after(value, now).map(|pause| pause.as_secs()), expected, "{value:?}");
        }
    }

    #[test]
    fn delays_grow_to_their_bound() {
        let backoff = Backoff::doubling(Duration::from_secs(5), Duration::from_mins(10));
        for (failures, expected) in [(0, 5), (1, 5), (2, 10), (7, 320), (8, 600), (u32::MAX, 600)] {
            assert_eq!(backoff.after(failures, 1.0).as_secs(), expected, "{failures} failures");
        }
        assert_eq!(backoff.after(1, 0.0), Duration::from_millis(3_750));
    }

    #[test]
    fn pauses_double_up_to_a_bound_obey_who_asks_and_end_with_the_total() {
        let policy = WaitPolicy {
            first_pause: Duration::from_secs(10),
            pause_max: Duration::from_secs(100),
            total_max: Duration::from_secs(1_000),
        };
        let cases = [
            // waits, waited, asked for, expected
            (0, 0, None, Some(10)),
            (1, 10, None, Some(20)),
            (3, 70, None, Some(80)),
            (4, 150, None, Some(100)),
            (u32::MAX, 300, None, Some(100)),
            (0, 0, Some(3), Some(10)),    // less than we wait anyway
            (0, 0, Some(300), Some(300)), // more than any pause of ours
            (9, 950, None, Some(50)),     // the last try is at the end of the total
            (9, 950, Some(90_000), Some(50)),
            (9, 1_000, None, None),
            (9, 90_000, Some(1), None),
        ];
        for (waits, waited, asked, expected) in cases {
            let (waited, asked) = (Duration::from_secs(waited), asked.map(Duration::from_secs));
            let got = policy.pause(waits, waited, asked, 1.0).map(|pause| pause.as_secs());
            assert_eq!(got, expected, "{waits} {waited:?} {asked:?}");
        }
        assert_eq!(policy.pause(0, Duration::ZERO, None, 0.0), Some(Duration::from_millis(7_500)));
        let never = WaitPolicy { total_max: Duration::ZERO, ..policy };
        assert_eq!(never.pause(0, Duration::ZERO, Some(Duration::from_secs(1)), 1.0), None);
    }

    fn policy(tries_max: u32, first_s: u64, max_s: u64) -> RetryPolicy {
        RetryPolicy { tries_max, first_delay: Duration::from_secs(first_s), delay_max: Duration::from_secs(max_s) }
    }

    #[test]
    fn delays_grow_to_a_bound_and_end_with_the_last_try() {
        let cases = [
            // tries, first, max, failures, expected seconds at full jitter
            (3, 10, 900, 0, None),
            (3, 10, 900, 1, Some(10)),
            (3, 10, 900, 2, Some(40)),
            (3, 10, 900, 3, None),
            (3, 10, 900, 4, None),
            (1, 10, 900, 1, None),
            (0, 10, 900, 1, None),
            (9, 10, 900, 4, Some(640)),
            (9, 10, 900, 5, Some(900)),
            (u32::MAX, 10, 900, u32::MAX - 1, Some(900)),
        ];
        for (tries, first, max, failures, expected) in cases {
            let got = policy(tries, first, max).after_failure(failures, 1.0).map(|d| d.as_secs());
            assert_eq!(got, expected, "{tries} tries, failure {failures}");
        }
    }

    #[test]
    fn jitter_takes_at_most_a_quarter_off() {
        let policy = RetryPolicy::default();
        for (jitter, expected_ms) in [(0.0, 7_500), (0.5, 8_750), (1.0, 10_000), (7.0, 10_000), (-1.0, 7_500)] {
            assert_eq!(policy.after_failure(1, jitter), Some(Duration::from_millis(expected_ms)), "jitter {jitter}");
        }
    }

    #[test]
    fn the_list_has_one_delay_for_each_retry() {
        assert_eq!(RetryPolicy::default().delays(1.0), [10, 40].map(Duration::from_secs));
        assert!(policy(1, 10, 20).delays(0.0).is_empty());
        assert_eq!(policy(u32::MAX, 1, 2).delays(0.0).len(), 99);
    }
}
