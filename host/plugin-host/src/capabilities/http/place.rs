//! Puts secrets into a request, at the last moment before it is sent. Start at [`header_value`] and [`fill_body`].

use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use super::HttpError;

/// Lengths that a placeholder may have.
const PLACEHOLDER_BYTES: std::ops::RangeInclusive<usize> = 8..=64;

/// How a body writes a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    Json,
    Form,
}

impl BodyKind {
    /// By content type; `None`: secrets cannot be put into such a body.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "application/json" => Some(Self::Json),
            other if other.starts_with("application/") && other.ends_with("+json") => Some(Self::Json),
            _ => None,
        }
    }

    fn write(self, secret: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Form => {
                Some(Zeroizing::new(url::form_urlencoded::byte_serialize(secret).collect::<String>().into_bytes()))
            }
            Self::Json => {
                let quoted = Zeroizing::new(serde_json::to_vec(std::str::from_utf8(secret).ok()?).ok()?);
                Some(Zeroizing::new(quoted.get(1..quoted.len() - 1)?.to_vec()))
            }
        }
    }
}

/// A header's value with a secret in it.
pub(super) fn header_value(prefix: &str, secret: &[u8]) -> Result<HeaderValue, HttpError> {
    let text = Zeroizing::new([prefix.as_bytes(), secret].concat());
    let mut value = HeaderValue::from_bytes(&text).map_err(|_| {
        HttpError::Invalid(
            "the secret, or what stands before it, cannot stand in a header: it has a line break".to_owned(),
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Puts secrets in the place of their placeholders, each of which must stand in the body exactly once.
pub(super) fn fill_body(
    body: &[u8],
    kind: BodyKind,
    secrets: &[(&str, &[u8])],
) -> Result<Zeroizing<Vec<u8>>, HttpError> {
    let mut places = Vec::new();
    for (placeholder, secret) in secrets {
        let is_plain = placeholder.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
        if !is_plain || !PLACEHOLDER_BYTES.contains(&placeholder.len()) {
            let text = "a placeholder is between 8 and 64 characters of A-Z, 0-9 and _".to_owned();
            return Err(HttpError::Invalid(text));
        }
        let needle = placeholder.as_bytes();
        let mut found = body.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
        match (found.next(), found.next()) {
            (Some((at, _)), None) => places.push((at, needle.len(), *secret)),
            (None, _) => return Err(HttpError::Invalid(format!("the placeholder {placeholder} is not in the body"))),
            _ => {
                return Err(HttpError::Invalid(format!("the placeholder {placeholder} is in the body more than once")));
            }
        }
    }
    places.sort_unstable_by_key(|(at, ..)| *at);
    if places.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(HttpError::Invalid("placeholders overlap in the body".to_owned()));
    }
    let mut filled = Zeroizing::new(Vec::with_capacity(body.len() + 4096));
    let mut copied = 0;
    for (at, length, secret) in places {
        filled.extend_from_slice(&body[copied..at]);
        let written = kind
            .write(secret)
            .ok_or_else(|| HttpError::Invalid("the secret is no text, so it cannot stand in JSON".to_owned()))?;
        filled.extend_from_slice(&written);
        copied = at + length;
    }
    filled.extend_from_slice(&body[copied..]);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(body: &str, kind: BodyKind, secrets: &[(&str, &str)]) -> Result<String, HttpError> {
        let secrets: Vec<_> = secrets.iter().map(|(name, secret)| (*name, secret.as_bytes())).collect();
        fill_body(body.as_bytes(), kind, &secrets).map(|body| String::from_utf8(body.to_vec()).expect("text"))
    }

    #[test]
    fn a_secret_is_written_as_the_body_writes_strings() {
        let secret = "a\"b\\c&d=e f\u{e9}";
        let json = fill(r#"{"s":"PLACE_01"}"#, BodyKind::Json, &[("PLACE_01", secret)]).expect("filled");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["s"], secret);
        let form = fill("x=1&s=PLACE_01&y=2", BodyKind::Form, &[("PLACE_01", secret)]).expect("filled");
        let pairs: Vec<_> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
        assert_eq!(pairs[1], ("s".to_owned(), secret.to_owned()));
        assert_eq!(pairs.len(), 3);
    }

    #[test]
    fn a_placeholder_stands_exactly_once() {
        let json = BodyKind::Json;
        for (body, secrets) in [
            ("", vec![("PLACE_01", "secret")]),
            ("PLACE_01PLACE_01", vec![("PLACE_01", "secret")]),
            ("PLACE_01", vec![("PLACE_01", "secret"), ("PLACE_01", "secret")]),
            ("PLACE_01", vec![("PLACE_01", "PLACE_02"), ("PLACE_02", "secret")]),
            ("AAAAAAAABBBBBBBB", vec![("AAAAAAAAB", "secret"), ("ABBBBBBBB", "secret")]),
            ("short", vec![("SHORT", "secret")]),
            ("place_01", vec![("place_01", "secret")]),
        ] {
            assert!(matches!(fill(body, json, &secrets), Err(HttpError::Invalid(_))), "{body}");
        }
        let two = [("PLACE_02", "two!"), ("PLACE_01", "one!")];
        assert_eq!(fill("PLACE_01-PLACE_02", json, &two).expect("filled"), "one!-two!");
    }

    #[test]
    fn only_json_and_forms_are_filled() {
        assert_eq!(BodyKind::of("application/JSON; charset=utf-8"), Some(BodyKind::Json));
        assert_eq!(BodyKind::of("application/vnd.forge+json"), Some(BodyKind::Json));
        assert_eq!(BodyKind::of("application/x-www-form-urlencoded"), Some(BodyKind::Form));
        assert_eq!(BodyKind::of("text/plain"), None);
        assert!(fill_body(b"PLACE_01", BodyKind::Json, &[("PLACE_01", b"\xff\xff\xff\xff")]).is_err());
    }

    #[test]
    fn a_secret_cannot_end_a_header() {
        assert!(header_value("Bearer ", b"a\r\nX: y").is_err());
        let value = header_value("Bearer ", b"token").expect("a value");
        assert!(value.is_sensitive() && value == "Bearer token");
    }
}
