//! The time, and the way forges write it.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

pub use crate::bindings::imports::harmonia::plugin::clock::now_ms;

/// Seconds since 1970-01-01 00:00:00 UTC of a time like `2026-11-22T00:45:00Z` (RFC 3339), fractions cut; none when it is
/// no such time.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

/// A time in milliseconds since 1970-01-01 00:00:00 UTC as RFC 3339, in UTC and whole seconds: `2026-11-22T00:45:00Z`.
/// Times behind the year 9999, which RFC 3339 cannot write, become its end.
pub fn format_rfc3339(time_ms: u64) -> String {
    const LAST_S: i64 = 253_402_300_799;
    let seconds = i64::try_from(time_ms / 1000).unwrap_or(LAST_S).min(LAST_S);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_forges() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2026-11-22T02:45:00.999+02:00"), Some(1_795_308_300));
        for odd in ["", "2026-11-22", "2026-13-01T00:00:00Z", "now"] {
            assert_eq!(parse_rfc3339(odd), None, "{odd}");
        }
        assert_eq!(format_rfc3339(1_795_308_300_999), "2026-11-22T00:45:00Z");
        assert_eq!(format_rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
