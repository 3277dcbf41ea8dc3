//! Bodies of answers, built from the published schemas: every field is there, as the real forge sends every field of its
//! structures, and those that matter have the values of the world.

use serde_json::{Map, Value, json};

use super::Gitea;
use crate::description::reference;
use crate::json::{patch, set, timestamp};
use crate::world::{Comment, Commit, CommitStatus, Hook, PullRequest, Repository, World};

const SOME_TIME: &str = "2024-01-02T03:04:05Z";
/// What the forge writes where there is no time.
const NO_TIME: &str = "1970-01-01T00:00:00Z";

impl Gitea {
    /// A value with every field of a schema: empty texts, zeros, and null for what points to something.
    pub(super) fn blank(&self, name: &str) -> Value {
        self.sample(self.description.definition(name), &mut vec![name])
    }

    fn sample<'a>(&'a self, schema: &'a Value, inside: &mut Vec<&'a str>) -> Value {
        if let Some(name) = reference(schema) {
            // Structures that contain themselves point to nothing there.
            if inside.contains(&name) {
                return Value::Null;
            }
            inside.push(name);
            let value = self.sample(self.description.definition(name), inside);
            inside.pop();
            return value;
        }
        match schema["type"].as_str() {
            Some("string") if schema["format"] == "date-time" => json!(SOME_TIME),
            Some("string") if schema["format"] == "email" => json!("nobody@noreply.example.org"),
            Some("string") => {
                schema["enum"].as_array().and_then(|values| values.first()).cloned().unwrap_or_else(|| json!(""))
            }
            Some("integer" | "number") => json!(0),
            Some("boolean") => json!(false),
            Some("array") => json!([]),
            _ => {
                let fields = schema["properties"].as_object().into_iter().flatten();
                Value::Object(
                    fields.map(|(name, field)| (name.clone(), self.sample(field, inside))).collect::<Map<_, _>>(),
                )
            }
        }
    }

    pub(super) fn user(&self, world: &World, login: &str) -> Value {
        let mut value = self.blank("User");
        let account = world.account(login);
        patch(
            &mut value,
            [
                ("/id", json!(account.map_or(0, |account| account.id))),
                ("/login", json!(login)),
                ("/full_name", json!(account.map(|account| account.name.clone()).unwrap_or_default())),
                ("/email", json!(format!("{login}@noreply.example.org"))),
                ("/avatar_url", json!(format!("{}/avatars/0123456789abcdef", self.core.url))),
                ("/html_url", json!(format!("{}/{login}", self.core.url))),
                ("/active", json!(true)),
                ("/visibility", json!("public")),
                ("/language", json!("en-US")),
            ],
        );
        value
    }

    pub(super) fn organization(&self, world: &World, login: &str) -> Value {
        let mut value = self.blank("Organization");
        let account = world.account(login);
        patch(
            &mut value,
            [
                ("/id", json!(account.map_or(0, |account| account.id))),
                ("/name", json!(login)),
                ("/username", json!(login)),
                ("/full_name", json!(account.map(|account| account.name.clone()).unwrap_or_default())),
                ("/avatar_url", json!(format!("{}/avatars/fedcba9876543210", self.core.url))),
                ("/visibility", json!("public")),
            ],
        );
        value
    }

    /// As `login` sees it.
    pub(super) fn repository(&self, world: &World, repository: &Repository, login: &str) -> Value {
        let mut value = self.blank("Repository");
        let full_name = repository.full_name();
        let url = &self.core.url;
        let clone_url = repository.clone_url.clone().unwrap_or_else(|| format!("{url}/{full_name}.git"));
        let permission = world.permission(repository, login);
        let level = |needed| permission >= needed;
        patch(
            &mut value,
            [
                ("/id", json!(repository.id)),
                ("/owner", self.user(world, &repository.owner)),
                ("/name", json!(repository.name)),
                ("/full_name", json!(full_name)),
                ("/private", json!(repository.private)),
                ("/fork", json!(repository.fork)),
                ("/archived", json!(repository.archived)),
                ("/archived_at", json!(if repository.archived { SOME_TIME } else { NO_TIME })),
                ("/empty", json!(repository.branches.is_empty())),
                ("/size", json!(24)),
                ("/default_branch", json!(repository.default_branch)),
                ("/topics", json!(repository.topics)),
                ("/html_url", json!(format!("{url}/{full_name}"))),
                ("/url", json!(format!("{url}/api/v1/repos/{full_name}"))),
                ("/languages_url", json!(format!("{url}/api/v1/repos/{full_name}/languages"))),
                ("/ssh_url", json!(format!("git@forge.example.org:{full_name}.git"))),
                ("/clone_url", json!(clone_url)),
                ("/has_pull_requests", json!(true)),
                ("/has_issues", json!(true)),
                ("/allow_merge_commits", json!(true)),
                ("/default_merge_style", json!("merge")),
                (
                    "/permissions",
                    json!({
                        "admin": level(crate::world::Permission::Admin), "push": level(crate::world::Permission::Write),
                        "pull": level(crate::world::Permission::Read),
                    }),
                ),
                ("/external_tracker", Value::Null),
                ("/external_wiki", Value::Null),
                ("/repo_transfer", Value::Null),
            ],
        );
        value
    }

    /// As branches and pushes have it.
    pub(super) fn payload_commit(&self, repository: &Repository, commit: &Commit) -> Value {
        let mut value = self.blank("PayloadCommit");
        patch(
            &mut value,
            [
                ("/id", json!(commit.sha)),
                ("/message", json!(format!("{}\n", commit.message))),
                ("/url", json!(format!("{}/{}/commit/{}", self.core.url, repository.full_name(), commit.sha))),
                ("/author", payload_user(&commit.author)),
                ("/committer", payload_user(&commit.author)),
                ("/verification", Value::Null),
                ("/timestamp", timestamp(commit.time)),
                ("/modified", json!(["flake.nix"])),
            ],
        );
        value
    }

    pub(super) fn branch(&self, repository: &Repository, name: &str, head: &Commit) -> Value {
        let mut value = self.blank("Branch");
        let mut commit = self.payload_commit(repository, head);
        // Branches do not say which files a commit changed.
        for files in ["/added", "/removed", "/modified"] {
            set(&mut commit, files, Value::Null);
        }
        patch(
            &mut value,
            [
                ("/name", json!(name)),
                ("/commit", commit),
                ("/user_can_push", json!(true)),
                ("/user_can_merge", json!(true)),
            ],
        );
        value
    }

    /// As the git endpoints have it.
    pub(super) fn commit(&self, world: &World, repository: &Repository, commit: &Commit) -> Value {
        let mut value = self.blank("Commit");
        let api = format!("{}/api/v1/repos/{}/git", self.core.url, repository.full_name());
        let person = json!({
            "name": commit.author, "email": format!("{}@noreply.example.org", commit.author.replace(' ', ".")),
            "date": timestamp(commit.time),
        });
        let meta = |sha: &str, kind: &str| json!({ "url": format!("{api}/{kind}/{sha}"), "sha": sha, "created": timestamp(commit.time) });
        let parents: Vec<Value> = commit.parents.iter().map(|sha| meta(sha, "commits")).collect();
        let account = world.account(&commit.author).map(|_| self.user(world, &commit.author)).unwrap_or_default();
        patch(
            &mut value,
            [
                ("/sha", json!(commit.sha)),
                ("/url", json!(format!("{api}/commits/{}", commit.sha))),
                ("/html_url", json!(format!("{}/{}/commit/{}", self.core.url, repository.full_name(), commit.sha))),
                ("/created", timestamp(commit.time)),
                ("/commit/url", json!(format!("{api}/commits/{}", commit.sha))),
                ("/commit/message", json!(format!("{}\n", commit.message))),
                ("/commit/author", person.clone()),
                ("/commit/committer", person),
                ("/commit/tree", meta(&commit.tree, "trees")),
                ("/author", account.clone()),
                ("/committer", account),
                ("/parents", json!(parents)),
            ],
        );
        value
    }

    pub(super) fn pull_request(
        &self,
        world: &World,
        repository: &Repository,
        pull: &PullRequest,
        login: &str,
    ) -> Value {
        let mut value = self.blank("PullRequest");
        let number = pull.number;
        let page = format!("{}/{}/pulls/{number}", self.core.url, repository.full_name());
        let head = pull.head_repository.and_then(|id| world.repositories.get(&id));
        // Without the fork, the head is known only by its ref here.
        let head_ref = if head.is_some() { pull.head_branch.clone() } else { format!("refs/pull/{number}/head") };
        let side = |label: &str, reference: &str, sha: &str, of: Option<&Repository>| {
            json!({
                "label": label, "ref": reference, "sha": sha,
                "repo_id": of.map_or(json!(-1), |of| json!(of.id)),
                "repo": of.map(|of| self.repository(world, of, login)),
            })
        };
        let labels: Vec<Value> = pull
            .labels
            .iter()
            .map(|label| {
                let mut value = self.blank("Label");
                let url = format!("{}/api/v1/repos/{}/labels/{}", self.core.url, repository.full_name(), label.id);
                patch(
                    &mut value,
                    [
                        ("/id", json!(label.id)),
                        ("/name", json!(label.name)),
                        ("/color", json!("ff0000")),
                        ("/url", json!(url)),
                    ],
                );
                value
            })
            .collect();
        let closed = if pull.open { Value::Null } else { timestamp(world.now()) };
        patch(
            &mut value,
            [
                ("/id", json!(pull.id)),
                ("/url", json!(page)),
                ("/html_url", json!(page)),
                ("/diff_url", json!(format!("{page}.diff"))),
                ("/patch_url", json!(format!("{page}.patch"))),
                ("/number", json!(number)),
                ("/user", self.user(world, &pull.author)),
                ("/title", json!(title(pull))),
                ("/body", json!(pull.body)),
                ("/labels", json!(labels)),
                ("/state", json!(if pull.open { "open" } else { "closed" })),
                ("/draft", json!(pull.draft)),
                ("/mergeable", json!(pull.open)),
                ("/merged", json!(pull.merged)),
                ("/merge_base", json!(pull.base_commit)),
                ("/base", side(&pull.base_branch, &pull.base_branch, &pull.base_commit, Some(repository))),
                ("/head", side(&pull.head_branch, &head_ref, &pull.head_commit, head)),
                ("/created_at", timestamp(pull.created_at)),
                ("/updated_at", timestamp(world.now())),
                ("/closed_at", closed.clone()),
                ("/merged_at", if pull.merged { closed } else { Value::Null }),
            ],
        );
        for nothing in
            ["milestone", "assignee", "assignees", "merged_by", "merge_commit_sha", "due_date", "requested_reviewers"]
        {
            set(&mut value, &format!("/{nothing}"), Value::Null);
        }
        value
    }

    /// A pull request seen as the issue that it also is.
    pub(super) fn issue(&self, world: &World, repository: &Repository, pull: &PullRequest) -> Value {
        let mut value = self.blank("Issue");
        let number = pull.number;
        let full_name = repository.full_name();
        patch(
            &mut value,
            [
                ("/id", json!(pull.id)),
                ("/number", json!(number)),
                ("/url", json!(format!("{}/api/v1/repos/{full_name}/issues/{number}", self.core.url))),
                ("/html_url", json!(format!("{}/{full_name}/pulls/{number}", self.core.url))),
                ("/user", self.user(world, &pull.author)),
                ("/title", json!(title(pull))),
                ("/body", json!(pull.body)),
                ("/state", json!(if pull.open { "open" } else { "closed" })),
                ("/created_at", timestamp(pull.created_at)),
                ("/pull_request/merged", json!(pull.merged)),
                ("/pull_request/draft", json!(pull.draft)),
                ("/pull_request/merged_at", Value::Null),
                ("/pull_request/html_url", json!(format!("{}/{full_name}/pulls/{number}", self.core.url))),
                ("/repository/id", json!(repository.id)),
                ("/repository/name", json!(repository.name)),
                ("/repository/owner", json!(repository.owner)),
                ("/repository/full_name", json!(full_name)),
                ("/milestone", Value::Null),
                ("/assignee", Value::Null),
                ("/assignees", Value::Null),
                ("/closed_at", Value::Null),
                ("/due_date", Value::Null),
            ],
        );
        value
    }

    pub(super) fn comment(&self, world: &World, repository: &Repository, comment: &Comment) -> Value {
        let mut value = self.blank("Comment");
        let page = format!("{}/{}/pulls/{}", self.core.url, repository.full_name(), comment.number);
        patch(
            &mut value,
            [
                ("/id", json!(comment.id)),
                ("/html_url", json!(format!("{page}#issuecomment-{}", comment.id))),
                ("/pull_request_url", json!(page)),
                ("/user", self.user(world, &comment.author)),
                ("/body", json!(comment.body)),
                ("/created_at", timestamp(comment.created_at)),
                ("/updated_at", timestamp(comment.created_at)),
            ],
        );
        value
    }

    pub(super) fn status(&self, world: &World, repository: &Repository, status: &CommitStatus) -> Value {
        let mut value = self.blank("CommitStatus");
        let url = format!("{}/api/v1/repos/{}/statuses/{}", self.core.url, repository.full_name(), status.sha);
        patch(
            &mut value,
            [
                ("/id", json!(status.id)),
                ("/status", json!(status.state)),
                ("/target_url", json!(status.target_url)),
                ("/description", json!(status.description)),
                ("/url", json!(url)),
                ("/context", json!(status.context)),
                ("/creator", self.user(world, &status.creator)),
                ("/created_at", timestamp(status.created_at)),
                ("/updated_at", timestamp(status.created_at)),
            ],
        );
        value
    }

    /// Without the secret, which the forge never tells.
    pub(super) fn hook(&self, hook: &Hook) -> Value {
        let mut value = self.blank("Hook");
        patch(
            &mut value,
            [
                ("/id", json!(hook.id)),
                ("/type", json!(hook.kind)),
                ("/url", json!(hook.url)),
                ("/content_type", json!(hook.content_type)),
                ("/config", json!({ "content_type": hook.content_type, "url": hook.url })),
                ("/events", json!(hook.events)),
                ("/active", json!(hook.active)),
                ("/branch_filter", json!(hook.branch_filter)),
                ("/metadata", Value::Null),
                ("/created_at", timestamp(hook.created_at)),
                ("/updated_at", timestamp(hook.created_at)),
            ],
        );
        value
    }
}

/// A person as commits have it.
fn payload_user(login: &str) -> Value {
    json!({ "name": login, "email": format!("{}@noreply.example.org", login.replace(' ', ".")), "username": login })
}

/// Drafts are marked in the title.
pub(super) fn title(pull: &PullRequest) -> String {
    if pull.draft && !pull.title.starts_with("WIP:") { format!("WIP: {}", pull.title) } else { pull.title.clone() }
}
