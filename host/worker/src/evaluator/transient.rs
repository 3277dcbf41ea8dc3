//! What servers say when they cannot answer now: start at [`is_temporary`].

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Longest pause that a server can ask for; then it is asked again.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// HTTP status codes after which the same request may succeed later.
pub(crate) fn is_temporary(code: u16) -> bool {
    matches!(code, 408 | 425 | 429 | 500..=599)
}

/// The pause that a server asks for.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(harmonia_core::retry::retry_after(value, time::OffsetDateTime::now_utc())?.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_now_is_told_from_one_that_will_not() {
        for (code, expected) in
            [(429, true), (500, true), (503, true), (408, true), (401, false), (404, false), (422, false)]
        {
            assert_eq!(is_temporary(code), expected, "{code}");
        }
    }

    #[test]
    fn pauses_are_read_and_bounded() {
        let asked = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
            retry_after(&headers).map(|pause| pause.as_secs())
        };
        assert_eq!((asked("7"), asked(" 120 "), asked("9999999")), (Some(7), Some(120), Some(86_400)));
        assert_eq!((asked("-1"), asked("soon"), asked("Sun, 06 Nov 1994 08:49:37 GMT")), (None, None, Some(0)));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
