//! One line for people, short enough for every forge. Start at [`line`].

use crate::api::AttrState;
use crate::evaluation_error::message_line;
use crate::foreign_text::is_unshown;
use crate::state::FailureKind;

use super::{AttrReport, EvaluationReport};

/// Longest description, in characters: what forges take.
pub const DESCRIPTION_CHARS_MAX: usize = 140;
/// Longest name of an attribute in a list, in characters.
const NAME_CHARS_MAX: usize = 60;

/// One line of at most [`DESCRIPTION_CHARS_MAX`] characters.
pub(super) fn line(text: &str) -> String {
    cut(text, DESCRIPTION_CHARS_MAX)
}

/// The text as one line without what is unshown, cut to `chars_max` characters.
pub(super) fn cut(text: &str, chars_max: usize) -> String {
    // Bounded before anything is collected: errors may have 64 KiB.
    let words = text.split(|c: char| c.is_whitespace() || is_unshown(c)).filter(|word| !word.is_empty());
    let mut one_line = String::new();
    let mut chars = 0;
    for word in words {
        if chars > 0 {
            one_line.push(' ');
            chars += 1;
        }
        for c in word.chars() {
            one_line.push(c);
            chars += 1;
            if chars > chars_max {
                let kept: String = one_line.chars().take(chars_max.saturating_sub(1)).collect();
                return format!("{}…", kept.trim_end());
            }
        }
    }
    one_line.trim_end().to_owned()
}

/// `2 failed: a, b, …`: as many of the names as fit, of `total`.
pub(super) fn with_names<'a>(start: &str, total: u64, names: impl Iterator<Item = &'a str>) -> String {
    const MORE: &str = ", …";
    let room = DESCRIPTION_CHARS_MAX - MORE.chars().count();
    let mut text = start.to_owned();
    let mut listed = 0;
    for name in names {
        let name = cut(name, NAME_CHARS_MAX);
        let separator = if listed == 0 { ": " } else { ", " };
        if text.chars().count() + separator.len() + name.chars().count() > room {
            break;
        }
        text.push_str(separator);
        text.push_str(&name);
        listed += 1;
    }
    if listed > 0 && listed < total {
        text.push_str(MORE);
    }
    text
}

/// `1 attribute`, `2 attributes`.
pub(super) fn attributes(count: u64) -> String {
    if count == 1 { "1 attribute".to_owned() } else { format!("{count} attributes") }
}

/// The sentence of an evaluation error that says what is wrong.
pub(super) fn headline(error: &str) -> String {
    let line = message_line(error);
    let text = line.strip_prefix("error:").unwrap_or(&line).trim();
    if text.is_empty() { "no message".to_owned() } else { text.to_owned() }
}

/// Why an attribute is not built, in a few words.
pub(super) fn failure(attr: &AttrReport) -> String {
    let message = attr.message.as_deref().filter(|message| !message.trim().is_empty());
    match attr.state {
        AttrState::Error => format!("did not evaluate: {}", headline(message.unwrap_or_default())),
        AttrState::DepFailed => {
            let dependency = attr.dependency.as_deref().unwrap_or("that it needs");
            if is_infrastructure(attr) {
                format!("the dependency {dependency} could not be built (infrastructure)")
            } else {
                format!("the dependency {dependency} failed")
            }
        }
        AttrState::Failed => {
            let what = match attr.kind {
                Some(FailureKind::Timeout) => "timed out",
                Some(FailureKind::Limit) => "exceeded a limit",
                Some(FailureKind::Infrastructure) => "could not be built (infrastructure)",
                Some(FailureKind::Unsupported) => "no node can build it",
                Some(FailureKind::Build) | None => "failed",
            };
            match message {
                Some(message) => format!("{what}: {}", message.lines().next().unwrap_or_default()),
                None => what.to_owned(),
            }
        }
        AttrState::Cancelled => message.map_or_else(|| "cancelled".to_owned(), |message| cut(message, 100)),
        AttrState::Cached | AttrState::Pending | AttrState::Building | AttrState::Uploading | AttrState::Succeeded => {
            "not failed".to_owned()
        }
    }
}

/// Whether it is no derivation's fault.
pub(super) const fn is_infrastructure(attr: &AttrReport) -> bool {
    matches!(attr.kind, Some(FailureKind::Infrastructure | FailureKind::Unsupported))
}

/// Why an evaluation that came to no end of its own will not.
pub(super) fn ended_because(evaluation: &EvaluationReport) -> String {
    if evaluation.superseded_by.is_some() {
        return "superseded by a newer push".to_owned();
    }
    let error = evaluation.error.as_deref().filter(|error| !error.trim().is_empty());
    match (evaluation.facts.status, error) {
        (crate::EvalStatus::Skipped, Some(reason)) => format!("skipped: {reason}"),
        _ if evaluation.is_closed => "its branch or pull request was closed".to_owned(),
        (crate::EvalStatus::Cancelled, Some(error)) => error.to_owned(),
        _ => "cancelled".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_one_line_cut_at_a_character() {
        assert_eq!(cut("a\n  b\tc\u{7}d", 10), "a b c d");
        assert_eq!(cut("a\u{202e}b\u{2069}", 10), "a b", "forges show it beside their own words");
        assert_eq!(cut("äöüäöü", 6), "äöüäöü");
        assert_eq!(cut("äöüäöüß", 6), "äöüäö…");
        assert_eq!(cut("ab cd", 4), "ab…");
        assert_eq!(cut("   ", 4), "");
        assert_eq!(line(&"ß".repeat(10_000)).chars().count(), DESCRIPTION_CHARS_MAX);
    }

    #[test]
    fn names_are_listed_while_they_fit() {
        assert_eq!(with_names("2 failed", 2, ["a", "b"].into_iter()), "2 failed: a, b");
        assert_eq!(with_names("3 failed", 3, ["a", "b"].into_iter()), "3 failed: a, b, …");
        assert_eq!(with_names("3 failed", 3, std::iter::empty()), "3 failed");
        let long = "x".repeat(50);
        let text = with_names("9 failed", 9, [long.as_str(); 9].into_iter());
        assert!(text.ends_with(&format!("{long}, {long}, …")), "{text}");
        assert!(text.chars().count() <= DESCRIPTION_CHARS_MAX);
    }

    #[test]
    fn the_headline_is_the_message() {
        for (error, expected) in [
            ("error: attribute 'x' missing\n\n       at /nix/store/a-source/flake.nix:3:5:", "attribute 'x' missing"),
            ("error:\n       … while calling 'f'\n\n       error: boom\n       at x:1:1:", "boom"),
            ("error:\n  undefined variable 'y'", "undefined variable 'y'"),
            ("it broke\nsomehow", "it broke"),
            ("", "no message"),
        ] {
            assert_eq!(headline(error), expected, "{error}");
        }
    }
}
