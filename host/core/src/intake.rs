//! What a delivery's event means for a project: start at [`push_interest`] and [`push`], [`merge_group`],
//! [`pull_request`], [`rerun`].
//!
//! An event is a hint that something moved; what is decided upon is what the forge reports now. So a delivery that comes
//! late, twice, or in another order leads to the same evaluations, and one that got lost is made up for by the next.
//! Whoever calls fetches what a decision asks for, and carries the [`Action`]s out: each does no harm when done twice.

use crate::branches::{BranchClass, BranchRules};
use crate::foreign_text::one_line;
use crate::forge::{BranchHead, MergeGroup, Permission, PullRequest, PullRequestTrust, Push, Reference, RepositoryRef};
use crate::git;
use crate::state::EvalStatus;
use crate::trust::{Question, TrustDecision, decide, head_movers, may_push};

/// Longest title of a commit that is kept, in characters.
pub const TITLE_CHARS_MAX: usize = 200;
/// Longest name of an author, in characters.
const AUTHOR_CHARS_MAX: usize = 100;

/// What a project wants evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRules {
    /// Which branches.
    pub branches: BranchRules,
    /// Tags too.
    pub build_tags: bool,
    /// Drafts too.
    pub build_drafts: bool,
    /// Pull requests at all.
    pub pr_enabled: bool,
    /// Whose pull requests.
    pub pr_trust: PullRequestTrust,
}

/// Where a branch is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The forge reports this commit.
    At(BranchHead),
    /// The forge has no such branch.
    Gone,
    /// This forge cannot be asked.
    Unknown,
}

/// The commits of a pull request that are merged and evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequestCommits {
    /// Number.
    pub number: u64,
    /// Login of who opened it.
    pub author: String,
    /// Full hash of the head.
    pub head: String,
    /// Where the base repository has the head.
    pub head_ref: String,
    /// Branch it is merged onto.
    pub base_branch: String,
    /// That branch's commit as the forge named it.
    pub base_commit: String,
}

/// An evaluation that there should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Branch or tag; `pull/7` for a pull request.
    pub branch: String,
    /// Full hash; of a pull request its head.
    pub commit: String,
    /// First line of the commit's message, or the pull request's title.
    pub title: Option<String>,
    /// Its author.
    pub author: Option<String>,
    /// `branch` is a tag.
    pub is_tag: bool,
    /// It takes the place of older ones of its branch.
    pub supersede: bool,
    /// Of a pull request.
    pub pull_request: Option<PullRequestCommits>,
}

impl Wanted {
    /// What makes no sense in what a forge said: hashes go to git, names into its refs.
    pub fn flaw(&self) -> Option<&'static str> {
        let pull = self.pull_request.as_ref();
        let names = [Some(&self.branch), pull.map(|p| &p.base_branch), pull.map(|p| &p.head_ref)];
        if !git::is_commit(&self.commit) {
            Some("the commit is not a full hash")
        } else if pull.is_some_and(|pull| !git::is_commit(&pull.base_commit)) {
            Some("the base's commit is not a full hash")
        } else if names.into_iter().flatten().any(|name| git::check_ref_name(name).is_err()) {
            Some("a ref's name is none that git allows")
        } else {
            None
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// There shall be an evaluation.
    Evaluate(Box<Wanted>),
    /// The evaluations of this branch or tag are of no interest any more.
    CloseBranch {
        /// Name.
        branch: String,
        /// It is a tag.
        is_tag: bool,
    },
    /// The pull request is closed, and so are its evaluations.
    ClosePullRequest,
}

/// What is to be done, and a sentence about it for the list of deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// At most one thing.
    pub action: Option<Action>,
    /// What was decided and why.
    pub reason: String,
    /// Of a pull request that is not evaluated now: why, for its page.
    pub waiting: Option<&'static str>,
}

impl Decision {
    fn nothing(reason: String) -> Self {
        Self { action: None, reason, waiting: None }
    }

    fn doing(action: Action, reason: String) -> Self {
        Self { action: Some(action), reason, waiting: None }
    }
}

