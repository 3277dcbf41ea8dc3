//! A fake Gitea (or Forgejo): its API under `/api/v1`, its login pages, and the webhooks that are installed in it.
//!
//! Start reading at [`FakeGitea`]; `routes.rs` says what operations do, `hooks.rs` which webhooks there are, `bodies.rs`
//! builds answers from the published schemas, `deliveries.rs` what is sent to webhooks.

mod bodies;
mod deliveries;
mod hooks;
mod routes;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::json;

use crate::delivery::{Delivery, Event};
use crate::description::Description;
use crate::faults::{Effect, Faults};
use crate::files;
use crate::forge::{Core, Recorded, WorldGuard};
use crate::helper::Helper;
use crate::oauth::{self, Client, Dialect};
use crate::server::{Request, Response, Server, Site};
use crate::world::{CommitStatus, Permission, Repository, Token, World};

/// Login of the account whose token the tests' plugin holds.
const BOT: &str = "harmonia";

/// A Gitea, as a user with a token sees it. Stops when it is dropped.
pub struct FakeGitea {
    site: Arc<Gitea>,
    token: String,
    _server: Server,
}

pub(crate) struct Gitea {
    pub(crate) core: Core,
    pub(crate) description: Arc<Description>,
    pub(crate) client: Client,
    /// Sends Forgejo's headers beside Gitea's.
    pub(crate) forgejo: bool,
}

impl FakeGitea {
    /// A Gitea on an ephemeral port of the loopback interface, with the account `harmonia` and its token.
    pub async fn start() -> Self {
        tokio::task::spawn_blocking(|| Self::start_blocking(false)).await.expect("the fake starts")
    }

    /// A Forgejo: its deliveries have its own headers too.
    pub async fn start_forgejo() -> Self {
        tokio::task::spawn_blocking(|| Self::start_blocking(true)).await.expect("the fake starts")
    }

    fn start_blocking(forgejo: bool) -> Self {
        static DESCRIPTION: OnceLock<Arc<Description>> = OnceLock::new();
        let description =
            DESCRIPTION.get_or_init(|| Arc::new(Description::from_swagger(&files::published("forgejo-16.json"))));
        let helper = Helper::start();
        let (server, site) = Server::start(|address| {
            Arc::new(Gitea {
                core: Core::new(format!("http://{address}"), helper),
                description: description.clone(),
                client: Client {
                    id: "0d4b3c1f-5f0e-4d0a-9d0b-6c1a2b3c4d5e".to_owned(),
                    secret: "gto_client-secret-of-the-application".to_owned(),
                },
                forgejo,
            })
        });
        debug_assert_eq!(server.url(), site.core.url);
        let token = site.core.world().add_token(BOT);
        Self { site, token, _server: server }
    }

    /// The instance: `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.site.core.url
    }

    /// The token of `harmonia`. Make it a collaborator with [`Permission::Admin`] of what it shall work with.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The login that the token belongs to.
    pub fn bot(&self) -> &'static str {
        BOT
    }

    /// OAuth client id of the application.
    pub fn client_id(&self) -> &str {
        &self.site.client.id
    }

    /// OAuth client secret of the application.
    pub fn client_secret(&self) -> &str {
        &self.site.client.secret
    }

    /// The world, to look at and to edit. Let go of it before the next `await`.
    pub fn world(&self) -> WorldGuard<'_> {
        self.site.core.world()
    }

    /// Adds a public repository that the token may administer, with one commit on `main`. Returns its id.
    pub fn add_repository(&self, full_name: &str) -> u64 {
        let mut world = self.world();
        let repository = world.add_repository(full_name);
        repository.collaborators.insert(BOT.to_owned(), Permission::Admin);
        repository.id
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.site.core.faults
    }

    /// Requests (and answers of this fake) that are not what the forge has published. A test asserts that it is empty.
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

    /// The delivery to the first webhook of the repository that wants this event. Fails the test when none does.
    pub fn delivery(&self, event: Event<'_>) -> Delivery {
        let first = self.deliveries(event).into_iter().next();
        first.unwrap_or_else(|| panic!("no active webhook of the repository wants {event:?}"))
    }

    /// The deliveries to all webhooks of the repository that are active and want this event, each signed with its secret.
    pub fn deliveries(&self, event: Event<'_>) -> Vec<Delivery> {
        self.site.deliveries(event)
    }

    /// A delivery signed with this secret, whatever is installed.
    pub fn delivery_signed_with(&self, secret: &str, event: Event<'_>) -> Delivery {
        self.site.delivery_signed_with(secret, event)
    }

    /// A person opens the login address and presses "Authorize". Returns the address that the browser is sent back to,
    /// with `code` and `state`.
    pub fn approve(&self, address: &str, login: &str) -> Result<String, String> {
        oauth::approve(&self.site.core, &self.site.client, Dialect::Gitea, address, login)
    }

    /// What the published description says against a value of the named schema (`Repository`, `PullRequest`, …).
    pub fn check_value(&self, schema: &str, value: &serde_json::Value) -> Vec<String> {
        self.site.description.check_definition(schema, value)
    }
}

