//! Reading an answer.

use serde::de::DeserializeOwned;

use super::{HttpError, Response, StatusError};
use crate::secrets::Secret;

/// Characters of the body in a [`StatusError`].
const MESSAGE_CHARS_MAX: usize = 200;

impl Response {
    /// The first header field of this name, compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// This answer when its status is 2xx, else the error that it means.
    pub fn success(self) -> Result<Self, StatusError> {
        if self.is_success() { Ok(self) } else { Err(self.status_error()) }
    }

    fn status_error(&self) -> StatusError {
        let exhausted =
            ["x-ratelimit-remaining", "ratelimit-remaining"].iter().any(|&name| self.header(name) == Some("0"));
        let message: String = String::from_utf8_lossy(&self.body)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MESSAGE_CHARS_MAX)
            .collect();
        StatusError {
            status: self.status,
            retry_after_s: self.retry_after_s().or(exhausted.then_some(60)),
            message: message.trim().to_owned(),
        }
    }

    /// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date, which counts from the answer's own `Date`, since clocks differ.
    fn retry_after_s(&self) -> Option<u32> {
        let value = self.header("retry-after")?.trim();
        if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
            return Some(value.parse().unwrap_or(u32::MAX));
        }
        let until = httpdate::parse_http_date(value).ok()?;
        let from = httpdate::parse_http_date(self.header("date")?.trim()).ok()?;
        let wait_s = until.duration_since(from).map_or(0, |wait| wait.as_secs());
        Some(u32::try_from(wait_s).unwrap_or(u32::MAX).max(1))
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// The body as text; what is no UTF-8 becomes `U+FFFD`.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The target of the `Link` header (RFC 8288) with this relation: `link("next")` is the next page.
    pub fn link(&self, relation: &str) -> Option<&str> {
        let links = self.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("link"));
        links.flat_map(|header| Links(&header.value)).find_map(|(target, parameters)| {
            parameters.split(';').any(|parameter| has_relation(parameter, relation)).then_some(target)
        })
    }

    /// What [`Request::capture`](super::Request::capture) captured, by its position among the captures, once.
    pub fn captured_secret(&mut self, position: usize) -> Result<Secret, HttpError> {
        let captured = self.captured.get_mut(position).and_then(Option::take);
        captured.ok_or_else(|| HttpError::Unavailable("the answer lacks the secret that was expected in it".to_owned()))
    }
}

/// The links of one header: target, and the parameters behind it. Commas inside `<…>` and quotes separate nothing.
struct Links<'a>(&'a str);

impl<'a> Iterator for Links<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (_, rest) = self.0.split_once('<')?;
        let (target, rest) = rest.split_once('>')?;
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.0 = rest;
        Some((target, parameters))
    }
}

fn has_relation(parameter: &str, relation: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    name.trim().eq_ignore_ascii_case("rel")
        && value.trim().trim_matches('"').split_ascii_whitespace().any(|one| one.eq_ignore_ascii_case(relation))
}

#[cfg(test)]
mod tests {
    use super::super::{Header, Meaning};
    use super::*;

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
        let headers =
            headers.iter().map(|&(name, value)| Header { name: name.to_owned(), value: value.to_owned() }).collect();
        Response { status, headers, body: body.as_bytes().to_vec(), captured: Vec::new() }
    }

    #[test]
    fn links_lead_to_pages() {
        let value = r#"<https://x/r?page=2&q=a,b>; rel="next", <https://x/r?page=9>; title="a, <b>"; rel="last end""#;
        let page = response(200, &[("link", value)], "");
        assert_eq!(page.link("next"), Some("https://x/r?page=2&q=a,b"));
        assert_eq!(page.link("END"), Some("https://x/r?page=9"));
        assert_eq!(page.link("prev"), None);
        let two = response(200, &[("Link", "<a>; rel=first"), ("link", "<b>; rel=next")], "");
        assert_eq!(two.link("next"), Some("b"));
        for broken in ["", "<", "<a", "a>; rel=next", ",,;;="] {
            assert_eq!(response(200, &[("link", broken)], "").link("next"), None, "{broken}");
        }
    }

    fn meaning(status: u16, headers: &[(&str, &str)]) -> Meaning {
        response(status, headers, "why\n").success().expect_err("no success").into()
    }

    #[test]
    fn a_status_means_what_to_do() {
        assert!(response(204, &[], "").success().is_ok());
        assert_eq!(meaning(401, &[]), Meaning::Denied("HTTP 401: why".to_owned()));
        assert_eq!(meaning(404, &[]), Meaning::NotFound("HTTP 404: why".to_owned()));
        assert_eq!(meaning(422, &[]), Meaning::Invalid("HTTP 422: why".to_owned()));
        assert_eq!(meaning(502, &[]), Meaning::Unavailable("HTTP 502: why".to_owned()));
        assert_eq!(meaning(429, &[]), Meaning::RetryAfter(60));
        assert_eq!(meaning(429, &[("retry-after", "7")]), Meaning::RetryAfter(7));
        assert_eq!(meaning(503, &[("retry-after", "8")]), Meaning::RetryAfter(8));
        assert_eq!(meaning(403, &[("X-RateLimit-Remaining", "0")]), Meaning::RetryAfter(60));
        assert_eq!(meaning(403, &[("X-RateLimit-Remaining", "3")]), Meaning::Denied("HTTP 403: why".to_owned()));
    }

    #[test]
    fn retry_after_may_be_a_date() {
        let date = ("date", "Sun, 22 Nov 2026 23:59:00 GMT");
        for (until, expected) in [
            ("Mon, 23 Nov 2026 00:00:30 GMT", 90),
            ("Monday, 23-Nov-26 00:00:30 GMT", 90), // an obsolete form, which RFC 9110 has recipients accept
            ("Sun, 22 Nov 2026 23:00:00 GMT", 1),
            ("99999999999", u32::MAX),
            ("tomorrow", 60),
            ("-5", 60),
            ("", 60),
        ] {
            assert_eq!(meaning(429, &[("retry-after", until), date]), Meaning::RetryAfter(expected), "{until}");
        }
        let until = ("retry-after", "Mon, 23 Nov 2026 00:00:30 GMT");
        assert_eq!(meaning(429, &[until]), Meaning::RetryAfter(60), "nobody says from when");
        assert_eq!(meaning(503, &[until, date]), Meaning::RetryAfter(90));
    }

    #[test]
    fn long_answers_are_cut() {
        let error = response(500, &[], &"é".repeat(10_000)).success().expect_err("no success");
        assert_eq!(error.message.chars().count(), MESSAGE_CHARS_MAX);
    }
}
