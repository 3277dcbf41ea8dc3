//! Whether archives are read again before they are signed: [`Verify`], and how it is written in a configuration.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const SAMPLE: &str = "sample:";

/// Whether archives are read again before they are signed.
///
/// Reading one checks its hashes, its size and its references. Written as `declared`, `always` or `sample:0.05`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Verify {
    /// What a builder declares of a NAR is believed (its object's size and checksum are checked all the same). Paths that
    /// are bound to another hash than that of their NAR are always read.
    #[default]
    Declared,
    /// This share of the archives is read, from 0 to 1.
    Sample(f64),
    /// Every archive is read.
    Always,
}

/// A text that is none of the three.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' does not say which archives are read: write declared, always, or sample: and a share from 0 to 1, as in sample:0.05"
)]
pub struct VerifyError(String);

impl FromStr for Verify {
    type Err = VerifyError;

    fn from_str(text: &str) -> Result<Self, VerifyError> {
        let share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        match text {
            "declared" => Some(Self::Declared),
            "always" => Some(Self::Always),
            _ => text.strip_prefix(SAMPLE).and_then(share).map(Self::Sample),
        }
        .ok_or_else(|| VerifyError(text.to_owned()))
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared => f.write_str("declared"),
            Self::Sample(share) => write!(f, "{SAMPLE}{share}"),
            Self::Always => f.write_str("always"),
        }
    }
}

impl TryFrom<String> for Verify {
    type Error = VerifyError;

    fn try_from(text: String) -> Result<Self, VerifyError> {
        text.parse()
    }
}

impl From<Verify> for String {
    fn from(verify: Verify) -> Self {
        verify.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for (text, verify) in [
            ("declared", Verify::Declared),
            ("always", Verify::Always),
            ("sample:0.05", Verify::Sample(0.05)),
            ("sample:0", Verify::Sample(0.0)),
            ("sample:1", Verify::Sample(1.0)),
        ] {
            assert_eq!(text.parse(), Ok(verify));
            assert_eq!(verify.to_string(), text);
        }
        for text in ["", "never", "sample", "sample:", "sample:5", "sample:-0.1", "sample:NaN", "0.05", "Always"] {
            let error = text.parse::<Verify>().expect_err(text).to_string();
            assert!(error.contains("declared, always, or sample:"), "{error}");
        }
    }
}
