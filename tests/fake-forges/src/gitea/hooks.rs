//! Webhooks of a repository: list, create, edit, delete.

use serde_json::Value;

use super::{Gitea, Refused};
use crate::description::Match;
use crate::json::text;
use crate::server::{Request, Response};
use crate::world::{Hook, Permission};

/// Events that a webhook may want. The first of a group stands for the whole group when it is asked for.
const SINGLE: [&str; 8] = ["create", "delete", "fork", "push", "wiki", "repository", "release", "package"];
const PULL_REQUEST: [&str; 11] = [
    "pull_request",
    "pull_request_assign",
    "pull_request_label",
    "pull_request_milestone",
    "pull_request_comment",
    "pull_request_review_approved",
    "pull_request_review_rejected",
    "pull_request_review_comment",
    "pull_request_review",
    "pull_request_sync",
    "pull_request_review_request",
];
const ISSUES: [&str; 5] = ["issues", "issue_assign", "issue_label", "issue_milestone", "issue_comment"];

/// What the forge makes of the events that were asked for.
fn expand(asked: &[String]) -> Vec<String> {
    let has = |name: &str| asked.iter().any(|asked| asked.eq_ignore_ascii_case(name));
    let mut events: Vec<&str> = SINGLE.into_iter().filter(|name| has(name)).collect();
    for (group, only) in [(&ISSUES[..], "issues_only"), (&PULL_REQUEST[..], "pull_request_only")] {
        let whole = has(group[0]);
        events.extend(
            group
                .iter()
                .enumerate()
                .filter(|(index, name)| whole || has(name) || *index == 0 && has(only))
                .map(|(_, name)| *name),
        );
    }
    events.into_iter().map(str::to_owned).collect()
}

/// Whether a webhook wants deliveries of this type (`pull_request_sync`).
pub(super) fn wants(hook: &Hook, event_type: &str) -> bool {
    hook.active && hook.events.iter().any(|event| event == event_type)
}

impl Gitea {
    pub(super) fn hooks(
        &self,
        request: &Request,
        found: &Match<'_>,
        login: &str,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        match request.method.as_str() {
            "POST" => return self.create_hook(request, found, login),
            "PATCH" => return self.edit_hook(request, found, login),
            _ => {}
        }
        let id = found.values.get("id").map(|id| id.parse::<u64>().unwrap_or(0));
        let mut world = self.core.world();
        let repository = self.repository_for(&world, login, &found.values, Permission::Admin)?;
        match id {
            None => {
                let all = repository.hooks.values().map(|hook| self.hook(hook)).collect();
                Ok(self.page(request, query, all, false))
            }
            Some(id) => {
                let hook = repository.hooks.get(&id).ok_or_else(|| self.not_found())?;
                if request.method == "GET" {
                    return Ok(Response::json(200, &self.hook(hook)));
                }
                let full_name = repository.full_name();
                world.repository_mut(&full_name).hooks.remove(&id);
                Ok(Response { status: 204, headers: Vec::new(), body: Vec::new() })
            }
        }
    }

    fn create_hook(&self, request: &Request, found: &Match<'_>, login: &str) -> Result<Response, Refused> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let id = world.fresh_id();
        let created_at = world.now();
        let repository = self.repository_for(&world, login, &found.values, Permission::Admin)?;
        for needed in ["url", "content_type"] {
            if body.pointer(&format!("/config/{needed}")).is_none() {
                return Err(Box::new(self.refuse(
                    request,
                    422,
                    &format!("Missing config option: {needed}"),
                    "config lacks a member",
                )));
            }
        }
        let mut hook = Hook {
            id,
            url: String::new(),
            secret: String::new(),
            content_type: String::new(),
            kind: text(&body, "/type").unwrap_or_default().to_owned(),
            events: Vec::new(),
            // Off unless it is asked for.
            active: body["active"] == true,
            branch_filter: String::new(),
            created_at,
        };
        self.apply(request, &body, &mut hook)?;
        let answer = self.hook(&hook);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).hooks.insert(id, hook);
        Ok(Response::json(201, &answer))
    }

    fn edit_hook(&self, request: &Request, found: &Match<'_>, login: &str) -> Result<Response, Refused> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let repository = self.repository_for(&world, login, &found.values, Permission::Admin)?;
        let id = found.values["id"].parse::<u64>().unwrap_or(0);
        let mut hook = repository.hooks.get(&id).ok_or_else(|| self.not_found())?.clone();
        if let Some(active) = body["active"].as_bool() {
            hook.active = active;
        }
        self.apply(request, &body, &mut hook)?;
        let answer = self.hook(&hook);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).hooks.insert(id, hook);
        Ok(Response::json(200, &answer))
    }

    /// Config, events and filter. Events and filter that are left out are reset, also by an edit: so the forge does.
    fn apply(&self, request: &Request, body: &Value, hook: &mut Hook) -> Result<(), Refused> {
        let known = ["url", "content_type", "secret", "http_method", "is_system_webhook"];
        for (name, _) in body["config"].as_object().into_iter().flatten() {
            if !known.contains(&name.as_str()) {
                self.core.violation(request, &format!("/config/{name}: there is no such option"));
            }
        }
        if let Some(url) = text(body, "/config/url") {
            url.clone_into(&mut hook.url);
        }
        if let Some(kind) = text(body, "/config/content_type") {
            if !matches!(kind, "json" | "form") {
                return Err(Box::new(self.refuse(
                    request,
                    422,
                    "Invalid content type",
                    "content_type is json or form",
                )));
            }
            kind.clone_into(&mut hook.content_type);
        }
        if let Some(secret) = text(body, "/config/secret") {
            secret.clone_into(&mut hook.secret);
        }
        let asked: Vec<String> =
            body["events"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        for event in &asked {
            let all = SINGLE.iter().chain(&PULL_REQUEST).chain(&ISSUES).chain(&["issues_only", "pull_request_only"]);
            if !all.into_iter().any(|known| known == event) {
                self.core.violation(request, &format!("/events: there is no event {event}, the forge would ignore it"));
            }
        }
        let asked = if asked.is_empty() { vec!["push".to_owned()] } else { asked };
        hook.events = expand(&asked);
        text(body, "/branch_filter").unwrap_or_default().clone_into(&mut hook.branch_filter);
        Ok(())
    }
}
