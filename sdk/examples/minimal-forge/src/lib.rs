//! The smallest forge worth the name: signed pushes come in, branch heads can be asked for. Its server speaks a format of its
//! own, written down in [`push`].

mod push;

use harmonia_plugin::forge::webhooks::{Delivery, Request, Webhooks};
use harmonia_plugin::forge::{BranchHead, Branches, Error, RepositoryRef};
use harmonia_plugin::{Description, Plugin, http, secrets, settings};
use serde::Deserialize;

struct MinimalForge;

impl Plugin for MinimalForge {
    fn describe() -> Description {
        let url = settings::get("url").unwrap_or_default();
        let host = url.split('/').nth(2).unwrap_or("the host of `url`");
        Description::new("minimal-forge", env!("CARGO_PKG_VERSION"), "Signed pushes and branch heads over JSON.")
            .required_setting("url", "Base URL of the forge's API: `https://forge.example/api`.")
            .required_secret("webhook", "Key of the HMAC-SHA256 in `x-forge-signature`.")
            .required_secret("token", "Bearer token for the API.")
            .host(host)
    }
}

impl Webhooks for MinimalForge {
    fn parse(request: Request) -> Result<Delivery, Error> {
        request.verify_hmac_sha256("webhook", "x-forge-signature", "sha256=")?;
        let id = request.required_header("x-forge-delivery")?.to_owned();
        Ok(Delivery { id, events: push::events(&request.body)? })
    }
}

/// `GET {url}/repositories/{id}/branches/{branch}`.
#[derive(Deserialize)]
struct Branch {
    commit: String,
    author: String,
    message: String,
}

/// `GET {url}/repositories/{id}/commits/{commit}`.
#[derive(Deserialize)]
struct Commit {
    tree: String,
}

impl Branches for MinimalForge {
    fn branch_head(repository: RepositoryRef, branch: String) -> Result<BranchHead, Error> {
        let Branch { commit, author, message } = ask(&["repositories", &repository.id, "branches", &branch])?.json()?;
        Ok(BranchHead { commit, author, message })
    }

    fn tree_hash(repository: RepositoryRef, commit: String) -> Result<String, Error> {
        let Commit { tree } = ask(&["repositories", &repository.id, "commits", &commit])?.json()?;
        Ok(tree)
    }
}

fn ask(path: &[&str]) -> Result<http::Response, Error> {
    let token = secrets::open("token")?;
    Ok(http::Request::get(http::url(&settings::required("url")?, path)).bearer(&token).fetch()?)
}

harmonia_plugin::export!(MinimalForge: forge[webhooks, branches]);