/// Whether a push matters, before the forge is asked anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushInterest {
    /// A branch: ask for its head, then [`push`].
    Branch(BranchClass),
    /// A branch that is not evaluated is gone; evaluations of it there may be, from when it was.
    Leftovers,
    /// A tag: [`tag`]. The forge need not be asked.
    Tag,
    /// Nothing to do, and why.
    Nothing(String),
}

/// Whether a push matters.
pub fn push_interest(push: &Push, rules: &ProjectRules) -> PushInterest {
    match &push.reference {
        Reference::Tag(_) if rules.build_tags || push.deleted => PushInterest::Tag,
        Reference::Tag(name) => PushInterest::Nothing(["tag ", name, ": the project does not build tags"].concat()),
        Reference::Branch(name) => match rules.branches.class(name) {
            BranchClass::Other if push.deleted => PushInterest::Leftovers,
            BranchClass::Other => {
                let text = ["branch ", name, " is neither the default branch nor one that the project builds"];
                PushInterest::Nothing(text.concat())
            }
            class => PushInterest::Branch(class),
        },
    }
}

/// What a push to a branch means, given where the branch is now.
///
/// The head is evaluated, also when it is another commit than the one pushed: then this delivery is late, and evaluating
/// what it tells of would cancel what is newer. A merge queue's states are evaluated each for itself.
pub fn push(push: &Push, branch: &str, class: BranchClass, head: &Head) -> Decision {
    let pushed = Wanted {
        branch: branch.to_owned(),
        commit: push.commit.clone(),
        title: title(&push.message),
        author: author(&push.author),
        is_tag: false,
        supersede: class.supersedes(),
        pull_request: None,
    };
    match head {
        Head::Gone => close(branch, false, "the branch is gone"),
        Head::Unknown if push.deleted => close(branch, false, "the branch was deleted"),
        Head::At(_) if push.deleted => {
            Decision::nothing(["branch ", branch, " was deleted and is there again"].concat())
        }
        Head::At(now) if now.commit != push.commit && class.supersedes() => Decision::doing(
            Action::Evaluate(Box::new(Wanted {
                commit: now.commit.clone(),
                title: title(&now.message),
                author: author(&now.author),
                ..pushed
            })),
            ["branch ", branch, " is at ", &now.commit, " by now, not at ", &push.commit].concat(),
        ),
        Head::At(_) | Head::Unknown => {
            Decision::doing(Action::Evaluate(Box::new(pushed)), ["branch ", branch, " at ", &push.commit].concat())
        }
    }
}

/// What a tag that moved means.
pub fn tag(push: &Push, name: &str) -> Decision {
    if push.deleted {
        return close(name, true, "the tag was deleted");
    }
    let wanted = Wanted {
        branch: name.to_owned(),
        commit: push.commit.clone(),
        title: title(&push.message),
        author: author(&push.author),
        is_tag: true,
        supersede: true,
        pull_request: None,
    };
    Decision::doing(Action::Evaluate(Box::new(wanted)), ["tag ", name, " at ", &push.commit].concat())
}

/// What a merge queue's candidate means, given where its branch is now. Its head commit is evaluated as a branch; the push
/// of that branch asks for the same.
pub fn merge_group(group: &MergeGroup, head: &Head) -> Decision {
    let branch = &group.branch;
    if group.destroyed {
        return close(branch, false, "the merge group is gone");
    }
    let (message, name) = match head {
        Head::Gone => return close(branch, false, "the branch of the merge group is gone"),
        Head::At(now) if now.commit == group.commit => (now.message.as_str(), now.author.as_str()),
        Head::At(_) | Head::Unknown => ("", ""),
    };
    let wanted = Wanted {
        branch: branch.clone(),
        commit: group.commit.clone(),
        title: title(message),
        author: author(name),
        is_tag: false,
        supersede: false,
        pull_request: None,
    };
    Decision::doing(
        Action::Evaluate(Box::new(wanted)),
        ["merge group ", branch, " at ", &group.commit, " for ", &group.base_branch].concat(),
    )
}

