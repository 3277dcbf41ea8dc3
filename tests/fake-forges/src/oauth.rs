//! Logins through a forge: the authorisation page and the exchange of its code (RFC 6749 section 4.1, RFC 7636).
//!
//! Neither is part of the published descriptions, so the rules are written down here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::Duration;
use url::Url;

use crate::forge::Core;
use crate::server::{Request, Response};
use crate::world::{Code, Token};

/// How two forges differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Github,
    Gitea,
}

/// What the forge gave to the application.
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) secret: String,
}

const PAGE: &str = "/login/oauth/authorize";
const CODE_MINUTES: i64 = 10;

impl Dialect {
    fn page_parameters(self) -> &'static [&'static str] {
        match self {
            Self::Github => &[
                "client_id",
                "redirect_uri",
                "login",
                "scope",
                "state",
                "code_challenge",
                "code_challenge_method",
                "allow_signup",
                "prompt",
            ],
            Self::Gitea => &[
                "client_id",
                "redirect_uri",
                "response_type",
                "scope",
                "state",
                "nonce",
                "code_challenge",
                "code_challenge_method",
            ],
        }
    }

    fn exchange_fields(self) -> &'static [&'static str] {
        match self {
            Self::Github => &["client_id", "client_secret", "code", "redirect_uri", "code_verifier", "repository_id"],
            Self::Gitea => &["client_id", "client_secret", "code", "redirect_uri", "code_verifier", "grant_type"],
        }
    }
}

/// What a person sees behind the address that a login begins with, and "Authorize" pressed. Returns the address that the
/// browser is sent back to. Errors are what the page would complain about, and are violations.
pub(crate) fn approve(
    core: &Core,
    client: &Client,
    dialect: Dialect,
    address: &str,
    login: &str,
) -> Result<String, String> {
    let result = checked(core, client, dialect, address);
    let (mut back, state, challenge) = match result {
        Ok(checked) => checked,
        Err(objection) => {
            core.object(PAGE, &objection);
            return Err(objection);
        }
    };
    let mut world = core.world();
    world.add_user(login);
    let code = world.fresh_hash()[..20].to_owned();
    let expires_at = world.now() + Duration::minutes(CODE_MINUTES);
    let redirect_url = back.to_string();
    world.codes.insert(code.clone(), Code { login: login.to_owned(), redirect_url, challenge, expires_at });
    back.query_pairs_mut().append_pair("code", &code).append_pair("state", &state);
    Ok(back.into())
}

fn checked(
    core: &Core,
    client: &Client,
    dialect: Dialect,
    address: &str,
) -> Result<(Url, String, Option<String>), String> {
    let page = Url::parse(address).map_err(|error| format!("{address} is no address: {error}"))?;
    if !address.starts_with(&core.url) || page.path() != PAGE {
        return Err(format!("{address} is not the authorisation page {}{PAGE}", core.url));
    }
    let pairs: Vec<(String, String)> = page.query_pairs().into_owned().collect();
    for (index, (name, _)) in pairs.iter().enumerate() {
        if !dialect.page_parameters().contains(&name.as_str()) {
            return Err(format!("the page has no parameter {name}"));
        }
        if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(format!("parameter {name} is given twice"));
        }
    }
    let value = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    if value("client_id").as_deref() != Some(&client.id) {
        return Err("client_id is not the application's".to_owned());
    }
    if dialect == Dialect::Gitea && value("response_type").as_deref() != Some("code") {
        return Err("response_type must be code".to_owned());
    }
    let state =
        value("state").filter(|state| !state.is_empty()).ok_or("state is missing: the login could be forged")?;
    let back = value("redirect_uri").ok_or("redirect_uri is missing")?;
    let registered = core.world().redirect_urls.clone();
    if !registered.is_empty() && !registered.contains(&back) {
        return Err(format!("redirect_uri {back} is not registered"));
    }
    let back = Url::parse(&back).map_err(|error| format!("redirect_uri {back} is no address: {error}"))?;
    let challenge = value("code_challenge").ok_or("code_challenge is missing: PKCE is asked for")?;
    if value("code_challenge_method").as_deref() != Some("S256") {
        return Err("code_challenge_method must be S256".to_owned());
    }
    // 32 bytes in base64url.
    if challenge.len() != 43 || !challenge.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return Err("code_challenge is no SHA-256 in base64url".to_owned());
    }
    Ok((back, state, Some(challenge)))
}

/// The page as a browser gets it: whoever is logged in approves at once.
pub(crate) fn page(core: &Core, client: &Client, dialect: Dialect, request: &Request) -> Response {
    let login = core.world().browser_login.clone();
    let Some(login) = login else {
        return Response::text(200, "<html><body><h1>Sign in</h1></body></html>");
    };
    match approve(core, client, dialect, &format!("{}{PAGE}?{}", core.url, request.query), &login) {
        Ok(back) => Response::text(302, "").with("location", back),
        Err(objection) => Response::text(400, &format!("<html><body>{objection}</body></html>")),
    }
}

