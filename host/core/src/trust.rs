//! Whose pull requests run: start at [`decide`], then [`approval`] for what a comment changes.
//!
//! A pull request runs foreign code on our builders. What is not clearly allowed waits.

mod command;

pub use command::{BODY_BYTES_MAX, Command, is_full_hash, parse_command};

use std::time::Duration;

use crate::forge::{Permission, PullRequest, PullRequestTrust, RepositoryRef};

/// How long a head has to be known before a comment that does not name it may mean it. Who reads a change, and comments, has
/// not read what arrived a moment before.
pub const HEAD_KNOWN_MIN: Duration = Duration::from_mins(1);

/// What is known when a pull request's head may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Question {
    /// The project builds pull requests at all.
    pub pr_enabled: bool,
    /// Whom the project trusts.
    pub trust: PullRequestTrust,
    /// The project builds drafts.
    pub build_drafts: bool,
    /// It is a draft.
    pub is_draft: bool,
    /// The least that the forge says of those who can move its head ([`head_movers`]); `None`: it cannot say, or nobody knows
    /// who they are.
    pub movers_permission: Option<Permission>,
    /// Somebody who may push approved exactly this head.
    pub is_approved: bool,
}

/// Whether a head runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustDecision {
    /// It runs.
    Run,
    /// Not yet, and why, for the pull request's page.
    Wait(&'static str),
    /// Not at all, and why.
    Ignore(&'static str),
}

/// Why a stranger's pull request does not run.
pub const WAITS_FOR_APPROVAL: &str = "waiting for a collaborator to comment /ci run";
/// Why a pull request does not run while its forge does not answer.
pub const WAITS_FOR_FORGE: &str = "waiting for the forge to say what its author may do";
/// Why a draft does not run.
pub const WAITS_AS_DRAFT: &str = "a draft: waiting until it is ready for review";
/// Why a pull request does not run in a project that builds none.
pub const NOT_ENABLED: &str = "the project does not build pull requests";

/// Whether the head of a pull request runs now.
pub fn decide(question: &Question) -> TrustDecision {
    if !question.pr_enabled {
        return TrustDecision::Ignore(NOT_ENABLED);
    }
    if question.is_draft && !question.build_drafts {
        return TrustDecision::Wait(WAITS_AS_DRAFT);
    }
    let trusted = match question.trust {
        PullRequestTrust::All => true,
        PullRequestTrust::Collaborators => question.movers_permission.is_some_and(may_push),
        PullRequestTrust::None => false,
    };
    if trusted || question.is_approved { TrustDecision::Run } else { TrustDecision::Wait(WAITS_FOR_APPROVAL) }
}

/// The people who decide what the head of a pull request is, now and by the next push: who opened it, and whoever owns the
/// repository that it comes from. Else a stranger's branch would run as soon as a collaborator opened a pull request of it,
/// and with every later push. Nobody but those who may push to the base repository moves a branch of its own. `None`: the
/// head's repository is gone or not told, so nobody knows who could push to it.
pub fn head_movers<'a>(pull: &'a PullRequest, base: &RepositoryRef) -> Option<Vec<&'a str>> {
    let head = pull.head_repository.as_ref()?;
    let mut movers = vec![pull.author.as_str()];
    if head.id != base.id {
        let owner = head.full_name.rsplit_once('/').map_or("", |(owner, _)| owner);
        if !is_same_login(owner, &pull.author) {
            movers.push(owner);
        }
    }
    Some(movers)
}

/// Whether this permission makes a collaborator.
pub fn may_push(permission: Permission) -> bool {
    permission >= Permission::Write
}

/// Whether two logins are one person. Forges tell letters' case apart in none of them, and a pull request's author must not
/// approve it by spelling their own name differently.
pub fn is_same_login(left: &str, right: &str) -> bool {
    left.to_lowercase() == right.to_lowercase()
}

