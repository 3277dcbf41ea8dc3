//! Whether an evaluation's results hold for another commit with the same tree: pure parts. Start at [`key`] (by which rules
//! results were made) and [`Traces`] (what shows that they depend on the commit).

use std::fmt::Write as _;

use time::macros::format_description;

use crate::clock::Timestamp;

/// As many characters from the beginning of a hash are taken for it: what `shortRev` has.
pub const PREFIX_CHARS: usize = 7;
/// From its middle it takes more. Hashes of every kind are full of hexadecimal digits, and at a tenth of a million
/// derivations nearly each would have seven digits by chance that are somewhere in the commit's hash, too.
pub const WINDOW_CHARS: usize = 10;

/// What decides, with its tree, what a commit evaluates to: the evaluator's programs and settings, and the systems that are
/// evaluated unless the tree names its own.
pub fn key(engine: &str, systems: &[String]) -> String {
    let mut systems: Vec<&str> = systems.iter().map(String::as_str).collect();
    systems.sort_unstable();
    systems.dedup();
    format!("{engine}; systems {}", systems.join(" "))
}

/// Texts that betray a commit wherever they turn up: parts of its hash, and its date as `lastModified` and
/// `lastModifiedDate` give it, whole or as the day alone.
///
/// What a flake makes of these otherwise (a hash of the hash, fewer characters than these) is not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(Vec<String>);

impl Traces {
    /// Of a commit with this full hash, committed at this moment (seconds since 1970).
    pub fn of(commit: &str, committed_at_s: u64) -> Self {
        let mut traces = Vec::new();
        if let Some(prefix) = commit.get(..PREFIX_CHARS) {
            traces.push(prefix.to_owned());
        }
        let windows = commit.len().saturating_sub(WINDOW_CHARS - 1);
        traces.extend((1..windows).filter_map(|at| commit.get(at..at + WINDOW_CHARS)).map(str::to_owned));
        let mut seconds = String::new();
        // Writing into a string cannot fail.
        let _ = write!(seconds, "{committed_at_s}");
        traces.push(seconds);
        let date = i64::try_from(committed_at_s).ok().and_then(|s| Timestamp::from_unix_timestamp(s).ok());
        if let Some(date) = date {
            let day = date.format(format_description!("[year][month][day]"));
            let with_dashes = date.format(format_description!("[year]-[month]-[day]"));
            traces.extend(day.into_iter().chain(with_dashes));
        }
        traces.sort_unstable();
        traces.dedup();
        Self(traces)
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdeffedcba98";

    fn betrays(text: &str) -> bool {
        Traces::of(COMMIT, 1_700_000_000).texts().iter().any(|trace| text.contains(trace.as_str()))
    }

    #[test]
    fn a_commit_is_betrayed_by_its_hash_and_date_in_every_form() {
        for (text, expected) in [
            ("version-0123456", true),            // shortRev
            ("x0123456789abcdef-y", true),        // longer
            ("cut 6789abcdef from within", true), // 10 characters from the middle
            ("the end: cdeffedcba98", true),
            ("123456", false), // too few
            ("789abcdef", false),
            ("1700000000", true),     // lastModified
            ("20231114221320", true), // lastModifiedDate
            ("0-unstable-20231114", true),
            ("0-unstable-2023-11-14", true),
            ("20231115", false),
            ("170000000", false),
            ("", false),
        ] {
            assert_eq!(betrays(text), expected, "{text}");
        }
    }

    #[test]
    fn odd_commits_do_no_harm() {
        for (commit, seconds) in [("", 0), ("abc", u64::MAX), (&"f".repeat(64), 1), ("ü", 7)] {
            let traces = Traces::of(commit, seconds);
            assert!(traces.texts().iter().all(|trace| !trace.is_empty()), "{traces:?}");
        }
        assert_eq!(Traces::of(&"f".repeat(40), 1).texts().iter().filter(|t| t.starts_with('f')).count(), 2);
    }

    #[test]
    fn a_key_depends_on_engine_and_systems_and_not_on_their_order() {
        let systems = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let one = key("nix 2.8", &systems(&["b", "a", "b"]));
        assert_eq!(one, key("nix 2.8", &systems(&["a", "b"])));
        assert_ne!(one, key("nix 2.9", &systems(&["a", "b"])));
        assert_ne!(one, key("nix 2.8", &systems(&["a"])));
    }
}
