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
        host_of(&self.api_url)
    }

    /// `host` or `host:port` of pages and git.
    pub(crate) fn html_host(&self) -> String {
        host_of(&self.html_url)
    }
}

fn host_of(url: &str) -> String {
    url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default().to_owned()
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
        let server = Server::from_settings();
        if let Some(jwt) = secrets::kept("jwt") {
            return Ok(Self { server, jwt });
        }
        let now_s = time::now_ms() / 1000;
        let claims = json!({
            "iat": now_s.saturating_sub(CLOCK_SKEW_S),
            "exp": now_s + u64::from(JWT_LIFETIME_S),
            "iss": settings::required("app_id")?,
        });
        let jwt = secrets::open("key")?.derive_jwt_rs256(&claims.to_string(), JWT_LIFETIME_S)?;
        jwt.keep("jwt", JWT_KEPT_S)?;
        Ok(Self { server, jwt })
    }

    /// `GET` as the App.
    pub(crate) fn get(&self, url: &str) -> Result<Response, Error> {
        Ok(with_headers(Request::get(url)).bearer(&self.jwt).fetch()?)
    }

    /// A new token of an installation, kept until shortly before it expires. `wishes` may ask for less than all that the App
    /// may do.
    fn mint(&self, installation: u64, name: &str, wishes: &Value) -> Result<Secret, Error> {
        let url =
            http::url(&self.server.api_url, &["app", "installations", &installation.to_string(), "access_tokens"]);
        let hosts = [self.server.api_host(), self.server.html_host()];
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let mut answer =
            with_headers(Request::post(url)).bearer(&self.jwt).json(wishes).capture_for("/token", &hosts).fetch()?;
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
        let name = format!("installation/{installation}");
        secrets::kept(&name).map_or_else(|| self.mint(installation, &name, &json!({})), Ok)
    }

    /// The installation that a repository belongs to. [`Error::NotFound`]: the App is not installed there.
    fn installation_of(&self, repository: &RepositoryRef) -> Result<u64, Error> {
        let key = installation_key(repository);
        if let Some(Installation { id }) = kv::get_json(&key)? {
            return Ok(id);
        }
        let (owner, name) = repository.owner_and_name()?;
        let url = http::url(&self.server.api_url, &["repos", owner, name, "installation"]);
        let found: Installation = self.get(&url)?.json()?;
        kv::set_json(&key, &found, Some(INSTALLATION_KEPT_S))?;
        Ok(found.id)
    }
}

fn installation_key(repository: &RepositoryRef) -> String {
    format!("installation/{}", repository.id)
}

#[derive(Serialize, Deserialize)]
struct Installation {
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
    token: Secret,
}

impl Api {
    /// With a token of the installation that the repository belongs to.
    pub(crate) fn for_repository(repository: &RepositoryRef) -> Result<Self, Error> {
        let app = App::open()?;
        let installation = app.installation_of(repository)?;
        match app.installation_token(installation) {
            Ok(token) => Ok(Self { app, installation, token }),
            // Installed anew, or transferred: under another id.
            Err(Error::NotFound) => {
                kv::delete(&installation_key(repository))?;
                let installation = app.installation_of(repository)?;
                Self::for_installation(app, installation)
            }
            Err(error) => Err(error),
        }
    }

    /// With a token of this installation.
    pub(crate) fn for_installation(app: App, installation: u64) -> Result<Self, Error> {
        let token = app.installation_token(installation)?;
        Ok(Self { app, installation, token })
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

    /// A kept token may have been revoked (the App was removed and installed again): one more try with a new one.
    fn call(&self, request: impl Fn() -> Request<'static>) -> Result<Response, Error> {
        let answer = with_headers(request()).bearer(&self.token).send()?;
        if answer.status != 401 {
            return Ok(answer.success()?);
        }
        let name = format!("installation/{}", self.installation);
        let token = self.app.mint(self.installation, &name, &json!({}))?;
        Ok(with_headers(request()).bearer(&token).fetch()?)
    }
}

/// The API as a user who just logged in.
pub(crate) fn get_as_user(url: &str, token: &Secret) -> Result<Response, Error> {
    Ok(with_headers(Request::get(url)).bearer(token).fetch()?)
}

/// A token that may only read the contents of the installation's repositories, for git.
pub(crate) fn clone_credential(repository: &RepositoryRef) -> Result<Credential, Error> {
    let app = App::open()?;
    let installation = app.installation_of(repository)?;
    let name = format!("clone/{installation}");
    let password = match secrets::kept(&name) {
        Some(kept) => kept,
        None => app.mint(installation, &name, &json!({ "permissions": { "contents": "read" } }))?,
    };
    Ok(Credential { user: "x-access-token".to_owned(), password, hosts: vec![app.server.html_host()] })
}

#[cfg(test)]
mod tests {
    use super::*;

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
