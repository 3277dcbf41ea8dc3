//! Attribute paths as text: parts joined by dots, a part that needs it in double quotes.

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

#[cfg(test)]
mod tests {
    use super::*;

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
