//! "Re-run" on a status.

use harmonia_core::branches::BranchClass;
use harmonia_core::forge::{Permission, Rerun};
use harmonia_core::intake::{self, Head, Wanted};
use harmonia_db::{Requested, RerunCandidate};

use super::asking::Now;
use super::{Concern, EventError, Intake, ROUNDS_MAX, describe};

impl Intake {
    pub(super) async fn rerun(&self, concern: &Concern<'_>, rerun: &Rerun) -> Result<String, EventError> {
        let db = &self.options.db;
        let candidates = db.rerun_candidates(concern.project.project, &rerun.commit).await?;
        if candidates.is_empty() {
            return Ok(["re-run of ", &rerun.commit, ": no evaluation of it is current"].concat());
        }
        let permission = self.permission(concern, &rerun.user).await?;
        let mut outcomes = Vec::with_capacity(candidates.len());
        for candidate in &candidates {
            let outcome = self.rerun_one(concern, rerun, permission, candidate).await?;
            outcomes.push(format!("re-run of evaluation {}: {outcome}", candidate.id));
        }
        Ok(outcomes.join("; "))
    }

    async fn rerun_one(
        &self,
        concern: &Concern<'_>,
        rerun: &Rerun,
        permission: Option<Permission>,
        candidate: &RerunCandidate,
    ) -> Result<String, EventError> {
        match intake::rerun(rerun.context.as_deref(), permission, candidate.status) {
            intake::Rerun::Nothing(reason) => Ok(reason.to_owned()),
            intake::Rerun::Rebuild => {
                let jobs = self.options.db.rebuild_failed(candidate.id, &rerun.user).await?;
                Ok(format!("{jobs} builds are queued again"))
            }
            intake::Rerun::Evaluate => self.evaluate_again(concern, &rerun.commit, candidate).await,
        }
    }

    /// A new attempt, while the commit is still what its branch or pull request is at: an older one would cancel what is
    /// newer.
    async fn evaluate_again(
        &self,
        concern: &Concern<'_>,
        commit: &str,
        candidate: &RerunCandidate,
    ) -> Result<String, EventError> {
        let key = &candidate.key;
        for _ in 0..ROUNDS_MAX {
            let state = self.options.db.branch_state(key).await?;
            let (wanted, was_asked) = if let Some(number) = key.pull_request {
                match concern.now(number).await? {
                    Now::Is(now) if !now.is_open => return Ok("the pull request is closed".to_owned()),
                    Now::Is(now) if now.head_commit != commit => {
                        return Ok("the pull request has another head by now".to_owned());
                    }
                    Now::Is(now) => (intake::wanted_of(&now), true),
                    Now::Gone => return Ok("the pull request is gone".to_owned()),
                    Now::Unknown => return Ok("the forge cannot say where the pull request is".to_owned()),
                }
            } else {
                let class = concern.rules.branches.class(&key.branch);
                let head = if key.is_tag { Head::Unknown } else { concern.head(&key.branch).await? };
                match &head {
                    Head::Gone => return Ok("the branch is gone".to_owned()),
                    Head::At(now) if now.commit != commit && class != BranchClass::MergeQueue => {
                        return Ok("the branch is at another commit by now".to_owned());
                    }
                    Head::At(_) | Head::Unknown => {}
                }
                let wanted = Wanted {
                    branch: key.branch.clone(),
                    commit: commit.to_owned(),
                    title: candidate.title.clone(),
                    author: candidate.author.clone(),
                    is_tag: key.is_tag,
                    supersede: class.supersedes(),
                    pull_request: None,
                };
                (wanted, head != Head::Unknown)
            };
            let requested = self.request(concern, wanted, was_asked.then_some(state), true).await?;
            if requested != Requested::Moved {
                return Ok(describe(&key.branch, &requested));
            }
        }
        Err(EventError::Restless(key.branch.clone()))
    }
}
