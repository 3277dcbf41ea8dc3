//! The only file with HTTP status codes. Start at [`WebError`]: what a handler returns; [`answer`] turns it into JSON,
//! plain text or a page, after what the path belongs to ([`Area`]).
//!
//! Two messages: the public text says what failed and what to do; the cause chain goes to the log only, once, under the
//! request id that the answer carries. Every 5xx is counted by cause.

use std::any::Any;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use harmonia_core::api::ApiError;
use harmonia_core::chain;

use crate::state::AppState;

mod convert;
mod counts;

pub(crate) use convert::refused_webhook;
pub use counts::ErrorCounts;

/// Name of the header that carries the request id, on requests from a proxy we trust nothing of, so only on answers.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// How long a client is told to wait after a 503, in seconds.
const RETRY_AFTER_S: u32 = 5;
/// Longest wait that a client is told, whoever asks for it, in seconds.
const RETRY_AFTER_S_MAX: u32 = 3600;

type Cause = Arc<dyn Error + Send + Sync>;

/// A refusal or a failure, before it is known in which form the client wants it.
#[derive(Debug, Clone)]
pub(crate) struct WebError {
    status: StatusCode,
    /// Stable kebab-case word: [`ApiError::code`], and what 5xx are counted by.
    code: &'static str,
    /// For people outside: never contains a cause.
    public: String,
    cause: Option<Cause>,
    retry_after_s: Option<u32>,
    /// Total size of the resource, for 416.
    content_range_total: Option<u64>,
}

impl WebError {
    fn new(status: StatusCode, code: &'static str, public: impl Into<String>) -> Self {
        Self { status, code, public: public.into(), cause: None, retry_after_s: None, content_range_total: None }
    }

    fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// 400: the request cannot be understood.
    pub(crate) fn bad_request(public: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", public)
    }

    /// 401: no token, or one that nobody has.
    pub(crate) fn unauthorized(public: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", public)
    }

    /// 404: known to be absent. Never for "could not look".
    pub(crate) fn not_found(public: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", public)
    }

    /// 404 on a node without the capability that the route belongs to.
    pub(crate) fn no_such_service(public: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-such-service", public)
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this address does not answer that method")
    }

    /// 408: the body did not come within its time.
    pub(crate) fn too_slow(time: Duration) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            format!("the body was not complete within {} seconds", time.as_secs_f64()),
        )
    }

    /// 409: the claim token is void. The holder drops the work.
    pub(crate) fn stale_claim() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "stale-claim",
            "this claim token is not (or no longer) valid here: drop the work, another node has it",
        )
    }

    /// 409 as well, told apart by its code: the claim holds, but objects are not in the store as declared. The holder
    /// asks for slots again, uploads, and completes again.
    pub(crate) fn not_uploaded(public: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "not-uploaded", public)
    }

    /// 412: what is here is not what the client asks for a part of.
    pub(crate) fn precondition_failed() -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "this is not what If-Match asks for")
    }

    /// 413.
    pub(crate) fn too_large(limit_bytes: u64, what: &str) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("{what} is larger than the {limit_bytes} bytes allowed here"),
        )
    }

    /// 416, with the size that is there.
    pub(crate) fn range_not_satisfiable(total: u64) -> Self {
        let mut error = Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range-not-satisfiable",
            format!("the requested range lies outside of the {total} bytes that there are"),
        );
        error.content_range_total = Some(total);
        error
    }

    /// 422: understood and refused for good.
    pub(crate) fn refused(public: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", public)
    }

    /// 503: somebody else asks us to wait.
    pub(crate) fn wait(public: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::unavailable("asked-to-wait", public);
        error.retry_after_s = Some(retry_after_s.clamp(1, RETRY_AFTER_S_MAX));
        error
    }

    /// 503: a backend cannot say now.
    pub(crate) fn unavailable(code: &'static str, public: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, public);
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// 503: this node holds as many bodies as it may.
    pub(crate) fn no_room_for_bodies() -> Self {
        Self::unavailable("too-many-bodies", "this server receives too much at once: try again")
    }

    /// 503: what costs much is done only so many times at once.
    pub(crate) fn busy() -> Self {
        Self::unavailable("busy", "this server has too many such questions to answer at once: try again")
    }

    /// 503: a stored log begins and cannot be read on.
    pub(crate) fn unreadable_log(cause: std::io::Error) -> Self {
        Self::unavailable("log-unreadable", "the stored log cannot be read now: try again").because(cause)
    }

    /// 500: a defect of ours.
    pub(crate) fn internal(code: &'static str) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code,
            "internal error; the server's log says more under this request id",
        )
    }

    /// What a panicking handler becomes.
    pub(crate) fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without text".to_owned());
        Self::internal("panic").because(Panic(text))
    }

    /// Cache clients take a 500 for final and a 503 for "ask again": they never get a 500.
    fn for_area(mut self, area: Area) -> Self {
        if area == Area::Cache && self.status == StatusCode::INTERNAL_SERVER_ERROR {
            self.status = StatusCode::SERVICE_UNAVAILABLE;
            self.retry_after_s = Some(RETRY_AFTER_S);
        }
        self
    }

    #[cfg(test)]
    pub(crate) fn status_and_code(&self) -> (u16, &'static str) {
        (self.status.as_u16(), self.code)
    }

    /// The text for people.
    pub(crate) fn public_text(&self) -> &str {
        &self.public
    }
}

