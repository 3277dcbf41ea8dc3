//! Requests to GitHub's API and who may make them: as the App (a JWT, signed by the host) for a token of an installation,
//! and with that token for everything of its repositories. No credential is ever in here, only handles of them.

use harmonia_plugin::forge::{Credential, Error, RepositoryRef};
use harmonia_plugin::http::{Request, Response};
use harmonia_plugin::secrets::{self, Secret};
use harmonia_plugin::serde_json::Value;
use harmonia_plugin::{http, json, kv, settings, time};
use serde::{Deserialize, Serialize};

const API_URL: &str = "https://api.github.com";
const API_VERSION: &str = "2022-11-28";
/// GitHub refuses JWTs that live longer than ten minutes, by its clock; ours may differ.
const JWT_LIFETIME_S: u32 = 540;
const JWT_KEPT_S: u32 = 480;
const CLOCK_SKEW_S: u64 = 60;
/// A token is not used in its last minutes, so that it outlives what is begun with it.
const TOKEN_MARGIN_S: i64 = 300;
/// How long we believe which installation a repository belongs to.
const INSTALLATION_KEPT_S: u32 = 24 * 3600;
/// How long we believe it even where an answer speaks against it (a transferred repository is refused, or not found).
const INSTALLATION_CERTAIN_S: u64 = 300;
/// GitHub's advice where a limit says nothing else.
const RATE_LIMIT_WAIT_S: u32 = 60;

/// Where GitHub is.
pub(crate) struct Server {
    /// Base of the API, without `/` at the end.
    pub(crate) api_url: String,
    /// Base of the pages and of git.
    pub(crate) html_url: String,
}

impl Server {
    /// As the operator configured it.
    pub(crate) fn from_settings() -> Self {
        let api_url = settings::get("api_url").unwrap_or_else(|| API_URL.to_owned());
        Self::new(&api_url, settings::get("html_url").as_deref())
    }

    fn new(api_url: &str, html_url: Option<&str>) -> Self {
        let api_url = api_url.trim_end_matches('/').to_owned();
        let html_url = match html_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if api_url == API_URL => "https://github.com".to_owned(),
            None => api_url.trim_end_matches("/api/v3").to_owned(),
        };
        Self { api_url, html_url }
    }

    /// `host` or `host:port` of the API.
    pub(crate) fn api_host(&self) -> String {
        http::host_of(&self.api_url)
    }

    /// `host` or `host:port` of pages and git.
    pub(crate) fn html_host(&self) -> String {
        http::host_of(&self.html_url)
    }
}

