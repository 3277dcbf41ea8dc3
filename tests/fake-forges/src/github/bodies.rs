//! Bodies of answers: GitHub's published examples, with the values of the world in them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Github;
use crate::json::{patch, replace_text, set, text, timestamp};
use crate::world::{CheckRun, Comment, Commit, CommitStatus, Installation, PullRequest, Repository, World};

/// `node_id` is opaque: what matters is that it differs.
pub(super) fn node_id(kind: &str, id: u64) -> Value {
    json!(format!("{kind}_kgDO{id:08}"))
}

impl Github {
    /// A published example with its addresses pointing here and `example` (its repository) being `full_name`.
    fn example(&self, name: &str, example: &str, full_name: &str) -> Value {
        let mut value = self.description.example(name);
        self.localise(&mut value, example, full_name);
        value
    }

    pub(super) fn localise(&self, value: &mut Value, example: &str, full_name: &str) {
        let url = self.core.url.as_str();
        let pairs = [
            ("https://api.github.com", url),
            ("https://github.com", url),
            ("http://github.com", url),
            ("git://github.com", url),
            (example, full_name),
        ];
        replace_text(value, &pairs);
    }

    /// A person or organisation, as it stands inside other bodies. Unknown logins get an account without a name.
    pub(super) fn account(&self, world: &World, login: &str) -> Value {
        let mut value = self.description.example("issue-comment")["user"].clone();
        self.localise(&mut value, "octocat/Hello-World", "octocat/Hello-World");
        // `app[bot]` is written so in addresses.
        let written = login.replace('[', "%5B").replace(']', "%5D");
        replace_text(&mut value, &[("/octocat", &format!("/{written}"))]);
        let account = world.account(login);
        let id = account.map_or(0, |account| account.id);
        let kind = match account {
            Some(account) if account.organization => "Organization",
            _ if login.ends_with("[bot]") => "Bot",
            _ => "User",
        };
        let letter = if kind == "Organization" { "O" } else { "U" };
        patch(
            &mut value,
            [("/login", json!(login)), ("/id", json!(id)), ("/type", json!(kind)), ("/node_id", node_id(letter, id))],
        );
        value
    }

    pub(super) fn app(&self, world: &World) -> Value {
        let mut value = self.example("integration", "octocat/Hello-World", "octocat/Hello-World");
        patch(
            &mut value,
            [
                ("/id", json!(self.app_id)),
                ("/slug", json!(self.slug)),
                ("/client_id", json!(self.client.id)),
                ("/name", json!("Harmonia CI")),
                ("/owner", self.account(world, "harmonia-owner")),
                ("/html_url", json!(format!("{}/apps/{}", self.core.url, self.slug))),
            ],
        );
        value
    }

    pub(super) fn installation(&self, world: &World, installation: &Installation) -> Value {
        let mut value = self.example("base-installation", "octocat/Hello-World", "octocat/Hello-World");
        let account = self.account(world, &installation.account);
        let id = installation.id;
        let suspended = installation.suspended.then(|| timestamp(world.now()));
        patch(
            &mut value,
            [
                ("/id", json!(id)),
                ("/target_id", account["id"].clone()),
                ("/target_type", account["type"].clone()),
                ("/account", account),
                ("/access_tokens_url", json!(format!("{}/app/installations/{id}/access_tokens", self.core.url))),
                ("/html_url", json!(format!("{}/settings/installations/{id}", self.core.url))),
                ("/app_id", json!(self.app_id)),
                ("/app_slug", json!(self.slug)),
                ("/permissions", json!(installation.permissions)),
                ("/repository_selection", json!(if installation.repositories.is_some() { "selected" } else { "all" })),
                ("/suspended_at", suspended.clone().unwrap_or_default()),
                ("/suspended_by", suspended.map(|_| self.account(world, &installation.account)).unwrap_or_default()),
            ],
        );
        value
    }

    /// A repository in a list (`full` is false) or alone.
    pub(super) fn repository(&self, world: &World, repository: &Repository, full: bool) -> Value {
        let full_name = repository.full_name();
        let mut value = if full {
            self.example("full-repository-default-response", "octocat/Hello-World", &full_name)
        } else {
            let mut page = self.example("repository-paginated-2", "octocat/Hello-World", &full_name);
            page["repositories"][0].take()
        };
        if full {
            // Of the example, not of ours.
            for unrelated in ["template_repository", "parent", "source"] {
                crate::json::remove(&mut value, &format!("/{unrelated}"));
            }
            // The example lacks it, the description requires it.
            set(&mut value, "/language", Value::Null);
        }
        self.patch_repository(world, repository, &mut value);
        value
    }

