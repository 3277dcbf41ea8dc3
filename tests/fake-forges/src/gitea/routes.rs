//! What each operation does.

use serde_json::{Value, json};

use super::{Gitea, Refused};
use crate::description::Match;
use crate::json::text;
use crate::server::{Request, Response};
use crate::world::{Comment, CommitStatus, Permission, PullRequest, Repository, World};

/// The forge's defaults: `DEFAULT_PAGING_NUM` and `MAX_RESPONSE_ITEMS`.
const LIMIT: usize = 30;
const LIMIT_MAX: usize = 50;
const STATES: [&str; 6] = ["pending", "success", "error", "failure", "warning", "skipped"];

impl Gitea {
    pub(super) fn route(
        &self,
        request: &Request,
        found: &Match<'_>,
        login: &str,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        let name = found.operation.name();
        let name = name.replacen(" /api/v1", " ", 1);
        let value = |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        match name.as_str() {
            "GET /repos/{owner}/{repo}/hooks"
            | "POST /repos/{owner}/{repo}/hooks"
            | "GET /repos/{owner}/{repo}/hooks/{id}"
            | "PATCH /repos/{owner}/{repo}/hooks/{id}"
            | "DELETE /repos/{owner}/{repo}/hooks/{id}" => return self.hooks(request, found, login, query),
            "POST /repos/{owner}/{repo}/statuses/{sha}" => return self.create_status(request, found, login),
            "POST /repos/{owner}/{repo}/issues/{index}/comments" => return self.create_comment(request, found, login),
            _ => {}
        }
        let world = self.core.world();
        let see = |repository: &&Repository| world.permission(repository, login) > Permission::None;
        let list = |repositories: Vec<&Repository>| {
            repositories
                .into_iter()
                .map(|repository| self.repository(&world, repository, login))
                .collect::<Vec<Value>>()
        };
        match name.as_str() {
            "GET /version" => return Ok(Response::json(200, &json!({ "version": "16.0.1+gitea-1.22.0" }))),
            "GET /user" => return Ok(Response::json(200, &self.user(&world, login))),
            "GET /users/{username}" => {
                let account = world.account(&found.values["username"]).ok_or_else(|| self.not_found())?;
                return Ok(Response::json(200, &self.user(&world, &account.login)));
            }
            // Those that the user owns or collaborates in, not all that it may read.
            "GET /user/repos" => {
                let own = world.repositories.values().filter(|repository| {
                    let member = world.account(&repository.owner).is_some_and(|owner| owner.members.contains(login));
                    repository.owner == login || repository.collaborators.contains_key(login) || member
                });
                return Ok(self.page(request, query, list(own.collect()), true));
            }
            "GET /user/orgs" => {
                let organizations =
                    world.accounts.values().filter(|account| account.organization && account.members.contains(login));
                let all = organizations.map(|account| self.organization(&world, &account.login)).collect();
                return Ok(self.page(request, query, all, true));
            }
            "GET /orgs/{org}/repos" => {
                let organization = world.account(&found.values["org"]).filter(|account| account.organization);
                let organization = organization.ok_or_else(|| self.not_found())?;
                let all =
                    world.repositories.values().filter(|repository| repository.owner == organization.login).filter(see);
                return Ok(self.page(request, query, list(all.collect()), true));
            }
            "GET /repositories/{id}" => {
                let id: u64 = found.values["id"].parse().unwrap_or(0);
                let repository = world.repositories.get(&id).filter(see).ok_or_else(|| self.not_found())?;
                return Ok(Response::json(200, &self.repository(&world, repository, login)));
            }
            _ => {}
        }
        if let Some(redirect) = Self::renamed(request, &world, found) {
            return Ok(redirect);
        }
        let repository = self.repository_for(&world, login, &found.values, Permission::Read)?;
        let parameter = |name: &str| found.values[name].as_str();
        let one = |body: Option<Value>| body.map(|body| Response::json(200, &body)).ok_or_else(|| self.not_found());
        match name.as_str() {
            "GET /repos/{owner}/{repo}" => one(Some(self.repository(&world, repository, login))),
            "GET /repos/{owner}/{repo}/branches" => {
                let heads =
                    repository.branches.iter().filter_map(|(name, sha)| Some((name, repository.commits.get(sha)?)));
                let all = heads.map(|(name, head)| self.branch(repository, name, head)).collect();
                Ok(self.page(request, query, all, true))
            }
            "GET /repos/{owner}/{repo}/branches/{branch}" => {
                let head = repository.branches.get(parameter("branch")).and_then(|sha| repository.commits.get(sha));
                one(head.map(|head| self.branch(repository, parameter("branch"), head)))
            }
            "GET /repos/{owner}/{repo}/git/commits/{sha}" => {
                let commit = repository.resolve(parameter("sha"));
                one(commit.map(|commit| self.commit(&world, repository, commit)))
            }
            "GET /repos/{owner}/{repo}/commits" => {
                let start = value("sha").unwrap_or(&repository.default_branch);
                let mut next = Some(repository.resolve(start).ok_or_else(|| self.not_found())?);
                let mut all = Vec::new();
                while let Some(commit) = next {
                    all.push(self.commit(&world, repository, commit));
                    next = commit.parents.first().and_then(|sha| repository.commits.get(sha));
                }
                Ok(self.page(request, query, all, true))
            }
            "GET /repos/{owner}/{repo}/collaborators/{collaborator}/permission" => {
                self.collaborator_permission(&world, repository, login, parameter("collaborator"))
            }
            "GET /repos/{owner}/{repo}/pulls" => {
                let state = value("state").unwrap_or("open");
                // Newest first.
                let mut pulls: Vec<&PullRequest> = repository.pull_requests.values().rev().collect();
                pulls.retain(|pull| state == "all" || (state == "open") == pull.open);
                pulls.retain(|pull| value("poster").is_none_or(|poster| poster == pull.author));
                pulls.retain(|pull| value("base").is_none_or(|base| base == pull.base_branch));
                pulls.retain(|pull| value("head").is_none_or(|head| head == pull.head_branch));
                if value("sort") == Some("oldest") {
                    pulls.reverse();
                }
                let all = pulls.into_iter().map(|pull| self.pull_request(&world, repository, pull, login)).collect();
                Ok(self.page(request, query, all, true))
            }
            "GET /repos/{owner}/{repo}/pulls/{index}" => {
                let pull = repository.pull_requests.get(&parameter("index").parse().unwrap_or(0));
                one(pull.map(|pull| self.pull_request(&world, repository, pull, login)))
            }
            "GET /repos/{owner}/{repo}/issues/{index}/comments" => {
                let number = parameter("index").parse().unwrap_or(0);
                if !repository.pull_requests.contains_key(&number) {
                    return Err(self.not_found());
                }
                // All of them: this list has no pages.
                let comments = repository.comments.iter().filter(|comment| comment.number == number);
                let all: Vec<Value> = comments.map(|comment| self.comment(&world, repository, comment)).collect();
                let total = all.len();
                Ok(Response::json(200, &json!(all)).with("x-total-count", total.to_string()))
            }
            "GET /repos/{owner}/{repo}/statuses/{sha}" | "GET /repos/{owner}/{repo}/commits/{ref}/statuses" => {
                let at = found.values.get("sha").or(found.values.get("ref")).map_or("", String::as_str);
                let commit = repository.resolve(at).ok_or_else(|| self.not_found())?;
                let mut statuses: Vec<&CommitStatus> =
                    repository.statuses.iter().filter(|status| status.sha == commit.sha).collect();
                if value("sort") != Some("oldest") && value("sort") != Some("leastupdate") {
                    statuses.reverse();
                }
                statuses.retain(|status| value("state").is_none_or(|state| state == status.state));
                let all = statuses.into_iter().map(|status| self.status(&world, repository, status)).collect();
                Ok(self.page(request, query, all, true))
            }
            _ => Err(Box::new(self.refuse(
                request,
                501,
                "Not Implemented",
                &format!("the fake does not answer {name} yet: add it to tests/fake-forges"),
            ))),
        }
    }

