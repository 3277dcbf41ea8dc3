//! What a forge is to show of a commit, and what people are told of it, computed from rows: start at [`desired`].
//!
//! A [`CommitReport`] is everything that one transaction read of a commit. [`desired`] makes it the statuses that should
//! be there, [`notifications`] what reporters have not been told yet, [`delivery`] what follows an answer. Nothing here
//! remembers anything: whoever computes later, from the same rows, comes to the same result.

mod annotations;
mod attributes;
mod dead_letter;
pub mod delivery;
mod describe;
mod evaluation;
mod notifications;
mod summary;
mod verdict;

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::api::{AttrState, Verdict};
use crate::clock::Timestamp;
use crate::foreign_text::is_unshown;
use crate::forge::{Annotation, CommitStatus, RepositoryRef, StatusState};
use crate::ids::{EvalId, JobId};
use crate::state::{EvalStatus, FailureKind};

pub use dead_letter::{DeadLetter, DeadLetterKind, ParseDeadLetterKindError};
pub use describe::DESCRIPTION_CHARS_MAX;
pub use notifications::{NewNotifications, Notified, notifications};
pub use verdict::{Facts, verdict};

/// Failed attributes that a report brings along, of each evaluation. What a summary can list.
pub const FAILURES_MAX: usize = 50;
/// Longest context, in bytes: forges keep them in a column.
pub const CONTEXT_BYTES_MAX: usize = 200;
/// Longest prefix of contexts, in bytes.
pub const PREFIX_BYTES_MAX: usize = 64;

/// How statuses look on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusOptions {
    /// What every context begins with, unless the project says otherwise.
    pub prefix: String,
    /// Most failed attributes of a commit that get a status of their own.
    pub failed_attrs_max: usize,
    /// URL of this server as people see it.
    pub public_url: String,
}

impl StatusOptions {
    /// The usual names, with pages at this URL.
    pub fn new(public_url: &str) -> Self {
        Self {
            prefix: "harmonia-ci".to_owned(),
            failed_attrs_max: 25,
            public_url: public_url.trim_end_matches('/').to_owned(),
        }
    }

    fn evaluation_url(&self, report: &CommitReport, id: EvalId) -> String {
        format!("{}/ci/{}/eval/{id}", self.public_url, report.project)
    }

    fn build_url(&self, report: &CommitReport, id: JobId) -> String {
        format!("{}/ci/{}/build/{id}", self.public_url, report.project)
    }

    /// The page that says most about a failed attribute.
    fn failure_url(&self, report: &CommitReport, evaluation: &EvaluationReport, attr: &AttrReport) -> String {
        match attr.job {
            Some(job) => self.build_url(report, job),
            None => self.evaluation_url(report, evaluation.id),
        }
    }
}

/// Everything known of one commit of one project, read in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// The project's name.
    pub project: String,
    /// Full hash; empty when an evaluation never learned it.
    pub commit: String,
    /// The project's own prefix of contexts.
    pub prefix: Option<String>,
    /// Evaluations of the commit, newest first.
    pub evaluations: Vec<EvaluationReport>,
    /// Open pull requests with this head that nobody may run yet.
    pub waiting: Vec<WaitingPullRequest>,
    /// Statuses that the commit has already.
    pub shown: Vec<ShownStatus>,
}

/// One evaluation of the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationReport {
    /// Its id.
    pub id: EvalId,
    /// Branch, or what stands for it with a pull request.
    pub branch: String,
    /// `branch` is a tag.
    pub is_tag: bool,
    /// Number of the pull request.
    pub pull_request: Option<u64>,
    /// What its verdict depends on.
    pub facts: Facts,
    /// Which evaluation replaced it.
    pub superseded_by: Option<EvalId>,
    /// Its branch or pull request is gone.
    pub is_closed: bool,
    /// Which evaluation of the same tree it stands for.
    pub reuses: Option<EvalId>,
    /// Why it failed, was skipped or cancelled.
    pub error: Option<String>,
    /// Why it is tried again later, while it is queued for that.
    pub deferred: Option<String>,
    /// Failed and dep-failed attributes whose cause is no fault of a derivation: infrastructure, or no node for it.
    pub infrastructure: u64,
    /// The first failed attributes, derivations' own failures first; at most [`FAILURES_MAX`].
    pub failed: Vec<AttrReport>,
    /// Attributes among those that have a status of their own already.
    pub shown: Vec<AttrReport>,
    /// Store path of its source tree, to find the repository's files in errors.
    pub source_path: Option<String>,
    /// First line of the commit message.
    pub title: Option<String>,
    /// The commit's author.
    pub author: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When an evaluator took it.
    pub started_at: Option<Timestamp>,
    /// When it ended (not its builds).
    pub finished_at: Option<Timestamp>,
    /// When the last of its attributes' jobs ended.
    pub builds_finished_at: Option<Timestamp>,
    /// What reporters were told of it.
    pub notified: Notified,
    /// Whether the evaluation before it on its branch failed; `None`: there was none, or it never came to an end.
    pub failed_before: Option<bool>,
}

