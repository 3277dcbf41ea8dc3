//! Hosts that asked us to wait. Start at [`HeldBack`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Waiting time when a host says "too many" and not for how long.
const WAIT_S_DEFAULT: i64 = 60;

/// From here on a reset is a moment (seconds since 1970), below it a number of seconds.
const MOMENT_S_MIN: i64 = 1_000_000_000;

/// Hosts remembered at once; beyond it, those whose time comes first are forgotten.
const HOSTS_MAX: usize = 1000;

/// Until when which host (`host:port`) is left alone, for all calls of a plugin.
#[derive(Default)]
pub(in crate::capabilities) struct HeldBack(Mutex<HashMap<String, Timestamp>>);

impl HeldBack {
    /// Seconds to wait before the next request to a host; `None`: it may go.
    pub(super) fn wait_s(&self, authority: &str, now: Timestamp) -> Option<u32> {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = *hosts.get(authority)? - now;
        if !left.is_positive() {
            hosts.remove(authority);
            return None;
        }
        // Rounded up: whoever waits that long is not refused again.
        let seconds = left.whole_seconds() + i64::from(left.subsec_nanoseconds() > 0);
        Some(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Learns from an answer.
    pub(super) fn learn(&self, authority: &str, status: u16, headers: &HeaderMap, now: Timestamp, wait_s_max: u32) {
        let Some(seconds) = asked_wait_s(status, headers, now) else { return };
        let seconds = u64::try_from(seconds).unwrap_or_default().min(wait_s_max.into());
        if seconds == 0 {
            return;
        }
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, until| *until > now);
            let first = hosts.iter().min_by_key(|(_, until)| **until).map(|(host, _)| host.clone());
            if let Some(first) = first.filter(|_| hosts.len() >= HOSTS_MAX) {
                hosts.remove(&first);
            }
        }
        hosts.insert(authority.to_owned(), now + Duration::from_secs(seconds));
    }
}

/// Seconds for which an answer asks us to wait; `None`: it does not.
fn asked_wait_s(status: u16, headers: &HeaderMap, now: Timestamp) -> Option<i64> {
    if !matches!(status, 403 | 429 | 503) {
        return None;
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |name: &str| text(name).and_then(|text| text.parse::<i64>().ok());
    if let Some(wait) = text(RETRY_AFTER.as_str()) {
        let asked = harmonia_core::retry::retry_after(wait, now).map(|pause| i64::try_from(pause.as_secs()));
        return Some(asked.map_or(WAIT_S_DEFAULT, |seconds| seconds.unwrap_or(i64::MAX)));
    }
    // The names that forges use, and those of the IETF's draft.
    let exhausted = ["x-ratelimit-remaining", "ratelimit-remaining"].into_iter().any(|name| number(name) == Some(0));
    if status != 429 && !exhausted {
        return None;
    }
    let reset = ["x-ratelimit-reset", "ratelimit-reset"].into_iter().find_map(number);
    Some(match reset {
        Some(moment) if moment >= MOMENT_S_MIN => moment.saturating_sub(now.unix_timestamp()),
        Some(seconds) => seconds,
        None => WAIT_S_DEFAULT,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};
    use time::macros::datetime;

    use super::*;

    const NOW: Timestamp = datetime!(2026-11-22 01:00:00 UTC);

    fn wait(status: u16, headers: &[(&'static str, &str)]) -> Option<i64> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value")));
        asked_wait_s(status, &headers.collect(), NOW)
    }

    #[test]
    fn an_answer_asks_to_wait_in_several_ways() {
        assert_eq!(wait(200, &[("retry-after", "5")]), None);
        assert_eq!(wait(429, &[]), Some(60));
        assert_eq!(wait(429, &[("retry-after", "5")]), Some(5));
        assert_eq!(wait(429, &[("retry-after", "soon")]), Some(60));
        assert_eq!(wait(503, &[("retry-after", "Sun, 22 Nov 2026 01:02:00 GMT")]), Some(120));
        assert_eq!(wait(403, &[]), None, "forbidden, no more");
        assert_eq!(wait(403, &[("x-ratelimit-remaining", "3")]), None);
        let reset = (NOW.unix_timestamp() + 90).to_string();
        assert_eq!(wait(403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)]), Some(90));
        assert_eq!(wait(503, &[("ratelimit-remaining", "0"), ("ratelimit-reset", "7")]), Some(7));
        assert_eq!(wait(403, &[("x-ratelimit-remaining", "0")]), Some(60));
    }

    #[test]
    fn a_host_is_held_back_until_its_time_and_no_longer_than_the_bound() {
        let held = HeldBack::default();
        let headers: HeaderMap = [(RETRY_AFTER, HeaderValue::from_static("999999999"))].into_iter().collect();
        held.learn("a:443", 429, &headers, NOW, 3600);
        assert_eq!(held.wait_s("a:443", NOW), Some(3600));
        assert_eq!(held.wait_s("a:443", NOW + Duration::from_millis(3_598_500)), Some(2));
        assert_eq!(held.wait_s("b:443", NOW), None);
        assert_eq!(held.wait_s("a:443", NOW + Duration::from_hours(1)), None);
    }

    #[test]
    fn the_number_of_hosts_is_bounded() {
        let held = HeldBack::default();
        let headers = HeaderMap::new();
        for host in 0..HOSTS_MAX + 5 {
            held.learn(&host.to_string(), 429, &headers, NOW + Duration::from_millis(host as u64), 3600);
        }
        assert_eq!(held.0.lock().expect("not poisoned").len(), HOSTS_MAX);
        assert!(held.wait_s("0", NOW).is_none() && held.wait_s("1004", NOW).is_some());
    }

    proptest! {
        #[test]
        fn no_answer_breaks_it(status in 400_u16..600, value in "[ -~]{0,40}", reset: i64) {
            let reset = reset.to_string();
            let headers = [("retry-after", value.as_str()), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)];
            wait(status, &headers);
            wait(status, &headers[1..]);
        }
    }
}
