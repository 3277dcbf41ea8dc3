//! Gitea and Forgejo (also Codeberg), through a token of a user.
//!
//! Start reading at [`webhook`] (bytes to events); [`model`] is what the JSON means, `api` how requests are authorised. This
//! file only adapts. Never here: what is built, whom to trust; that is the host's.

mod api;
mod discovery;
mod hooks;
mod login;
pub mod model;
pub mod webhook;

use harmonia_plugin::forge::statuses::{State, Status, Statuses};
use harmonia_plugin::forge::webhooks::{Delivery, Request, Webhooks};
use harmonia_plugin::forge::{
    BranchHead, Branches, Comments, Credential, Credentials, Discovery, Error, Hooks, Login, LoginCompletion,
    LoginStart, Marker, Permission, Permissions, PullRequest, PullRequestPage, PullRequests, RepositoryPage,
    RepositoryRef, User,
};
use harmonia_plugin::{Description, Plugin, http, json, settings};
use serde::Deserialize;

use crate::api::Api;

/// Most entries of one page; instances may allow fewer.
const PER_PAGE: &str = "50";
/// Longest description of a status.
const DESCRIPTION_CHARS_MAX: usize = 255;

struct Gitea;

impl Plugin for Gitea {
    fn describe() -> Description {
        let instance = settings::get("instance").unwrap_or_default();
        let host = http::host_of(&instance);
        Description::new("gitea", env!("CARGO_PKG_VERSION"), "Gitea, Forgejo and Codeberg, through a token of a user.")
            .required_setting("instance", "Address of the instance: https://codeberg.org.")
            .setting(
                "client_id",
                "Client id of an OAuth2 application, for login; without it nobody logs in through it.",
            )
            .required_secret(
                "token",
                "Token of a user who administers the repositories (repository, user, organization).",
            )
            .required_secret("webhook", "Signs the webhooks that are installed.")
            .secret("client_secret", "Client secret of the OAuth2 application, for login.")
            .host(if host.is_empty() { "the host of `instance`" } else { &host })
    }
}

impl Webhooks for Gitea {
    fn parse(request: Request) -> Result<Delivery, Error> {
        let signature =
            ["x-forgejo-signature", "x-gitea-signature"].into_iter().find(|name| request.header(name).is_some());
        request.verify_hmac_sha256("webhook", signature.unwrap_or("x-gitea-signature"), "")?;
        let either = |one: &str, other: &str| request.required_header(one).or_else(|_| request.required_header(other));
        let id = either("x-forgejo-delivery", "x-gitea-delivery")?.to_owned();
        let event = either("x-forgejo-event", "x-gitea-event")?;
        Ok(Delivery { id, events: webhook::events(event, &request.body)? })
    }
}

impl Statuses for Gitea {
    fn report(status: Status) -> Result<(), Error> {
        let api = Api::open()?;
        let state = match status.state {
            State::Pending => "pending",
            State::Success => "success",
            State::Failure => "failure",
            State::Error => "error",
        };
        let description: String = status.description.chars().take(DESCRIPTION_CHARS_MAX).collect();
        let mut body = json!({ "context": status.context, "state": state, "description": description });
        if let Some(url) = &status.target_url {
            body["target_url"] = json!(url);
        }
        api.post(&api.repository_url(&status.repository, &["statuses", &status.commit])?, &body).map(drop)
    }
}

#[derive(Deserialize)]
struct Comment {
    body: String,
}

impl Comments for Gitea {
    fn post_comment(repository: RepositoryRef, number: u64, key: String, body: String) -> Result<(), Error> {
        let api = Api::open()?;
        let url = api.repository_url(&repository, &["issues", &number.to_string(), "comments"])?;
        let marker = Marker::of(&key);
        // All of them: this list has no pages.
        let comments: Vec<Comment> = api.get(&http::query(&url, &[("since", &Marker::looked_for_since())]))?.json()?;
        if comments.iter().any(|comment| marker.is_in(&comment.body)) {
            return Ok(());
        }
        api.post(&url, &json!({ "body": marker.under(&body) })).map(drop)
    }
}

impl Discovery for Gitea {
    fn repositories(cursor: Option<String>) -> Result<RepositoryPage, Error> {
        discovery::page(cursor.as_deref())
    }
}

impl Branches for Gitea {
    fn branch_head(repository: RepositoryRef, branch: String) -> Result<BranchHead, Error> {
        let api = Api::open()?;
        let found: model::Branch = api.get(&api.repository_url(&repository, &["branches", &branch])?)?.json()?;
        Ok(found.into_head())
    }

    fn tree_hash(repository: RepositoryRef, commit: String) -> Result<String, Error> {
        let api = Api::open()?;
        let url = api.repository_url(&repository, &["git", "commits", &commit])?;
        let quick = [("stat", "false"), ("verification", "false"), ("files", "false")];
        let found: model::FullCommit = api.get(&http::query(&url, &quick))?.json()?;
        Ok(found.into_tree_hash())
    }
}

impl PullRequests for Gitea {
    fn pull_request(repository: RepositoryRef, number: u64) -> Result<PullRequest, Error> {
        let api = Api::open()?;
        let found: model::Pull = api.get(&api.repository_url(&repository, &["pulls", &number.to_string()])?)?.json()?;
        Ok(found.into())
    }

    fn open_pull_requests(repository: RepositoryRef, cursor: Option<String>) -> Result<PullRequestPage, Error> {
        let api = Api::open()?;
        let page = cursor.as_deref().unwrap_or("1");
        let url = api.repository_url(&repository, &["pulls"])?;
        let answer = api.get(&http::query(&url, &[("state", "open"), ("limit", PER_PAGE), ("page", page)]))?;
        let next = answer.next_page();
        let found: Vec<model::Pull> = answer.json()?;
        Ok(PullRequestPage { pull_requests: found.into_iter().map(Into::into).collect(), next })
    }
}

impl Permissions for Gitea {
    fn permission(repository: RepositoryRef, user: String) -> Result<Permission, Error> {
        let api = Api::open()?;
        let url = api.repository_url(&repository, &["collaborators", &user, "permission"])?;
        match api.get(&url) {
            Ok(answer) => Ok(answer.json::<model::Collaborator>()?.permission()),
            // Nobody of that name.
            Err(Error::NotFound) => Ok(Permission::None),
            Err(error) => Err(error),
        }
    }
}

impl Credentials for Gitea {
    fn clone_credential(_: RepositoryRef) -> Result<Option<Credential>, Error> {
        let api = Api::open()?;
        let hosts = vec![http::host_of(api.instance())];
        // A token is taken whatever the user's name.
        Ok(Some(Credential { user: "harmonia-ci".to_owned(), password: api.into_token(), hosts }))
    }
}

impl Hooks for Gitea {
    fn install_hook(repository: RepositoryRef, url: String) -> Result<(), Error> {
        hooks::install(&Api::open()?, &repository, &url)
    }

    fn remove_hook(repository: RepositoryRef, url: String) -> Result<(), Error> {
        hooks::remove(&Api::open()?, &repository, &url)
    }
}

impl Login for Gitea {
    fn login_url(start: LoginStart) -> Result<String, Error> {
        login::url(&start)
    }

    fn complete_login(completion: LoginCompletion) -> Result<User, Error> {
        login::complete(&completion)
    }
}

harmonia_plugin::export!(Gitea: forge[
    webhooks, statuses, comments, discovery, branches, pull_requests, permissions, credentials, hooks, login
]);
