//! May this observer call others dead? Only when it could itself have heard them for the whole time.

use std::time::{Duration, Instant};

/// Since when this process has had an answering database without a break.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Health {
    healthy_since: Option<Instant>,
    last_seen: Option<Instant>,
}

impl Health {
    pub(crate) const fn new() -> Self {
        Self { healthy_since: None, last_seen: None }
    }

    /// The database answered at `now`. A gap longer than `gap_max` since the last answer (this process was stopped, or
    /// the machine slept) counts as a break: it heard nobody meanwhile.
    pub(crate) fn answered(&mut self, now: Instant, gap_max: Duration) {
        let gap = self.last_seen.is_some_and(|seen| now.duration_since(seen) > gap_max);
        if gap || self.healthy_since.is_none() {
            self.healthy_since = Some(now);
        }
        self.last_seen = Some(now);
    }

    /// The database did not answer.
    pub(crate) fn failed(&mut self) {
        self.healthy_since = None;
        self.last_seen = None;
    }

    /// Whether a node silent for `patience` may be called dead at `now`.
    pub(crate) fn may_judge(&self, now: Instant, patience: Duration) -> bool {
        self.healthy_since.is_some_and(|since| now.duration_since(since) >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_observer_that_heard_everything_may_judge() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (gap, patience) = (Duration::from_secs(30), Duration::from_mins(1));
        let mut health = Health::new();
        assert!(!health.may_judge(at(0), patience), "it has seen nothing yet");
        for second in (0..=60).step_by(10) {
            health.answered(at(second), gap);
        }
        assert!(!health.may_judge(at(59), patience));
        assert!(health.may_judge(at(60), patience));

        health.failed();
        assert!(!health.may_judge(at(61), patience), "an outage of the database reaps nobody");
        for second in (61..=121).step_by(10) {
            health.answered(at(second), gap);
        }
        assert!(health.may_judge(at(121), patience));

        health.answered(at(300), gap);
        assert!(!health.may_judge(at(300), patience), "it slept through three minutes");
    }
}
