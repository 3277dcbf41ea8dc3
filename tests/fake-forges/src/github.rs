//! A fake GitHub: a GitHub App on `api_url`, with its installations, and the login pages on the same address.
//!
//! Start reading at [`FakeGithub`]; a request goes through `auth.rs` (who asks), the description (is it a request that
//! GitHub knows) and `routes.rs` (what it does); answers are built in `bodies.rs`, deliveries in `deliveries.rs`.

mod auth;
mod bodies;
mod checks;
mod deliveries;
mod paging;
mod routes;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use crate::delivery::{Delivery, Event};
use crate::description::Description;
use crate::faults::{Effect, Faults};
use crate::files;
use crate::forge::{Core, Recorded, WorldGuard};
use crate::helper::{Helper, KeyPair};
use crate::oauth::{self, Client, Dialect};
use crate::server::{Request, Response, Server, Site};
use crate::world::{CheckRun, CommitStatus};

/// Versions of the API that exist.
const API_VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

/// GitHub, as a GitHub App sees it. Stops when it is dropped.
pub struct FakeGithub {
    site: Arc<Github>,
    _server: Server,
}

pub(crate) struct Github {
    pub(crate) core: Core,
    pub(crate) description: Arc<Description>,
    pub(crate) examples: OnceLock<Value>,
    pub(crate) key: KeyPair,
    pub(crate) app_id: u64,
    pub(crate) slug: &'static str,
    pub(crate) client: Client,
    pub(crate) webhook_secret: String,
}

impl FakeGithub {
    /// Starts on an ephemeral port of the loopback interface, with an app and nothing else.
    pub async fn start() -> Self {
        // Starting node and making a key takes a moment.
        tokio::task::spawn_blocking(Self::start_blocking).await.expect("the fake starts")
    }

    fn start_blocking() -> Self {
        static DESCRIPTION: OnceLock<Arc<Description>> = OnceLock::new();
        let description =
            DESCRIPTION.get_or_init(|| Arc::new(Description::from_openapi(&files::generated("github-api.json"))));
        let helper = Helper::start();
        let key = helper.key_pair();
        let (server, site) = Server::start(|address| {
            Arc::new(Github {
                core: Core::new(format!("http://{address}"), helper),
                description: description.clone(),
                examples: OnceLock::new(),
                key,
                app_id: 29_310,
                slug: "harmonia",
                client: Client {
                    id: "Iv1.3a4b5c6d7e8f9a0b".to_owned(),
                    secret: "client-secret-of-the-app-0123456789".to_owned(),
                },
                webhook_secret: "It's a Secret to Everybody".to_owned(),
            })
        });
        debug_assert_eq!(server.url(), site.core.url);
        Self { site, _server: server }
    }

    /// Where the API and the login pages are: `http://127.0.0.1:PORT`. The API answers under `/api/v3` too, as GitHub
    /// Enterprise Server has it.
    pub fn url(&self) -> &str {
        &self.site.core.url
    }

    /// The app's id.
    pub fn app_id(&self) -> u64 {
        self.site.app_id
    }

    /// The app's private key as GitHub hands it out (PEM, PKCS #1).
    pub fn private_key(&self) -> &str {
        &self.site.key.private_pkcs1
    }

    /// The same key in PKCS #8.
    pub fn private_key_pkcs8(&self) -> &str {
        &self.site.key.private_pkcs8
    }

    /// What deliveries are signed with.
    pub fn webhook_secret(&self) -> &str {
        &self.site.webhook_secret
    }

    /// OAuth client id of the app.
    pub fn client_id(&self) -> &str {
        &self.site.client.id
    }

    /// OAuth client secret of the app.
    pub fn client_secret(&self) -> &str {
        &self.site.client.secret
    }