/// `POST /login/oauth/access_token`
pub(crate) fn exchange(core: &Core, client: &Client, dialect: Dialect, request: &Request) -> Response {
    match exchanged(core, client, dialect, request) {
        Ok(body) => answer(dialect, request, 200, &body),
        Err((error, description)) => {
            let body = json!({ "error": error, "error_description": description });
            // GitHub reports errors with 200, Gitea as the standard says.
            let status = if dialect == Dialect::Github { 200 } else { 400 };
            answer(dialect, request, status, &body)
        }
    }
}

fn exchanged(
    core: &Core,
    client: &Client,
    dialect: Dialect,
    request: &Request,
) -> Result<Value, (&'static str, &'static str)> {
    let fields = fields(core, dialect, request);
    let value = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    for (name, _) in &fields {
        if !dialect.exchange_fields().contains(&name.as_str()) {
            core.violation(request, &format!("/{name}: there is no such field"));
        }
    }
    let basic = basic_credentials(request);
    let (id, secret) = match &basic {
        Some((id, secret)) => (Some(id.as_str()), Some(secret.as_str())),
        None => (value("client_id"), value("client_secret")),
    };
    if id != Some(&client.id) || secret != Some(&client.secret) {
        core.violation(request, "client_id or client_secret is not the application's");
        return Err(match dialect {
            Dialect::Github => {
                ("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.")
            }
            Dialect::Gitea => ("unauthorized_client", "invalid client secret"),
        });
    }
    if dialect == Dialect::Gitea && value("grant_type") != Some("authorization_code") {
        core.violation(request, "grant_type must be authorization_code");
        return Err(("unsupported_grant_type", "Only refresh_token or authorization_code grant type is supported"));
    }
    let Some(given) = value("code") else {
        core.violation(request, "code is missing");
        return Err(wrong_code(dialect));
    };
    let mut world = core.world();
    // Good for one exchange. A code that is unknown comes from whoever called the redirect address: no mistake of the client.
    let code = world.codes.remove(given).filter(|code| code.expires_at > world.now()).ok_or(wrong_code(dialect))?;
    if value("redirect_uri") != Some(&code.redirect_url) {
        core.violation(request, "redirect_uri is not the one that the login began with");
        return Err(("redirect_uri_mismatch", "The redirect_uri does not match."));
    }
    if let Some(challenge) = &code.challenge {
        let verifier = value("code_verifier").unwrap_or("");
        if !(43..=128).contains(&verifier.len()) {
            core.violation(request, "code_verifier must have 43 to 128 characters");
        }
        if core.helper.sha256_base64url(verifier.as_bytes()) != *challenge {
            return Err(wrong_code(dialect));
        }
    }
    let (prefix, seconds) = if dialect == Dialect::Github { ("ghu_", 28_800) } else { ("", 3_600) };
    let token = format!("{prefix}{}", world.fresh_hash());
    let expires_at = Some(world.now() + Duration::seconds(seconds));
    world.tokens.insert(token.clone(), Token::User { login: code.login, expires_at });
    let refresh = format!("{}{}", if prefix.is_empty() { "" } else { "ghr_" }, world.fresh_hash());
    let mut body = json!({
        "access_token": token, "token_type": "bearer", "expires_in": seconds, "refresh_token": refresh,
    });
    if dialect == Dialect::Github {
        body["refresh_token_expires_in"] = json!(15_897_600);
        body["scope"] = json!("");
    }
    Ok(body)
}

fn wrong_code(dialect: Dialect) -> (&'static str, &'static str) {
    match dialect {
        Dialect::Github => ("bad_verification_code", "The code passed is incorrect or expired."),
        Dialect::Gitea => ("unauthorized_client", "client is not authorized"),
    }
}

/// From a form or from JSON, whichever it is.
fn fields(core: &Core, dialect: Dialect, request: &Request) -> Vec<(String, String)> {
    let kind = request.header("content-type").unwrap_or("");
    if kind.starts_with("application/json") {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        let members = body.as_object().into_iter().flatten();
        return members.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    }
    if kind.starts_with("application/x-www-form-urlencoded") {
        return url::form_urlencoded::parse(&request.body).into_owned().collect();
    }
    if dialect == Dialect::Github && request.body.is_empty() {
        return request.query_pairs();
    }
    core.violation(request, &format!("content-type {kind:?} is neither a form nor JSON"));
    Vec::new()
}

fn basic_credentials(request: &Request) -> Option<(String, String)> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), secret.to_owned()))
}

fn answer(dialect: Dialect, request: &Request, status: u16, body: &Value) -> Response {
    let wants_json = request.header("accept").is_some_and(|accept| accept.contains("application/json"));
    if dialect == Dialect::Gitea || wants_json {
        return Response::json(status, body).with("cache-control", "no-store");
    }
    // GitHub answers in a form's encoding unless JSON is asked for.
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in body.as_object().into_iter().flatten() {
        form.append_pair(name, &value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let headers = vec![("content-type".to_owned(), "application/x-www-form-urlencoded; charset=utf-8".to_owned())];
    Response { status, headers, body: form.finish().into_bytes() }
}