/// Where one attribute of an evaluation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttrReport {
    /// Attribute path, dotted.
    pub attr: String,
    /// Where it stands.
    pub state: AttrState,
    /// How its job, or the one it waits for, failed.
    pub kind: Option<FailureKind>,
    /// Name of the dependency that failed.
    pub dependency: Option<String>,
    /// Evaluation error or message of the build.
    pub message: Option<String>,
    /// Its job.
    pub job: Option<JobId>,
}

/// A pull request that waits for somebody's approval, or is a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPullRequest {
    /// Its number.
    pub number: u64,
    /// Why it waits, for people.
    pub reason: String,
}

/// A status that was computed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownStatus {
    /// Its context.
    pub context: String,
    /// Its attribute, when it is one's own.
    pub attr: Option<String>,
    /// Its state.
    pub state: StatusState,
}

/// A status that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredStatus {
    /// `harmonia-ci/nix-build`.
    pub context: String,
    /// The attribute that it is about.
    pub attr: Option<String>,
    /// State.
    pub state: StatusState,
    /// One line of at most [`DESCRIPTION_CHARS_MAX`] characters.
    pub description: String,
    /// Page with details.
    pub target_url: Option<String>,
    /// Markdown.
    pub summary: String,
    /// Remarks in files.
    pub annotations: Vec<Annotation>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl DesiredStatus {
    /// SHA-256 over all that a forge shows of it. Two statuses with the same digest need to be sent once.
    pub fn digest(&self) -> [u8; 32] {
        let time = |at: Option<Timestamp>| at.map_or_else(String::new, |at| at.unix_timestamp_nanos().to_string());
        let annotations = serde_json::to_string(&self.annotations).unwrap_or_default();
        let mut hasher = Sha256::new();
        for part in [
            self.state.as_str(),
            &self.description,
            self.target_url.as_deref().unwrap_or_default(),
            &self.summary,
            &annotations,
            &time(self.started_at),
            &time(self.finished_at),
        ] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().into()
    }

    /// As a forge takes it.
    pub fn into_commit_status(self, repository: RepositoryRef, commit: String) -> CommitStatus {
        CommitStatus {
            repository,
            commit,
            context: self.context,
            state: self.state,
            description: self.description,
            target_url: self.target_url,
            summary: self.summary,
            annotations: self.annotations,
            started_at: self.started_at,
            finished_at: self.finished_at,
        }
    }
}

/// What a context is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusContext {
    /// The evaluation.
    Evaluation,
    /// All its builds.
    Builds,
    /// One attribute (its name may be cut, see [`CONTEXT_BYTES_MAX`]).
    Attribute(String),
}

impl StatusContext {
    /// The context's text under a prefix.
    pub fn name(&self, prefix: &str) -> String {
        match self {
            Self::Evaluation => format!("{prefix}/nix-eval"),
            Self::Builds => format!("{prefix}/nix-build"),
            Self::Attribute(attr) => {
                let shown: String = attr.chars().filter(|c| !is_unshown(*c)).collect();
                let name = format!("{prefix}/nix-build/{shown}");
                if name.len() <= CONTEXT_BYTES_MAX && shown.len() == attr.len() {
                    return name;
                }
                // Two names that are shown alike, or begin alike and are long, must not become one context.
                let digest = hex_of(&Sha256::digest(attr.as_bytes())[..4]);
                let end = name.floor_char_boundary(CONTEXT_BYTES_MAX - digest.len() - '…'.len_utf8());
                format!("{}…{digest}", &name[..end])
            }
        }
    }

    /// Reads a context that was written under this prefix.
    pub fn parse(prefix: &str, context: &str) -> Option<Self> {
        let rest = context.strip_prefix(prefix)?;
        match rest {
            "/nix-eval" => Some(Self::Evaluation),
            "/nix-build" => Some(Self::Builds),
            rest => rest.strip_prefix("/nix-build/").map(|attr| Self::Attribute(attr.to_owned())),
        }
    }
}

fn hex_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl EvaluationReport {
    /// Neither replaced, closed nor cancelled: what it says counts.
    fn stands(&self) -> bool {
        self.is_current()
            && self.facts.status != EvalStatus::Cancelled
            && (self.facts.status != EvalStatus::Skipped || self.facts.is_reuse)
    }

    /// Of which branch, tag or pull request it is: those of one name are different things.
    fn reference(&self) -> (&str, bool, Option<u64>) {
        (&self.branch, self.is_tag, self.pull_request)
    }

    /// It is the present one of its branch, tag or pull request, however it ended.
    fn is_current(&self) -> bool {
        self.superseded_by.is_none() && !self.is_closed
    }

    /// What it and its builds amount to.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.facts)
    }

    /// Whether its attributes are known and stay.
    fn has_attributes(&self) -> bool {
        match self.facts.status {
            EvalStatus::Succeeded => true,
            EvalStatus::Skipped => self.facts.is_reuse,
            EvalStatus::Queued | EvalStatus::Running | EvalStatus::Failed | EvalStatus::Cancelled => false,
        }
    }
}

