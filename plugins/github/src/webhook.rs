//! A verified delivery's bytes to events. Start at [`events`]. What GitHub sends: its webhook events and payloads page;
//! `tests/webhook.rs` holds this against the payloads that GitHub's own packages publish.

use harmonia_plugin::forge::webhooks::{
    Comment, CommentAction, Event, MergeGroup, PullRequestAction, PullRequestEvent, Push, Reference, Rerun,
};
use harmonia_plugin::forge::{Error, RepositoryRef};
use harmonia_plugin::serde_json;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::model::{Account, NamedRepository, Pull, Repository, login_of, or_default};

/// What a delivery of this event (header `x-github-event`) says. Empty: nothing that concerns us.
pub fn events(event: &str, body: &[u8]) -> Result<Vec<Event>, Error> {
    match event {
        "ping" => Ok(vec![Event::Ping]),
        "push" => push(&read(event, body)?),
        "pull_request" => Ok(pull_request(read(event, body)?)),
        "merge_group" => merge_group(read(event, body)?),
        "issue_comment" => Ok(issue_comment(read(event, body)?)),
        "check_run" => Ok(check_run(read(event, body)?)),
        "check_suite" => Ok(check_suite(read(event, body)?)),
        "repository" => Ok(repository(read(event, body)?)),
        "installation" => Ok(installation(read(event, body)?)),
        "installation_repositories" => Ok(installation_repositories(read(event, body)?)),
        "installation_target" => Ok(vec![Event::Discover]),
        "member" | "team_add" | "membership" | "organization" | "team" => {
            let about: MaybeRepository = read(event, body)?;
            // A membership or a team reaches repositories that are not named.
            Ok(vec![Event::PermissionsChanged(about.repository.map(|repository| repository.to_ref()))])
        }
        _ => Ok(Vec::new()),
    }
}