    /// Former names redirect, as long as nothing else has them.
    fn renamed(request: &Request, world: &World, found: &Match<'_>) -> Option<Response> {
        let former = format!("{}/{}", found.values.get("owner")?, found.values.get("repo")?);
        if world.find_repository(&former).is_some() {
            return None;
        }
        let moved = world.find_former(&former)?;
        let path = request.path.replacen(&format!("/repos/{former}"), &format!("/repos/{}", moved.full_name()), 1);
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let location = format!("{path}{query}");
        let status = if request.method == "GET" { 301 } else { 307 };
        Some(Response::text(status, "").with("location", location))
    }

    /// Only an administrator of the repository may ask about others.
    fn collaborator_permission(
        &self,
        world: &World,
        repository: &Repository,
        login: &str,
        about: &str,
    ) -> Result<Response, Refused> {
        if world.permission(repository, login) < Permission::Admin && login != about {
            let message = "Only admins can query all permissions, repo admins can query all repo permissions, collaborators can query only their own";
            return Err(Box::new(self.error(403, message)));
        }
        let account = world.account(about).ok_or_else(|| self.not_found())?;
        let owner = repository.owner == account.login;
        let level = if owner { "owner" } else { world.permission(repository, &account.login).level() };
        let body = json!({ "permission": level, "role_name": level, "user": self.user(world, &account.login) });
        Ok(Response::json(200, &body))
    }

