//! Requests to the instance's API, with the operator's token, which is never in here.

use harmonia_plugin::forge::{Error, RepositoryRef};
use harmonia_plugin::http::{self, Request, Response};
use harmonia_plugin::secrets::{self, Secret};
use harmonia_plugin::serde_json::Value;
use harmonia_plugin::settings;

/// The API with the operator's token.
pub(crate) struct Api {
    instance: String,
    token: Secret,
}

impl Api {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { instance: instance()?, token: secrets::open("token")? })
    }

    /// Address of the instance, without `/` at the end.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) fn into_token(self) -> Secret {
        self.token
    }

    /// Address of something of the API.
    pub(crate) fn url(&self, path: &[&str]) -> String {
        http::url(&http::url(&self.instance, &["api", "v1"]), path)
    }

    /// Address of something of a repository.
    pub(crate) fn repository_url(&self, repository: &RepositoryRef, path: &[&str]) -> Result<String, Error> {
        let (owner, name) = repository.owner_and_name()?;
        Ok(http::url(&self.url(&["repos", owner, name]), path))
    }

    pub(crate) fn get(&self, url: &str) -> Result<Response, Error> {
        self.call(Request::get(url))
    }

    pub(crate) fn post(&self, url: &str, body: &Value) -> Result<Response, Error> {
        self.call(Request::post(url).json(body))
    }

    pub(crate) fn delete(&self, url: &str) -> Result<Response, Error> {
        self.call(Request::delete(url))
    }

    /// Sends a request with the token, which the instance wants behind the word `token`.
    pub(crate) fn call<'a>(&'a self, request: Request<'a>) -> Result<Response, Error> {
        Ok(with_headers(request).secret_header(&self.token, "authorization", "token ").fetch()?)
    }
}

/// What every request carries.
pub(crate) fn with_headers(request: Request<'_>) -> Request<'_> {
    request
        .header("accept", "application/json")
        .header("user-agent", concat!("harmonia-ci-gitea/", env!("CARGO_PKG_VERSION")))
}

/// Address of the instance, without `/` at the end.
pub(crate) fn instance() -> Result<String, Error> {
    Ok(settings::required("instance")?.trim_end_matches('/').to_owned())
}
