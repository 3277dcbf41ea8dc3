//! Pushes, tags and merge groups.

use harmonia_core::branches::BranchClass;
use harmonia_core::forge::{MergeGroup, Push, Reference};
use harmonia_core::intake::{self, Action, Decision, Head, PushInterest};
use harmonia_db::{BranchState, Requested};

use super::{Concern, EventError, Intake, ROUNDS_MAX, describe};

impl Intake {
    pub(super) async fn push(&self, concern: &Concern<'_>, push: &Push) -> Result<String, EventError> {
        let name = match &push.reference {
            Reference::Branch(name) | Reference::Tag(name) => name,
        };
        let class = match intake::push_interest(push, &concern.rules) {
            PushInterest::Nothing(reason) => return Ok(reason),
            PushInterest::Tag => {
                let decision = intake::tag(push, name);
                let state = self.options.db.branch_state(&concern.branch(name, true)).await?;
                return match self.act(concern, decision, state, false).await? {
                    Ok(outcome) | Err(outcome) => Ok(outcome),
                };
            }
            PushInterest::Branch(class) => class,
            PushInterest::Leftovers => BranchClass::Other,
        };
        self.settle(concern, name, push.deleted, |head| intake::push(push, name, class, head)).await
    }

    pub(super) async fn merge_group(&self, concern: &Concern<'_>, group: &MergeGroup) -> Result<String, EventError> {
        self.settle(concern, &group.branch, group.destroyed, |head| intake::merge_group(group, head)).await
    }

    /// Asks where the branch is, decides and acts, until nobody else did meanwhile.
    async fn settle(
        &self,
        concern: &Concern<'_>,
        branch: &str,
        is_end: bool,
        decide: impl Fn(&Head) -> Decision,
    ) -> Result<String, EventError> {
        for _ in 0..ROUNDS_MAX {
            let state = self.options.db.branch_state(&concern.branch(branch, false)).await?;
            if is_end && state.newest.is_none() {
                return Ok(["branch ", branch, " is gone, and there is no evaluation of it"].concat());
            }
            if !state.is_active {
                return Ok(describe(&["branch ", branch].concat(), &Requested::Inactive));
            }
            let head = concern.head(branch).await?;
            if let Ok(outcome) = self.act(concern, decide(&head), state, head != Head::Unknown).await? {
                return Ok(outcome);
            }
        }
        Err(EventError::Restless(["branch ", branch].concat()))
    }

    /// Carries out what was decided. `Err` within: the branch moved meanwhile.
    async fn act(
        &self,
        concern: &Concern<'_>,
        decision: Decision,
        state: BranchState,
        was_asked: bool,
    ) -> Result<Result<String, String>, EventError> {
        let reason = decision.reason;
        match decision.action {
            Some(Action::Evaluate(wanted)) => {
                let requested = self.request(concern, *wanted, was_asked.then_some(state), false).await?;
                let text = describe(&reason, &requested);
                Ok(if requested == Requested::Moved { Err(text) } else { Ok(text) })
            }
            Some(Action::CloseBranch { branch, is_tag }) => {
                // Who asked knows what came until then; who did not, what came until this delivery.
                let seen = if was_asked { state.seen } else { concern.delivery.id };
                let key = concern.branch(&branch, is_tag);
                let closed = self.options.db.close_evaluations(&key, seen, &reason).await?;
                Ok(Ok(format!("{reason}: {closed} evaluations closed")))
            }
            Some(Action::ClosePullRequest) | None => Ok(Ok(reason)),
        }
    }
}