/// On whose permission the decision about a pull request to `base` depends: it is trusted for the least of theirs. Nobody:
/// whatever they may do, the decision is that of no known permission.
pub fn whom_to_ask<'a>(
    now: &'a PullRequest,
    base: &RepositoryRef,
    rules: &ProjectRules,
    is_approved: bool,
) -> Vec<&'a str> {
    let decide = |permission| pull_request(now, rules, permission, is_approved);
    if decide(None) == decide(Some(Permission::Admin)) {
        return Vec::new();
    }
    head_movers(now, base).unwrap_or_default()
}

/// What a pull request as it is now means. `movers_permission`: the least of those of [`whom_to_ask`].
pub fn pull_request(
    now: &PullRequest,
    rules: &ProjectRules,
    movers_permission: Option<Permission>,
    is_approved: bool,
) -> Decision {
    let number = now.number.to_string();
    if !now.is_open {
        return Decision::doing(Action::ClosePullRequest, ["pull request ", &number, " is closed"].concat());
    }
    let question = Question {
        pr_enabled: rules.pr_enabled,
        trust: rules.pr_trust,
        build_drafts: rules.build_drafts,
        is_draft: now.is_draft,
        movers_permission,
        is_approved,
    };
    let head = ["pull request ", &number, " at ", &now.head_commit].concat();
    match decide(&question) {
        TrustDecision::Run => {
            let base = [&head, " onto ", &now.base_branch].concat();
            Decision::doing(Action::Evaluate(Box::new(wanted_of(now))), base)
        }
        TrustDecision::Wait(reason) | TrustDecision::Ignore(reason) => {
            Decision { action: None, reason: [&head, ": ", reason].concat(), waiting: Some(reason) }
        }
    }
}

/// The evaluation of a pull request's head, merged onto its base.
pub fn wanted_of(now: &PullRequest) -> Wanted {
    Wanted {
        branch: pull_request_branch(now.number),
        commit: now.head_commit.clone(),
        title: title(&now.title),
        author: author(&now.author),
        is_tag: false,
        supersede: true,
        pull_request: Some(PullRequestCommits {
            number: now.number,
            author: now.author.clone(),
            head: now.head_commit.clone(),
            head_ref: now.head_ref.clone(),
            base_branch: now.base_branch.clone(),
            base_commit: now.base_commit.clone(),
        }),
    }
}

/// What evaluations of a pull request have for a branch.
pub fn pull_request_branch(number: u64) -> String {
    ["pull/", &number.to_string()].concat()
}

/// What somebody who presses "Re-run" gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rerun {
    /// A new attempt at the evaluation.
    Evaluate,
    /// Its failed builds are built again.
    Rebuild,
    /// Nothing, and why.
    Nothing(&'static str),
}

/// What re-running a status means for an evaluation in this state. `context` is that of the status, `None` all of the
/// commit's. What failed is done again; a good evaluation only when its own status is re-run.
pub fn rerun(context: Option<&str>, user_permission: Option<Permission>, status: EvalStatus) -> Rerun {
    if !user_permission.is_some_and(may_push) {
        return Rerun::Nothing("only somebody who may push to the repository runs it again");
    }
    let of_evaluation = context.is_some_and(|context| context.ends_with("nix-eval"));
    match status {
        EvalStatus::Queued | EvalStatus::Running => Rerun::Nothing("it has not ended yet"),
        EvalStatus::Failed | EvalStatus::Cancelled => Rerun::Evaluate,
        EvalStatus::Succeeded | EvalStatus::Skipped if of_evaluation => Rerun::Evaluate,
        EvalStatus::Succeeded | EvalStatus::Skipped => Rerun::Rebuild,
    }
}

fn close(branch: &str, is_tag: bool, reason: &str) -> Decision {
    let kind = if is_tag { "tag " } else { "branch " };
    Decision::doing(Action::CloseBranch { branch: branch.to_owned(), is_tag }, [kind, branch, ": ", reason].concat())
}

/// The first line of a message, as much as is shown.
fn title(message: &str) -> Option<String> {
    one_line(message, TITLE_CHARS_MAX)
}

fn author(name: &str) -> Option<String> {
    one_line(name, AUTHOR_CHARS_MAX)
}

#[cfg(test)]
mod tests;