    pub(super) fn patch_repository(&self, world: &World, repository: &Repository, value: &mut Value) {
        let clone_url = repository.clone_url.clone();
        let clone_url = clone_url.unwrap_or_else(|| format!("{}/{}.git", self.core.url, repository.full_name()));
        patch(
            value,
            [
                ("/id", json!(repository.id)),
                ("/node_id", node_id("R", repository.id)),
                ("/name", json!(repository.name)),
                ("/full_name", json!(repository.full_name())),
                ("/owner", self.account(world, &repository.owner)),
                ("/private", json!(repository.private)),
                ("/visibility", json!(if repository.private { "private" } else { "public" })),
                ("/fork", json!(repository.fork)),
                ("/archived", json!(repository.archived)),
                ("/default_branch", json!(repository.default_branch)),
                ("/topics", json!(repository.topics)),
                ("/html_url", json!(format!("{}/{}", self.core.url, repository.full_name()))),
                ("/clone_url", json!(clone_url)),
            ],
        );
        if value["homepage"] == "" {
            value["homepage"] = Value::Null;
        }
        // Some examples are older than these fields, which every repository has by now.
        for (name, now) in [
            ("disabled", json!(false)),
            ("has_discussions", json!(false)),
            ("is_template", json!(false)),
            ("web_commit_signoff_required", json!(false)),
            ("allow_forking", json!(true)),
        ] {
            if value.get(name).is_none() {
                value[name] = now;
            }
        }
    }

    /// As the git database has it, without the forge's accounts.
    pub(super) fn git_commit(&self, repository: &Repository, commit: &Commit) -> Value {
        let mut value = self.example("git-commit-2", "octocat/Hello-World", &repository.full_name());
        let example = text(&value, "/sha").unwrap_or_default().to_owned();
        replace_text(&mut value, &[(&example, &commit.sha)]);
        let parents: Vec<Value> =
            commit.parents.iter().map(|sha| self.parent(repository, sha, "git/commits")).collect();
        patch(
            &mut value,
            [
                ("/message", json!(commit.message)),
                ("/tree/sha", json!(commit.tree)),
                ("/tree/url", json!(format!("{}/git/trees/{}", self.api_of(repository), commit.tree))),
                ("/parents", json!(parents)),
                ("/author", person(commit)),
                ("/committer", person(commit)),
            ],
        );
        value
    }

    /// As the commits endpoint has it, with the forge's accounts.
    pub(super) fn commit(&self, world: &World, repository: &Repository, commit: &Commit) -> Value {
        let mut value = self.example("commit", "octocat/Hello-World", &repository.full_name());
        let example = text(&value, "/sha").unwrap_or_default().to_owned();
        replace_text(&mut value, &[(&example, &commit.sha)]);
        let parents: Vec<Value> = commit.parents.iter().map(|sha| self.parent(repository, sha, "commits")).collect();
        // Commits by people without an account have no account.
        let url = format!("{}/contents/file1.txt?ref={}", self.api_of(repository), commit.sha);
        // The example lacks what the description requires.
        patch(&mut value, [("/files/0/sha", json!(commit.tree)), ("/files/0/contents_url", json!(url))]);
        let account = world.account(&commit.author).map(|_| self.account(world, &commit.author)).unwrap_or_default();
        patch(
            &mut value,
            [
                ("/commit/message", json!(commit.message)),
                ("/commit/tree/sha", json!(commit.tree)),
                ("/commit/tree/url", json!(format!("{}/git/trees/{}", self.api_of(repository), commit.tree))),
                ("/commit/author", person(commit)),
                ("/commit/committer", person(commit)),
                ("/author", account.clone()),
                ("/committer", account),
                ("/parents", json!(parents)),
            ],
        );
        value
    }

    fn parent(&self, repository: &Repository, sha: &str, kind: &str) -> Value {
        let html_url = format!("{}/{}/commit/{sha}", self.core.url, repository.full_name());
        json!({ "sha": sha, "url": format!("{}/{kind}/{sha}", self.api_of(repository)), "html_url": html_url })
    }

    fn api_of(&self, repository: &Repository) -> String {
        format!("{}/repos/{}", self.core.url, repository.full_name())
    }

    pub(super) fn branch(&self, world: &World, repository: &Repository, name: &str, head: &Commit) -> Value {
        let mut value = self.example("branch-get", "octocat/Hello-World", &repository.full_name());
        replace_text(
            &mut value,
            &[
                ("/branches/main", &format!("/branches/{}", in_url(name))),
                ("/tree/main", &format!("/tree/{}", in_url(name))),
            ],
        );
        let mut commit = self.commit(world, repository, head);
        // The commit of a branch comes without its changes.
        crate::json::remove(&mut commit, "/stats");
        crate::json::remove(&mut commit, "/files");
        patch(&mut value, [("/name", json!(name)), ("/commit", commit)]);
        value
    }

