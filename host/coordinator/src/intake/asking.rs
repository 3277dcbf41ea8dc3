//! What a forge is asked, and what its refusals mean here.

use std::time::Duration;

use harmonia_core::forge::{ForgeError, Permission, PullRequest};
use harmonia_core::intake::{Head, Wanted};
use harmonia_core::trust::may_push;
use harmonia_db::{AskedPermission, BranchKey, BranchState, EvaluationRequest, Requested};

use super::{Concern, EventError, Intake};

/// Longest that an answer about a permission is relied on.
const PERMISSION_LIFETIME: Duration = Duration::from_mins(5);

/// A pull request as the forge has it now.
pub(super) enum Now {
    /// So it is.
    Is(Box<PullRequest>),
    /// There is none of this number any more.
    Gone,
    /// This forge cannot be asked.
    Unknown,
}

impl Concern<'_> {
    pub(super) fn branch(&self, name: &str, is_tag: bool) -> BranchKey {
        BranchKey { project: self.project.project, branch: name.to_owned(), is_tag, pull_request: None }
    }

    /// Where a branch is now.
    pub(super) async fn head(&self, branch: &str) -> Result<Head, EventError> {
        match self.forge.branch_head(self.repository.clone(), branch.to_owned()).await {
            Ok(head) => Ok(Head::At(head)),
            Err(ForgeError::NotFound) => Ok(Head::Gone),
            Err(ForgeError::Unsupported(_)) => Ok(Head::Unknown),
            Err(source) => Err(EventError::Forge { what: ["ask for the head of ", branch].concat(), source }),
        }
    }

    /// A pull request as it is now.
    pub(super) async fn now(&self, number: u64) -> Result<Now, EventError> {
        match self.forge.pull_request(self.repository.clone(), number).await {
            Ok(now) if now.number == number => Ok(Now::Is(Box::new(now))),
            Ok(other) => {
                let source = ForgeError::Invalid(format!("it answered with number {}", other.number));
                Err(EventError::Forge { what: format!("ask for pull request {number}"), source })
            }
            Err(ForgeError::NotFound) => Ok(Now::Gone),
            Err(ForgeError::Unsupported(_)) => Ok(Now::Unknown),
            Err(source) => Err(EventError::Forge { what: format!("ask for pull request {number}"), source }),
        }
    }
}

impl Intake {
    /// What a user may do; `None`: the forge cannot say. Asked each time but for a short memory that a change of
    /// permissions clears.
    pub(super) async fn permission(&self, concern: &Concern<'_>, user: &str) -> Result<Option<Permission>, EventError> {
        // A ghost: the account is gone. There is nobody whom a forge could know.
        if user.is_empty() {
            return Ok(Some(Permission::None));
        }
        let (db, repository) = (&self.options.db, concern.project.repository_id);
        let asked_at = match db.known_permission(repository, user, PERMISSION_LIFETIME).await? {
            AskedPermission::Known(permission) => return Ok(Some(permission)),
            AskedPermission::Ask(at) => at,
        };
        let permission = match concern.forge.permission(concern.repository.clone(), user.to_owned()).await {
            Ok(permission) => permission,
            // Whoever the forge does not know may do nothing.
            Err(ForgeError::NotFound) => Permission::None,
            Err(ForgeError::Unsupported(_)) => return Ok(None),
            Err(source) => {
                return Err(EventError::Forge { what: ["ask for the permission of ", user].concat(), source });
            }
        };
        db.remember_permission(repository, user, permission, asked_at).await?;
        Ok(Some(permission))
    }

    /// The least of what these people may do. `None`: there is nobody to ask, or the forge cannot say of one of them.
    pub(super) async fn least_permission(
        &self,
        concern: &Concern<'_>,
        users: &[&str],
    ) -> Result<Option<Permission>, EventError> {
        let mut least = None;
        for user in users {
            let permission = self.permission(concern, user).await?;
            let Some(permission) = permission.filter(|permission| may_push(*permission)) else {
                // What the others may do changes nothing any more.
                return Ok(permission);
            };
            least = Some(least.map_or(permission, |least: Permission| least.min(permission)));
        }
        Ok(least)
    }

    /// Asks for an evaluation. `asked`: the branch before the forge was, if it was.
    pub(super) async fn request(
        &self,
        concern: &Concern<'_>,
        wanted: Wanted,
        asked: Option<BranchState>,
        new_attempt: bool,
    ) -> Result<Requested, EventError> {
        if let Some(flaw) = wanted.flaw() {
            let what = ["evaluate ", &wanted.branch].concat();
            return Err(EventError::Forge { what, source: ForgeError::Invalid(flaw.to_owned()) });
        }
        let reuse_key = if new_attempt { None } else { self.reuse_key(concern, &wanted).await? };
        // Best effort: without it the commit is simply evaluated.
        let tree_hash = match &reuse_key {
            Some(_) => concern.forge.tree_hash(concern.repository.clone(), wanted.commit.clone()).await.ok(),
            None => None,
        };
        let request = EvaluationRequest {
            project: concern.project.project,
            url: concern.project.clone_url.clone(),
            wanted,
            reuse_key: reuse_key.filter(|_| tree_hash.is_some()),
            tree_hash,
            delivery: Some(concern.delivery.id),
            new_attempt,
            asked,
        };
        Ok(self.options.db.request_evaluation(&request).await?)
    }

    /// By which rules the commit would be evaluated, when results of the same tree may be reused.
    async fn reuse_key(&self, concern: &Concern<'_>, wanted: &Wanted) -> Result<Option<String>, EventError> {
        let Some(silent_after) = self.options.reuse_silent_after else { return Ok(None) };
        if !concern.project.reuse_trees || wanted.pull_request.is_some() {
            return Ok(None);
        }
        Ok(self.options.db.reuse_key(silent_after).await?)
    }
}
