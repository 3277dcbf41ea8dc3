//! Attribute paths as text: parts joined by dots, a part that needs it in double quotes.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::limits::ATTR_BYTES_MAX;

/// Most parts of one path.
const PARTS_MAX: usize = 32;

/// Why a text is no attribute path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseAttrPathError {
    /// Too many bytes or parts.
    #[error("is longer than {ATTR_BYTES_MAX} bytes or has more than {PARTS_MAX} parts")]
    TooLong,
    /// Two dots in a row, or one at an end.
    #[error("has an empty part between its dots; quote it (\"\") if that is its name")]
    EmptyPart,
    /// A quoted part does not end, or something follows its end.
    #[error("has a quote that does not end its part")]
    Quote,
}

/// Splits `checks.x86_64-linux."a.b"` into its parts.
pub fn parse_attr_path(text: &str) -> Result<Vec<String>, ParseAttrPathError> {
    if text.len() > ATTR_BYTES_MAX {
        return Err(ParseAttrPathError::TooLong);
    }
    let mut parts = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let mut part = String::new();
        if rest.next_if_eq(&'"').is_some() {
            loop {
                match rest.next() {
                    Some('"') => break,
                    Some('\\') => part.push(rest.next().ok_or(ParseAttrPathError::Quote)?),
                    Some(character) => part.push(character),
                    None => return Err(ParseAttrPathError::Quote),
                }
            }
        } else {
            while let Some(character) = rest.next_if(|character| *character != '.') {
                if character == '"' {
                    return Err(ParseAttrPathError::Quote);
                }
                part.push(character);
            }
            if part.is_empty() {
                return Err(ParseAttrPathError::EmptyPart);
            }
        }
        parts.push(part);
        if parts.len() > PARTS_MAX {
            return Err(ParseAttrPathError::TooLong);
        }
        match rest.next() {
            None => return Ok(parts),
            Some('.') => {}
            Some(_) => return Err(ParseAttrPathError::Quote),
        }
    }
}

/// The text of a path: the reverse of [`parse_attr_path`].
pub fn print_attr_path<S: AsRef<str>>(parts: &[S]) -> String {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        let part = part.as_ref();
        if part.is_empty() || part.contains(['.', '"', '\\']) {
            text.push('"');
            for character in part.chars() {
                if matches!(character, '"' | '\\') {
                    text.push('\\');
                }
                text.push(character);
            }
            text.push('"');
        } else {
            text.push_str(part);
        }
    }
    text
}

/// Bytes of a hash that tell names apart that are cut.
const CUT_HASH_BYTES: usize = 8;

/// The text under which an attribute is kept, never longer than [`ATTR_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttrName {
    /// The path as text; of one that is too long its beginning, with a hash of the whole.
    pub text: String,
    /// The length in bytes of a path that is too long.
    pub too_long_bytes: Option<usize>,
}

impl AttrName {
    /// The name of the attribute at this path.
    pub fn of<S: AsRef<str>>(parts: &[S]) -> Self {
        let text = print_attr_path(parts);
        if text.len() <= ATTR_BYTES_MAX {
            return Self { text, too_long_bytes: None };
        }
        let mut hash = String::new();
        for byte in Sha256::digest(&text).iter().take(CUT_HASH_BYTES) {
            let _ = write!(hash, "{byte:02x}");
        }
        let end = text.floor_char_boundary(ATTR_BYTES_MAX - hash.len() - '…'.len_utf8());
        Self { text: format!("{}…{hash}", &text[..end]), too_long_bytes: Some(text.len()) }
    }

    /// What is wrong with a path that is too long.
    pub fn problem(&self) -> Option<String> {
        self.too_long_bytes.map(|bytes| {
            format!("the path of this attribute has {bytes} bytes, at most {ATTR_BYTES_MAX} are allowed: give it a shorter name")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_too_long_are_cut_and_stay_different() {
        let fits = AttrName::of(&["checks", &"a".repeat(ATTR_BYTES_MAX - 7)]);
        assert_eq!((fits.text.len(), fits.too_long_bytes, fits.problem()), (ATTR_BYTES_MAX, None, None));
        let long = |last: &str| AttrName::of(&["checks", &format!("{}{last}", "ü名".repeat(500))]);
        let (one, other) = (long("1"), long("2"));
        assert_ne!(one.text, other.text);
        assert!(one.text.len() <= ATTR_BYTES_MAX && one.text.starts_with("checks.ü名ü"), "{}", one.text);
        assert_eq!(one.too_long_bytes, Some(2_508));
        assert!(one.problem().expect("too long").contains("2508 bytes, at most 1024"));
    }

    #[test]
    fn paths_survive_their_text() {
        for (parts, text) in [
            (vec!["checks"], "checks"),
            (vec!["checks", "x86_64-linux", "a.b"], r#"checks.x86_64-linux."a.b""#),
            (vec!["", "ünï code", r#"q"\"#], r#""".ünï code."q\"\\""#),
        ] {
            assert_eq!(print_attr_path(&parts), text);
            assert_eq!(parse_attr_path(text).expect(text), parts);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, error) in [
            ("", ParseAttrPathError::EmptyPart),
            ("a.", ParseAttrPathError::EmptyPart),
            (".a", ParseAttrPathError::EmptyPart),
            ("a..b", ParseAttrPathError::EmptyPart),
            ("\"a", ParseAttrPathError::Quote),
            ("\"a\"b", ParseAttrPathError::Quote),
            ("a\"b", ParseAttrPathError::Quote),
            ("\"a\\", ParseAttrPathError::Quote),
            (&"a.".repeat(40), ParseAttrPathError::TooLong),
            (&"a".repeat(2_000), ParseAttrPathError::TooLong),
        ] {
            assert_eq!(parse_attr_path(text), Err(error), "{text}");
        }
    }
}
