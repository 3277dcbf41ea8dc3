//! Who asks: the app (a signed JWT), an installation (a token that expires), or a person (a token from a login).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Github;
use crate::description::Match;
use crate::server::{Request, Response};
use crate::world::{Installation, Repository, Token, World};

/// GitHub refuses tokens of apps that are valid for longer.
const JWT_SECONDS_MAX: i64 = 600;
/// How much the clocks may differ.
const CLOCK_SKEW_SECONDS: i64 = 60;

/// Who asks, after it was proven.
pub(super) enum Caller {
    App,
    Installation { installation: Installation, permissions: BTreeMap<String, String>, chosen: Option<Vec<u64>> },
    User { login: String },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    App,
    Installation,
    User,
}

/// A response is large, and errors are rare.
pub(super) type Refused = Box<Response>;

impl Github {
    /// Where the request really goes: `/repositories/{id}/…` is `/repos/{owner}/{repo}/…`, and former names redirect.
    pub(super) fn canonical(&self, request: &Request, path: &str) -> Result<String, Refused> {
        let world = self.core.world();
        let mut parts = path.trim_start_matches('/').splitn(4, '/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("repositories"), Some(id), name, rest) => {
                let repository = id.parse().ok().and_then(|id: u64| world.repositories.get(&id));
                let Some(repository) = repository else { return Err(Box::new(Self::error(404, "Not Found"))) };
                let rest =
                    [name, rest].into_iter().flatten().fold(String::new(), |rest, part| format!("{rest}/{part}"));
                Ok(format!("/repos/{}{rest}", repository.full_name()))
            }
            (Some("repos"), Some(owner), Some(name), rest) => {
                let full_name = format!("{owner}/{name}");
                if world.find_repository(&full_name).is_some() {
                    return Ok(path.to_owned());
                }
                let Some(moved) = world.find_former(&full_name) else { return Ok(path.to_owned()) };
                let rest = rest.map(|rest| format!("/{rest}")).unwrap_or_default();
                let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
                let prefix = if request.path.starts_with("/api/v3/") { "/api/v3" } else { "" };
                let location = format!("{}{prefix}/repositories/{}{rest}{query}", self.core.url, moved.id);
                let body = json!({
                    "message": "Moved Permanently", "url": location, "documentation_url": "https://docs.github.com/rest",
                });
                let status = if request.method == "GET" { 301 } else { 307 };
                Err(Box::new(Response::json(status, &body).with("location", location)))
            }
            _ => Ok(path.to_owned()),
        }
    }

    pub(super) fn authenticate(&self, request: &Request, found: &Match<'_>) -> Result<Caller, Refused> {
        let name = found.operation.name();
        let template = name.split_once(' ').map_or("", |(_, template)| template);
        let kind = match template {
            "/user" => Kind::User,
            "/repos/{owner}/{repo}/installation" => Kind::App,
            _ if template == "/app" || template.starts_with("/app/") => Kind::App,
            _ => Kind::Installation,
        };
        let refuse =
            |status, message: &str, objection: &str| Err(Box::new(self.refuse(request, status, message, objection)));
        let Some(authorization) = request.header("authorization") else {
            return refuse(401, "Requires authentication", "Authorization is missing");
        };
        let Some((scheme, credential)) = authorization.split_once(' ') else {
            return refuse(401, "Bad credentials", "Authorization has no scheme");
        };
        let bearer = scheme.eq_ignore_ascii_case("bearer");
        if !bearer && !scheme.eq_ignore_ascii_case("token") {
            return refuse(401, "Bad credentials", &format!("scheme {scheme} is not accepted"));
        }
        let is_jwt = credential.split('.').count() == 3;
        match kind {
            Kind::App if !is_jwt || !bearer => {
                refuse(401, "A JSON web token could not be decoded", "this operation is the app's: Bearer and a JWT")
            }
            Kind::App => match self.check_jwt(credential) {
                Ok(()) => Ok(Caller::App),
                Err((message, objection)) => refuse(401, message, &objection),
            },
            Kind::Installation | Kind::User if is_jwt => {
                refuse(401, "Bad credentials", "this operation does not take the app's JWT")
            }
            Kind::Installation | Kind::User => self.bearer_of(request, credential, kind),
        }
    }

    fn bearer_of(&self, request: &Request, credential: &str, kind: Kind) -> Result<Caller, Refused> {
        let world = self.core.world();
        let token = world.tokens.get(credential).cloned();
        let bad_credentials = || Err(Box::new(Self::error(401, "Bad credentials")));
        match token {
            // Revoked, or of an installation that is gone: that can happen to anybody.
            None if credential.starts_with("ghs_") || credential.starts_with("ghu_") => bad_credentials(),
            None => Err(Box::new(self.refuse(request, 401, "Bad credentials", "this token was never issued"))),
            Some(Token::Installation { expires_at, .. }) if expires_at <= world.now() => bad_credentials(),
            Some(Token::User { expires_at: Some(expires_at), .. }) if expires_at <= world.now() => bad_credentials(),
            Some(Token::Installation { installation, repositories, permissions, .. }) => {
                if kind == Kind::User {
                    let objection = "an installation token cannot ask who the user is";
                    return Err(Box::new(self.refuse(
                        request,
                        403,
                        "Resource not accessible by integration",
                        objection,
                    )));
                }
                let Some(installation) = world.installations.get(&installation).cloned() else {
                    return bad_credentials();
                };
                if installation.suspended {
                    return Err(Box::new(Self::error(403, "This installation has been suspended")));
                }
                let permissions = permissions.unwrap_or_else(|| installation.permissions.clone());
                let chosen = repositories.map(|chosen| chosen.into_iter().collect());
                Ok(Caller::Installation { installation, permissions, chosen })
            }
            Some(Token::User { login, .. }) => {
                if kind == Kind::Installation {
                    let objection = "a user's token is for asking who the user is, not for this";
                    return Err(Box::new(self.refuse(
                        request,
                        403,
                        "Resource not accessible by integration",
                        objection,
                    )));
                }
                Ok(Caller::User { login })
            }
        }
    }

    /// RFC 7519 as GitHub narrows it: RS256, `iss` the app, valid for at most ten minutes.
    fn check_jwt(&self, jwt: &str) -> Result<(), (&'static str, String)> {
        const UNREADABLE: &str = "A JSON web token could not be decoded";
        let unreadable = |why: &str| (UNREADABLE, format!("the JWT {why}"));
        let (signed, signature) = jwt.rsplit_once('.').ok_or_else(|| unreadable("has no signature"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| unreadable("has no claims"))?;
        let part = |text: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok() };
        let header = part(header).ok_or_else(|| unreadable("has a header that is no base64url of JSON"))?;
        let claims = part(claims).ok_or_else(|| unreadable("has claims that are no base64url of JSON"))?;
        if header["alg"] != "RS256" {
            return Err(unreadable("is not signed with RS256"));
        }
        if !self.core.helper.verify_rs256(&self.key.public, signed.as_bytes(), signature) {
            return Err(unreadable("is not signed by the app's key"));
        }
        let issuer =
            claims["iss"].as_str().map(str::to_owned).or_else(|| claims["iss"].as_u64().map(|id| id.to_string()));
        if issuer.as_deref() != Some(&self.app_id.to_string()) && issuer.as_deref() != Some(&self.client.id) {
            return Err(("'Issuer' claim ('iss') must be an Integer", "iss is not the app".to_owned()));
        }
        let now = self.core.world().now().unix_timestamp();
        let (Some(issued), Some(expires)) = (claims["iat"].as_i64(), claims["exp"].as_i64()) else {
            return Err((
                "'Expiration time' claim ('exp') must be a numeric value",
                "iat and exp must be integers".to_owned(),
            ));
        };
        if issued > now + CLOCK_SKEW_SECONDS {
            let message =
                "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued";
            return Err((message, format!("iat is {} s in the future", issued - now)));
        }
        if expires <= now {
            let message = "'Expiration time' claim ('exp') must be a numeric value representing the future time";
            return Err((message, "the JWT has expired".to_owned()));
        }
        if expires > now + JWT_SECONDS_MAX {
            let message = "'Expiration time' claim ('exp') is too far in the future";
            return Err((message, format!("exp is {} s in the future, more than {JWT_SECONDS_MAX}", expires - now)));
        }
        Ok(())
    }

    /// Whether the caller's token has `level` (`read`, `write`) of one of `names`. Lacking it is an operator's mistake.
    pub(super) fn permitted(caller: &Caller, names: &[&str], level: &str) -> Result<(), Refused> {
        let Caller::Installation { permissions, .. } = caller else { return Ok(()) };
        let has = |name: &&str| {
            let granted = permissions.get(*name).map(String::as_str);
            matches!((granted, level), (Some("admin" | "write"), _) | (Some("read"), "read"))
        };
        if names.iter().any(has) {
            return Ok(());
        }
        let needed: Vec<String> = names.iter().map(|name| format!("{name}={level}")).collect();
        let refusal = Self::error(403, "Resource not accessible by integration");
        Err(Box::new(refusal.with("x-accepted-github-permissions", needed.join("; "))))
    }

    /// The repository that the path names, if the caller may see it (or, for `write`, change it).
    pub(super) fn repository_for<'w>(
        world: &'w World,
        caller: &Caller,
        found: &Match<'_>,
        write: bool,
    ) -> Result<&'w Repository, Refused> {
        let not_found = || Box::new(Self::error(404, "Not Found"));
        let full_name = format!("{}/{}", found.values["owner"], found.values["repo"]);
        let repository = world.find_repository(&full_name).ok_or_else(not_found)?;
        let Caller::Installation { installation, chosen, .. } = caller else { return Ok(repository) };
        let chosen = chosen.as_ref().is_none_or(|chosen| chosen.contains(&repository.id));
        if chosen && world.sees(installation, repository.id) {
            if write && repository.archived {
                return Err(Box::new(Self::error(403, "Repository was archived so is read-only.")));
            }
            Ok(repository)
        } else if repository.private {
            Err(not_found())
        } else if write {
            Err(Box::new(Self::error(403, "Resource not accessible by integration")))
        } else {
            Ok(repository)
        }
    }
}
