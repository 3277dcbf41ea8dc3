//! Deliveries: GitHub's published example payloads with the values of the world in them, signed by GitHub's own library.

use serde_json::{Value, json};

use super::Github;
use super::bodies::node_id;
use crate::delivery::{CommentAction, Delivery, Event, InstallationAction, PullRequestAction, RepositoryAction};
use crate::files;
use crate::json::{patch, remove, replace_text, set, text, timestamp};
use crate::world::{Commit, Repository, World};

const NO_COMMIT: &str = "0000000000000000000000000000000000000000";
/// GitHub lists no more commits in a push.
const COMMITS_MAX: usize = 2048;

impl Github {
    pub(super) fn delivery(&self, event: Event<'_>, secret: &str) -> Delivery {
        let (name, payload) = self.payload(event);
        self.signed(name, payload.to_string().into_bytes(), secret)
    }

    pub(super) fn signed(&self, name: &str, body: Vec<u8>, secret: &str) -> Delivery {
        let signed = self.core.helper.sign_github(secret, &body);
        let sha1 = self.core.helper.hmac_sha1(secret, &body);
        let headers = [
            ("Accept", "*/*".to_owned()),
            ("Content-Type", "application/json".to_owned()),
            ("User-Agent", "GitHub-Hookshot/2ae6b9a".to_owned()),
            ("X-GitHub-Delivery", signed.id),
            ("X-GitHub-Event", name.to_owned()),
            ("X-GitHub-Hook-ID", "109948940".to_owned()),
            ("X-GitHub-Hook-Installation-Target-ID", self.app_id.to_string()),
            ("X-GitHub-Hook-Installation-Target-Type", "integration".to_owned()),
            ("X-Hub-Signature", format!("sha1={sha1}")),
            ("X-Hub-Signature-256", signed.signature),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Delivery { url: None, headers, body }
    }

    /// An example of an event, preferably one that was delivered to an app.
    fn webhook_example(&self, event: &str, action: Option<&str>) -> Value {
        let all = self.examples.get_or_init(|| files::generated("github-webhooks.json"));
        let list = all[event].as_array().unwrap_or_else(|| panic!("no example of {event} is published"));
        let fits = |example: &&Value| action.is_none_or(|action| example["action"] == action);
        let to_app = |example: &&Value| example.get("installation").is_some();
        let same_action = list.iter().filter(fits).find(to_app).or_else(|| list.iter().find(fits));
        let best = same_action.or_else(|| list.iter().find(to_app)).or_else(|| list.first());
        let mut best = best.unwrap_or_else(|| panic!("no example of {event} is published")).clone();
        // Of some actions there is no example; that of another has the same shape.
        if let Some(action) = action {
            best["action"] = json!(action);
        }
        best
    }

    fn payload(&self, event: Event<'_>) -> (&'static str, Value) {
        let world = self.core.world();
        match event {
            Event::Push { repository, reference, before, after, pusher } => {
                ("push", self.push(&world, world.repository(repository), reference, (before, after), pusher))
            }
            Event::Create { repository, reference } => {
                ("create", self.created_or_deleted(&world, "create", repository, reference))
            }
            Event::Delete { repository, reference } => {
                ("delete", self.created_or_deleted(&world, "delete", repository, reference))
            }
            Event::PullRequest { repository, number, action } => {
                ("pull_request", self.pull_request_event(&world, world.repository(repository), number, action))
            }
            Event::MergeGroup { repository, branch, commit, base_branch, base_commit, destroyed } => {
                let repository = world.repository(repository);
                let mut value = self.webhook_example("merge_group", Some("checks_requested"));
                self.common(&world, Some(repository), "merge-queue[bot]", &mut value);
                patch(
                    &mut value,
                    [
                        ("/merge_group/head_sha", json!(commit)),
                        ("/merge_group/head_ref", json!(format!("refs/heads/{branch}"))),
                        ("/merge_group/base_sha", json!(base_commit)),
                        ("/merge_group/base_ref", json!(format!("refs/heads/{base_branch}"))),
                    ],
                );
                let head = repository.commits.get(commit).cloned().unwrap_or_else(|| unknown_commit(commit, &world));
                set(&mut value, "/merge_group/head_commit", commit_payload(&head, None));
                if let Some(reason) = destroyed {
                    set(&mut value, "/action", "destroyed");
                    set(&mut value, "/reason", reason);
                }
                ("merge_group", value)
            }
            Event::Comment { repository, id, action } => {
                ("issue_comment", self.comment_event(&world, world.repository(repository), id, action))
            }
            Event::Installation { id, action } => ("installation", self.installation_event(&world, id, action)),
            Event::InstallationRepositories { id, added, removed } => {
                ("installation_repositories", self.installation_repositories_event(&world, id, added, removed))
            }
            Event::Repository { repository, action } => {
                ("repository", self.repository_event(&world, world.repository(repository), action))
            }
            Event::CheckRunRerequested { repository, id, user } => {
                let repository = world.repository(repository);
                let run = repository.check_runs.iter().find(|run| run.id == id).expect("the check run exists");
                let mut value = self.webhook_example("check_run", Some("rerequested"));
                self.common(&world, Some(repository), user, &mut value);
                let mut body = self.check_run(&world, repository, run);
                let mut suite = value["check_run"]["check_suite"].clone();
                patch(
                    &mut suite,
                    [("/head_sha", json!(run.head_sha)), ("/after", json!(run.head_sha)), ("/app", self.app(&world))],
                );
                body["check_suite"] = suite;
                value["check_run"] = body;
                ("check_run", value)
            }
            Event::CheckSuiteRerequested { repository, commit, user } => {
                let repository = world.repository(repository);
                let mut value = self.webhook_example("check_suite", Some("rerequested"));
                self.common(&world, Some(repository), user, &mut value);
                let head = repository.commits.get(commit).cloned().unwrap_or_else(|| unknown_commit(commit, &world));
                let branch = repository.branches.iter().find(|(_, sha)| *sha == commit).map(|(branch, _)| branch);
                patch(
                    &mut value,
                    [
                        ("/check_suite/head_sha", json!(commit)),
                        ("/check_suite/after", json!(commit)),
                        ("/check_suite/head_branch", json!(branch)),
                        ("/check_suite/head_commit", commit_payload(&head, None)),
                        ("/check_suite/pull_requests", json!([])),
                        ("/check_suite/app", self.app(&world)),
                    ],
                );
                ("check_suite", value)
            }
            Event::Member { repository, user, action } => {
                let repository = world.repository(repository);
                let mut value = self.webhook_example("member", Some(action));
                self.common(&world, Some(repository), &repository.owner, &mut value);
                set(&mut value, "/member", self.account(&world, user));
                ("member", value)
            }
            Event::Membership { organization, user, action } => {
                let mut value = self.webhook_example("membership", Some(action));
                self.organization_event(&world, organization, &mut value);
                set(&mut value, "/member", self.account(&world, user));
                ("membership", value)
            }
            Event::Organization { organization, user, action } => {
                let mut value = self.webhook_example("organization", Some(action));
                self.organization_event(&world, organization, &mut value);
                set(&mut value, "/membership/user", self.account(&world, user));
                ("organization", value)
            }
            Event::Ping { .. } => {
                let mut value = self.webhook_example("ping", None);
                remove(&mut value, "/repository");
                remove(&mut value, "/organization");
                remove(&mut value, "/sender");
                patch(&mut value, [("/hook/type", json!("App")), ("/hook/app_id", json!(self.app_id))]);
                ("ping", value)
            }
        }
    }

    /// Repository, organisation, installation and sender, as they stand in every payload.
    fn common(&self, world: &World, repository: Option<&Repository>, sender: &str, value: &mut Value) {
        if let Some(repository) = repository {
            let example = text(value, "/repository/full_name").unwrap_or("Codertocat/Hello-World").to_owned();
            self.localise(value, &example, &repository.full_name());
            self.patch_repository(world, repository, &mut value["repository"]);
            let owner = world.account(&repository.owner);
            if let Some(owner) = owner.filter(|owner| owner.organization) {
                self.set_organization(world, &owner.login, value);
            } else {
                remove(value, "/organization");
            }
            match world.installation_of(repository.id) {
                Some(installation) => {
                    let short =
                        json!({ "id": installation.id, "node_id": node_id("MDIzOkludGVncmF0aW9u", installation.id) });
                    value["installation"] = short;
                }
                None => remove(value, "/installation"),
            }
        }
        value["sender"] = self.account(world, sender);
    }

    fn set_organization(&self, world: &World, login: &str, value: &mut Value) {
        let api = format!("{}/orgs/{login}", self.core.url);
        let account = self.account(world, login);
        value["organization"] = json!({
            "login": login, "id": account["id"], "node_id": account["node_id"], "url": api,
            "repos_url": format!("{api}/repos"), "events_url": format!("{api}/events"), "hooks_url": format!("{api}/hooks"),
            "issues_url": format!("{api}/issues"), "members_url": format!("{api}/members{{/member}}"),
            "public_members_url": format!("{api}/public_members{{/member}}"), "avatar_url": account["avatar_url"],
            "description": "",
        });
    }

    fn organization_event(&self, world: &World, organization: &str, value: &mut Value) {
        self.localise(value, "Codertocat/Hello-World", "Codertocat/Hello-World");
        self.set_organization(world, organization, value);
        value["sender"] = self.account(world, organization);
        let installation = world.installations.values().find(|installation| installation.account == organization);
        match installation {
            Some(installation) => {
                value["installation"] = json!({ "id": installation.id, "node_id": node_id("I", installation.id) });
            }
            None => remove(value, "/installation"),
        }
    }

    fn push(
        &self,
        world: &World,
        repository: &Repository,
        reference: &str,
        moved: (&str, &str),
        pusher: &str,
    ) -> Value {
        let (before, after) = moved;
        let mut value = self.webhook_example("push", None);
        self.common(world, Some(repository), pusher, &mut value);
        let new = new_commits(repository, before, after);
        let listed: Vec<Value> = new.iter().map(|commit| commit_payload(commit, Some(self))).collect();
        let head = repository
            .commits
            .get(after)
            .cloned()
            .or_else(|| (after != NO_COMMIT).then(|| unknown_commit(after, world)));
        let known_before = before != NO_COMMIT && after != NO_COMMIT;
        let page = format!("{}/{}", self.core.url, repository.full_name());
        patch(
            &mut value,
            [
                ("/ref", json!(reference)),
                ("/before", json!(before)),
                ("/after", json!(after)),
                ("/created", json!(before == NO_COMMIT)),
                ("/deleted", json!(after == NO_COMMIT)),
                ("/forced", json!(known_before && !descends(repository, after, before))),
                ("/base_ref", Value::Null),
                (
                    "/compare",
                    json!(format!(
                        "{page}/compare/{}...{}",
                        &before[..12.min(before.len())],
                        &after[..12.min(after.len())]
                    )),
                ),
                ("/commits", json!(listed)),
                ("/head_commit", head.map(|head| commit_payload(&head, Some(self))).unwrap_or_default()),
                ("/pusher", json!({ "name": pusher, "email": format!("{pusher}@example.org") })),
            ],
        );
        value
    }

    fn created_or_deleted(&self, world: &World, event: &str, repository: &str, reference: &str) -> Value {
        let repository = world.repository(repository);
        let mut value = self.webhook_example(event, None);
        self.common(world, Some(repository), &repository.owner, &mut value);
        let (kind, name) = match reference.strip_prefix("refs/tags/") {
            Some(name) => ("tag", name),
            None => ("branch", reference.strip_prefix("refs/heads/").unwrap_or(reference)),
        };
        patch(&mut value, [("/ref", json!(name)), ("/ref_type", json!(kind))]);
        if event == "create" {
            set(&mut value, "/master_branch", repository.default_branch.as_str());
        }
        value
    }

    fn pull_request_event(
        &self,
        world: &World,
        repository: &Repository,
        number: u64,
        action: PullRequestAction<'_>,
    ) -> Value {
        let pull = repository.pull_requests.get(&number).expect("the pull request exists");
        let (name, example) = match action {
            PullRequestAction::Opened => ("opened", "opened"),
            PullRequestAction::Synchronize { .. } => ("synchronize", "synchronize"),
            PullRequestAction::Reopened => ("reopened", "reopened"),
            PullRequestAction::Closed => ("closed", "closed"),
            PullRequestAction::ReadyForReview => ("ready_for_review", "ready_for_review"),
            PullRequestAction::ConvertedToDraft => ("converted_to_draft", "converted_to_draft"),
            // There is no example of it; the published description says what it adds.
            PullRequestAction::TitleEdited { .. } | PullRequestAction::BaseEdited { .. } => ("edited", "opened"),
            PullRequestAction::Labeled => ("labeled", "labeled"),
            PullRequestAction::Assigned => ("assigned", "assigned"),
        };
        let mut value = self.webhook_example("pull_request", Some(example));
        self.common(world, Some(repository), &pull.author, &mut value);
        let old = value["number"].as_u64().unwrap_or_default();
        for kind in ["pulls", "pull", "issues"] {
            replace_text(&mut value, &[(&format!("/{kind}/{old}"), &format!("/{kind}/{number}"))]);
        }
        self.patch_pull_request(world, repository, pull, &mut value["pull_request"]);
        patch(&mut value, [("/action", json!(name)), ("/number", json!(number))]);
        set(
            &mut value,
            "/pull_request/html_url",
            format!("{}/{}/pull/{number}", self.core.url, repository.full_name()),
        );
        match action {
            PullRequestAction::Synchronize { before } => {
                patch(&mut value, [("/before", json!(before)), ("/after", json!(pull.head_commit))]);
            }
            PullRequestAction::TitleEdited { from } => value["changes"] = json!({ "title": { "from": from } }),
            PullRequestAction::BaseEdited { from } => {
                value["changes"] = json!({ "base": { "ref": { "from": from }, "sha": { "from": pull.base_commit } } });
            }
            PullRequestAction::Labeled => {
                let last = value["pull_request"]["labels"].as_array().and_then(|labels| labels.last()).cloned();
                value["label"] = last.expect("a labelled pull request has a label");
            }
            _ => {}
        }
        value
    }

    fn comment_event(&self, world: &World, repository: &Repository, id: u64, action: CommentAction<'_>) -> Value {
        let comment = repository.comments.iter().find(|comment| comment.id == id).expect("the comment exists");
        let pull = repository.pull_requests.get(&comment.number).expect("the comment is on a pull request");
        let name = match action {
            CommentAction::Created => "created",
            CommentAction::Edited { .. } => "edited",
            CommentAction::Deleted => "deleted",
        };
        let mut value = self.webhook_example("issue_comment", Some(name));
        self.common(world, Some(repository), &comment.author, &mut value);
        let old = value["issue"]["number"].as_u64().unwrap_or_default();
        replace_text(&mut value, &[(&format!("/issues/{old}"), &format!("/issues/{}", pull.number))]);
        self.patch_comment(world, repository, comment, &mut value["comment"]);
        let pages = format!("{}/{}/pull/{}", self.core.url, repository.full_name(), pull.number);
        let api = format!("{}/repos/{}/pulls/{}", self.core.url, repository.full_name(), pull.number);
        patch(
            &mut value,
            [
                ("/issue/id", json!(pull.id)),
                ("/issue/number", json!(pull.number)),
                ("/issue/title", json!(pull.title)),
                ("/issue/body", json!(pull.body)),
                ("/issue/state", json!(if pull.open { "open" } else { "closed" })),
                ("/issue/user", self.account(world, &pull.author)),
                ("/issue/html_url", json!(pages)),
                ("/issue/draft", json!(pull.draft)),
                (
                    "/issue/pull_request",
                    json!({
                        "url": api, "html_url": pages, "diff_url": format!("{pages}.diff"), "patch_url": format!("{pages}.patch"),
                        "merged_at": null,
                    }),
                ),
            ],
        );
        if let CommentAction::Edited { from } = action {
            value["changes"] = json!({ "body": { "from": from } });
        }
        value
    }

    fn installation_event(&self, world: &World, id: u64, action: InstallationAction) -> Value {
        let name = match action {
            InstallationAction::Created => "created",
            InstallationAction::Deleted => "deleted",
            InstallationAction::Suspend => "suspend",
            InstallationAction::Unsuspend => "unsuspend",
            InstallationAction::NewPermissionsAccepted => "new_permissions_accepted",
        };
        let mut value = self.webhook_example("installation", Some(name));
        self.patch_installation(world, id, &mut value);
        let sees = world.installations.get(&id);
        if let (Some(installation), true) = (sees, value.get("repositories").is_some()) {
            let visible = world.repositories.values().filter(|repository| world.sees(installation, repository.id));
            value["repositories"] = visible.map(short_repository).collect();
        }
        value
    }

    fn patch_installation(&self, world: &World, id: u64, value: &mut Value) {
        self.localise(value, "Codertocat/Hello-World", "Codertocat/Hello-World");
        set(value, "/installation/id", id);
        set(value, "/installation/app_id", self.app_id);
        set(value, "/installation/app_slug", self.slug);
        if let Some(installation) = world.installations.get(&id) {
            let body = self.installation(world, installation);
            for member in [
                "created_at",
                "updated_at",
                "account",
                "target_id",
                "target_type",
                "permissions",
                "repository_selection",
                "access_tokens_url",
                "html_url",
            ] {
                value["installation"][member] = body[member].clone();
            }
            for member in ["suspended_at", "suspended_by"] {
                value["installation"][member] = body[member].clone();
            }
            value["sender"] = body["account"].clone();
        }
    }

    fn installation_repositories_event(
        &self,
        world: &World,
        id: u64,
        added: &[&str],
        removed: &[(&str, u64)],
    ) -> Value {
        let action = if removed.is_empty() { "added" } else { "removed" };
        let mut value = self.webhook_example("installation_repositories", Some(action));
        self.patch_installation(world, id, &mut value);
        let added: Vec<Value> = added.iter().map(|name| short_repository(world.repository(name))).collect();
        let removed: Vec<Value> = removed.iter().map(|(full_name, id)| {
            let name = full_name.split_once('/').map_or(*full_name, |(_, name)| name);
            json!({ "id": id, "node_id": node_id("R", *id), "name": name, "full_name": full_name, "private": false })
        }).collect();
        let selection = value["installation"]["repository_selection"].clone();
        patch(
            &mut value,
            [
                ("/repositories_added", json!(added)),
                ("/repositories_removed", json!(removed)),
                ("/repository_selection", selection),
                ("/requester", Value::Null),
            ],
        );
        value
    }

    fn repository_event(&self, world: &World, repository: &Repository, action: RepositoryAction<'_>) -> Value {
        // Where no example is published, that of another action has the same shape.
        let (name, example) = match action {
            RepositoryAction::Created => ("created", "created"),
            RepositoryAction::Deleted => ("deleted", "publicized"),
            RepositoryAction::Renamed { .. } => ("renamed", "renamed"),
            RepositoryAction::Transferred { .. } => ("transferred", "transferred"),
            RepositoryAction::Archived => ("archived", "publicized"),
            RepositoryAction::Unarchived => ("unarchived", "publicized"),
            RepositoryAction::Privatized => ("privatized", "privatized"),
            RepositoryAction::Publicized => ("publicized", "publicized"),
            RepositoryAction::DefaultBranchEdited { .. } | RepositoryAction::TopicsEdited => ("edited", "edited"),
        };
        let mut value = self.webhook_example("repository", Some(example));
        self.common(world, Some(repository), &repository.owner, &mut value);
        set(&mut value, "/action", name);
        match action {
            RepositoryAction::Renamed { from } => {
                value["changes"] = json!({ "repository": { "name": { "from": from } } });
            }
            RepositoryAction::Transferred { from } => {
                value["changes"] = json!({ "owner": { "from": { "user": self.account(world, from) } } });
            }
            RepositoryAction::DefaultBranchEdited { from } => {
                value["changes"] = json!({ "default_branch": { "from": from } });
            }
            RepositoryAction::TopicsEdited => value["changes"] = json!({ "topics": { "from": [] } }),
            _ => {}
        }
        value
    }
}

fn short_repository(repository: &Repository) -> Value {
    json!({
        "id": repository.id, "node_id": node_id("R", repository.id), "name": repository.name,
        "full_name": repository.full_name(), "private": repository.private,
    })
}

/// In a push (with the page's address), or as the head of something else.
fn commit_payload(commit: &Commit, page: Option<&Github>) -> Value {
    let person = json!({
        "name": commit.author, "email": format!("{}@example.org", commit.author.replace(' ', ".")),
    });
    let mut value = json!({
        "id": commit.sha, "tree_id": commit.tree, "message": commit.message, "timestamp": timestamp(commit.time),
        "author": person, "committer": person,
    });
    if let Some(github) = page {
        value["distinct"] = json!(true);
        value["url"] = json!(format!("{}/commit/{}", github.core.url, commit.sha));
        value["author"]["username"] = json!(commit.author);
        value["committer"]["username"] = json!(commit.author);
        for list in ["added", "removed", "modified"] {
            value[list] = json!([]);
        }
        value["modified"] = json!(["flake.nix"]);
    }
    value
}

fn unknown_commit(sha: &str, world: &World) -> Commit {
    Commit {
        sha: sha.to_owned(),
        tree: NO_COMMIT.to_owned(),
        message: "Not in the world any more".to_owned(),
        author: "octocat".to_owned(),
        parents: Vec::new(),
        time: world.now(),
    }
}

/// What a push adds, oldest first.
fn new_commits(repository: &Repository, before: &str, after: &str) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut next = repository.commits.get(after);
    while let Some(commit) = next.filter(|commit| commit.sha != before && commits.len() < COMMITS_MAX) {
        commits.push(commit.clone());
        next = commit.parents.first().and_then(|sha| repository.commits.get(sha));
    }
    commits.reverse();
    commits
}

fn descends(repository: &Repository, from: &str, ancestor: &str) -> bool {
    let mut waiting = vec![from];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(sha) = waiting.pop() {
        if sha == ancestor {
            return true;
        }
        if seen.insert(sha) {
            waiting.extend(
                repository.commits.get(sha).into_iter().flat_map(|commit| commit.parents.iter().map(String::as_str)),
            );
        }
    }
    false
}
