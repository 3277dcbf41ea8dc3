//! Git's words: hashes, names of branches and tags, URLs. The rules that the command line, validation, polling and the
//! evaluator share; what runs git is `worker/src/git.rs`. Start at [`check_ref_name`] and [`check_url`].

use url::Url;

use crate::foreign_text::is_unshown;
use crate::without_credentials;

/// Longest name of a branch or tag, in bytes. Git's own bound is that of a file's path.
pub const REF_NAME_BYTES_MAX: usize = 1024;
/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2_000;
/// What people may ask for.
pub const ASKED_SCHEMES: &[&str] = &["https", "ssh", "git", "file"];
/// What may be fetched: forges of one's own network speak plain HTTP, too.
pub const FETCHED_SCHEMES: &[&str] = &["https", "http", "ssh", "git", "file"];
/// Ref of a bundle to a text: the folder of the flake that its sender means, when that is not what the commit says.
pub const FLAKE_DIR_REF: &str = "refs/harmonia/flake-dir";
/// How much of something refused is shown, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// Why a text is not a name of a branch or tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is not a name that git allows for a branch or tag", shown(.0))]
pub struct RefNameFlaw(pub String);

/// Why a URL is not fetched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlFlaw {
    /// Too long.
    #[error("it is longer than 2000 bytes")]
    TooLong,
    /// URL parsers drop tabs and line ends silently; git would see them.
    #[error("it contains blanks, control or non-ASCII characters")]
    Characters,
    /// Not a URL at all.
    #[error("it is no URL (scheme://host/path)")]
    NoUrl,
    /// Local files, or a transport that runs programs.
    #[error(
        "its scheme is none of those that are allowed here (https://, ssh://, git://, file:// where the operator allows it)"
    )]
    Scheme,
    /// A repository of the machine that fetches.
    #[error("it is a repository of this machine, which eval.allow_file_urls does not allow here")]
    OwnMachine,
    /// URLs are shown, kept, and handed to programs.
    #[error("it contains credentials, which would be shown on pages")]
    Credentials,
    /// ssh would read it as an option.
    #[error("its user or host begins with a dash")]
    Dash,
    /// `file://host/x`.
    #[error("file:// takes an absolute path and no host")]
    FileHost,
    /// Nobody to ask.
    #[error("it has no host")]
    NoHost,
    /// A server, and nothing on it.
    #[error("it has no path")]
    NoPath,
}

/// The rules of `git check-ref-format refs/heads/<name>`, and no dash at the beginning (it would be read as an option).
pub fn check_ref_name(name: &str) -> Result<(), RefNameFlaw> {
    let is_bad_byte = |byte: u8| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte);
    // Case matters to git: `.LOCK` is allowed.
    let is_good_part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    let is_name = !name.is_empty()
        && name.len() <= REF_NAME_BYTES_MAX
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.bytes().any(is_bad_byte)
        && name.split('/').all(is_good_part);
    if is_name { Ok(()) } else { Err(RefNameFlaw(name.to_owned())) }
}

/// Whether a text is a full commit hash as git prints it: SHA-1 or SHA-256, lower case.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether git may be told to fetch from there. `schemes` are those allowed; `file` among them means that repositories
/// of this machine are.
pub fn check_url(text: &str, schemes: &[&str]) -> Result<Url, UrlFlaw> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlFlaw::TooLong);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UrlFlaw::Characters);
    }
    let url = Url::parse(text).map_err(|_| UrlFlaw::NoUrl)?;
    // What the parser forgives ("https:host/x") git reads as something else.
    if !text
        .get(..url.scheme().len() + 3)
        .is_some_and(|start| start.eq_ignore_ascii_case(&format!("{}://", url.scheme())))
    {
        return Err(UrlFlaw::Scheme);
    }
    if !schemes.contains(&url.scheme()) {
        return Err(if url.scheme() == "file" { UrlFlaw::OwnMachine } else { UrlFlaw::Scheme });
    }
    if url.password().is_some() || (url.scheme() != "ssh" && !url.username().is_empty()) {
        return Err(UrlFlaw::Credentials);
    }
    let has_dash = |text: &str| text.starts_with('-') || text.to_ascii_lowercase().starts_with("%2d");
    let host = url.host_str().unwrap_or_default();
    if has_dash(url.username()) || has_dash(host) {
        return Err(UrlFlaw::Dash);
    }
    let is_file = url.scheme() == "file";
    if is_file != host.is_empty() {
        return Err(if is_file { UrlFlaw::FileHost } else { UrlFlaw::NoHost });
    }
    if url.path().len() < 2 {
        return Err(UrlFlaw::NoPath);
    }
    Ok(url)
}

