//! What each operation does.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use time::Duration;

use super::Github;
use super::auth::{Caller, Refused};
use crate::description::Match;
use crate::json::{patch, timestamp};
use crate::server::{Request, Response};
use crate::world::{Comment, PullRequest, Token};

const TOKEN_MINUTES: i64 = 60;

impl Github {
    pub(super) fn route(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Response {
        let name = found.operation.name();
        let result = match name.as_str() {
            "GET /app" => Ok(Response::json(200, &self.app(&self.core.world()))),
            "GET /app/installations" => Ok(self.installations(request, query)),
            "GET /app/installations/{installation_id}" => self.one_installation(found),
            "POST /app/installations/{installation_id}/access_tokens" => self.access_token(request, found),
            "GET /repos/{owner}/{repo}/installation" => self.repository_installation(found),
            "GET /installation/repositories" => self.installation_repositories(request, caller, query),
            "GET /rate_limit" => Ok(Response::json(200, &self.description.example("rate-limit-overview"))),
            "GET /user" => self.whoami(caller),
            "POST /repos/{owner}/{repo}/statuses/{sha}" => self.create_status(request, found, caller),
            "GET /repos/{owner}/{repo}/commits/{ref}/statuses" => self.list_statuses(request, found, caller, query),
            "GET /repos/{owner}/{repo}/commits/{ref}/status" => self.combined_status(found, caller),
            "POST /repos/{owner}/{repo}/check-runs" => self.create_check_run(request, found, caller),
            "PATCH /repos/{owner}/{repo}/check-runs/{check_run_id}" => self.update_check_run(request, found, caller),
            "GET /repos/{owner}/{repo}/commits/{ref}/check-runs" => self.list_check_runs(request, found, caller, query),
            "GET /repos/{owner}/{repo}/pulls" => self.pull_requests(request, found, caller, query),
            "GET /repos/{owner}/{repo}/issues/{issue_number}/comments" => self.comments(request, found, caller, query),
            "POST /repos/{owner}/{repo}/issues/{issue_number}/comments" => self.create_comment(request, found, caller),
            _ => self.read(&name, found, caller).unwrap_or_else(|| {
                Ok(self.refuse(
                    request,
                    501,
                    "Not Implemented",
                    "the fake does not answer this yet: add it to tests/fake-forges",
                ))
            }),
        };
        result.unwrap_or_else(|refused| *refused)
    }

    /// Operations that only look something up in a repository; none: not one of them.
    fn read(&self, name: &str, found: &Match<'_>, caller: &Caller) -> Option<Result<Response, Refused>> {
        let permission = match name {
            "GET /repos/{owner}/{repo}" | "GET /repos/{owner}/{repo}/collaborators/{username}/permission" => "metadata",
            "GET /repos/{owner}/{repo}/pulls/{pull_number}" => "pull_requests",
            "GET /repos/{owner}/{repo}/branches/{branch}"
            | "GET /repos/{owner}/{repo}/commits/{ref}"
            | "GET /repos/{owner}/{repo}/git/commits/{commit_sha}"
            | "GET /repos/{owner}/{repo}/git/ref/{ref}"
            | "GET /repos/{owner}/{repo}/check-runs/{check_run_id}" => "contents",
            _ => return None,
        };
        let looked_up = || -> Result<Option<Value>, Refused> {
            Self::permitted(caller, &[permission], "read")?;
            let world = self.core.world();
            let repository = Self::repository_for(&world, caller, found, false)?;
            let value = |name: &str| found.values[name].as_str();
            Ok(match name {
                "GET /repos/{owner}/{repo}" => Some(self.repository(&world, repository, true)),
                "GET /repos/{owner}/{repo}/collaborators/{username}/permission" => {
                    let account = world.account(value("username"));
                    account.map(|account| self.permission(&world, repository, &account.login))
                }
                "GET /repos/{owner}/{repo}/pulls/{pull_number}" => {
                    let number = value("pull_number").parse().unwrap_or(0);
                    repository.pull_requests.get(&number).map(|pull| self.pull_request(&world, repository, pull, true))
                }
                "GET /repos/{owner}/{repo}/branches/{branch}" => {
                    let branch = value("branch");
                    let head = repository.branches.get(branch).and_then(|sha| repository.commits.get(sha));
                    head.map(|head| self.branch(&world, repository, branch, head))
                }
                "GET /repos/{owner}/{repo}/commits/{ref}" => {
                    let Some(commit) = repository.resolve(value("ref")) else {
                        let message = format!("No commit found for SHA: {}", value("ref"));
                        return Err(Box::new(Self::error(422, &message)));
                    };
                    Some(self.commit(&world, repository, commit))
                }
                "GET /repos/{owner}/{repo}/git/commits/{commit_sha}" => {
                    repository.commits.get(value("commit_sha")).map(|commit| self.git_commit(repository, commit))
                }
                "GET /repos/{owner}/{repo}/git/ref/{ref}" => {
                    // Only complete names: `heads/x` or `tags/x`.
                    let reference = value("ref");
                    let complete = reference.starts_with("heads/") || reference.starts_with("tags/");
                    let commit = if complete { repository.resolve(reference) } else { None };
                    commit.map(|commit| self.git_ref(repository, &format!("refs/{reference}"), &commit.sha))
                }
                _ => {
                    let id = value("check_run_id").parse().unwrap_or(0);
                    let run = repository.check_runs.iter().find(|run| run.id == id);
                    run.map(|run| self.check_run(&world, repository, run))
                }
            })
        };
        Some(looked_up().map(|body| match body {
            Some(body) => Response::json(200, &body),
            None => Self::error(404, "Not Found"),
        }))
    }

    fn installations(&self, request: &Request, query: &[(String, String)]) -> Response {
        let world = self.core.world();
        let all = world.installations.values().map(|installation| self.installation(&world, installation)).collect();
        self.page(request, query, None, all).answer(|items, _| json!(items))
    }

    fn one_installation(&self, found: &Match<'_>) -> Result<Response, Refused> {
        let world = self.core.world();
        let id = found.values["installation_id"].parse().unwrap_or(0);
        let installation = world.installations.get(&id).ok_or_else(|| Box::new(Self::error(404, "Not Found")))?;
        Ok(Response::json(200, &self.installation(&world, installation)))
    }

    fn repository_installation(&self, found: &Match<'_>) -> Result<Response, Refused> {
        let world = self.core.world();
        let repository = world.find_repository(&format!("{}/{}", found.values["owner"], found.values["repo"]));
        let installation = repository.and_then(|repository| world.installation_of(repository.id));
        let installation = installation.ok_or_else(|| Box::new(Self::error(404, "Not Found")))?;
        Ok(Response::json(200, &self.installation(&world, installation)))
    }

    fn access_token(&self, request: &Request, found: &Match<'_>) -> Result<Response, Refused> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let id = found.values["installation_id"].parse().unwrap_or(0);
        let Some(installation) = world.installations.get(&id).cloned() else {
            return Err(Box::new(Self::error(404, "Not Found")));
        };
        if installation.suspended {
            return Err(Box::new(Self::error(403, "This installation has been suspended")));
        }
        let unknown = || {
            let message =
                "There is at least one repository that does not exist or is not accessible to the parent installation.";
            Box::new(Self::error(422, message))
        };
        let mut chosen: Option<BTreeSet<u64>> = None;
        for name in body["repositories"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let full_name = format!("{}/{name}", installation.account);
            let repository = world.find_repository(&full_name).ok_or_else(unknown)?;
            chosen.get_or_insert_default().insert(repository.id);
        }
        for id in body["repository_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
            chosen.get_or_insert_default().insert(id);
        }
        if chosen.iter().flatten().any(|id| !world.sees(&installation, *id)) {
            return Err(unknown());
        }
        let asked: Option<BTreeMap<String, String>> = body.get("permissions").and_then(Value::as_object).map(|asked| {
            asked.iter().map(|(name, level)| (name.clone(), level.as_str().unwrap_or_default().to_owned())).collect()
        });
        let enough = |name: &String, level: &String| {
            installation
                .permissions
                .get(name)
                .is_some_and(|granted| granted == level || granted == "write" && level == "read")
        };
        if asked.iter().flatten().any(|(name, level)| !enough(name, level)) {
            return Err(Box::new(Self::error(422, "The permissions requested are not granted to this installation.")));
        }
        let expires_at = world.now() + Duration::minutes(TOKEN_MINUTES);
        let token = format!("ghs_{}", &world.fresh_hash()[..36]);
        let permissions = asked.clone().unwrap_or_else(|| installation.permissions.clone());
        let granted =
            Token::Installation { installation: id, expires_at, repositories: chosen.clone(), permissions: asked };
        world.tokens.insert(token.clone(), granted);
        let mut answer = self.description.example("installation-token");
        let selected = chosen.is_some() || installation.repositories.is_some();
        patch(
            &mut answer,
            [
                ("/token", json!(token)),
                ("/expires_at", timestamp(expires_at)),
                ("/permissions", json!(permissions)),
                ("/repository_selection", json!(if selected { "selected" } else { "all" })),
            ],
        );
        match chosen {
            Some(chosen) => {
                let repositories = chosen.iter().filter_map(|id| world.repositories.get(id));
                let list: Vec<Value> =
                    repositories.map(|repository| self.repository(&world, repository, false)).collect();
                answer["repositories"] = json!(list);
            }
            None => crate::json::remove(&mut answer, "/repositories"),
        }
        Ok(Response::json(201, &answer))
    }

    fn installation_repositories(
        &self,
        request: &Request,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["metadata"], "read")?;
        let Caller::Installation { installation, chosen, .. } = caller else {
            return Err(Box::new(Self::error(403, "Resource not accessible by integration")));
        };
        let world = self.core.world();
        let visible = world.repositories.values().filter(|repository| {
            world.sees(installation, repository.id)
                && chosen.as_ref().is_none_or(|chosen| chosen.contains(&repository.id))
        });
        let all = visible.map(|repository| self.repository(&world, repository, false)).collect();
        let selection = if installation.repositories.is_some() { "selected" } else { "all" };
        let page = self.page(request, query, None, all);
        Ok(page.answer(
            |items, total| json!({ "total_count": total, "repository_selection": selection, "repositories": items }),
        ))
    }

