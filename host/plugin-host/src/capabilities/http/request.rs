//! Checks a guest's request before anything is sent. Start at [`check`].

use harmonia_egress::Target;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use url::Url;

use super::capture::{self, Checked};
use super::place::{BodyKind, fill_body, header_value};
use super::{Auth, Header, HttpError, HttpRequest, Method, Place};
use crate::capabilities::redact::basic;
use crate::capabilities::secrets::SecretHandle;
use crate::capabilities::{CallState, CapabilityLimits};

/// Sent where the guest names none; some forges refuse requests without.
const USER_AGENT_DEFAULT: &str = concat!("harmonia-ci/", env!("CARGO_PKG_VERSION"));

/// Headers that belong to the connection, or would let an answer come back in a form that is not searched for secrets
/// (compressed, in parts).
const REFUSED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "if-range",
    "keep-alive",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A secret in a header, put there when it is known where the request goes.
pub(super) struct SecretHeader {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
    pub(super) secret: SecretHandle,
}

/// A request that may be sent, with its secrets apart.
pub(super) struct CheckedRequest {
    pub(super) method: reqwest::Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) secret_headers: Vec<SecretHeader>,
    /// With its secrets.
    pub(super) body: Option<bytes::Bytes>,
    pub(super) body_secrets: Vec<SecretHandle>,
    pub(super) captures: Vec<Checked>,
}

fn limit(state: &CallState, name: &str, what: &str, is: usize, most: usize) -> Result<(), HttpError> {
    if is <= most {
        return Ok(());
    }
    Err(HttpError::Limit(format!("{is} {what}, at most {most}: {}", state.shared.grants.limit(name))))
}

/// Checks form, bounds and grants of a request.
pub(super) fn check(state: &mut CallState, request: HttpRequest) -> Result<CheckedRequest, HttpError> {
    let HttpRequest { method, url, headers, body, auth, capture } = request;
    let limits: CapabilityLimits = state.limits().clone();
    let body_bytes = body.as_ref().map_or(0, Vec::len);
    limit(state, "url_bytes", "bytes of URL", url.len(), limits.url_bytes)?;
    limit(state, "headers_per_request", "headers", headers.len(), limits.headers_per_request)?;
    limit(state, "request_body_bytes", "bytes of body", body_bytes, limits.request_body_bytes)?;
    limit(state, "auth_per_request", "secrets in one request", auth.len(), limits.auth_per_request)?;
    limit(state, "captures_per_request", "captures in one request", capture.len(), limits.captures_per_request)?;

    let mut url = Url::parse(&url).map_err(|error| HttpError::Invalid(format!("the URL is none: {error}")))?;
    url.set_fragment(None);
    let target =
        Target::of(&url).map_err(|reason| HttpError::Invalid(format!("the URL cannot be called: {reason}")))?;
    // Said before anything of the secrets is, and again at every hop.
    state.granted(&target)?;
    for auth in &auth {
        if auth.secret.is_expired(state.shared.clock.now()) {
            return Err(HttpError::Denied(format!("{} has expired: get a new one", auth.secret.origin())));
        }
        if !auth.secret.may_go_to(&target) {
            return Err(HttpError::Denied(state.shared.unbound(&auth.secret, &target)));
        }
        state.know(&auth.secret).map_err(|error| HttpError::Limit(error.to_string()))?;
    }

    let mut bytes = 0;
    let mut map = HeaderMap::with_capacity(headers.len() + 4);
    for header in headers {
        bytes += header.name.len() + header.value.len();
        let name = header_name(&header.name)?;
        let value = HeaderValue::from_str(&header.value).map_err(|_| {
            HttpError::Invalid(format!("the value of the header `{name}` has a line break or a control character"))
        })?;
        map.append(name, value);
    }
    limit(state, "request_header_bytes", "bytes of headers", bytes, limits.request_header_bytes)?;

    let (secret_headers, fills) = place(state, auth, &map)?;
    let body_secrets: Vec<SecretHandle> = fills.iter().map(|(_, secret)| secret.clone()).collect();
    let body = match (body, fills.is_empty()) {
        (body, true) => body.map(bytes::Bytes::from),
        (None, false) => return Err(HttpError::Invalid("there is no body for the placeholder".to_owned())),
        (Some(body), false) => {
            let content_type = map.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let kind = BodyKind::of(content_type).ok_or_else(|| {
                let kinds = "application/json or application/x-www-form-urlencoded";
                HttpError::Invalid(format!("a placeholder needs the content type {kinds}, not `{content_type}`"))
            })?;
            let fills: Vec<_> = fills.iter().map(|(name, secret)| (name.as_str(), secret.bytes())).collect();
            let filled = fill_body(&body, kind, &fills)?;
            limit(state, "request_body_bytes", "bytes of body", filled.len(), limits.request_body_bytes)?;
            // Wiped when the request is done.
            Some(bytes::Bytes::from_owner(filled))
        }
    };

    if !map.contains_key(USER_AGENT) {
        map.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_DEFAULT));
    }
    map.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let captures: Result<Vec<_>, _> = capture.into_iter().map(|one| capture::check(&state.shared, one)).collect();
    Ok(CheckedRequest {
        method: verb(method),
        url,
        headers: map,
        secret_headers,
        body,
        body_secrets,
        captures: captures?,
    })
}

fn verb(method: Method) -> reqwest::Method {
    match method {
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Patch => reqwest::Method::PATCH,
        Method::Delete => reqwest::Method::DELETE,
    }
}

fn header_name(text: &str) -> Result<HeaderName, HttpError> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        let shown: String = text.chars().take(100).collect();
        HttpError::Invalid(format!("`{}` is no header name", shown.escape_debug()))
    })?;
    if REFUSED.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
        return Err(HttpError::Invalid(format!("the header `{name}` is the host's, not a plugin's")));
    }
    Ok(name)
}

/// Secrets of headers, ready; secrets of the body with their placeholders.
type Placed = (Vec<SecretHeader>, Vec<(String, SecretHandle)>);

fn place(state: &mut CallState, auth: Vec<Auth>, headers: &HeaderMap) -> Result<Placed, HttpError> {
    let mut secret_headers: Vec<SecretHeader> = Vec::new();
    let mut fills = Vec::new();
    for Auth { secret, place } in auth {
        let (name, value) = match place {
            Place::Body(placeholder) => {
                fills.push((placeholder, secret));
                continue;
            }
            Place::Header(Header { name, value: prefix }) => {
                (header_name(&name)?, header_value(&prefix, secret.bytes())?)
            }
            Place::Basic(user) if user.contains(':') => {
                return Err(HttpError::Invalid("the user of basic authentication has a `:`".to_owned()));
            }
            Place::Basic(user) => {
                let text = basic(&user, secret.bytes());
                let value = header_value("Basic ", text.as_bytes())?;
                state.sent.push(text);
                (AUTHORIZATION, value)
            }
        };
        if headers.contains_key(&name) || secret_headers.iter().any(|header| header.name == name) {
            return Err(HttpError::Invalid(format!("the header `{name}` is set twice")));
        }
        secret_headers.push(SecretHeader { name, value, secret });
    }
    Ok((secret_headers, fills))
}