fn with_headers(request: Request<'_>) -> Request<'_> {
    request
        .header("accept", "application/vnd.github+json")
        .header("x-github-api-version", API_VERSION)
        .header("user-agent", concat!("harmonia-ci-github/", env!("CARGO_PKG_VERSION")))
}

/// The API as the App itself.
pub(crate) struct App {
    /// Where.
    pub(crate) server: Server,
    jwt: Secret,
}

impl App {
    /// With a JWT of this App, made when none is kept.
    pub(crate) fn open() -> Result<Self, Error> {
        let jwt = secrets::kept("jwt").map_or_else(sign_jwt, Ok)?;
        Ok(Self { server: Server::from_settings(), jwt })
    }

    /// `GET` as the App.
    pub(crate) fn get(&self, url: &str) -> Result<Response, Error> {
        self.call(|| Request::get(url))
    }

    /// A kept JWT may be of a key that was replaced: one more try with a new one.
    fn call<'a>(&'a self, request: impl Fn() -> Request<'a>) -> Result<Response, Error> {
        let answer = with_headers(request()).bearer(&self.jwt).send()?;
        if answer.status != 401 {
            return checked(answer);
        }
        let jwt = sign_jwt()?;
        // A request of its own: the one above borrows a JWT that lives longer.
        checked(with_headers(request()).bearer(&jwt).send()?)
    }

    /// A new token of an installation, kept until shortly before it expires. `wishes` may ask for less than all that the App
    /// may do.
    fn mint(&self, installation: u64, name: &str, wishes: &Value) -> Result<Secret, Error> {
        let url =
            http::url(&self.server.api_url, &["app", "installations", &installation.to_string(), "access_tokens"]);
        let hosts = [self.server.api_host(), self.server.html_host()];
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let mut answer = self.call(|| Request::post(url.as_str()).json(wishes).capture_for("/token", &hosts))?;
        let minted: Minted = answer.json()?;
        let token = answer.captured_secret(0)?;
        let expires_s = time::parse_rfc3339(&minted.expires_at)
            .ok_or_else(|| Error::invalid(format!("a token expires at `{}`, which is no time", minted.expires_at)))?;
        let now_s = i64::try_from(time::now_ms() / 1000).unwrap_or(i64::MAX);
        if let Ok(left_s @ 1..) = u32::try_from(expires_s - now_s - TOKEN_MARGIN_S) {
            token.keep(name, left_s.min(86_400))?;
        }
        Ok(token)
    }

    /// A token for all that the App may do in this installation.
    pub(crate) fn installation_token(&self, installation: u64) -> Result<Secret, Error> {
        let name = token_name(installation);
        secrets::kept(&name).map_or_else(|| self.mint(installation, &name, &json!({})), Ok)
    }

    /// The installation that a repository belongs to, as far as we know.
    fn installation_of(&self, repository: &RepositoryRef) -> Result<Installation, Error> {
        kv::get_json(&installation_key(repository))?.map_or_else(|| self.find_installation(repository), Ok)
    }

    /// The installation that a repository belongs to. [`Error::NotFound`]: the App is not installed there.
    fn find_installation(&self, repository: &RepositoryRef) -> Result<Installation, Error> {
        let key = installation_key(repository);
        let (owner, name) = repository.owner_and_name()?;
        let url = http::url(&self.server.api_url, &["repos", owner, name, "installation"]);
        let found: FoundInstallation = match self.get(&url) {
            Err(Error::NotFound) => {
                kv::delete(&key)?;
                return Err(Error::NotFound);
            }
            answer => answer?.json()?,
        };
        let found = Installation { id: found.id, found_at_s: time::now_ms() / 1000 };
        kv::set_json(&key, &found, Some(INSTALLATION_KEPT_S))?;
        Ok(found)
    }

    /// Something of the installation that a repository belongs to. What we know of that may be old: the App was installed
    /// anew, or the repository transferred.
    fn with_installation<T>(
        &self,
        repository: &RepositoryRef,
        get: impl Fn(u64) -> Result<T, Error>,
    ) -> Result<(Installation, T), Error> {
        let known = self.installation_of(repository)?;
        match get(known.id) {
            Err(Error::NotFound) => {
                let found = self.find_installation(repository)?;
                get(found.id).map(|got| (found, got))
            }
            result => result.map(|got| (known, got)),
        }
    }
}

fn sign_jwt() -> Result<Secret, Error> {
    let now_s = time::now_ms() / 1000;
    let claims = json!({
        "iat": now_s.saturating_sub(CLOCK_SKEW_S),
        "exp": now_s + u64::from(JWT_LIFETIME_S),
        "iss": settings::required("app_id")?,
    });
    let jwt = secrets::open("key")?.derive_jwt_rs256(&claims.to_string(), JWT_LIFETIME_S)?;
    jwt.keep("jwt", JWT_KEPT_S)?;
    Ok(jwt)
}

/// The answer, when it is a success. Limits that GitHub words rather than announces are told from refusals.
fn checked(answer: Response) -> Result<Response, Error> {
    let number = |name: &str| answer.header(name).and_then(|value| value.trim().parse::<u64>().ok());
    if matches!(answer.status, 403 | 429) && number("retry-after").is_none() {
        let now_s = time::now_ms() / 1000;
        let wait_s = |reset: u64| u32::try_from(reset.saturating_sub(now_s).max(1)).unwrap_or(u32::MAX);
        if number("x-ratelimit-remaining") == Some(0) {
            return Err(Error::RetryAfter(number("x-ratelimit-reset").map_or(RATE_LIMIT_WAIT_S, wait_s)));
        }
        if is_secondary_limit(&answer.body) {
            return Err(Error::RetryAfter(RATE_LIMIT_WAIT_S));
        }
    }
    Ok(answer.success()?)
}

fn is_secondary_limit(body: &[u8]) -> bool {
    body.windows(20).any(|part| part.eq_ignore_ascii_case(b"secondary rate limit"))
}

fn installation_key(repository: &RepositoryRef) -> String {
    format!("installation/{}", repository.id)
}

/// As we remember it.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Installation {
    id: u64,
    found_at_s: u64,
}

#[derive(Deserialize)]
struct FoundInstallation {
    id: u64,
}

#[derive(Deserialize)]
struct Minted {
    expires_at: String,
}

/// The API of one installation's repositories.
pub(crate) struct Api {
    app: App,
    installation: u64,
    /// The repository that brought us to this installation, where we were not told just now.
    doubtful: Option<RepositoryRef>,
    repository: Option<RepositoryRef>,
    token: Secret,
}