    /// The world, to look at and to edit. Let go of it before the next `await`.
    pub fn world(&self) -> WorldGuard<'_> {
        self.site.core.world()
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.site.core.faults
    }

    /// Requests (and answers of this fake) that are not what GitHub has published. A test asserts that it is empty.
    pub fn violations(&self) -> Vec<String> {
        self.site.core.violations()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.site.core.requests()
    }

    /// Forgets requests and violations.
    pub fn forget(&self) {
        self.site.core.forget();
    }

    /// Returns once `condition` holds; it is asked again after every request and every edit. Fails the test after a minute.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        self.site.core.until(what, || condition(self)).await;
    }

    /// The newest commit status of each context.
    pub fn statuses(&self, repository: &str, sha: &str) -> BTreeMap<String, CommitStatus> {
        self.world().repository(repository).newest_statuses(sha)
    }

    /// The newest check run of each name.
    pub fn check_runs(&self, repository: &str, sha: &str) -> BTreeMap<String, CheckRun> {
        self.world().repository(repository).newest_check_runs(sha)
    }

    /// A delivery, signed with the app's secret by GitHub's own library.
    pub fn delivery(&self, event: Event<'_>) -> Delivery {
        self.site.delivery(event, &self.site.webhook_secret)
    }

    /// A delivery signed with another secret.
    pub fn delivery_signed_with(&self, secret: &str, event: Event<'_>) -> Delivery {
        self.site.delivery(event, secret)
    }

    /// Any payload, signed.
    pub fn delivery_of(&self, event: &str, body: Vec<u8>) -> Delivery {
        self.site.signed(event, body, &self.site.webhook_secret)
    }

    /// A person opens the login address and presses "Authorize". Returns the address that the browser is sent back to,
    /// with `code` and `state`.
    pub fn approve(&self, address: &str, login: &str) -> Result<String, String> {
        oauth::approve(&self.site.core, &self.site.client, Dialect::Github, address, login)
    }

    /// What the published description says against a payload; `name` like `pull-request-opened`.
    pub fn check_payload(&self, name: &str, payload: &Value) -> Vec<String> {
        self.site.description.check_webhook(name, payload)
    }
}

impl Site for Github {
    fn answer(&self, request: &Request) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/login/oauth/authorize") => {
                return oauth::page(&self.core, &self.client, Dialect::Github, request);
            }
            ("POST", "/login/oauth/access_token") => {
                return oauth::exchange(&self.core, &self.client, Dialect::Github, request);
            }
            _ => {}
        }
        let response = self.api(request);
        response
            .with("x-github-media-type", "github.v3; format=json")
            .with("x-ratelimit-limit", "5000")
            .with("x-ratelimit-remaining", "4999")
            .with("x-ratelimit-used", "1")
            .with("x-ratelimit-resource", "core")
            .with("x-ratelimit-reset", self.reset_in(3600))
    }

    fn refusal(&self, effect: &Effect) -> Option<Response> {
        let documentation = "https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api";
        let limited = |message: &str| json!({ "message": message, "documentation_url": documentation });
        Some(match effect {
            Effect::Status(status) => Response::text(*status, "<html><body><h1>Unicorn!</h1></body></html>"),
            Effect::TooManyRequests { retry_after } => {
                Response::json(429, &limited("Too many requests.")).with("retry-after", retry_after.to_string())
            }
            Effect::RateLimitUsedUp { reset_after } => {
                Response::json(403, &limited(&format!("API rate limit exceeded for installation ID {}.", self.app_id)))
                    .with("x-ratelimit-limit", "5000")
                    .with("x-ratelimit-remaining", "0")
                    .with("x-ratelimit-used", "5000")
                    .with("x-ratelimit-reset", self.reset_in(i64::from(*reset_after)))
            }
            Effect::SecondaryRateLimit { retry_after } => Response::json(
                403,
                &limited("You have exceeded a secondary rate limit. Please wait a few minutes before you try again."),
            )
            .with("retry-after", retry_after.to_string())
            .with("x-ratelimit-remaining", "4000")
            .with("x-ratelimit-reset", self.reset_in(3600)),
            _ => return None,
        })
    }

    fn note(&self, request: &Request, status: Option<u16>) {
        self.core.note(request, status, &[&self.client.secret]);
    }

    fn faults(&self) -> &Faults {
        &self.core.faults
    }
}

