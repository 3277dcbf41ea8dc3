//! Pure checks of what strangers ask for: [`NewEvaluation`] in, [`CheckedEvaluation`] out. Everything behind this module
//! may rely on names, hashes and URLs being well-formed and bounded.

use harmonia_core::api::{NewEvaluation, Source};
use harmonia_core::foreign_text::{is_unshown, one_line};
use harmonia_core::git::{self, ASKED_SCHEMES, RefNameFlaw, UrlFlaw};
use harmonia_core::limits::ATTR_BYTES_MAX;
use harmonia_core::project_name;
use harmonia_core::without_credentials;
use url::Url;

pub mod projects;

/// Most flake output prefixes of one request.
const ATTRS_MAX: usize = 1_000;
/// Title and author are for display: longer ones are cut, in characters.
const DISPLAY_CHARS_MAX: usize = 300;

/// A request that was found to be in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedEvaluation {
    /// Project name.
    pub project: String,
    /// Where the commit comes from.
    pub source: Source,
    /// Full commit hash, lower case.
    pub commit: Option<String>,
    /// Branch; `None`: the one that the remote's HEAD names.
    pub branch: Option<String>,
    /// Flake output prefixes.
    pub attrs: Option<Vec<String>>,
    /// Uncommitted changes.
    pub dirty: bool,
    /// First line of the commit message, cut.
    pub title: Option<String>,
    /// Author, cut.
    pub author: Option<String>,
}

/// What is wrong with a request, for the one who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvaluation {
    /// See the text.
    #[error(
        "project name '{0}' is not allowed: 1 to 6 parts of letters, digits, '.', '_', '-' with '/' between, not beginning with '.' or '-', at most 200 bytes"
    )]
    Project(String),
    /// A name that would hide a page.
    #[error("project name '{0}' is not allowed: its first part is the name of a page; use another, such as local/{0}")]
    ProjectReserved(String),
    /// As `git check-ref-format` sees it.
    #[error(transparent)]
    Branch(#[from] RefNameFlaw),
    /// A bundle has no HEAD that we could go by.
    #[error("a bundle needs the branch that its commit is on: 'branch' is missing")]
    BranchMissing,
    /// Neither 40 nor 64 hexadecimal digits.
    #[error("commit '{0}' is not a full commit hash (40 or 64 hexadecimal digits)")]
    Commit(String),
    /// A bundle may hold many commits.
    #[error("a bundle needs the commit to evaluate: 'commit' is missing")]
    CommitMissing,
    /// No row has such an id.
    #[error("{0} is not the id of a bundle: send it first with POST /api/v1/bundles")]
    Bundle(i64),
    /// Scheme, host or form.
    #[error("git URL '{url}' is not allowed: {flaw}")]
    Url {
        /// The URL, cut.
        url: String,
        /// Why.
        flaw: UrlFlaw,
    },
    /// An empty list asks for nothing.
    #[error(
        "'attrs' is empty: leave it out for the project's own choice, or name flake outputs such as checks.x86_64-linux"
    )]
    AttrsEmpty,
    /// Too many.
    #[error("'attrs' has more than 1000 entries")]
    AttrsTooMany,
    /// One of them.
    #[error("attribute '{0}' is not allowed: 1 to 1024 bytes without control characters")]
    Attr(String),
}

/// Checks and normalises a request.
pub fn check(new: NewEvaluation) -> Result<CheckedEvaluation, InvalidEvaluation> {
    check_project(&new.project)?;
    // That is what HEAD means of a URL, whoever asks.
    let branch = new.branch.filter(|branch| branch != "HEAD" || !matches!(new.source, Source::Git { .. }));
    branch.as_deref().map_or(Ok(()), git::check_ref_name)?;
    let commit = new.commit.as_deref().map(check_commit).transpose()?;
    match &new.source {
        Source::Bundle { bundle } if *bundle <= 0 => return Err(InvalidEvaluation::Bundle(*bundle)),
        Source::Bundle { .. } if commit.is_none() => return Err(InvalidEvaluation::CommitMissing),
        Source::Bundle { .. } if branch.is_none() => return Err(InvalidEvaluation::BranchMissing),
        Source::Bundle { .. } => {}
        Source::Git { url } => drop(check_git_url(url)?),
    }
    if let Some(attrs) = &new.attrs {
        check_attrs(attrs)?;
    }
    Ok(CheckedEvaluation {
        project: new.project,
        source: new.source,
        commit,
        branch,
        attrs: new.attrs,
        dirty: new.dirty,
        title: new.title.as_deref().and_then(for_display),
        author: new.author.as_deref().and_then(for_display),
    })
}

/// Names are parts of addresses and of file names of tools: a plain alphabet.
pub fn check_project(name: &str) -> Result<(), InvalidEvaluation> {
    let first = name.split('/').next().unwrap_or_default();
    if project_name::is_valid(name) {
        Ok(())
    } else if project_name::RESERVED.contains(&first) {
        Err(InvalidEvaluation::ProjectReserved(shorten(name)))
    } else {
        Err(InvalidEvaluation::Project(shorten(name)))
    }
}

fn check_commit(commit: &str) -> Result<String, InvalidEvaluation> {
    let lower = commit.to_ascii_lowercase();
    if git::is_commit(&lower) { Ok(lower) } else { Err(InvalidEvaluation::Commit(shorten(commit))) }
}

/// What git may be told to fetch from; shown on pages, so without credentials.
pub fn check_git_url(text: &str) -> Result<Url, InvalidEvaluation> {
    git::check_url(text, ASKED_SCHEMES)
        .map_err(|flaw| InvalidEvaluation::Url { url: shorten(&without_credentials(text)), flaw })
}

fn check_attrs(attrs: &[String]) -> Result<(), InvalidEvaluation> {
    if attrs.is_empty() {
        return Err(InvalidEvaluation::AttrsEmpty);
    }
    if attrs.len() > ATTRS_MAX {
        return Err(InvalidEvaluation::AttrsTooMany);
    }
    let is_good = |attr: &str| !attr.is_empty() && attr.len() <= ATTR_BYTES_MAX && !attr.chars().any(char::is_control);
    match attrs.iter().find(|attr| !is_good(attr)) {
        Some(bad) => Err(InvalidEvaluation::Attr(shorten(bad))),
        None => Ok(()),
    }
}

/// First line, without what is unshown, cut; `None` when nothing is left.
fn for_display(text: &str) -> Option<String> {
    one_line(text, DISPLAY_CHARS_MAX)
}

/// Keeps a refusal readable whatever was sent.
fn shorten(text: &str) -> String {
    let shown: String = text.chars().map(|c| if is_unshown(c) { '\u{fffd}' } else { c }).take(80).collect();
    if shown.chars().count() < text.chars().count() { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests;
