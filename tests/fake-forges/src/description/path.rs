//! Path templates: `/repos/{owner}/{repo}/branches/{branch}`.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// A template, split at slashes.
pub(crate) struct Template {
    text: String,
    segments: Vec<Segment>,
}

enum Segment {
    Literal(String),
    /// One segment, or, when `many`, one or more.
    Parameter {
        name: String,
        many: bool,
    },
}

impl Template {
    /// `many` says of which parameters the value may contain slashes.
    pub(crate) fn new(text: &str, many: impl Fn(&str) -> bool) -> Self {
        let segments = text.trim_start_matches('/').split('/').map(|segment| {
            match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(name) => Segment::Parameter { name: name.to_owned(), many: many(name) },
                None => Segment::Literal(segment.to_owned()),
            }
        });
        Self { text: text.to_owned(), segments: segments.collect() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// How many segments are fixed: of two templates that match, the one with more is meant.
    pub(crate) fn literals(&self) -> usize {
        self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count()
    }

    /// Values of the parameters, decoded.
    pub(crate) fn matches(&self, path: &str) -> Option<BTreeMap<String, String>> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let mut values = BTreeMap::new();
        matches(&self.segments, &parts, &mut values).then_some(values)
    }
}

fn matches(segments: &[Segment], parts: &[&str], values: &mut BTreeMap<String, String>) -> bool {
    let Some((segment, segments)) = segments.split_first() else { return parts.is_empty() };
    let Some(part) = parts.first() else { return false };
    match segment {
        Segment::Literal(literal) => decoded(part) == *literal && matches(segments, &parts[1..], values),
        Segment::Parameter { .. } if part.is_empty() => false,
        Segment::Parameter { name, many } => {
            let most = if *many { parts.len() - segments.len().min(parts.len()) } else { 1 };
            (1..=most).rev().any(|count| {
                let found = matches(segments, &parts[count..], values);
                if found {
                    values.insert(name.clone(), decoded(&parts[..count].join("/")));
                }
                found
            })
        }
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::Template;

    #[test]
    fn parameters_are_decoded_and_may_span_segments() {
        let template = Template::new("/repos/{owner}/{repo}/commits/{ref}/statuses", |name| name == "ref");
        let values = template.matches("/repos/o/r/commits/release/1%2E0/x%20y/statuses").expect("it matches");
        assert_eq!(values["ref"], "release/1.0/x y");
        assert_eq!(values["owner"], "o");
        assert!(template.matches("/repos/o/r/commits/statuses").is_none());
        assert!(template.matches("/repos/o//commits/x/statuses").is_none());
        assert!(Template::new("/user", |_| false).matches("/user/").is_none());
    }
}
