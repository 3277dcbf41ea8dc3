//! Comments that are written once, for forges that know no keys: the key is hidden in the comment. Start at [`Marker`].

use crate::time;

/// How far back a comment is looked for: it is looked for because an answer was lost a moment ago.
const LOOK_BACK_MS: u64 = 7 * 24 * 3600 * 1000;

/// A key as it stands in a comment: an HTML comment, which Markdown does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker(String);

impl Marker {
    /// Of this key. Whatever it holds, it cannot end the hiding.
    pub fn of(key: &str) -> Self {
        let safe: String =
            key.chars().map(|c| if c.is_ascii_alphanumeric() || "-_./:".contains(c) { c } else { '_' }).collect();
        Self(format!("<!-- harmonia-ci {} -->", safe.replace("--", "-_")))
    }

    /// Whether this comment has it.
    pub fn is_in(&self, comment: &str) -> bool {
        comment.contains(&self.0)
    }

    /// The comment with it.
    pub fn under(&self, comment: &str) -> String {
        format!("{comment}\n\n{}", self.0)
    }

    /// Comments older than this (RFC 3339) need not be looked at.
    pub fn looked_for_since() -> String {
        time::format_rfc3339(time::now_ms().saturating_sub(LOOK_BACK_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::Marker;

    #[test]
    fn a_key_stays_hidden() {
        assert_eq!(Marker::of("head-changed/abc").under("x"), "x\n\n<!-- harmonia-ci head-changed/abc -->");
        let hostile = Marker::of("a --> <b>").under("");
        assert!(hostile.ends_with("-->") && hostile.matches("-->").count() == 1, "{hostile}");
    }

    #[test]
    fn a_comment_is_found_again() {
        let marker = Marker::of("ci-run/7/head-changed");
        assert!(marker.is_in(&marker.under("The head changed.")));
        assert!(!Marker::of("ci-run/77/head-changed").is_in(&marker.under("The head changed.")));
    }
}