/// What is known when somebody comments a command on a pull request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalQuestion<'a> {
    /// Who comments.
    pub commenter: &'a str,
    /// Who opened the pull request.
    pub author: &'a str,
    /// What the forge says that the commenter may do; `None`: the forge cannot say.
    pub commenter_permission: Option<Permission>,
    /// The full hash that the command names.
    pub named: Option<&'a str>,
    /// The head that a delivery had told of before the comment's came.
    pub recorded: Option<RecordedHead<'a>>,
    /// The head that the forge reports now.
    pub current: &'a str,
}

/// A head that a delivery told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedHead<'a> {
    /// Its full hash.
    pub commit: &'a str,
    /// How long it was known when the comment arrived, by the same clock.
    pub known_for: Duration,
}

/// What a command on a pull request means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// This head is approved, and this one only.
    Counts(String),
    /// It approves nothing, and nobody is told (whoever may not push must not make us comment).
    Refused(&'static str),
    /// It approves nothing, and a reply says why.
    Reply(ApprovalReply),
}

/// Why somebody who may approve has to comment again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApprovalReply {
    /// The forge reports another head than the one that was approved.
    HeadChanged,
    /// No delivery had told of a head before the comment, and the command names none.
    HeadUnknown,
    /// The head arrived less than [`HEAD_KNOWN_MIN`] before the comment, and the command does not name it.
    HeadNew,
    /// The command cannot be understood.
    Unclear,
}

impl ApprovalReply {
    /// For keys and outcomes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HeadChanged => "head-changed",
            Self::HeadUnknown => "head-unknown",
            Self::HeadNew => "head-new",
            Self::Unclear => "unclear",
        }
    }

    /// The reply, given the head that the forge reports now.
    pub fn text(self, current: &str) -> String {
        match self {
            Self::HeadChanged => {
                ["The head changed, comment again: `/ci run ", current, "` approves the present one. Nothing was started."].concat()
            }
            Self::HeadNew => [
                "The present head arrived less than a minute before this comment, which may have been meant for the one before ",
                "it. To approve the present one, comment `/ci run ",
                current,
                "`. Nothing was started.",
            ]
            .concat(),
            Self::HeadUnknown => [
                "It is not known here which head this comment is about. To approve the present one, comment ",
                "`/ci run ",
                current,
                "`. Nothing was started.",
            ]
            .concat(),
            Self::Unclear => [
                "A head is named by its full hash, in one command a comment: `/ci run ",
                current,
                "` approves the present one. Nothing was started.",
            ]
            .concat(),
        }
    }
}

/// Whether whoever comments may approve this pull request at all; the reason when not.
pub fn may_approve(commenter: &str, author: &str, permission: Option<Permission>) -> Result<(), &'static str> {
    if is_same_login(commenter, author) {
        Err("nobody approves their own pull request")
    } else if permission.is_some_and(may_push) {
        Ok(())
    } else {
        Err("only somebody who may push to the repository approves")
    }
}

/// Which head an approval counts for: the named one, else the one recorded [`HEAD_KNOWN_MIN`] before the comment came; and
/// only while the forge reports that very head.
pub fn approval(question: &ApprovalQuestion<'_>) -> Approval {
    if let Err(reason) = may_approve(question.commenter, question.author, question.commenter_permission) {
        return Approval::Refused(reason);
    }
    let (head, is_new) = match (question.named, question.recorded) {
        (Some(named), _) => (named, false),
        (None, Some(recorded)) => (recorded.commit, recorded.known_for < HEAD_KNOWN_MIN),
        (None, None) => return Approval::Reply(ApprovalReply::HeadUnknown),
    };
    if head != question.current {
        Approval::Reply(ApprovalReply::HeadChanged)
    } else if is_new {
        Approval::Reply(ApprovalReply::HeadNew)
    } else {
        Approval::Counts(head.to_owned())
    }
}

#[cfg(test)]
mod tests;