    fn whoami(&self, caller: &Caller) -> Result<Response, Refused> {
        let Caller::User { login } = caller else {
            return Err(Box::new(Self::error(403, "Resource not accessible by integration")));
        };
        Ok(Response::json(200, &self.user(&self.core.world(), login)))
    }

    fn pull_requests(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["pull_requests"], "read")?;
        let world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, false)?;
        let value = |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let state = value("state").unwrap_or("open");
        let head_owner = |pull: &PullRequest| {
            pull.head_repository.and_then(|id| world.repositories.get(&id)).map(|head| head.owner.clone())
        };
        let mut pulls: Vec<&PullRequest> = repository.pull_requests.values().collect();
        pulls.retain(|pull| state == "all" || (state == "open") == pull.open);
        pulls.retain(|pull| value("base").is_none_or(|base| base == pull.base_branch));
        pulls.retain(|pull| {
            value("head").is_none_or(|head| {
                Some(head) == head_owner(pull).map(|owner| format!("{owner}:{}", pull.head_branch)).as_deref()
            })
        });
        let sort = value("sort").unwrap_or("created");
        // Newest first, unless another order is asked for.
        let direction = value("direction").unwrap_or(if sort == "created" { "desc" } else { "asc" });
        if direction == "desc" {
            pulls.reverse();
        }
        let all = pulls.into_iter().map(|pull| self.pull_request(&world, repository, pull, false)).collect();
        Ok(self.page(request, query, Some(repository.id), all).answer(|items, _| json!(items)))
    }

    fn comments(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["issues", "pull_requests"], "read")?;
        let world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, false)?;
        let number = found.values["issue_number"].parse().unwrap_or(0);
        if !repository.pull_requests.contains_key(&number) {
            return Err(Box::new(Self::error(404, "Not Found")));
        }
        // By ascending id.
        let comments = repository.comments.iter().filter(|comment| comment.number == number);
        let all = comments.map(|comment| self.comment(&world, repository, comment)).collect();
        Ok(self.page(request, query, Some(repository.id), all).answer(|items, _| json!(items)))
    }

    fn create_comment(&self, request: &Request, found: &Match<'_>, caller: &Caller) -> Result<Response, Refused> {
        Self::permitted(caller, &["issues", "pull_requests"], "write")?;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let id = world.fresh_id();
        let repository = Self::repository_for(&world, caller, found, true)?;
        let number = found.values["issue_number"].parse().unwrap_or(0);
        if !repository.pull_requests.contains_key(&number) {
            return Err(Box::new(Self::error(404, "Not Found")));
        }
        let text = crate::json::text(&body, "/body").unwrap_or_default().to_owned();
        let comment =
            Comment { id, number, author: format!("{}[bot]", self.slug), body: text, created_at: world.now() };
        let answer = self.comment(&world, repository, &comment);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).comments.push(comment);
        let location = answer["url"].as_str().unwrap_or_default().to_owned();
        Ok(Response::json(201, &answer).with("location", location))
    }
}
