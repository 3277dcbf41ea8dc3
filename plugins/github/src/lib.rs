//! GitHub and GitHub Enterprise, through a GitHub App.
//!
//! Start reading at [`webhook`] (bytes to events) and [`api`] (how requests are authorised); [`model`] is what GitHub's JSON
//! means, [`checks`] what it is told. This file only adapts. Never here: what is built, whom to trust; that is the host's.

mod api;
mod checks;
mod comments;
mod discovery;
mod login;
pub mod model;
pub mod webhook;

use harmonia_plugin::forge::statuses::{Status, Statuses};
use harmonia_plugin::forge::webhooks::{Delivery, Request, Webhooks};
use harmonia_plugin::forge::{
    BranchHead, Branches, Comments, Credential, Credentials, Discovery, Error, Login, LoginCompletion, LoginStart,
    Permission, Permissions, PullRequest, PullRequestPage, PullRequests, RepositoryPage, RepositoryRef, User,
};
use harmonia_plugin::{Description, Plugin, http};

use crate::api::{Api, Server};

struct Github;

impl Plugin for Github {
    fn describe() -> Description {
        let server = Server::from_settings();
        let description = Description::new(
            "github",
            env!("CARGO_PKG_VERSION"),
            "GitHub and GitHub Enterprise, through a GitHub App.",
        )
        .required_setting("app_id", "Id (or client id) of the GitHub App.")
        .setting("api_url", "API of GitHub Enterprise, as https://ghe.example.org/api/v3; default: api.github.com.")
        .setting("html_url", "Pages of GitHub Enterprise; default: derived from api_url.")
        .setting("status_kind", "check-runs (default: with a summary and a Re-run button) or statuses.")
        .setting("client_id", "Client id of the App, for login; without it nobody logs in through it.")
        .required_secret("webhook", "Secret of the App's webhook.")
        .required_secret("key", "Private key of the App (PEM).")
        .secret("client_secret", "Client secret of the App, for login.")
        .host(&server.api_host());
        description.host(&server.html_host())
    }
}

impl Webhooks for Github {
    fn parse(request: Request) -> Result<Delivery, Error> {
        request.verify_hmac_sha256("webhook", "x-hub-signature-256", "sha256=")?;
        let id = request.required_header("x-github-delivery")?.to_owned();
        let event = request.required_header("x-github-event")?;
        Ok(Delivery { id, events: webhook::events(event, &request.body)? })
    }
}

impl Statuses for Github {
    fn report(status: Status) -> Result<(), Error> {
        checks::report(&Api::for_repository(&status.repository)?, &status)
    }
}

impl Comments for Github {
    fn post_comment(repository: RepositoryRef, number: u64, key: String, body: String) -> Result<(), Error> {
        comments::post(&Api::for_repository(&repository)?, &repository, number, &key, &body)
    }
}

impl Discovery for Github {
    fn repositories(cursor: Option<String>) -> Result<RepositoryPage, Error> {
        discovery::page(cursor.as_deref())
    }
}

impl Branches for Github {
    fn branch_head(repository: RepositoryRef, branch: String) -> Result<BranchHead, Error> {
        let api = Api::for_repository(&repository)?;
        let found: model::Branch = api.get(&api.repository_url(&repository, &["branches", &branch])?)?.json()?;
        Ok(found.into_head())
    }

    fn tree_hash(repository: RepositoryRef, commit: String) -> Result<String, Error> {
        let api = Api::for_repository(&repository)?;
        let found: model::GitCommit =
            api.get(&api.repository_url(&repository, &["git", "commits", &commit])?)?.json()?;
        Ok(found.tree.sha)
    }
}

impl PullRequests for Github {
    fn pull_request(repository: RepositoryRef, number: u64) -> Result<PullRequest, Error> {
        let api = Api::for_repository(&repository)?;
        let url = api.repository_url(&repository, &["pulls", &number.to_string()])?;
        let found: model::Pull = api.get(&url)?.json()?;
        Ok(found.into())
    }

    fn open_pull_requests(repository: RepositoryRef, cursor: Option<String>) -> Result<PullRequestPage, Error> {
        let api = Api::for_repository(&repository)?;
        let page = cursor.as_deref().unwrap_or("1");
        let url = http::query(
            &api.repository_url(&repository, &["pulls"])?,
            &[("state", "open"), ("sort", "created"), ("direction", "desc"), ("per_page", "100"), ("page", page)],
        );
        let answer = api.get(&url)?;
        let next = answer.next_page();
        let found: Vec<model::Pull> = answer.json()?;
        Ok(PullRequestPage { pull_requests: found.into_iter().map(Into::into).collect(), next })
    }
}

impl Permissions for Github {
    fn permission(repository: RepositoryRef, user: String) -> Result<Permission, Error> {
        let api = Api::for_repository(&repository)?;
        let url = api.repository_url(&repository, &["collaborators", &user, "permission"])?;
        match api.get(&url) {
            Ok(answer) => Ok(answer.json::<model::Collaborator>()?.permission()),
            // Nobody of that name.
            Err(Error::NotFound) => Ok(Permission::None),
            Err(error) => Err(error),
        }
    }
}

impl Credentials for Github {
    fn clone_credential(repository: RepositoryRef) -> Result<Option<Credential>, Error> {
        api::clone_credential(&repository).map(Some)
    }
}

impl Login for Github {
    fn login_url(start: LoginStart) -> Result<String, Error> {
        login::url(&start)
    }

    fn complete_login(completion: LoginCompletion) -> Result<User, Error> {
        login::complete(&completion)
    }
}

harmonia_plugin::export!(Github: forge[
    webhooks, statuses, comments, discovery, branches, pull_requests, permissions, credentials, login
]);
