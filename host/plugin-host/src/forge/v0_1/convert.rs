//! Between the words of track 0.1 and core's.

use harmonia_core::forge::{
    Annotation, AnnotationLevel, CloneCredential, Comment, CommentAction, CommitStatus, Delivery, Event, ForgeError,
    ForgeRepository, LoginCompletion, LoginStart, MergeGroup, Permission, PullRequest, PullRequestAction,
    PullRequestEvent, Push, Reference, RepositoryRef, Rerun, StatusState, WebhookRequest,
};

use super::types;
use super::wit::{login, permissions, statuses, webhooks};
use crate::capabilities::{CallState, SecretError, SecretHandle};
use crate::reporter::v0_1::milliseconds;

impl From<types::Error> for ForgeError {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::Denied(text) => Self::Denied(text),
            types::Error::NotFound => Self::NotFound,
            types::Error::RetryAfter(seconds) => Self::RetryAfter(seconds),
            types::Error::Invalid(text) => Self::Invalid(text),
            types::Error::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl From<RepositoryRef> for types::RepositoryRef {
    fn from(from: RepositoryRef) -> Self {
        Self { id: from.id, full_name: from.full_name }
    }
}

impl From<types::RepositoryRef> for RepositoryRef {
    fn from(from: types::RepositoryRef) -> Self {
        Self { id: from.id, full_name: from.full_name }
    }
}

impl From<types::Repository> for ForgeRepository {
    fn from(from: types::Repository) -> Self {
        Self {
            id: from.id,
            owner: from.owner,
            name: from.name,
            full_name: from.full_name,
            clone_url: from.clone_url,
            html_url: from.html_url,
            default_branch: from.default_branch,
            is_private: from.is_private,
            is_archived: from.is_archived,
            topics: from.topics,
        }
    }
}

impl From<types::PullRequest> for PullRequest {
    fn from(from: types::PullRequest) -> Self {
        Self {
            number: from.number,
            title: from.title,
            author: from.author,
            is_open: from.is_open,
            is_draft: from.is_draft,
            labels: from.labels,
            head_commit: from.head_commit,
            head_branch: from.head_branch,
            head_repository: from.head_repository.map(Into::into),
            base_branch: from.base_branch,
            base_commit: from.base_commit,
            head_ref: from.head_ref,
        }
    }
}

impl From<WebhookRequest> for webhooks::Request {
    fn from(from: WebhookRequest) -> Self {
        let headers = from.headers.into_iter().map(|(name, value)| webhooks::Header { name, value }).collect();
        Self { headers, body: from.body }
    }
}

impl From<webhooks::Delivery> for Delivery {
    fn from(from: webhooks::Delivery) -> Self {
        Self { id: from.id, events: from.events.into_iter().map(Into::into).collect() }
    }
}

impl From<webhooks::Event> for Event {
    fn from(from: webhooks::Event) -> Self {
        use webhooks::Event as From;
        match from {
            From::Push(push) => Self::Push(push.into()),
            From::PullRequest(event) => Self::PullRequest(PullRequestEvent {
                repository: event.repository.into(),
                action: event.action.into(),
                pull_request: event.pull_request.into(),
            }),
            From::MergeGroup(group) => Self::MergeGroup(MergeGroup {
                repository: group.repository.into(),
                branch: group.branch,
                commit: group.commit,
                base_branch: group.base_branch,
                base_commit: group.base_commit,
                destroyed: group.destroyed,
            }),
            From::Comment(comment) => Self::Comment(Comment {
                repository: comment.repository.into(),
                number: comment.number,
                id: comment.id,
                action: match comment.action {
                    webhooks::CommentAction::Created => CommentAction::Created,
                    webhooks::CommentAction::Edited => CommentAction::Edited,
                    webhooks::CommentAction::Deleted => CommentAction::Deleted,
                },
                author: comment.author,
                body: comment.body,
            }),
            From::Rerun(rerun) => Self::Rerun(Rerun {
                repository: rerun.repository.into(),
                commit: rerun.commit,
                context: rerun.context,
                user: rerun.user,
            }),
            From::RepositoriesChanged(list) => Self::RepositoriesChanged(list.into_iter().map(Into::into).collect()),
            From::RepositoriesRemoved(list) => Self::RepositoriesRemoved(list.into_iter().map(Into::into).collect()),
            From::Discover => Self::Discover,
            From::PermissionsChanged(repository) => Self::PermissionsChanged(repository.map(Into::into)),
            From::Ping => Self::Ping,
        }
    }
}

impl From<webhooks::Push> for Push {
    fn from(from: webhooks::Push) -> Self {
        Self {
            repository: from.repository.into(),
            reference: match from.reference {
                webhooks::Reference::Branch(name) => Reference::Branch(name),
                webhooks::Reference::Tag(name) => Reference::Tag(name),
            },
            commit: from.commit,
            deleted: from.deleted,
            author: from.author,
            message: from.message,
        }
    }
}

impl From<webhooks::PullRequestAction> for PullRequestAction {
    fn from(from: webhooks::PullRequestAction) -> Self {
        use webhooks::PullRequestAction as From;
        match from {
            From::Opened => Self::Opened,
            From::Reopened => Self::Reopened,
            From::Pushed => Self::Pushed,
            From::Ready => Self::Ready,
            From::Edited => Self::Edited,
            From::Closed => Self::Closed,
            From::Other => Self::Other,
        }
    }
}

impl From<CommitStatus> for statuses::Status {
    fn from(from: CommitStatus) -> Self {
        Self {
            repository: from.repository.into(),
            commit: from.commit,
            context: from.context,
            state: match from.state {
                StatusState::Success => statuses::State::Success,
                StatusState::Pending => statuses::State::Pending,
                StatusState::Error => statuses::State::Error,
                StatusState::Failure => statuses::State::Failure,
            },
            description: from.description,
            target_url: from.target_url,
            summary: from.summary,
            annotations: from.annotations.into_iter().map(Into::into).collect(),
            started_at_ms: from.started_at.map(milliseconds),
            finished_at_ms: from.finished_at.map(milliseconds),
        }
    }
}

impl From<Annotation> for statuses::Annotation {
    fn from(from: Annotation) -> Self {
        Self {
            path: from.path,
            line: from.line,
            level: match from.level {
                AnnotationLevel::Notice => statuses::AnnotationLevel::Notice,
                AnnotationLevel::Warning => statuses::AnnotationLevel::Warning,
                AnnotationLevel::Failure => statuses::AnnotationLevel::Failure,
            },
            message: from.message,
        }
    }
}

impl From<permissions::Permission> for Permission {
    fn from(from: permissions::Permission) -> Self {
        match from {
            permissions::Permission::None => Self::None,
            permissions::Permission::Read => Self::Read,
            permissions::Permission::Write => Self::Write,
            permissions::Permission::Admin => Self::Admin,
        }
    }
}

impl From<LoginStart> for login::Start {
    fn from(from: LoginStart) -> Self {
        Self { redirect_url: from.redirect_url, state: from.state, code_challenge: from.code_challenge }
    }
}

impl From<LoginCompletion> for login::Completion {
    fn from(from: LoginCompletion) -> Self {
        Self { code: from.code, redirect_url: from.redirect_url, code_verifier: from.code_verifier }
    }
}

/// Takes a password out of its handle, unless the plugin names a host that the secret may not go to.
pub(super) fn credential(
    capabilities: &CallState,
    user: String,
    secret: &SecretHandle,
    hosts: Vec<String>,
) -> Result<CloneCredential, ForgeError> {
    let refused = |error: SecretError| match error {
        SecretError::Expired => ForgeError::Unavailable("the credential has expired already".into()),
        error => ForgeError::Denied(format!("the credential cannot be used: {error}")),
    };
    capabilities.check_hosts(secret, &hosts).map_err(refused)?;
    Ok(CloneCredential { user, password: capabilities.expose(secret).map_err(refused)?, hosts })
}
