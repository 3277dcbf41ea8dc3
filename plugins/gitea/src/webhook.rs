//! A verified delivery's bytes to events. Start at [`events`]. What instances send: the webhook payloads of Gitea's
//! `modules/structs` and Forgejo's documentation of webhooks.

use harmonia_plugin::forge::Error;
use harmonia_plugin::forge::webhooks::{
    Comment, CommentAction, Event, PullRequestAction, PullRequestEvent, Push, Reference,
};
use harmonia_plugin::serde_json;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::model::{Account, NamedRepository, Pull, Repository, is_work_in_progress, login_of, message_of, or_default};

/// What a delivery of this event (header `x-gitea-event`) says. Empty: nothing that concerns us.
pub fn events(event: &str, body: &[u8]) -> Result<Vec<Event>, Error> {
    match event {
        "push" => push(read(event, body)?),
        "delete" => Ok(delete(read(event, body)?)),
        // Older instances name the kinds of pull request events here, newer ones in `x-gitea-event-type`.
        "pull_request" | "pull_request_sync" | "pull_request_label" => Ok(pull_request(read(event, body)?)),
        "issue_comment" | "pull_request_comment" => Ok(comment(read(event, body)?)),
        "repository" => Ok(repository(read(event, body)?)),
        "ping" => Ok(vec![Event::Ping]),
        _ => Ok(Vec::new()),
    }
}