/// A caught panic, as a cause.
#[derive(Debug, thiserror::Error)]
#[error("panic: {0}")]
struct Panic(String);

impl IntoResponse for WebError {
    /// A placeholder: [`answer`] writes body and headers when it knows path and request id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Which clients a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    /// Nix: plain text, and never a 500.
    Cache,
    /// Programs: [`ApiError`]. Forges and other nodes are programs too.
    Api,
    /// People: a page.
    Pages,
}

impl Area {
    pub(crate) fn of(path: &str) -> Self {
        let is_below =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if is_below("/ci") {
            Self::Pages
        } else if ["/api", "/health", "/ready", "/webhook", "/internal"].into_iter().any(is_below) {
            Self::Api
        } else {
            Self::Cache
        }
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    frame: crate::pages::Frame,
    status: u16,
    message: &'a str,
    request_id: Option<&'a str>,
}

/// Outermost middleware: gives every request an id, turns a [`WebError`] into the form its area wants, logs each 5xx
/// once with its causes, and counts it.
pub(crate) async fn answer(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let id = state.next_request_id();
    let area = Area::of(request.uri().path());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<WebError>() {
        let error = error.for_area(area);
        if error.status.is_server_error() {
            report(&state, &error, &id, &method, &path);
        }
        let allow = response.headers_mut().remove(header::ALLOW);
        response = render(&state, &error, area, &id);
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        if method == Method::HEAD {
            // As long as the answer to a GET.
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            *response.body_mut() = Body::empty();
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn report(state: &AppState, error: &WebError, id: &str, method: &Method, path: &str) {
    state.error_counts().add(error.code);
    let chain = error.cause.as_deref().map(|cause| chain(cause)).unwrap_or_default();
    let status = error.status.as_u16();
    let shown: String = path.chars().take(300).collect();
    if status == StatusCode::SERVICE_UNAVAILABLE.as_u16() {
        tracing::warn!(request.id = id, %method, path = shown, status, code = error.code, cause = chain, "{}", error.public);
    } else {
        tracing::error!(request.id = id, %method, path = shown, status, code = error.code, cause = chain, "Request failed");
    }
}

fn render(state: &AppState, error: &WebError, area: Area, id: &str) -> Response {
    let shown_id = error.status.is_server_error().then_some(id);
    let (kind, body) = match area {
        Area::Cache => {
            let id = shown_id.map_or_else(String::new, |id| format!(" (request {id})"));
            ("text/plain; charset=utf-8", format!("{}{id}\n", error.public))
        }
        Area::Api => {
            let answer = ApiError {
                code: error.code.to_owned(),
                message: error.public.clone(),
                request_id: shown_id.map(str::to_owned),
            };
            ("application/json", serde_json::to_string(&answer).unwrap_or_default())
        }
        Area::Pages => {
            let page = ErrorPage {
                frame: state.frame(&format!("Error {}", error.status.as_u16())),
                status: error.status.as_u16(),
                message: &error.public,
                request_id: shown_id,
            };
            ("text/html; charset=utf-8", page.render().unwrap_or_else(|_| "error".to_owned()))
        }
    };
    let mut response = (error.status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = error.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.status == StatusCode::UNAUTHORIZED {
        // Nix sends what netrc says only as basic authentication.
        let scheme = if area == Area::Cache { "Basic realm=\"binary cache\"" } else { "Bearer" };
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    if let Some(value) = error.content_range_total.and_then(|total| format!("bytes */{total}").parse().ok()) {
        headers.insert(header::CONTENT_RANGE, value);
    }
    response
}

/// What everything but `/health` gets while the server starts.
pub(crate) fn starting() -> Response {
    let mut response = (
        StatusCode::SERVICE_UNAVAILABLE,
        "{\"code\":\"starting\",\"message\":\"the server is starting: try again in a moment\"}\n",
    )
        .into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 200 or 503: the answer of `/ready`.
pub(crate) fn readiness(is_ready: bool, body: String) -> Response {
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_ready {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    response
}

/// 202 when something follows from what was sent, 200 when nothing does.
pub(crate) fn taken(follows: bool, body: impl IntoResponse) -> Response {
    (if follows { StatusCode::ACCEPTED } else { StatusCode::OK }, body).into_response()
}

/// 200, or 206 when `is_partial`.
pub(crate) fn content(is_partial: bool, headers: HeaderMap, body: Body) -> Response {
    let status = if is_partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    (status, headers, body).into_response()
}

/// 304 with the validators of what the client has.
pub(crate) fn not_modified(headers: HeaderMap) -> Response {
    (StatusCode::NOT_MODIFIED, headers).into_response()
}

#[cfg(test)]
mod tests;