    pub(super) fn git_ref(&self, repository: &Repository, full_ref: &str, sha: &str) -> Value {
        let mut value = self.example("git-ref", "octocat/Hello-World", &repository.full_name());
        patch(
            &mut value,
            [
                ("/ref", json!(full_ref)),
                ("/url", json!(format!("{}/git/{full_ref}", self.api_of(repository)))),
                ("/object/sha", json!(sha)),
                ("/object/url", json!(format!("{}/git/commits/{sha}", self.api_of(repository)))),
            ],
        );
        value
    }

    /// A pull request in a list (`full` is false) or alone.
    pub(super) fn pull_request(&self, world: &World, repository: &Repository, pull: &PullRequest, full: bool) -> Value {
        let full_name = repository.full_name();
        let mut value = if full {
            self.example("pull-request", "octocat/Hello-World", &full_name)
        } else {
            self.example("pull-request-simple-items", "octocat/Hello-World", &full_name)[0].take()
        };
        replace_text(
            &mut value,
            &[("/1347", &format!("/{}", pull.number)), ("6dcb09b5b57875f334f61aebed695e2e4193db5e", &pull.head_commit)],
        );
        self.patch_pull_request(world, repository, pull, &mut value);
        for absent in ["milestone", "assignee", "active_lock_reason", "auto_merge"] {
            set(&mut value, &format!("/{absent}"), Value::Null);
        }
        for nobody in ["assignees", "requested_reviewers", "requested_teams"] {
            set(&mut value, &format!("/{nobody}"), json!([]));
        }
        set(&mut value, "/locked", false);
        value
    }

    pub(super) fn patch_pull_request(
        &self,
        world: &World,
        repository: &Repository,
        pull: &PullRequest,
        value: &mut Value,
    ) {
        let closed_at = if pull.open { Value::Null } else { timestamp(world.now()) };
        let merged_at = if pull.merged { timestamp(world.now()) } else { Value::Null };
        let labels: Vec<Value> = pull.labels.iter().map(|label| {
            json!({
                "id": label.id, "node_id": node_id("LA", label.id), "name": label.name, "color": "f29513", "default": false,
                "description": "", "url": format!("{}/labels/{}", self.api_of(repository), in_url(&label.name)),
            })
        }).collect();
        patch(
            value,
            [
                ("/id", json!(pull.id)),
                ("/node_id", node_id("PR", pull.id)),
                ("/number", json!(pull.number)),
                ("/state", json!(if pull.open { "open" } else { "closed" })),
                ("/draft", json!(pull.draft)),
                ("/title", json!(pull.title)),
                ("/body", json!(pull.body)),
                ("/user", self.account(world, &pull.author)),
                ("/labels", json!(labels)),
                ("/created_at", timestamp(pull.created_at)),
                ("/closed_at", closed_at),
                ("/merged_at", merged_at),
            ],
        );
        if value.get("merged").is_some() {
            set(value, "/merged", pull.merged);
        }
        let head = pull.head_repository.and_then(|id| world.repositories.get(&id));
        self.patch_side(world, value, "/head", head, (&pull.head_branch, &pull.head_commit));
        self.patch_side(world, value, "/base", Some(repository), (&pull.base_branch, &pull.base_commit));
        if head.is_none() {
            // The fork is gone, but not whose it was.
            set(value, "/head/user", self.account(world, &pull.author));
            set(value, "/head/label", format!("{}:{}", pull.author, pull.head_branch));
        }
    }

    fn patch_side(
        &self,
        world: &World,
        value: &mut Value,
        side: &str,
        repository: Option<&Repository>,
        at: (&str, &str),
    ) {
        let (branch, sha) = at;
        set(value, &format!("{side}/ref"), branch);
        set(value, &format!("{side}/sha"), sha);
        let Some(repository) = repository else {
            set(value, &format!("{side}/repo"), Value::Null);
            return;
        };
        set(value, &format!("{side}/label"), format!("{}:{branch}", repository.owner));
        set(value, &format!("{side}/user"), self.account(world, &repository.owner));
        let pointer = format!("{side}/repo");
        if let Some(inner) = value.pointer_mut(&pointer) {
            let example = text(inner, "/full_name").unwrap_or("octocat/Hello-World").to_owned();
            self.localise(inner, &example, &repository.full_name());
            self.patch_repository(world, repository, inner);
        }
    }

