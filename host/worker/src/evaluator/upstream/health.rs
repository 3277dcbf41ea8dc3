//! How an upstream cache is: whether it is asked at all, and what people are told of it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A cache that does not answer is left alone for so long at first; then for twice as long each time,
const AWAY: Duration = Duration::from_mins(1);
/// up to that.
const AWAY_MAX: Duration = Duration::from_mins(15);
/// So many answers in a row that say nothing are no answers.
const FAILURES_MAX: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

/// What people do not know yet: why the cache gives nothing, or that it does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News(pub(super) Option<String>);

#[derive(Debug, Default)]
struct State {
    away_until: Option<Instant>,
    /// How often in a row it was found away.
    away_count: u32,
    failures: u32,
    trouble: Option<String>,
    told: Option<String>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_away(&self, now: Instant) -> bool {
        self.state().away_until.is_some_and(|until| now < until)
    }

    pub(super) fn works(&self) {
        let mut state = self.state();
        (state.away_until, state.away_count, state.failures, state.trouble) = (None, 0, 0, None);
    }

    /// It answers, and lets us read nothing, or not this.
    pub(super) fn refuses(&self, status: u16) {
        self.works();
        self.state().trouble = Some(format!("answers HTTP {status}: what it refuses counts as not there"));
    }

    /// One answer that said nothing.
    pub(super) fn fails(&self, now: Instant, why: String) {
        let is_away = {
            let mut state = self.state();
            state.failures += 1;
            state.failures >= FAILURES_MAX
        };
        if is_away {
            self.away(now, why);
        }
    }

    /// It does not answer. Many questions may have waited for that at the same time: they count once.
    pub(super) fn away(&self, now: Instant, why: String) {
        let mut state = self.state();
        if state.away_until.is_none_or(|until| now >= until) {
            let pause = AWAY.saturating_mul(2_u32.saturating_pow(state.away_count.min(10))).min(AWAY_MAX);
            state.away_until = Some(now + pause);
            state.away_count += 1;
        }
        state.trouble = Some(why);
    }

    /// What people are to be told, if that differs from what they were told.
    pub(super) fn news(&self) -> Option<News> {
        let state = self.state();
        (state.trouble != state.told).then(|| News(state.trouble.clone()))
    }

    pub(super) fn told(&self, trouble: Option<String>) {
        self.state().told = trouble;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_left_alone_for_longer_and_longer() {
        let health = Health::default();
        let mut now = Instant::now();
        for minutes in [1, 2, 4, 8, 15, 15] {
            assert!(!health.is_away(now));
            health.away(now, "does not answer".to_owned());
            health.away(now, "does not answer".to_owned());
            now += Duration::from_mins(minutes);
            assert!(health.is_away(now.checked_sub(Duration::from_secs(1)).expect("later")), "{minutes}");
        }
        health.works();
        health.fails(now, "HTTP 500".to_owned());
        health.fails(now, "HTTP 500".to_owned());
        assert!(!health.is_away(now) && health.news().is_none());
        health.fails(now, "HTTP 500".to_owned());
        assert!(health.is_away(now));
        assert_eq!(health.news(), Some(News(Some("HTTP 500".to_owned()))));
        health.told(Some("HTTP 500".to_owned()));
        assert_eq!(health.news(), None);
        health.refuses(403);
        assert!(!health.is_away(now));
        assert!(health.news().and_then(|news| news.0).is_some_and(|news| news.contains("HTTP 403")));
        health.works();
        assert_eq!(health.news(), Some(News(None)));
    }
}