impl Api {
    /// With a token of the installation that the repository belongs to.
    pub(crate) fn for_repository(repository: &RepositoryRef) -> Result<Self, Error> {
        let app = App::open()?;
        let (known, token) = app.with_installation(repository, |id| app.installation_token(id))?;
        let age_s = (time::now_ms() / 1000).saturating_sub(known.found_at_s);
        let doubtful = (age_s >= INSTALLATION_CERTAIN_S).then(|| repository.clone());
        Ok(Self { app, installation: known.id, doubtful, repository: Some(repository.clone()), token })
    }

    /// With a token of this installation.
    pub(crate) fn for_installation(app: App, installation: u64) -> Result<Self, Error> {
        let token = app.installation_token(installation)?;
        Ok(Self { app, installation, doubtful: None, repository: None, token })
    }

    /// Where.
    pub(crate) const fn server(&self) -> &Server {
        &self.app.server
    }

    /// Address of something of a repository.
    pub(crate) fn repository_url(&self, repository: &RepositoryRef, path: &[&str]) -> Result<String, Error> {
        let (owner, name) = repository.owner_and_name()?;
        Ok(http::url(&http::url(&self.server().api_url, &["repos", owner, name]), path))
    }

    /// `GET`.
    pub(crate) fn get(&self, url: &str) -> Result<Response, Error> {
        self.call(|| Request::get(url))
    }

    /// `POST` of JSON.
    pub(crate) fn post(&self, url: &str, body: &Value) -> Result<Response, Error> {
        self.call(|| Request::post(url).json(body))
    }

    /// `PATCH` with JSON.
    pub(crate) fn patch(&self, url: &str, body: &Value) -> Result<Response, Error> {
        self.call(|| Request::patch(url).json(body))
    }

    /// A kept token may have been revoked, and what we know of the installation may be old: one more try with better ones.
    fn call(&self, request: impl Fn() -> Request<'static>) -> Result<Response, Error> {
        let answer = with_headers(request()).bearer(&self.token).send()?;
        let refused = if answer.status == 401 {
            let name = token_name(self.installation);
            match self.app.mint(self.installation, &name, &json!({})) {
                Ok(token) => return checked(with_headers(request()).bearer(&token).send()?),
                // The App was removed, and perhaps installed again.
                Err(Error::NotFound) => self.repository.as_ref().map(|repository| (repository, Error::NotFound)),
                Err(error) => return Err(error),
            }
        } else {
            match checked(answer) {
                Err(error @ (Error::NotFound | Error::Denied(_))) => match &self.doubtful {
                    Some(repository) => Some((repository, error)),
                    None => return Err(error),
                },
                result => return result,
            }
        };
        let Some((repository, error)) = refused else { return Err(Error::NotFound) };
        let found = self.app.find_installation(repository)?;
        if found.id == self.installation {
            return Err(error);
        }
        let token = self.app.installation_token(found.id)?;
        checked(with_headers(request()).bearer(&token).send()?)
    }
}

fn token_name(installation: u64) -> String {
    format!("installation/{installation}")
}

/// The API as a user who just logged in.
pub(crate) fn get_as_user(url: &str, token: &Secret) -> Result<Response, Error> {
    checked(with_headers(Request::get(url)).bearer(token).send()?)
}

/// A token that may only read the contents of the installation's repositories, for git.
pub(crate) fn clone_credential(repository: &RepositoryRef) -> Result<Credential, Error> {
    let app = App::open()?;
    let wishes = json!({ "permissions": { "contents": "read" } });
    let (_, password) = app.with_installation(repository, |installation| {
        let name = format!("clone/{installation}");
        secrets::kept(&name).map_or_else(|| app.mint(installation, &name, &wishes), Ok)
    })?;
    Ok(Credential { user: "x-access-token".to_owned(), password, hosts: vec![app.server.html_host()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_from_a_refusal() {
        assert!(is_secondary_limit(br#"{"message":"You have exceeded a secondary rate limit. Please wait"}"#));
        assert!(!is_secondary_limit(br#"{"message":"Resource not accessible by integration"}"#));
        assert!(!is_secondary_limit(b""));
    }

    #[test]
    fn pages_are_found_from_the_api() {
        for (api, html, hosts) in [
            ("https://api.github.com", None, ("api.github.com", "github.com")),
            ("https://ghe.example.org/api/v3/", None, ("ghe.example.org", "ghe.example.org")),
            ("http://127.0.0.1:3000", Some("http://127.0.0.1:3001/"), ("127.0.0.1:3000", "127.0.0.1:3001")),
        ] {
            let server = Server::new(api, html);
            assert_eq!((server.api_host().as_str(), server.html_host().as_str()), hosts, "{api}");
        }
    }
}
