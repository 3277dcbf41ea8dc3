//! Deliveries: payloads as Gitea documents them, from the same bodies that its API answers with, signed by node.

use serde_json::{Value, json};

use super::bodies::title;
use super::hooks::wants;
use super::{BOT, Gitea};
use crate::delivery::{CommentAction, Delivery, Event, PullRequestAction, RepositoryAction};
use crate::world::{Commit, Repository, World};

const NO_COMMIT: &str = "0000000000000000000000000000000000000000";
/// Gitea lists no more commits in a push unless it is configured to.
const COMMITS_MAX: usize = 5;

/// What is delivered.
struct Payload {
    /// `X-Gitea-Event`.
    event: &'static str,
    /// `X-Gitea-Event-Type`, which is what webhooks choose by.
    kind: &'static str,
    body: Value,
    repository: u64,
}

impl Gitea {
    pub(super) fn deliveries(&self, event: Event<'_>) -> Vec<Delivery> {
        let payload = self.payload(event);
        let hooks: Vec<_> = {
            let world = self.core.world();
            let repository = world.repositories.get(&payload.repository);
            repository
                .into_iter()
                .flat_map(|repository| repository.hooks.values())
                .filter(|hook| wants(hook, payload.kind))
                .cloned()
                .collect()
        };
        hooks
            .iter()
            .map(|hook| Delivery { url: Some(hook.url.clone()), ..self.signed(&payload, &hook.secret) })
            .collect()
    }

    pub(super) fn delivery_signed_with(&self, secret: &str, event: Event<'_>) -> Delivery {
        self.signed(&self.payload(event), secret)
    }

    fn signed(&self, payload: &Payload, secret: &str) -> Delivery {
        let body = serde_json::to_vec_pretty(&payload.body).expect("a value can be written");
        let signed = self.core.helper.hmac_sha256(secret, &body);
        let sha1 = self.core.helper.hmac_sha1(secret, &body);
        let mut headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        let mut add = |name: String, value: &str| headers.push((name, value.to_owned()));
        let names: &[&str] = if self.forgejo { &["Forgejo", "Gitea", "Gogs"] } else { &["Gitea", "Gogs"] };
        for name in names {
            add(format!("X-{name}-Delivery"), &signed.id);
            add(format!("X-{name}-Event"), payload.event);
            add(format!("X-{name}-Event-Type"), payload.kind);
            add(format!("X-{name}-Signature"), &signed.signature);
        }
        add("X-Hub-Signature".to_owned(), &format!("sha1={sha1}"));
        add("X-Hub-Signature-256".to_owned(), &format!("sha256={}", signed.signature));
        add("X-GitHub-Delivery".to_owned(), &signed.id);
        add("X-GitHub-Event".to_owned(), payload.event);
        add("X-GitHub-Event-Type".to_owned(), payload.kind);
        add("User-Agent".to_owned(), "Go-http-client/1.1");
        Delivery { url: None, headers, body }
    }

    fn payload(&self, event: Event<'_>) -> Payload {
        let world = self.core.world();
        match event {
            Event::Push { repository, reference, before, after, pusher } => {
                let repository = world.repository(repository);
                self.push(
                    &world,
                    repository,
                    reference,
                    (before, after),
                    pusher,
                    new_commits(repository, before, after),
                )
            }
            // The test delivery is a push of what is there.
            Event::Ping { repository } => {
                let repository = world.repository(repository);
                let head = repository.head(&repository.default_branch);
                let commits = repository.commits.get(head).cloned().into_iter().collect();
                let reference = format!("refs/heads/{}", repository.default_branch);
                self.push(&world, repository, &reference, (head, head), BOT, commits)
            }
            Event::Create { repository, reference } => {
                let repository = world.repository(repository);
                let (kind, name) = split(reference);
                let sha = repository.resolve(reference).map_or(NO_COMMIT, |commit| &commit.sha);
                let body = json!({
                    "sha": sha, "ref": name, "ref_type": kind,
                    "repository": self.repository(&world, repository, &repository.owner),
                    "sender": self.user(&world, &repository.owner),
                });
                Payload { event: "create", kind: "create", body, repository: repository.id }
            }
            Event::Delete { repository, reference } => {
                let repository = world.repository(repository);
                let (kind, name) = split(reference);
                let body = json!({
                    "ref": name, "ref_type": kind, "pusher_type": "user",
                    "repository": self.repository(&world, repository, &repository.owner),
                    "sender": self.user(&world, &repository.owner),
                });
                Payload { event: "delete", kind: "delete", body, repository: repository.id }
            }
            Event::PullRequest { repository, number, action } => {
                self.pull_request_event(&world, world.repository(repository), number, action)
            }
            Event::Comment { repository, id, action } => {
                self.comment_event(&world, world.repository(repository), id, action)
            }
            Event::Repository { repository, action } => {
                let repository = world.repository(repository);
                let action = match action {
                    RepositoryAction::Created => "created",
                    RepositoryAction::Deleted => "deleted",
                    other => panic!("Gitea delivers nothing for {other:?}"),
                };
                let organization = world.account(&repository.owner).filter(|owner| owner.organization);
                let body = json!({
                    "action": action, "repository": self.repository(&world, repository, &repository.owner),
                    "organization": organization.map(|owner| self.user(&world, &owner.login)),
                    "sender": self.user(&world, &repository.owner),
                });
                Payload { event: "repository", kind: "repository", body, repository: repository.id }
            }
            other => panic!("Gitea delivers nothing for {other:?}"),
        }
    }

