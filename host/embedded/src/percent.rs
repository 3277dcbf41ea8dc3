//! Percent-encoding of bytes for URLs.

/// Encodes all but the unreserved characters of RFC 3986 and the slash, which is harmless in paths and queries.
pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/') {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_characters_stay() {
        assert_eq!(percent_encoded("/a-b_c.d~/é ?&%".as_bytes()), "/a-b_c.d~/%C3%A9%20%3F%26%25");
    }
}
