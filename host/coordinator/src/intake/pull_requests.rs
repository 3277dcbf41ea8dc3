//! Pull requests, and the comments that approve them.

use harmonia_core::forge::{Comment, CommentAction, PullRequest, PullRequestAction, PullRequestEvent};
use harmonia_core::intake::{self, Action};
use harmonia_core::trust::{self, Approval, ApprovalQuestion, ApprovalReply, Command, RecordedHead};
use harmonia_db::{BranchKey, BranchState, DeliveryRowId, Requested};

use super::asking::Now;
use super::{Concern, EventError, Intake, ROUNDS_MAX, describe};

/// A pull request, and what was known of it before the forge was asked.
struct Seen {
    now: PullRequest,
    state: BranchState,
    /// The forge was asked; else `now` is what a delivery said.
    was_asked: bool,
}

impl Concern<'_> {
    pub(super) fn pull_key(&self, number: u64) -> BranchKey {
        let branch = intake::pull_request_branch(number);
        BranchKey { project: self.project.project, branch, is_tag: false, pull_request: Some(number) }
    }
}

impl Intake {
    pub(super) async fn pull_request_event(
        &self,
        concern: &Concern<'_>,
        event: &PullRequestEvent,
    ) -> Result<String, EventError> {
        if event.action == PullRequestAction::Other {
            return Ok(format!("pull request {}: nothing that concerns us", event.pull_request.number));
        }
        self.look_at(concern, &event.pull_request, None).await.map(|(outcome, _)| outcome)
    }

    /// Looks at a pull request as it is now and does what follows. `known`: as a delivery told of it, for a forge that
    /// cannot be asked. `seen`: the forge was asked a moment ago. Returns the head that it acted upon.
    async fn look_at(
        &self,
        concern: &Concern<'_>,
        known: &PullRequest,
        mut seen: Option<Seen>,
    ) -> Result<(String, String), EventError> {
        let db = &self.options.db;
        let (project, number) = (concern.project.project, known.number);
        let key = concern.pull_key(number);
        for _ in 0..ROUNDS_MAX {
            let Seen { now, state, was_asked } = match seen.take() {
                Some(seen) => seen,
                None => self.see(concern, known).await?,
            };
            if !state.is_active {
                return Ok((describe(&format!("pull request {number}"), &Requested::Inactive), now.head_commit));
            }
            let is_approved = db.is_approved(project, number, &now.head_commit).await?;
            let as_of = if was_asked { state.seen } else { concern.delivery.id };
            let asked = intake::whom_to_ask(&now, concern.repository, &concern.rules, is_approved);
            let permission = match self.least_permission(concern, &asked).await {
                Ok(permission) => permission,
                Err(error) => {
                    db.save_pull_request(project, &now, Some(trust::WAITS_FOR_FORGE), as_of).await?;
                    return Err(error);
                }
            };
            let decision = intake::pull_request(&now, &concern.rules, permission, is_approved);
            db.save_pull_request(project, &now, decision.waiting, as_of).await?;
            let outcome = match decision.action {
                Some(Action::Evaluate(wanted)) => {
                    let requested = self.request(concern, *wanted, was_asked.then_some(state), false).await?;
                    if requested == Requested::Moved {
                        continue;
                    }
                    describe(&decision.reason, &requested)
                }
                Some(Action::ClosePullRequest) => {
                    let closed = db.close_evaluations(&key, as_of, &decision.reason).await?;
                    format!("{}: {closed} evaluations closed", decision.reason)
                }
                Some(Action::CloseBranch { .. }) | None => decision.reason,
            };
            return Ok((outcome, now.head_commit));
        }
        Err(EventError::Restless(format!("pull request {number}")))
    }

    /// Asks the forge for a pull request.
    async fn see(&self, concern: &Concern<'_>, known: &PullRequest) -> Result<Seen, EventError> {
        let state = self.options.db.branch_state(&concern.pull_key(known.number)).await?;
        Ok(match concern.now(known.number).await? {
            Now::Is(now) => Seen { now: *now, state, was_asked: true },
            // Nobody can merge it any more: as good as closed.
            Now::Gone => Seen { now: PullRequest { is_open: false, ..known.clone() }, state, was_asked: true },
            Now::Unknown => Seen { now: known.clone(), state, was_asked: false },
        })
    }