impl Github {
    /// In seconds since 1970.
    fn reset_in(&self, seconds: i64) -> String {
        (self.core.world().now().unix_timestamp() + seconds).to_string()
    }

    /// An error as GitHub words it.
    pub(crate) fn error(status: u16, message: &str) -> Response {
        let documentation = "https://docs.github.com/rest";
        let body = json!({ "message": message, "documentation_url": documentation, "status": status.to_string() });
        Response::json(status, &body)
    }

    /// Refuses, and remembers why.
    pub(crate) fn refuse(&self, request: &Request, status: u16, message: &str, objection: &str) -> Response {
        self.core.violation(request, objection);
        Self::error(status, message)
    }

    /// What every request must have, whatever it asks for.
    fn common_objection(&self, request: &Request) -> Option<Response> {
        if request.header("user-agent").is_none_or(|agent| agent.trim().is_empty()) {
            let page =
                "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
            return Some(self.refuse(request, 403, page, "a User-Agent is required"));
        }
        if let Some(version) = request.header("x-github-api-version")
            && !API_VERSIONS.contains(&version)
        {
            return Some(self.refuse(request, 400, "unknown version", &format!("there is no API version {version}")));
        }
        let accepted = request.header("accept").is_none_or(|accept| {
            accept.split(',').any(|kind| {
                let kind = kind.split(';').next().unwrap_or("").trim();
                let vendor = kind.starts_with("application/vnd.github") && kind.ends_with("+json");
                vendor || matches!(kind, "application/json" | "*/*" | "application/*")
            })
        });
        if !accepted {
            return Some(self.refuse(
                request,
                415,
                "Unsupported 'Accept' header",
                "Accept names nothing that the API answers with",
            ));
        }
        if !request.body.is_empty()
            && !request.header("content-type").is_some_and(|kind| kind.starts_with("application/json"))
        {
            return Some(self.refuse(
                request,
                415,
                "Unsupported Media Type",
                "a body must have content-type application/json",
            ));
        }
        None
    }

    fn api(&self, request: &Request) -> Response {
        if let Some(refused) = self.common_objection(request) {
            return refused;
        }
        let path = request.path.strip_prefix("/api/v3").unwrap_or(&request.path);
        let path = match self.canonical(request, path) {
            Ok(path) => path,
            Err(response) => return *response,
        };
        let found = match self.description.find(&request.method, &path) {
            Ok(found) => found,
            Err(objection) => return self.refuse(request, 404, "Not Found", &objection),
        };
        let query = request.query_pairs();
        let objections = self.description.check_request(&found, &query, &request.body);
        if !objections.is_empty() {
            for objection in &objections {
                self.core.violation(request, objection);
            }
            return Self::error(422, &format!("Invalid request.\n\n{}", objections.join("\n")));
        }
        let caller = match self.authenticate(request, &found) {
            Ok(caller) => caller,
            Err(response) => return *response,
        };
        let response = self.route(request, &found, &caller, &query);
        for objection in self.description.check_response(found.operation, response.status, &response.body) {
            // Published as an object, but null once a fork is deleted, as everybody who reads pull requests learns.
            if objection.ends_with("/head/repo: null is not of type \"object\"") {
                continue;
            }
            self.core.violation(request, &format!("mistake of the fake: {objection}"));
        }
        conditional(request, response)
    }
}

/// Answers that have not changed are not sent again (`ETag`).
fn conditional(request: &Request, response: Response) -> Response {
    use std::hash::{DefaultHasher, Hash, Hasher};
    if request.method != "GET" || response.status != 200 {
        return response;
    }
    let mut hasher = DefaultHasher::new();
    response.body.hash(&mut hasher);
    let tag = format!("W/\"{:016x}\"", hasher.finish());
    if request.header("if-none-match").is_some_and(|known| known.split(',').any(|known| known.trim() == tag)) {
        return Response { status: 304, headers: response.headers, body: Vec::new() }.with("etag", tag);
    }
    response.with("etag", tag)
}
