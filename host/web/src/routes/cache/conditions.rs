//! Conditions of a request on what the client has already (RFC 9110, 13.1). Pure: start at [`Conditions::read`].

use axum::http::{HeaderMap, HeaderName, header};

/// What is asked of an object with an entity tag and without a date.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// `If-Match`.
    wanted: Option<Tags>,
    /// `If-None-Match`.
    had: Option<Tags>,
    /// The one tag of `If-Range`; empty for a date or a weak tag, which match nothing.
    part_of: Option<String>,
}

/// The tags of a header.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// Without `W/`, and whether that stood before it.
    These(Vec<(String, bool)>),
}

/// What is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The object, or the part of it that was asked for.
    Send,
    /// All of it: the client has a part of something else.
    SendWhole,
    /// The client has it.
    NotModified,
    /// It is not what the client wants a part of.
    Failed,
}

impl Conditions {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        Self {
            wanted: tags(headers, &header::IF_MATCH),
            had: tags(headers, &header::IF_NONE_MATCH),
            part_of: headers.get(header::IF_RANGE).map(|value| {
                let text = value.to_str().unwrap_or("").trim();
                if text.starts_with('"') { text.to_owned() } else { String::new() }
            }),
        }
    }

    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// For the object with this tag, quotes included.
    pub(super) fn outcome(&self, etag: Option<&str>) -> Outcome {
        if self.wanted.as_ref().is_some_and(|tags| !tags.hold(etag, false)) {
            return Outcome::Failed;
        }
        if self.had.as_ref().is_some_and(|tags| tags.hold(etag, true)) {
            return Outcome::NotModified;
        }
        match &self.part_of {
            Some(tag) if Some(tag.as_str()) != etag => Outcome::SendWhole,
            _ => Outcome::Send,
        }
    }
}

impl Tags {
    fn hold(&self, etag: Option<&str>, weakly: bool) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|(tag, weak)| Some(tag.as_str()) == etag && (weakly || !weak)),
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    if !headers.contains_key(name) {
        return None;
    }
    let mut found = Vec::new();
    for value in headers.get_all(name).iter().filter_map(|value| value.to_str().ok()) {
        if value.trim() == "*" {
            return Some(Tags::Any);
        }
        let mut rest = value;
        // A comma may stand within a tag: tags are read from quote to quote.
        while let Some((before, after)) = rest.split_once('"') {
            let Some((tag, next)) = after.split_once('"') else { break };
            found.push((format!("\"{tag}\""), before.trim_end().ends_with("W/")));
            rest = next;
        }
    }
    Some(Tags::These(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(conditions: &[(&HeaderName, &str)]) -> Outcome {
        let mut headers = HeaderMap::new();
        for (name, value) in conditions {
            headers.append(*name, value.parse().expect("a value"));
        }
        Conditions::read(&headers).outcome(Some("\"abc\""))
    }

    #[test]
    fn what_the_client_has() {
        let none_match = &header::IF_NONE_MATCH;
        for (value, expected) in [
            ("\"abc\"", Outcome::NotModified),
            ("W/\"abc\"", Outcome::NotModified),
            ("*", Outcome::NotModified),
            ("\"other\", \"abc\"", Outcome::NotModified),
            ("\"with,comma\",W/\"x\",\"abc\"", Outcome::NotModified),
            ("\"other\"", Outcome::Send),
            ("\"ab\"", Outcome::Send),
            ("\"abcd\"", Outcome::Send),
            ("abc", Outcome::Send),
            ("\"abc", Outcome::Send),
            ("", Outcome::Send),
        ] {
            assert_eq!(outcome(&[(none_match, value)]), expected, "{value}");
        }
        assert_eq!(outcome(&[(none_match, "\"x\""), (none_match, "\"abc\"")]), Outcome::NotModified);
    }

    #[test]
    fn what_the_client_wants_a_part_of() {
        for (name, value, expected) in [
            (&header::IF_RANGE, "\"abc\"", Outcome::Send),
            (&header::IF_RANGE, "W/\"abc\"", Outcome::SendWhole),
            (&header::IF_RANGE, "\"other\"", Outcome::SendWhole),
            (&header::IF_RANGE, "Thu, 01 Jan 1970 00:00:01 GMT", Outcome::SendWhole),
            (&header::IF_MATCH, "\"abc\"", Outcome::Send),
            (&header::IF_MATCH, "*", Outcome::Send),
            (&header::IF_MATCH, "W/\"abc\"", Outcome::Failed),
            (&header::IF_MATCH, "\"other\"", Outcome::Failed),
        ] {
            assert_eq!(outcome(&[(name, value)]), expected, "{name}: {value}");
        }
        assert!(Conditions::read(&HeaderMap::new()).are_none());
        assert_eq!(Conditions::default().outcome(None), Outcome::Send);
    }
}