    /// `/ci run`.
    pub(super) async fn comment(&self, concern: &Concern<'_>, comment: &Comment) -> Result<String, EventError> {
        let db = &self.options.db;
        let (project, number) = (concern.project.project, comment.number);
        let nothing = |reason: &str| Ok(format!("comment on pull request {number}: {reason}"));
        if comment.action != CommentAction::Created {
            return nothing("edited or deleted, which approves nothing");
        }
        let Some(command) = trust::parse_command(&comment.body) else { return nothing("no command") };
        if !concern.rules.pr_enabled {
            return nothing(trust::NOT_ENABLED);
        }
        if !db.is_first_of_comment(project, &comment.id, concern.delivery.id).await? {
            return nothing("delivered again, which approves nothing more");
        }
        let state = db.branch_state(&concern.pull_key(number)).await?;
        let seen = match concern.now(number).await? {
            Now::Is(now) => Seen { now: *now, state, was_asked: true },
            Now::Gone => return nothing("there is no such pull request"),
            Now::Unknown => match db.pull_request(project, number).await? {
                None => return nothing("there is no such pull request here"),
                Some(saved) => {
                    // As good as asking: the newest head that any delivery told of.
                    let head = db.head_before(project, number, DeliveryRowId(i64::MAX)).await?;
                    let head_commit = head.map_or(saved.pull_request.head_commit, |head| head.commit);
                    Seen { now: PullRequest { head_commit, ..saved.pull_request }, state, was_asked: false }
                }
            },
        };
        let now = seen.now.clone();
        if !now.is_open {
            return nothing("it is closed");
        }
        // Nobody is asked about the author, who cannot approve in any case.
        let permission = if trust::is_same_login(&comment.author, &now.author) {
            None
        } else {
            self.permission(concern, &comment.author).await?
        };
        let recorded = db.head_before(project, number, concern.delivery.id).await?;
        let approval = match &command {
            Command::Unclear => match trust::may_approve(&comment.author, &now.author, permission) {
                Ok(()) => Approval::Reply(ApprovalReply::Unclear),
                Err(reason) => Approval::Refused(reason),
            },
            Command::Run { commit } => trust::approval(&ApprovalQuestion {
                commenter: &comment.author,
                author: &now.author,
                commenter_permission: permission,
                named: commit.as_deref(),
                recorded: recorded.as_ref().map(|head| RecordedHead {
                    commit: &head.commit,
                    known_for: (concern.delivery.received_at - head.arrived_at).try_into().unwrap_or_default(),
                }),
                current: &now.head_commit,
            }),
        };
        match approval {
            Approval::Refused(reason) => nothing(reason),
            Approval::Reply(reply) => self.reply(concern, comment, reply, &now.head_commit).await,
            Approval::Counts(head) => {
                db.approve_pull_request(project, number, &head, &comment.author, &comment.id).await?;
                let (outcome, acted_upon) = self.look_at(concern, &now, Some(seen)).await?;
                if acted_upon != head {
                    // Pushed while we were at it.
                    return self.reply(concern, comment, ApprovalReply::HeadChanged, &acted_upon).await;
                }
                Ok(format!("{head} is approved by {}; {outcome}", comment.author))
            }
        }
    }

    /// Owes a reply, once for each comment.
    async fn reply(
        &self,
        concern: &Concern<'_>,
        comment: &Comment,
        reply: ApprovalReply,
        current: &str,
    ) -> Result<String, EventError> {
        let key = ["ci-run/", &comment.id, "/", reply.as_str()].concat();
        let body = reply.text(current);
        self.options.db.owe_comment(concern.project.repository_id, comment.number, &key, &body).await?;
        Ok(format!("comment on pull request {}: {body}", comment.number))
    }
}