fn read<T: DeserializeOwned>(event: &str, body: &[u8]) -> Result<T, Error> {
    if body.starts_with(b"payload=") {
        let text = "it is form-encoded: set the content type of the webhook to application/json where it is configured";
        return Err(Error::Invalid(text.to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| Error::Invalid(format!("a delivery of `{event}`: {error}")))
}

/// A commit that does not exist: before a branch, or after it.
fn is_nothing(commit: &str) -> bool {
    !commit.is_empty() && commit.bytes().all(|byte| byte == b'0')
}

#[derive(Deserialize)]
struct PushPayload {
    #[serde(rename = "ref")]
    reference: String,
    #[serde(default, deserialize_with = "or_default")]
    before: String,
    after: String,
    repository: NamedRepository,
    pusher: Option<Account>,
    sender: Option<Account>,
    head_commit: Option<Commit>,
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<Commit>,
}

#[derive(Deserialize)]
struct Commit {
    #[serde(default, deserialize_with = "or_default")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    message: String,
}

fn push(payload: PushPayload) -> Result<Vec<Event>, Error> {
    let reference = match (payload.reference.strip_prefix("refs/heads/"), payload.reference.strip_prefix("refs/tags/"))
    {
        (Some(branch), _) => Reference::Branch(branch.to_owned()),
        (_, Some(tag)) => Reference::Tag(tag.to_owned()),
        _ => return Err(Error::Invalid(format!("`{}` is neither branch nor tag", payload.reference))),
    };
    let deleted = is_nothing(&payload.after);
    let commits = payload.commits;
    // The hash of an annotated tag is none of a commit; the head commit's is.
    let tagged = payload.head_commit.as_ref().filter(|_| matches!(reference, Reference::Tag(_)));
    let commit = match (deleted, tagged) {
        (true, _) => payload.before,
        (false, Some(head)) => head.id.clone(),
        (false, None) => payload.after,
    };
    let message = payload.head_commit.iter().chain(&commits).find(|found| found.id == commit);
    Ok(vec![Event::Push(Push {
        repository: payload.repository.to_ref(),
        reference,
        message: message.map(|found| message_of(&found.message)).unwrap_or_default(),
        commit,
        deleted,
        author: login_of(payload.sender.as_ref().or(payload.pusher.as_ref())),
    })])
}

#[derive(Deserialize)]
struct DeletePayload {
    #[serde(rename = "ref")]
    name: String,
    ref_type: String,
    repository: NamedRepository,
    sender: Option<Account>,
}

/// The end of a branch or a tag, which comes without a hash.
fn delete(payload: DeletePayload) -> Vec<Event> {
    let name = |prefix: &str| payload.name.strip_prefix(prefix).unwrap_or(&payload.name).to_owned();
    let reference = match payload.ref_type.as_str() {
        "branch" => Reference::Branch(name("refs/heads/")),
        "tag" => Reference::Tag(name("refs/tags/")),
        _ => return Vec::new(),
    };
    vec![Event::Push(Push {
        repository: payload.repository.to_ref(),
        reference,
        commit: "0".repeat(40),
        deleted: true,
        author: login_of(payload.sender.as_ref()),
        message: String::new(),
    })]
}

#[derive(Deserialize)]
struct PullRequestPayload {
    action: String,
    pull_request: Pull,
    repository: NamedRepository,
    changes: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    title: Option<From>,
}

#[derive(Deserialize)]
struct From {
    #[serde(default, deserialize_with = "or_default")]
    from: String,
}

fn pull_request(payload: PullRequestPayload) -> Vec<Event> {
    let was_draft =
        payload.changes.and_then(|changes| changes.title).is_some_and(|title| is_work_in_progress(&title.from));
    let action = match payload.action.as_str() {
        "opened" => PullRequestAction::Opened,
        "reopened" => PullRequestAction::Reopened,
        "synchronized" => PullRequestAction::Pushed,
        "ready_for_review" => PullRequestAction::Ready,
        // A draft is made ready by changing its title.
        "edited" if was_draft && !payload.pull_request.is_draft() => PullRequestAction::Ready,
        "edited" | "label_updated" | "label_cleared" => PullRequestAction::Edited,
        "closed" => PullRequestAction::Closed,
        _ => PullRequestAction::Other,
    };
    vec![Event::PullRequest(PullRequestEvent {
        repository: payload.repository.to_ref(),
        action,
        pull_request: payload.pull_request.into(),
    })]
}

#[derive(Deserialize)]
struct CommentPayload {
    action: String,
    issue: Issue,
    comment: CommentText,
    repository: NamedRepository,
    #[serde(default, deserialize_with = "or_default")]
    is_pull: bool,
}

#[derive(Deserialize)]
struct Issue {
    number: u64,
    pull_request: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct CommentText {
    id: u64,
    user: Option<Account>,
    #[serde(default, deserialize_with = "or_default")]
    body: String,
}

fn comment(payload: CommentPayload) -> Vec<Event> {
    if !payload.is_pull && payload.issue.pull_request.is_none() {
        return Vec::new();
    }
    let action = match payload.action.as_str() {
        "created" => CommentAction::Created,
        "edited" => CommentAction::Edited,
        "deleted" => CommentAction::Deleted,
        _ => return Vec::new(),
    };
    vec![Event::Comment(Comment {
        repository: payload.repository.to_ref(),
        number: payload.issue.number,
        id: payload.comment.id.to_string(),
        action,
        author: login_of(payload.comment.user.as_ref()),
        body: payload.comment.body,
    })]
}

#[derive(Deserialize)]
struct RepositoryPayload {
    action: String,
    repository: Repository,
}

fn repository(payload: RepositoryPayload) -> Vec<Event> {
    let found: harmonia_plugin::forge::Repository = payload.repository.into();
    match payload.action.as_str() {
        "deleted" => vec![Event::RepositoriesRemoved(vec![found.to_ref()])],
        _ => vec![Event::RepositoriesChanged(vec![found])],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harmonia_plugin::serde_json::{Value, json};

    fn repository() -> Value {
        json!({"id": 7, "full_name": "team/app"})
    }

    fn one(event: &str, body: &Value) -> Event {
        let mut found = events(event, body.to_string().as_bytes()).expect("reads");
        assert_eq!(found.len(), 1, "{event}");
        found.remove(0)
    }

    #[test]
    fn pushes_and_deletions() {
        let commit = "a".repeat(40);
        let push = json!({
            "ref": "refs/heads/main", "before": "b".repeat(40), "after": commit, "repository": repository(),
            "pusher": {"login": "ada"}, "sender": {"login": "ada"},
            "commits": [{"id": commit, "message": "newest\n"}, {"id": "c".repeat(40), "message": "older"}],
        });
        let Event::Push(found) = one("push", &push) else { panic!("push") };
        assert_eq!(
            (found.commit.as_str(), found.message.as_str(), found.author.as_str()),
            (commit.as_str(), "newest", "ada")
        );
        let mut gone = push.clone();
        gone["after"] = json!("0".repeat(40));
        gone["commits"] = Value::Null;
        let Event::Push(found) = one("push", &gone) else { panic!("push") };
        assert!(found.deleted && found.commit == "b".repeat(40));
        let mut tag = push;
        tag["ref"] = json!("refs/tags/v1");
        tag["head_commit"] = json!({"id": "d".repeat(40), "message": "release"});
        let Event::Push(found) = one("push", &tag) else { panic!("push") };
        assert_eq!((found.commit.as_str(), found.message.as_str()), ("d".repeat(40).as_str(), "release"));
        let delete =
            json!({"ref": "topic", "ref_type": "branch", "repository": repository(), "sender": {"login": "ada"}});
        let Event::Push(found) = one("delete", &delete) else { panic!("push") };
        assert!(found.deleted && matches!(found.reference, Reference::Branch(name) if name == "topic"));
    }

    fn pull(action: &str, title: &str, changes: &Value) -> PullRequestEvent {
        let body = json!({
            "action": action, "repository": repository(), "changes": changes,
            "pull_request": {
                "number": 3, "title": title, "user": {"login": "ada"}, "state": "open", "labels": null,
                "head": {"ref": "topic", "sha": "a", "repo": null}, "base": {"ref": "main", "sha": "b", "repo": repository()},
            },
        });
        let Event::PullRequest(found) = one("pull_request", &body) else { panic!("pull request") };
        found
    }

    #[test]
    fn pull_requests_say_what_happened() {
        for (action, meant) in [
            ("opened", PullRequestAction::Opened),
            ("reopened", PullRequestAction::Reopened),
            ("synchronized", PullRequestAction::Pushed),
            ("edited", PullRequestAction::Edited),
            ("label_updated", PullRequestAction::Edited),
            ("closed", PullRequestAction::Closed),
            ("assigned", PullRequestAction::Other),
        ] {
            let found = pull(action, "x", &Value::Null);
            assert_eq!(found.action, meant, "{action}");
            assert_eq!(found.pull_request.head_ref, "refs/pull/3/head");
            assert!(found.pull_request.head_repository.is_none());
        }
        let from = |title: &str| json!({"title": {"from": title}});
        assert_eq!(pull("edited", "x", &from("WIP: x")).action, PullRequestAction::Ready);
        assert_eq!(pull("edited", "WIP: x", &from("WIP: y")).action, PullRequestAction::Edited);
        assert!(pull("opened", "WIP: x", &Value::Null).pull_request.is_draft);
    }

    #[test]
    fn comments_count_on_pull_requests_only() {
        let body = |is_pull: bool| {
            json!({
                "action": "created", "is_pull": is_pull, "repository": repository(), "issue": {"number": 3, "pull_request": null},
                "comment": {"id": 9, "user": {"login": "ada"}, "body": "/ci run"},
            })
        };
        let Event::Comment(found) = one("issue_comment", &body(true)) else { panic!("comment") };
        assert_eq!((found.number, found.id.as_str(), found.body.as_str()), (3, "9", "/ci run"));
        assert!(events("issue_comment", body(false).to_string().as_bytes()).expect("reads").is_empty());
    }

    /// As instances tell of what has nothing in it: null, not empty.
    #[test]
    fn everything_that_may_be_nothing_may_be_null() {
        let push = json!({
            "ref": "refs/heads/a/b", "before": null, "after": "a".repeat(40), "repository": repository(), "commits": null,
            "head_commit": null, "pusher": null, "sender": null,
        });
        let Event::Push(found) = one("push", &push) else { panic!("push") };
        assert_eq!((found.commit, found.author.as_str()), ("a".repeat(40), "Ghost"));
        assert!(matches!(found.reference, Reference::Branch(name) if name == "a/b"));
        let comment = json!({
            "action": "created", "is_pull": true, "repository": repository(), "issue": {"number": 3, "pull_request": null},
            "comment": {"id": 5, "user": null, "body": null},
        });
        let Event::Comment(found) = one("issue_comment", &comment) else { panic!("comment") };
        assert_eq!((found.body.as_str(), found.author.as_str()), ("", "Ghost"));
        let pull = json!({
            "action": "edited", "repository": repository(), "changes": {"title": null, "body": {"from": null}},
            "pull_request": {
                "number": 3, "title": null, "user": null, "state": "open", "labels": null, "draft": null,
                "head": {"ref": null, "sha": "a", "repo": null}, "base": {"ref": "main", "sha": "b", "repo": null},
            },
        });
        let Event::PullRequest(found) = one("pull_request", &pull) else { panic!("pull request") };
        assert_eq!((found.action, found.pull_request.author.as_str()), (PullRequestAction::Edited, "Ghost"));
        let changed = json!({"action": "created", "repository": {
            "id": 7, "owner": null, "name": "app", "full_name": "team/app", "clone_url": "https://h/team/app.git", "html_url": null,
            "default_branch": null, "private": false, "internal": null, "archived": null, "empty": null, "topics": null,
            "permissions": {"push": null},
        }});
        assert!(matches!(one("repository", &changed), Event::RepositoriesChanged(_)));
    }

    #[test]
    fn form_encoding_says_what_to_set() {
        let Err(error) = events("push", b"payload=%7B%7D") else { panic!("read") };
        assert!(format!("{error:?}").contains("application/json"), "{error:?}");
    }

    #[test]
    fn garbage_is_an_error_and_strange_events_are_nothing() {
        for body in [&b""[..], b"{}", b"[]", b"\xff"] {
            assert!(events("push", body).is_err(), "{body:?}");
        }
        assert!(events("wiki", b"not even json").expect("nothing of ours").is_empty());
    }
}