    fn push(
        &self,
        world: &World,
        repository: &Repository,
        reference: &str,
        moved: (&str, &str),
        pusher: &str,
        commits: Vec<Commit>,
    ) -> Payload {
        let (before, after) = moved;
        let total = commits.len();
        // Newest first.
        let listed: Vec<Value> =
            commits.iter().rev().take(COMMITS_MAX).map(|commit| self.payload_commit(repository, commit)).collect();
        let page = format!("{}/{}", self.core.url, repository.full_name());
        let body = json!({
            "ref": reference, "before": before, "after": after, "compare_url": format!("{page}/compare/{before}...{after}"),
            "commits": listed, "total_commits": total,
            "head_commit": repository.commits.get(after).map(|head| self.payload_commit(repository, head)),
            "repository": self.repository(world, repository, pusher), "pusher": self.user(world, pusher),
            "sender": self.user(world, pusher),
        });
        Payload { event: "push", kind: "push", body, repository: repository.id }
    }

    fn pull_request_event(
        &self,
        world: &World,
        repository: &Repository,
        number: u64,
        action: PullRequestAction<'_>,
    ) -> Payload {
        let pull = repository.pull_requests.get(&number).expect("the pull request exists");
        let (name, kind) = match action {
            PullRequestAction::Opened => ("opened", "pull_request"),
            PullRequestAction::Synchronize { .. } => ("synchronized", "pull_request_sync"),
            PullRequestAction::Reopened => ("reopened", "pull_request"),
            PullRequestAction::Closed => ("closed", "pull_request"),
            // A draft is a matter of the title.
            PullRequestAction::ReadyForReview
            | PullRequestAction::ConvertedToDraft
            | PullRequestAction::TitleEdited { .. }
            | PullRequestAction::BaseEdited { .. } => ("edited", "pull_request"),
            PullRequestAction::Labeled => ("label_updated", "pull_request_label"),
            PullRequestAction::Assigned => ("assigned", "pull_request_assign"),
        };
        let mut body = json!({
            "action": name, "number": number, "pull_request": self.pull_request(world, repository, pull, &pull.author),
            "requested_reviewer": null, "repository": self.repository(world, repository, &pull.author),
            "sender": self.user(world, &pull.author), "commit_id": "", "review": null,
        });
        let from = |field: &str, from: String| json!({ field: { "from": from } });
        match action {
            PullRequestAction::ReadyForReview => body["changes"] = from("title", format!("WIP: {}", pull.title)),
            PullRequestAction::ConvertedToDraft => {
                body["changes"] = from("title", title(pull).trim_start_matches("WIP: ").to_owned());
            }
            PullRequestAction::TitleEdited { from: old } => body["changes"] = from("title", old.to_owned()),
            PullRequestAction::BaseEdited { from: old } => body["changes"] = from("ref", old.to_owned()),
            _ => {}
        }
        Payload { event: "pull_request", kind, body, repository: repository.id }
    }

    fn comment_event(&self, world: &World, repository: &Repository, id: u64, action: CommentAction<'_>) -> Payload {
        let comment = repository.comments.iter().find(|comment| comment.id == id).expect("the comment exists");
        let pull = repository.pull_requests.get(&comment.number).expect("the comment is on a pull request");
        let name = match action {
            CommentAction::Created => "created",
            CommentAction::Edited { .. } => "edited",
            CommentAction::Deleted => "deleted",
        };
        let mut body = json!({
            "action": name, "issue": self.issue(world, repository, pull),
            "pull_request": self.pull_request(world, repository, pull, &comment.author),
            "comment": self.comment(world, repository, comment),
            "repository": self.repository(world, repository, &comment.author), "sender": self.user(world, &comment.author),
            "is_pull": true,
        });
        if let CommentAction::Edited { from } = action {
            body["changes"] = json!({ "body": { "from": from } });
        }
        Payload { event: "issue_comment", kind: "pull_request_comment", body, repository: repository.id }
    }
}

fn split(reference: &str) -> (&'static str, &str) {
    match reference.strip_prefix("refs/tags/") {
        Some(name) => ("tag", name),
        None => ("branch", reference.strip_prefix("refs/heads/").unwrap_or(reference)),
    }
}

/// What a push adds, oldest first.
fn new_commits(repository: &Repository, before: &str, after: &str) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut next = repository.commits.get(after);
    while let Some(commit) = next.filter(|commit| commit.sha != before && commits.len() < 2048) {
        commits.push(commit.clone());
        next = commit.parents.first().and_then(|sha| repository.commits.get(sha));
    }
    commits.reverse();
    commits
}
