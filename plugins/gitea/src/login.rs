//! Login of people: OAuth 2 with PKCE.

use harmonia_plugin::forge::{Error, LoginCompletion, LoginStart, User};
use harmonia_plugin::http::{self, Request};
use harmonia_plugin::{secrets, settings};
use serde::Deserialize;

use crate::api::{instance, with_headers};

/// Stands in the form where the host puts the client secret.
const PLACEHOLDER: &str = "CLIENT_SECRET";

/// Where to send the browser.
pub(crate) fn url(start: &LoginStart) -> Result<String, Error> {
    Ok(http::query(
        &http::url(&instance()?, &["login", "oauth", "authorize"]),
        &[
            ("client_id", &settings::required("client_id")?),
            ("redirect_uri", &start.redirect_url),
            ("response_type", "code"),
            ("state", &start.state),
            ("code_challenge", &start.code_challenge),
            ("code_challenge_method", "S256"),
        ],
    ))
}

#[derive(Deserialize)]
struct Myself {
    id: u64,
    login: String,
    #[serde(default)]
    full_name: String,
}

/// Who it is. The user's token is used for this one question.
pub(crate) fn complete(completion: &LoginCompletion) -> Result<User, Error> {
    let instance = instance()?;
    let client_secret = secrets::open("client_secret")?;
    let request = Request::post(http::url(&instance, &["login", "oauth", "access_token"])).form(&[
        ("grant_type", "authorization_code"),
        ("client_id", &settings::required("client_id")?),
        ("client_secret", PLACEHOLDER),
        ("code", &completion.code),
        ("redirect_uri", &completion.redirect_url),
        ("code_verifier", &completion.code_verifier),
    ]);
    let mut answer = with_headers(request)
        .secret_in_body(&client_secret, PLACEHOLDER)
        .capture_for("/access_token", &[&http::host_of(&instance)])
        // Not used; captured so that it does not get in here.
        .capture("/refresh_token")
        .fetch()
        .map_err(|error| match Error::from(error) {
            // A code that was used before, or is not one.
            Error::Invalid(text) => Error::Denied(format!("the login was refused: {text}")),
            other => other,
        })?;
    let token = answer.captured_secret(0)?;
    let url = http::url(&instance, &["api", "v1", "user"]);
    let Myself { id, login, full_name } = with_headers(Request::get(url)).bearer(&token).fetch()?.json()?;
    Ok(User { id: id.to_string(), login, name: full_name })
}