/// A location as people type it: a URL, its branch behind `#`. `None`: it is a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Where the repository is.
    pub url: String,
    /// `None`: the one that the remote's HEAD names.
    pub branch: Option<String>,
}

/// Why a location is no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationFlaw {
    /// The part before `#`.
    #[error("git URL '{}' is not allowed: {flaw}", shown(url))]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        flaw: UrlFlaw,
    },
    /// Nothing behind `#`.
    #[error("'#' is followed by no branch: name one, or leave '#' out for the default branch")]
    NoBranch,
    /// The part behind `#`.
    #[error(transparent)]
    Branch(#[from] RefNameFlaw),
}

/// Takes apart `[git+]scheme://…[#branch]`. Everything behind the first `#` is the branch, whatever is in it; `HEAD` is the
/// remote's HEAD.
pub fn parse_location(text: &str) -> Result<Option<Location>, LocationFlaw> {
    let (url, branch) = text.split_once('#').map_or((text, None), |(url, branch)| (url, Some(branch)));
    let url = url.strip_prefix("git+").unwrap_or(url);
    if !url.contains("://") {
        return Ok(None);
    }
    check_url(url, ASKED_SCHEMES).map_err(|flaw| LocationFlaw::Url { url: url.to_owned(), flaw })?;
    let branch = match branch {
        Some("") => return Err(LocationFlaw::NoBranch),
        Some("HEAD") | None => None,
        Some(branch) => {
            check_ref_name(branch)?;
            Some(branch.to_owned())
        }
    };
    Ok(Some(Location { url: url.to_owned(), branch }))
}

/// Where a submodule is that `.gitmodules` gives this URL, in a repository that was fetched from `origin`: `./` and `../`
/// are relative to that, as in git-submodule(1). `None`: it climbs out of the server.
pub fn submodule_url(origin: &Url, written: &str) -> Option<String> {
    if !is_relative(written) {
        return Some(written.to_owned());
    }
    let mut parts: Vec<&str> = origin.path().trim_matches('/').split('/').collect();
    let mut rest = written;
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            parts.pop()?;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            break;
        }
    }
    let mut url = origin.clone();
    let path = parts.into_iter().chain(rest.split('/')).collect::<Vec<_>>().join("/");
    url.set_path(path.trim_end_matches('/'));
    Some(url.to_string())
}

/// Whether a submodule's URL depends on where its repository was cloned from.
pub fn is_relative(written: &str) -> bool {
    written.starts_with("./") || written.starts_with("../")
}

/// The way by which anybody may fetch what this URL names over ssh as the user `git` (`git@host:owner/x`, or with
/// `ssh://`), if it is on the server of `origin`, which is asked over http(s): forges have the same paths for both.
pub fn over_http(origin: &Url, written: &str) -> Option<String> {
    let host = origin.host_str().filter(|_| matches!(origin.scheme(), "https" | "http"))?;
    let path = match written.strip_prefix("ssh://git@").or_else(|| written.strip_prefix("git+ssh://git@")) {
        Some(rest) => rest.split_once('/').filter(|(server, _)| *server == host)?.1,
        None => written.strip_prefix("git@")?.split_once(':').filter(|(server, _)| *server == host)?.1,
    };
    let mut url = origin.clone();
    url.set_path(path.trim_start_matches('/'));
    Some(url.to_string())
}

/// Keeps a refusal readable whatever was sent.
fn shown(text: &str) -> String {
    let text = without_credentials(text);
    let shown: String =
        text.chars().map(|c| if is_unshown(c) { '\u{fffd}' } else { c }).take(SHOWN_CHARS_MAX).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests;