    pub(super) fn permission(&self, world: &World, repository: &Repository, login: &str) -> Value {
        let name = "repository-collaborator-permission-response-if-user-has-admin-permissions";
        let mut value = self.example(name, "octocat/Hello-World", &repository.full_name());
        let permission = world.permission(repository, login);
        patch(
            &mut value,
            [
                ("/permission", json!(permission.level())),
                ("/role_name", json!(permission.role())),
                ("/user", self.account(world, login)),
                ("/user/role_name", json!(permission.role())),
            ],
        );
        value
    }

    pub(super) fn status(&self, world: &World, repository: &Repository, status: &CommitStatus) -> Value {
        let mut value = self.example("status", "octocat/Hello-World", &repository.full_name());
        patch(
            &mut value,
            [
                ("/url", json!(format!("{}/statuses/{}", self.api_of(repository), status.sha))),
                ("/id", json!(status.id)),
                ("/node_id", node_id("SC", status.id)),
                ("/state", json!(status.state)),
                ("/description", json!(status.description)),
                ("/target_url", if status.target_url.is_empty() { Value::Null } else { json!(status.target_url) }),
                ("/context", json!(status.context)),
                ("/created_at", timestamp(status.created_at)),
                ("/updated_at", timestamp(status.created_at)),
                ("/creator", self.account(world, &status.creator)),
            ],
        );
        value
    }

    pub(super) fn check_run(&self, world: &World, repository: &Repository, run: &CheckRun) -> Value {
        let mut value = self.example("check-run", "github/hello-world", &repository.full_name());
        replace_text(
            &mut value,
            &[("/check-runs/4", &format!("/check-runs/{}", run.id)), ("/runs/4", &format!("/runs/{}", run.id))],
        );
        patch(
            &mut value,
            [
                ("/id", json!(run.id)),
                ("/node_id", node_id("CR", run.id)),
                ("/head_sha", json!(run.head_sha)),
                ("/name", json!(run.name)),
                ("/status", json!(run.status)),
                ("/conclusion", json!(run.conclusion)),
                // The app's page, unless the run has one.
                ("/details_url", json!(run.details_url.as_ref().unwrap_or(&self.core.url))),
                ("/external_id", json!(run.external_id.clone().unwrap_or_default())),
                ("/started_at", json!(run.started_at)),
                ("/completed_at", json!(run.completed_at)),
                ("/output/title", json!(run.title)),
                ("/output/summary", json!(run.summary)),
                ("/output/text", json!(run.text)),
                ("/output/annotations_count", json!(run.annotations.len())),
                ("/pull_requests", json!([])),
                ("/app", self.app(world)),
            ],
        );
        value
    }

    pub(super) fn comment(&self, world: &World, repository: &Repository, comment: &Comment) -> Value {
        let mut value = self.example("issue-comment", "octocat/Hello-World", &repository.full_name());
        self.patch_comment(world, repository, comment, &mut value);
        value
    }

    pub(super) fn patch_comment(&self, world: &World, repository: &Repository, comment: &Comment, value: &mut Value) {
        let (id, number, api) = (comment.id, comment.number, self.api_of(repository));
        let page = format!("{}/{}/pull/{number}#issuecomment-{id}", self.core.url, repository.full_name());
        let association = match world.permission(repository, &comment.author).level() {
            _ if comment.author == repository.owner => "OWNER",
            "write" | "admin" => "COLLABORATOR",
            _ => "NONE",
        };
        patch(
            value,
            [
                ("/id", json!(id)),
                ("/node_id", node_id("IC", id)),
                ("/url", json!(format!("{api}/issues/comments/{id}"))),
                ("/html_url", json!(page)),
                ("/issue_url", json!(format!("{api}/issues/{number}"))),
                ("/body", json!(comment.body)),
                ("/user", self.account(world, &comment.author)),
                ("/created_at", timestamp(comment.created_at)),
                ("/updated_at", timestamp(comment.created_at)),
                ("/author_association", json!(association)),
            ],
        );
    }

    pub(super) fn user(&self, world: &World, login: &str) -> Value {
        let name = "private-user-response-with-public-and-private-profile-information";
        let mut value = self.example(name, "octocat/Hello-World", "octocat/Hello-World");
        let short = self.account(world, login);
        for (member, known) in short.as_object().into_iter().flatten() {
            value[member] = known.clone();
        }
        let display = world.account(login).map(|account| account.name.clone());
        set(&mut value, "/name", display.filter(|name| !name.is_empty()).map_or(Value::Null, Value::from));
        value
    }
}

/// A name as it stands in a path; `/` stays.
fn in_url(name: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    utf8_percent_encode(name, KEPT).to_string()
}

fn person(commit: &Commit) -> Value {
    let date: OffsetDateTime = commit.time;
    json!({ "name": commit.author, "email": format!("{}@example.org", commit.author.replace(' ', ".")), "date": timestamp(date) })
}
