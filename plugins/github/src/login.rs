//! Login of people: the App's user authorisation (OAuth 2 with PKCE).

use harmonia_plugin::forge::{Error, LoginCompletion, LoginStart, User};
use harmonia_plugin::http::{self, Request};
use harmonia_plugin::{secrets, settings};
use serde::Deserialize;

use crate::api::{Server, get_as_user};

/// Stands in the form where the host puts the client secret.
const PLACEHOLDER: &str = "CLIENT_SECRET";

/// Where to send the browser.
pub(crate) fn url(start: &LoginStart) -> Result<String, Error> {
    let server = Server::from_settings();
    Ok(http::query(
        &http::url(&server.html_url, &["login", "oauth", "authorize"]),
        &[
            ("client_id", &settings::required("client_id")?),
            ("redirect_uri", &start.redirect_url),
            ("state", &start.state),
            ("code_challenge", &start.code_challenge),
            ("code_challenge_method", "S256"),
        ],
    ))
}

/// GitHub answers errors with status 200.
#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
}

#[derive(Deserialize)]
struct Myself {
    id: u64,
    login: String,
    name: Option<String>,
}

/// Who it is. The user's token is used for this one question.
pub(crate) fn complete(completion: &LoginCompletion) -> Result<User, Error> {
    let server = Server::from_settings();
    let client_secret = secrets::open("client_secret")?;
    let mut answer = Request::post(http::url(&server.html_url, &["login", "oauth", "access_token"]))
        .header("accept", "application/json")
        .form(&[
            ("client_id", &settings::required("client_id")?),
            ("client_secret", PLACEHOLDER),
            ("code", &completion.code),
            ("redirect_uri", &completion.redirect_url),
            ("code_verifier", &completion.code_verifier),
        ])
        .secret_in_body(&client_secret, PLACEHOLDER)
        .capture_for("/access_token", &[&server.api_host()])
        // Not used; captured so that it does not get in here.
        .capture("/refresh_token")
        .fetch()?;
    if let Answer { error: Some(error) } = answer.json()? {
        return Err(Error::denied(format!("the login was refused: {error}")));
    }
    let token = answer.captured_secret(0)?;
    let Myself { id, login, name } = get_as_user(&http::url(&server.api_url, &["user"]), &token)?.json()?;
    Ok(User { id: id.to_string(), login, name: name.unwrap_or_default() })
}
