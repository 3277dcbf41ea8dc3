//! Durations and sizes as people write them: `90s`, `2h`, `1h30m`; `64MiB`, `4GB`, `512`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A duration written as numbers with units `ms`, `s`, `m`, `h`, `d`; a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A size in bytes with an optional unit: `kB MB GB TB` (powers of 1,000) or `KiB MiB GiB TiB` (powers of 1,024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl Span {
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a duration: write it like 90s, 30m or 1h30m");
        let mut rest = text.trim();
        if let Ok(seconds) = rest.parse::<u64>() {
            return Ok(Self::seconds(seconds));
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit_ms: u64 = match rest[..letters].trim() {
                "ms" => 1,
                "s" => 1_000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            let part_ms = number.checked_mul(unit_ms).ok_or_else(wrong)?;
            total = total.checked_add(Duration::from_millis(part_ms)).ok_or_else(wrong)?;
            rest = &rest[letters..];
        }
        if text.trim().is_empty() { Err(wrong()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest_ms == 0 {
            return f.write_str("0s");
        }
        for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest_ms >= unit_ms {
                write!(f, "{}{unit}", rest_ms / unit_ms)?;
                rest_ms %= unit_ms;
            }
        }
        Ok(())
    }
}

impl Bytes {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: write it like 64MiB, 4GB or 512 (bytes)");
        let text_trimmed = text.trim();
        let digits = text_trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_trimmed.len());
        let number: u64 = text_trimmed[..digits].parse().map_err(|_| wrong())?;
        let unit: u64 = match text_trimmed[digits..].trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

macro_rules! as_text_or_number {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Form {
                    Number(u64),
                    Text(String),
                }
                match Form::deserialize(deserializer)? {
                    Form::Number(number) => Self::parse(&number.to_string()).map_err(D::Error::custom),
                    Form::Text(text) => Self::parse(&text).map_err(D::Error::custom),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
as_text_or_number!(Span);
as_text_or_number!(Bytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written_and_print_shortest() {
        for (text, ms, printed) in [
            ("90", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("250ms", 250, "250ms"),
            ("1h30m", 5_400_000, "1h30m"),
            ("4 h", 14_400_000, "4h"),
            ("2d", 172_800_000, "2d"),
            ("0", 0, "0s"),
        ] {
            let span = Span::parse(text).expect(text);
            assert_eq!(span.0.as_millis(), ms, "{text}");
            assert_eq!(span.to_string(), printed);
            assert_eq!(Span::parse(printed), Ok(span), "printed form reads back");
        }
        for bad in ["", "h", "1x", "1h2", "-3s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(Span::parse(bad).expect_err(bad).contains("not a duration"));
        }
    }

    #[test]
    fn sizes_read_as_written_and_print_shortest() {
        for (text, bytes, printed) in [
            ("512", 512, "512"),
            ("64MiB", 64 << 20, "64MiB"),
            ("4 GB", 4_000_000_000, "3906250KiB"),
            ("1KiB", 1024, "1KiB"),
        ] {
            let size = Bytes::parse(text).expect(text);
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string(), printed);
            assert_eq!(Bytes::parse(printed), Ok(size));
        }
        for bad in ["", "MiB", "1.5GiB", "4 gigs", "99999999TiB"] {
            assert!(Bytes::parse(bad).expect_err(bad).contains("not a size"));
        }
    }
}