fn read<T: DeserializeOwned>(event: &str, body: &[u8]) -> Result<T, Error> {
    if body.starts_with(b"payload=") {
        // What GitHub chooses for a webhook unless somebody says otherwise.
        let text = "it is form-encoded: set the content type of the webhook to application/json where it is configured";
        return Err(Error::Invalid(text.to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| Error::Invalid(format!("a delivery of `{event}`: {error}")))
}

#[derive(Deserialize)]
struct MaybeRepository {
    repository: Option<NamedRepository>,
}

#[derive(Deserialize)]
struct PushPayload {
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
    #[serde(default, deserialize_with = "or_default")]
    deleted: bool,
    repository: NamedRepository,
    sender: Option<Account>,
    pusher: Option<Pusher>,
    head_commit: Option<HeadCommit>,
}

#[derive(Deserialize)]
struct Pusher {
    name: Option<String>,
}

#[derive(Deserialize)]
struct HeadCommit {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    message: String,
}

fn push(payload: &PushPayload) -> Result<Vec<Event>, Error> {
    let reference = match (payload.reference.strip_prefix("refs/heads/"), payload.reference.strip_prefix("refs/tags/"))
    {
        (Some(branch), _) => Reference::Branch(branch.to_owned()),
        (_, Some(tag)) => Reference::Tag(tag.to_owned()),
        _ => return Err(Error::Invalid(format!("`{}` is neither branch nor tag", payload.reference))),
    };
    let pusher = payload.pusher.as_ref().and_then(|pusher| pusher.name.clone());
    // An annotated tag's own hash is no commit; the commit it names is.
    let commit = match (&payload.head_commit, payload.deleted) {
        (_, true) => &payload.before,
        (Some(head), false) => &head.id,
        (None, false) => &payload.after,
    };
    Ok(vec![Event::Push(Push {
        repository: payload.repository.to_ref(),
        reference,
        commit: commit.clone(),
        deleted: payload.deleted,
        author: payload
            .sender
            .as_ref()
            .map(|sender| sender.login.clone())
            .filter(|login| !login.is_empty())
            .or(pusher)
            .unwrap_or_else(|| login_of(None)),
        message: payload.head_commit.as_ref().map(|head| head.message.clone()).unwrap_or_default(),
    })])
}

#[derive(Deserialize)]
struct PullRequestPayload {
    action: String,
    pull_request: Pull,
    repository: NamedRepository,
}

fn pull_request(payload: PullRequestPayload) -> Vec<Event> {
    let action = match payload.action.as_str() {
        "opened" => PullRequestAction::Opened,
        "reopened" => PullRequestAction::Reopened,
        "synchronize" => PullRequestAction::Pushed,
        "ready_for_review" => PullRequestAction::Ready,
        "edited" | "labeled" | "unlabeled" | "converted_to_draft" => PullRequestAction::Edited,
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
struct MergeGroupPayload {
    action: String,
    merge_group: Group,
    repository: NamedRepository,
}

#[derive(Deserialize)]
struct Group {
    head_sha: String,
    head_ref: String,
    base_sha: String,
    base_ref: String,
}

fn merge_group(payload: MergeGroupPayload) -> Result<Vec<Event>, Error> {
    let branch = |reference: &str| reference.strip_prefix("refs/heads/").unwrap_or(reference).to_owned();
    let destroyed = match payload.action.as_str() {
        "checks_requested" => false,
        "destroyed" => true,
        other => return Err(Error::Invalid(format!("a merge group cannot be `{other}`"))),
    };
    Ok(vec![Event::MergeGroup(MergeGroup {
        repository: payload.repository.to_ref(),
        branch: branch(&payload.merge_group.head_ref),
        commit: payload.merge_group.head_sha,
        base_branch: branch(&payload.merge_group.base_ref),
        base_commit: payload.merge_group.base_sha,
        destroyed,
    })])
}

#[derive(Deserialize)]
struct CommentPayload {
    action: String,
    issue: Issue,
    comment: CommentText,
    repository: NamedRepository,
}

#[derive(Deserialize)]
struct Issue {
    number: u64,
    /// Only pull requests have it.
    pull_request: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct CommentText {
    id: u64,
    user: Option<Account>,
    body: Option<String>,
}

fn issue_comment(payload: CommentPayload) -> Vec<Event> {
    if payload.issue.pull_request.is_none() {
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
        body: payload.comment.body.unwrap_or_default(),
    })]
}

#[derive(Deserialize)]
struct CheckRunPayload {
    action: String,
    check_run: CheckRun,
    repository: NamedRepository,
    sender: Option<Account>,
}

#[derive(Deserialize)]
struct CheckRun {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    head_sha: String,
}

fn check_run(payload: CheckRunPayload) -> Vec<Event> {
    if payload.action != "rerequested" {
        return Vec::new();
    }
    let CheckRun { name, head_sha } = payload.check_run;
    vec![rerun(payload.repository.to_ref(), head_sha, Some(name), payload.sender.as_ref())]
}

#[derive(Deserialize)]
struct CheckSuitePayload {
    action: String,
    check_suite: CheckSuite,
    repository: NamedRepository,
    sender: Option<Account>,
}

#[derive(Deserialize)]
struct CheckSuite {
    head_sha: String,
}

fn check_suite(payload: CheckSuitePayload) -> Vec<Event> {
    if payload.action != "rerequested" {
        return Vec::new();
    }
    vec![rerun(payload.repository.to_ref(), payload.check_suite.head_sha, None, payload.sender.as_ref())]
}

fn rerun(repository: RepositoryRef, commit: String, context: Option<String>, sender: Option<&Account>) -> Event {
    Event::Rerun(Rerun { repository, commit, context, user: login_of(sender) })
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
        // Transferred to where our App is not installed: discovery tells.
        "transferred" => vec![Event::RepositoriesChanged(vec![found]), Event::Discover],
        _ => vec![Event::RepositoriesChanged(vec![found])],
    }
}

#[derive(Deserialize)]
struct InstallationPayload {
    action: String,
    #[serde(default, deserialize_with = "or_default")]
    repositories: Vec<MaybeNamed>,
}

fn installation(payload: InstallationPayload) -> Vec<Event> {
    match payload.action.as_str() {
        "deleted" | "suspend" => {
            let gone: Vec<RepositoryRef> = payload.repositories.into_iter().filter_map(MaybeNamed::into_ref).collect();
            // The payload may name some or none: discovery finds the rest.
            let mut events = vec![Event::Discover, Event::PermissionsChanged(None)];
            if !gone.is_empty() {
                events.insert(0, Event::RepositoriesRemoved(gone));
            }
            events
        }
        _ => vec![Event::Discover],
    }
}

#[derive(Deserialize)]
struct InstallationRepositoriesPayload {
    #[serde(default, deserialize_with = "or_default")]
    repositories_added: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    repositories_removed: Vec<MaybeNamed>,
}

/// Removed repositories may come without a name.
#[derive(Deserialize)]
struct MaybeNamed {
    id: Option<u64>,
    full_name: Option<String>,
}

impl MaybeNamed {
    fn into_ref(self) -> Option<RepositoryRef> {
        Some(RepositoryRef { id: self.id?.to_string(), full_name: self.full_name? })
    }
}

fn installation_repositories(payload: InstallationRepositoriesPayload) -> Vec<Event> {
    let mut events = Vec::new();
    let removed: Vec<RepositoryRef> =
        payload.repositories_removed.into_iter().filter_map(MaybeNamed::into_ref).collect();
    if !removed.is_empty() {
        events.push(Event::RepositoriesRemoved(removed));
    }
    if !payload.repositories_added.is_empty() {
        // Added ones come without their properties.
        events.push(Event::Discover);
    }
    events
}
