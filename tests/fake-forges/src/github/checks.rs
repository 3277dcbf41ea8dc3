//! Commit statuses and check runs: `POST`, `PATCH` and the lists.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Github;
use super::auth::{Caller, Refused};
use crate::description::Match;
use crate::json::{text, timestamp};
use crate::server::{Request, Response};
use crate::world::{CheckRun, CommitStatus};

/// GitHub keeps no more statuses of one commit and context.
const STATUSES_MAX: usize = 1000;
const DESCRIPTION_LENGTH_MAX: usize = 140;

impl Github {
    pub(super) fn create_status(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["statuses"], "write")?;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let id = world.fresh_id();
        let repository = Self::repository_for(&world, caller, found, true)?;
        let sha = &found.values["sha"];
        let invalid = |message: &str| Box::new(Self::error(422, &format!("Validation Failed: {message}")));
        if !repository.commits.contains_key(sha) {
            return Err(invalid(&format!("No commit found for SHA: {sha}")));
        }
        let description = text(&body, "/description").unwrap_or_default();
        if description.chars().count() > DESCRIPTION_LENGTH_MAX {
            self.core.violation(request, "description is too long (maximum is 140 characters)");
            return Err(invalid("description is too long (maximum is 140 characters)"));
        }
        let target_url = text(&body, "/target_url").unwrap_or_default();
        if !target_url.is_empty() && !target_url.starts_with("http://") && !target_url.starts_with("https://") {
            self.core.violation(request, "target_url must use http(s) scheme");
            return Err(invalid("Target URL must use http(s) scheme"));
        }
        let status = CommitStatus {
            id,
            sha: sha.clone(),
            context: text(&body, "/context").unwrap_or("default").to_owned(),
            state: text(&body, "/state").unwrap_or_default().to_owned(),
            description: description.to_owned(),
            target_url: target_url.to_owned(),
            creator: format!("{}[bot]", self.slug),
            created_at: world.now(),
        };
        let same = |known: &&CommitStatus| known.sha == status.sha && known.context == status.context;
        if repository.statuses.iter().filter(same).count() >= STATUSES_MAX {
            return Err(invalid("This SHA and context has reached the maximum number of statuses."));
        }
        let body = self.status(&world, repository, &status);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).statuses.push(status);
        Ok(Response::json(201, &body))
    }

    pub(super) fn list_statuses(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["statuses"], "read")?;
        let world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, false)?;
        let Some(commit) = repository.resolve(&found.values["ref"]) else {
            return Err(Box::new(Self::error(404, "Not Found")));
        };
        // In reverse chronological order.
        let of_commit = repository.statuses.iter().rev().filter(|status| status.sha == commit.sha);
        let all = of_commit.map(|status| self.status(&world, repository, status)).collect();
        Ok(self.page(request, query, Some(repository.id), all).answer(|items, _| json!(items)))
    }

    pub(super) fn combined_status(&self, found: &Match<'_>, caller: &Caller) -> Result<Response, Refused> {
        Self::permitted(caller, &["statuses"], "read")?;
        let world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, false)?;
        let Some(commit) = repository.resolve(&found.values["ref"]) else {
            return Err(Box::new(Self::error(404, "Not Found")));
        };
        let newest = repository.newest_statuses(&commit.sha);
        let has = |states: &[&str]| newest.values().any(|status| states.contains(&status.state.as_str()));
        let state = if has(&["failure", "error"]) {
            "failure"
        } else if newest.is_empty() || has(&["pending"]) {
            "pending"
        } else {
            "success"
        };
        let statuses: Vec<Value> = newest
            .values()
            .map(|status| {
                let mut value = self.status(&world, repository, status);
                crate::json::remove(&mut value, "/creator");
                value
            })
            .collect();
        let mut body = self.description.example("combined-commit-status");
        self.localise(&mut body, "octocat/Hello-World", &repository.full_name());
        crate::json::patch(
            &mut body,
            [
                ("/state", json!(state)),
                ("/total_count", json!(statuses.len())),
                ("/statuses", json!(statuses)),
                ("/sha", json!(commit.sha)),
                ("/repository/id", json!(repository.id)),
                ("/repository/name", json!(repository.name)),
                ("/repository/owner", self.account(&world, &repository.owner)),
            ],
        );
        Ok(Response::json(200, &body))
    }

    pub(super) fn create_check_run(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["checks"], "write")?;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let id = world.fresh_id();
        let repository = Self::repository_for(&world, caller, found, true)?;
        let sha = text(&body, "/head_sha").unwrap_or_default();
        if !repository.commits.contains_key(sha) {
            return Err(Box::new(Self::error(422, &format!("No commit found for SHA: {sha}"))));
        }
        let mut run = CheckRun {
            id,
            head_sha: sha.to_owned(),
            name: text(&body, "/name").unwrap_or_default().to_owned(),
            started_at: timestamp(world.now()).as_str().map(str::to_owned),
            ..CheckRun::default()
        };
        self.update(request, &mut run, &body, world.now())?;
        let answer = self.check_run(&world, repository, &run);
        let full_name = repository.full_name();
        world.repository_mut(&full_name).check_runs.push(run);
        Ok(Response::json(201, &answer))
    }

    pub(super) fn update_check_run(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["checks"], "write")?;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, true)?;
        let id = found.values["check_run_id"].parse::<u64>().unwrap_or(0);
        let Some(run) = repository.check_runs.iter().find(|run| run.id == id) else {
            return Err(Box::new(Self::error(404, "Not Found")));
        };
        let mut run = run.clone();
        self.update(request, &mut run, &body, world.now())?;
        let answer = self.check_run(&world, repository, &run);
        let full_name = repository.full_name();
        for known in &mut world.repository_mut(&full_name).check_runs {
            if known.id == id {
                known.clone_from(&run);
            }
        }
        Ok(Response::json(200, &answer))
    }

    /// What the description says only in prose is checked here.
    fn update(
        &self,
        request: &Request,
        run: &mut CheckRun,
        body: &Value,
        now: time::OffsetDateTime,
    ) -> Result<(), Refused> {
        let given = |pointer: &str| text(body, pointer).map(str::to_owned);
        if let Some(name) = given("/name") {
            run.name = name;
        }
        let conclusion = given("/conclusion");
        let completed = given("/status").as_deref() == Some("completed") || body.get("completed_at").is_some();
        if completed && conclusion.is_none() {
            self.core.violation(request, "conclusion is required when a check run is completed");
            return Err(Box::new(Self::error(422, "Invalid request.\n\nconclusion wasn't supplied.")));
        }
        if conclusion.as_deref() == Some("stale") {
            self.core.violation(request, "only GitHub can make a check run stale");
            return Err(Box::new(Self::error(422, "Invalid request.\n\nstale is not allowed.")));
        }
        if let Some(status) = given("/status") {
            if status != "completed" {
                run.conclusion = None;
                run.completed_at = None;
            }
            run.status = status;
        }
        if let Some(conclusion) = conclusion {
            run.conclusion = Some(conclusion);
            "completed".clone_into(&mut run.status);
            run.completed_at = given("/completed_at").or_else(|| timestamp(now).as_str().map(str::to_owned));
        }
        run.details_url = given("/details_url").or(run.details_url.take());
        run.external_id = given("/external_id").or(run.external_id.take());
        run.started_at = given("/started_at").or(run.started_at.take());
        run.title = given("/output/title").or(run.title.take());
        run.summary = given("/output/summary").or(run.summary.take());
        run.text = given("/output/text").or(run.text.take());
        run.annotations
            .extend(body.pointer("/output/annotations").and_then(Value::as_array).cloned().into_iter().flatten());
        if let Some(actions) = body.get("actions").and_then(Value::as_array) {
            run.actions.clone_from(actions);
        }
        Ok(())
    }

    pub(super) fn list_check_runs(
        &self,
        request: &Request,
        found: &Match<'_>,
        caller: &Caller,
        query: &[(String, String)],
    ) -> Result<Response, Refused> {
        Self::permitted(caller, &["checks"], "read")?;
        let world = self.core.world();
        let repository = Self::repository_for(&world, caller, found, false)?;
        let Some(commit) = repository.resolve(&found.values["ref"]) else {
            return Err(Box::new(Self::error(422, &format!("No commit found for SHA: {}", found.values["ref"]))));
        };
        let value = |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let mut runs: Vec<&CheckRun> = repository.check_runs.iter().filter(|run| run.head_sha == commit.sha).collect();
        if value("filter") != Some("all") {
            let newest: BTreeMap<&str, &CheckRun> = runs.iter().map(|run| (run.name.as_str(), *run)).collect();
            runs = newest.into_values().collect();
        }
        runs.retain(|run| value("check_name").is_none_or(|name| name == run.name));
        runs.retain(|run| value("status").is_none_or(|status| status == run.status));
        runs.retain(|_| value("app_id").is_none_or(|id| id == self.app_id.to_string()));
        runs.sort_by_key(|run| std::cmp::Reverse(run.id));
        let all = runs.into_iter().map(|run| self.check_run(&world, repository, run)).collect();
        let page = self.page(request, query, Some(repository.id), all);
        Ok(page.answer(|items, total| json!({ "total_count": total, "check_runs": items })))
    }
}