    fn create_status(&self, request: &Request, found: &Match<'_>, login: &str) -> Result<Response, Refused> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        if let Some(redirect) = Self::renamed(request, &world, found) {
            return Ok(redirect);
        }
        let id = world.fresh_id();
        let repository = self.repository_for(&world, login, &found.values, Permission::Write)?;
        let sha = &found.values["sha"];
        if !repository.commits.contains_key(sha) {
            return Err(self.not_found());
        }
        let state = text(&body, "/state").unwrap_or_default();
        if !STATES.contains(&state) {
            return Err(Box::new(self.refuse(
                request,
                400,
                "unknown state",
                &format!("/state: {state:?} is none of {STATES:?}"),
            )));
        }
        let context = text(&body, "/context").filter(|context| !context.is_empty()).unwrap_or("default");
        let status = CommitStatus {
            id,
            sha: sha.clone(),
            context: context.to_owned(),
            state: state.to_owned(),
            description: text(&body, "/description").unwrap_or_default().to_owned(),
            target_url: text(&body, "/target_url").unwrap_or_default().to_owned(),
            creator: login.to_owned(),
            created_at: world.now(),
        };
        let answer = self.status(&world, repository, &status);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).statuses.push(status);
        Ok(Response::json(201, &answer))
    }

    fn create_comment(&self, request: &Request, found: &Match<'_>, login: &str) -> Result<Response, Refused> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        if let Some(redirect) = Self::renamed(request, &world, found) {
            return Ok(redirect);
        }
        let id = world.fresh_id();
        let repository = self.repository_for(&world, login, &found.values, Permission::Read)?;
        let number = found.values["index"].parse().unwrap_or(0);
        if !repository.pull_requests.contains_key(&number) {
            return Err(self.not_found());
        }
        let said = text(&body, "/body").unwrap_or_default().to_owned();
        let comment = Comment { id, number, author: login.to_owned(), body: said, created_at: world.now() };
        let answer = self.comment(&world, repository, &comment);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).comments.push(comment);
        Ok(Response::json(201, &answer))
    }

    /// Cuts a page out of `all`: `page`, `limit`, `X-Total-Count` and, where the forge sends it, `Link`.
    pub(super) fn page(
        &self,
        request: &Request,
        query: &[(String, String)],
        all: Vec<Value>,
        linked: bool,
    ) -> Response {
        let number = |name: &str| {
            query.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.parse::<usize>().ok())
        };
        let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(LIMIT).min(LIMIT_MAX);
        let page = number("page").unwrap_or(1).max(1);
        let total = all.len();
        let last = total.div_ceil(limit).max(1);
        let mut links = Vec::new();
        let mut link = |number: usize, relation: &str| {
            let mut pairs = url::form_urlencoded::Serializer::new(String::new());
            for (name, value) in query.iter().filter(|(name, _)| name != "page") {
                pairs.append_pair(name, value);
            }
            pairs.append_pair("page", &number.to_string());
            links.push(format!("<{}{}?{}>; rel=\"{relation}\"", self.core.url, request.path, pairs.finish()));
        };
        if page < last {
            link(page + 1, "next");
            link(last, "last");
        }
        if page > 1 {
            link(1, "first");
            link(page - 1, "prev");
        }
        let items: Vec<Value> = all.into_iter().skip((page - 1) * limit).take(limit).collect();
        let response = Response::json(200, &json!(items)).with("x-total-count", total.to_string());
        if linked && !links.is_empty() { response.with("link", links.join(",")) } else { response }
    }
}