/// The evaluations whose word counts: of each branch, tag and pull request the newest, if it stands; when none does, the
/// newest of all.
fn authoritative(report: &CommitReport) -> Vec<&EvaluationReport> {
    let mut newest = BTreeMap::new();
    for evaluation in &report.evaluations {
        let entry = newest.entry(evaluation.reference()).or_insert(evaluation);
        if evaluation.id > entry.id {
            *entry = evaluation;
        }
    }
    let standing: Vec<_> = newest.values().copied().filter(|evaluation| evaluation.stands()).collect();
    if standing.is_empty() {
        return newest.into_values().max_by_key(|evaluation| evaluation.id).into_iter().collect();
    }
    standing
}

/// The pull request that says why it waits, of those with this head that nobody may run yet: the one of the lowest number,
/// and only while the commit has no present evaluation. Anybody can open a pull request with the head of another one; that
/// must not take away what the other one came to.
fn waiting(report: &CommitReport) -> Option<&WaitingPullRequest> {
    if authoritative(report).iter().any(|evaluation| evaluation.is_current()) {
        return None;
    }
    report.waiting.iter().min_by_key(|waiting| waiting.number)
}

/// Statuses by context; of two for the same context the worse stays, and of equals the one of the newer evaluation.
#[derive(Default)]
struct Worst(BTreeMap<String, ((StatusState, Option<EvalId>), DesiredStatus)>);

impl Worst {
    fn add(&mut self, by: Option<EvalId>, status: DesiredStatus) {
        let rank = (status.state, by);
        match self.0.get(&status.context) {
            Some((there, _)) if *there >= rank => {}
            _ => drop(self.0.insert(status.context.clone(), (rank, status))),
        }
    }

    fn has(&self, context: &str) -> bool {
        self.0.contains_key(context)
    }
}

/// The statuses that should be there. A status that is shown and not among them stays as it is.
pub fn desired(report: &CommitReport, options: &StatusOptions) -> Vec<DesiredStatus> {
    let prefix = report.prefix.as_deref().unwrap_or(&options.prefix);
    let view = View { report, options, prefix };
    let authoritative = authoritative(report);
    let mut worst = Worst::default();
    match waiting(report) {
        // What is past says nothing of a pull request that was opened since.
        Some(waiting) => worst.add(None, view.waiting_status(waiting)),
        None => {
            for evaluation in &authoritative {
                worst.add(Some(evaluation.id), view.evaluation_status(evaluation));
            }
        }
    }
    let builds: Vec<_> = authoritative.iter().map(|evaluation| (*evaluation, view.builds_status(evaluation))).collect();
    let context = StatusContext::Builds.name(prefix);
    let is_shown = report.shown.iter().any(|shown| shown.context == context);
    let somebody_speaks = is_shown || builds.iter().any(|(_, status)| status.is_some());
    for (evaluation, status) in builds {
        // Who has not come so far must not be outvoted by another one's green.
        let status = status.or_else(|| somebody_speaks.then(|| view.builds_to_come(evaluation)));
        if let Some(status) = status {
            worst.add(Some(evaluation.id), status);
        }
    }
    attributes::add(&view, &authoritative, &mut worst);
    for shown in &report.shown {
        let is_ours = StatusContext::parse(prefix, &shown.context).is_some();
        if is_ours && shown.state == StatusState::Pending && !worst.has(&shown.context) {
            worst.add(None, view.abandoned(shown, authoritative.first().copied()));
        }
    }
    worst.0.into_values().map(|(_, status)| status).collect()
}

/// Whether nothing is under way that would change the statuses by itself.
pub fn is_settled(report: &CommitReport) -> bool {
    waiting(report).is_none() && authoritative(report).iter().all(|evaluation| evaluation.verdict() != Verdict::Running)
}

/// What the parts of this module look at together.
struct View<'a> {
    report: &'a CommitReport,
    options: &'a StatusOptions,
    prefix: &'a str,
}

impl View<'_> {
    /// A status without details yet.
    fn status(&self, context: &StatusContext, state: StatusState, description: &str) -> DesiredStatus {
        let attr = match context {
            StatusContext::Attribute(attr) => Some(attr.clone()),
            StatusContext::Evaluation | StatusContext::Builds => None,
        };
        DesiredStatus {
            context: context.name(self.prefix),
            attr,
            state,
            description: describe::line(description),
            target_url: None,
            summary: String::new(),
            annotations: Vec::new(),
            started_at: None,
            finished_at: None,
        }
    }
}

#[cfg(test)]
mod tests;