impl Site for Gitea {
    fn answer(&self, request: &Request) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/login/oauth/authorize") => return oauth::page(&self.core, &self.client, Dialect::Gitea, request),
            ("POST", "/login/oauth/access_token") => {
                return oauth::exchange(&self.core, &self.client, Dialect::Gitea, request);
            }
            _ => {}
        }
        let found = match self.description.find(&request.method, &request.path) {
            Ok(found) => found,
            Err(objection) => return self.refuse(request, 404, "The target couldn't be found.", &objection),
        };
        if !request.body.is_empty()
            && !request.header("content-type").is_some_and(|kind| kind.starts_with("application/json"))
        {
            return self.refuse(request, 422, "Empty body", "a body must have content-type application/json");
        }
        let query = request.query_pairs();
        let objections = self.description.check_request(&found, &query, &request.body);
        if !objections.is_empty() {
            for objection in &objections {
                self.core.violation(request, objection);
            }
            return self.error(422, &objections.join("\n"));
        }
        let login = match self.authenticate(request) {
            Ok(login) => login,
            Err(response) => return *response,
        };
        let response = match self.route(request, &found, &login, &query) {
            Ok(response) => response,
            Err(response) => *response,
        };
        for objection in self.description.check_response(found.operation, response.status, &response.body) {
            self.core.violation(request, &format!("mistake of the fake: {objection}"));
        }
        response
            .with("cache-control", "max-age=0, private, must-revalidate, no-transform")
            .with("x-frame-options", "SAMEORIGIN")
    }

    fn refusal(&self, effect: &Effect) -> Option<Response> {
        Some(match effect {
            Effect::Status(status) => Response::text(*status, "<html><body><h1>Bad Gateway</h1></body></html>"),
            // Gitea has no limits of its own; what stands before it answers so.
            Effect::TooManyRequests { retry_after } | Effect::SecondaryRateLimit { retry_after } => {
                Response::text(429, "Too Many Requests").with("retry-after", retry_after.to_string())
            }
            Effect::RateLimitUsedUp { reset_after } => {
                Response::text(429, "Too Many Requests").with("retry-after", reset_after.to_string())
            }
            _ => return None,
        })
    }

    fn note(&self, request: &Request, status: Option<u16>) {
        let mut secrets = vec![self.client.secret.clone()];
        let world = self.core.world();
        secrets.extend(
            world
                .repositories
                .values()
                .flat_map(|repository| repository.hooks.values())
                .map(|hook| hook.secret.clone()),
        );
        drop(world);
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        self.core.note(request, status, &secrets);
    }

    fn faults(&self) -> &Faults {
        &self.core.faults
    }
}

/// A response is large, and errors are rare.
type Refused = Box<Response>;

impl Gitea {
    fn error(&self, status: u16, message: &str) -> Response {
        Response::json(status, &json!({ "message": message, "url": format!("{}/api/swagger", self.core.url) }))
    }

    #[expect(clippy::unnecessary_box_returns, reason = "it stands where a refusal does")]
    fn not_found(&self) -> Refused {
        let body = json!({
            "errors": [], "message": "The target couldn't be found.", "url": format!("{}/api/swagger", self.core.url),
        });
        Box::new(Response::json(404, &body))
    }

    fn refuse(&self, request: &Request, status: u16, message: &str, objection: &str) -> Response {
        self.core.violation(request, objection);
        self.error(status, message)
    }

    /// The login that the token belongs to.
    fn authenticate(&self, request: &Request) -> Result<String, Refused> {
        let refuse = |message: &str, objection: &str| Err(Box::new(self.refuse(request, 401, message, objection)));
        let Some(authorization) = request.header("authorization") else {
            return refuse("token is required", "Authorization is missing");
        };
        let Some(("token" | "Bearer" | "bearer", token)) = authorization.split_once(' ') else {
            return refuse("invalid username, password or token", "Authorization is neither `token …` nor `Bearer …`");
        };
        let world = self.core.world();
        match world.tokens.get(token) {
            Some(Token::User { login, expires_at }) if expires_at.is_none_or(|expires_at| expires_at > world.now()) => {
                Ok(login.clone())
            }
            // Expired or revoked: that can happen to anybody.
            _ => Err(Box::new(self.error(401, "invalid username, password or token"))),
        }
    }

    /// The repository that the path names, if this user has the permission; what one cannot see does not exist.
    fn repository_for<'w>(
        &self,
        world: &'w World,
        login: &str,
        values: &BTreeMap<String, String>,
        needed: Permission,
    ) -> Result<&'w Repository, Refused> {
        let full_name = format!("{}/{}", values["owner"], values["repo"]);
        let repository = world.find_repository(&full_name).ok_or_else(|| self.not_found())?;
        let permission = world.permission(repository, login);
        if permission == Permission::None {
            return Err(self.not_found());
        }
        if permission < needed {
            return Err(Box::new(self.error(403, "user should have a permission to this repository")));
        }
        if needed == Permission::Write && repository.archived {
            return Err(Box::new(self.error(423, "This repository is archived.")));
        }
        Ok(repository)
    }
}
