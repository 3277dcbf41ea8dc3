//! Pure checks of what strangers ask for: [`NewEvaluation`] in, [`CheckedEvaluation`] out. Everything behind this module
//! may rely on names, hashes and URLs being well-formed and bounded.

use harmonia_core::api::{NewEvaluation, Source};
use harmonia_core::limits::ATTR_BYTES_MAX;
use harmonia_core::without_credentials;
use url::Url;

pub mod projects;

/// Longest project name, in bytes.
const PROJECT_BYTES_MAX: usize = 200;
/// Most parts of a project name (`forge/owner/group/name`).
const PROJECT_PARTS_MAX: usize = 6;
/// Longest branch name, in bytes (git's own bound comes from file names).
const BRANCH_BYTES_MAX: usize = 250;
/// Longest git URL, in bytes.
const URL_BYTES_MAX: usize = 2_000;
/// Most flake output prefixes of one request.
const ATTRS_MAX: usize = 1_000;
/// Title and author are for display: longer ones are cut, in characters.
const DISPLAY_CHARS_MAX: usize = 300;

/// First parts of project names that would hide a page under `/ci/`.
const RESERVED_NAMES: &[&str] = &["assets", "build", "eval", "events", "login", "nodes", "queue", "settings"];
/// What git may fetch from.
const URL_SCHEMES: &[&str] = &["file", "git", "https", "ssh"];

/// A request that was found to be in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedEvaluation {
    /// Project name.
    pub project: String,
    /// Where the commit comes from.
    pub source: Source,
    /// Full commit hash, lower case.
    pub commit: Option<String>,
    /// Branch.
    pub branch: String,
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
    #[error("branch name '{0}' is not one that git allows")]
    Branch(String),
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
    #[error("git URL '{url}' is not allowed: {reason}")]
    Url {
        /// The URL, cut.
        url: String,
        /// Why.
        reason: &'static str,
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
    if !is_branch_name(&new.branch) {
        return Err(InvalidEvaluation::Branch(shorten(&new.branch)));
    }
    let commit = new.commit.as_deref().map(check_commit).transpose()?;
    match &new.source {
        Source::Bundle { bundle } if *bundle <= 0 => return Err(InvalidEvaluation::Bundle(*bundle)),
        Source::Bundle { .. } if commit.is_none() => return Err(InvalidEvaluation::CommitMissing),
        Source::Bundle { .. } => {}
        Source::Git { url } => check_git_url(url)?,
    }
    if let Some(attrs) = &new.attrs {
        check_attrs(attrs)?;
    }
    Ok(CheckedEvaluation {
        project: new.project,
        source: new.source,
        commit,
        branch: new.branch,
        attrs: new.attrs,
        dirty: new.dirty,
        title: new.title.as_deref().and_then(for_display),
        author: new.author.as_deref().and_then(for_display),
    })
}

/// Names are parts of addresses and of file names of tools: a plain alphabet.
pub fn check_project(name: &str) -> Result<(), InvalidEvaluation> {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let parts = name.split('/');
    if name.len() > PROJECT_BYTES_MAX || parts.clone().count() > PROJECT_PARTS_MAX || !parts.clone().all(is_part) {
        return Err(InvalidEvaluation::Project(shorten(name)));
    }
    if parts.clone().next().is_some_and(|first| RESERVED_NAMES.contains(&first)) {
        return Err(InvalidEvaluation::ProjectReserved(shorten(name)));
    }
    Ok(())
}

/// The rules of `git check-ref-format refs/heads/<name>`, and no dash at the beginning (it would be read as an option).
pub fn is_branch_name(name: &str) -> bool {
    let is_bad_byte = |byte: u8| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte);
    // Case matters to git: `.LOCK` is allowed.
    let is_good_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    !name.is_empty()
        && name.len() <= BRANCH_BYTES_MAX
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.bytes().any(is_bad_byte)
        && name.split('/').all(is_good_part)
}

fn check_commit(commit: &str) -> Result<String, InvalidEvaluation> {
    let is_full = matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_full { Ok(commit.to_ascii_lowercase()) } else { Err(InvalidEvaluation::Commit(shorten(commit))) }
}

/// What git may be told to fetch from; shown on pages, so without credentials.
pub fn check_git_url(text: &str) -> Result<(), InvalidEvaluation> {
    let refuse = |reason| Err(InvalidEvaluation::Url { url: shorten(&without_credentials(text)), reason });
    if text.len() > URL_BYTES_MAX {
        return refuse("it is longer than 2000 bytes");
    }
    // The URL parser drops tabs and line ends silently; git would see them.
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("it contains blanks, control or non-ASCII characters");
    }
    let Ok(url) = Url::parse(text) else { return refuse("it is no URL (scheme://host/path)") };
    if !URL_SCHEMES.contains(&url.scheme()) || !text.to_ascii_lowercase().starts_with(&format!("{}://", url.scheme())) {
        return refuse("use https://, ssh://, git:// or file://");
    }
    if url.password().is_some() || (url.scheme() != "ssh" && !url.username().is_empty()) {
        return refuse("it contains credentials, which would be shown on pages");
    }
    if url.username().starts_with('-') || url.username().starts_with("%2d") || url.username().starts_with("%2D") {
        return refuse("its user begins with a dash");
    }
    match (url.scheme(), url.host_str().unwrap_or_default()) {
        ("file", host) if !host.is_empty() => return refuse("file:// takes an absolute path and no host"),
        ("file", _) => {}
        (_, "") => return refuse("it has no host"),
        // ssh would read it as an option.
        (_, host) if host.starts_with('-') || host.to_ascii_lowercase().starts_with("%2d") => {
            return refuse("its host begins with a dash");
        }
        _ => {}
    }
    if url.path().len() < 2 {
        return refuse("it has no path");
    }
    Ok(())
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

/// First line, without control characters, cut; `None` when nothing is left.
fn for_display(text: &str) -> Option<String> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let shown: String = line.trim().chars().filter(|c| !c.is_control()).take(DISPLAY_CHARS_MAX).collect();
    Some(shown).filter(|shown| !shown.is_empty())
}

/// Keeps a refusal readable whatever was sent.
fn shorten(text: &str) -> String {
    let shown: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(80).collect();
    if shown.chars().count() < text.chars().count() { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests;
