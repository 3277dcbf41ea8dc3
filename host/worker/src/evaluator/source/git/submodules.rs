//! Submodules of a checkout, those of submodules too. Start at [`Submodules::fill`].
//!
//! What counts is what the commit has: an entry that is a submodule (a gitlink) whose address `.gitmodules` names. Each is
//! fetched into a mirror, as the repository itself is. What cannot be had stays empty, with a warning: a flake that reads
//! it does not evaluate, and most do not read it; so does what the egress proxy refuses (`crate::git::way`). What must not be had (of
//! this machine), or cannot because of how the commit
//! was sent, is an error that says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harmonia_core::git::{self, UrlFlaw};
use harmonia_core::without_credentials;
use url::Url;

use super::credential::Authorization;
use super::mirrors::{self, InUse};
use super::{FETCHED, Git, GitError, GitSources, no_commit, trouble};
use crate::git::Transports;
use crate::git::way::Way;

/// Most submodules of one checkout.
pub(super) const COUNT_MAX: usize = 300;
/// Submodules of submodules of …
pub(super) const DEPTH_MAX: usize = 10;
/// Most warnings.
const WARNINGS_MAX: usize = 30;
/// Where branches are fetched to when the server does not hand out commits by their hash.
const HEADS: &str = "+refs/heads/*:refs/fetched/heads/*";
const FROM_THIS_MACHINE: &str = "a submodule must not come from this machine; give it an address that others have, too";
const SENT_LOCALLY: &str = "its address is relative to where the repository was cloned from, and this commit was sent from a \
    local repository; evaluate the git URL, or give the submodule a whole address in .gitmodules";
const NOT_PROXIED: &str = "only http and https are fetched from servers other than the project's own; give it an https address \
    in .gitmodules";

/// How submodules are fetched.
pub(super) struct Submodules<'a> {
    pub(super) sources: &'a GitSources,
    pub(super) way: &'a Way,
    pub(super) transports: Transports,
    /// For those beside the repository.
    pub(super) of_owner: Option<&'a Authorization>,
    /// A server that is away is an error, to try again later.
    pub(super) waits: bool,
}

/// A commit whose submodules are to be filled in.
struct Place {
    /// Where it is checked out.
    dir: PathBuf,
    /// The same, for people.
    shown: String,
    repository: PathBuf,
    _in_use: Option<InUse>,
    commit: String,
    origin: Option<Url>,
    depth: usize,
}

/// A submodule as the commit has it.
#[derive(Debug, PartialEq, Eq)]
struct Gitlink {
    path: String,
    commit: String,
}

impl Submodules<'_> {
    /// Fills in the submodules of a commit of `repository` that is checked out at `dir`. `origin`: where it was fetched from.
    pub(super) async fn fill(
        &self,
        dir: &Path,
        repository: &Path,
        commit: &str,
        origin: Option<&Url>,
    ) -> Result<Vec<String>, GitError> {
        let failed = |cause| GitError::Directory { path: dir.to_owned(), cause };
        let dir = std::fs::canonicalize(dir).map_err(failed)?;
        let mut warnings = Vec::new();
        let mut count = 0;
        let mut places = vec![Place {
            dir,
            shown: String::new(),
            repository: repository.to_owned(),
            _in_use: None,
            commit: commit.to_owned(),
            origin: origin.cloned(),
            depth: 0,
        }];
        while let Some(place) = places.pop() {
            let (links, modules) = self.read(&place, &mut warnings).await?;
            for link in links {
                count += 1;
                if count > COUNT_MAX || place.depth >= DEPTH_MAX {
                    return Err(GitError::TooManySubmodules);
                }
                let shown = [place.shown.as_str(), &link.path].concat();
                let Some(written) = modules.get(&link.path) else {
                    warnings.push(format!("'{shown}' is a submodule that .gitmodules does not name: it stays empty"));
                    continue;
                };
                match self.one(&place, &link, written, &shown).await {
                    Ok(filled) => places.push(filled),
                    Err(Missing::Warn(why)) => {
                        let written = without_credentials(written);
                        warnings.push(format!("the submodule '{shown}' ({written}) stays empty: {why}"));
                    }
                    Err(Missing::Fail(error)) => return Err(error),
                }
            }
        }
        if warnings.len() > WARNINGS_MAX {
            let more = format!("{} more submodules stay empty", warnings.len() - WARNINGS_MAX);
            warnings.truncate(WARNINGS_MAX);
            warnings.push(more);
        }
        Ok(warnings)
    }

    /// The submodules of a commit, and what `.gitmodules` says: address by path.
    async fn read(
        &self,
        place: &Place,
        warnings: &mut Vec<String>,
    ) -> Result<(Vec<Gitlink>, BTreeMap<String, String>), GitError> {
        let git = self.git(&place.repository, None);
        let listed = ["ls-tree", "-r", "-z", "--full-tree", &place.commit];
        let entries = git.command("ls-tree").args(listed).records(0, COUNT_MAX + 2, entry).await?;
        let (mut links, mut has_modules) = (Vec::new(), false);
        for entry in entries {
            match entry {
                Entry::Link(link) => links.push(link),
                Entry::Modules => has_modules = true,
            }
        }
        if !has_modules {
            return Ok((links, BTreeMap::new()));
        }
        let blob = format!("{}:.gitmodules", place.commit);
        let keys = r"^submodule\..*\.(path|url)$";
        let said = git.run("config", ["config", "--no-includes", "--blob", &blob, "-z", "--get-regexp", keys]).await;
        let said = match said {
            Ok(said) => said,
            // Nothing of that name.
            Err(GitError::Failed { status: Some(1), message, .. }) if message.is_empty() => String::new(),
            Err(GitError::Failed { message, .. }) => {
                let line = message.split("bad config line ").nth(1).and_then(|rest| rest.split(' ').next());
                let problem = line.map_or(message.clone(), |line| format!("bad config line {line}"));
                let file = [place.shown.as_str(), ".gitmodules"].concat();
                warnings.push(format!("{file} cannot be read ({problem}): no submodule that it names is filled in"));
                String::new()
            }
            Err(error) => return Err(error),
        };
        Ok((links, addresses(&said)))
    }

    async fn one(&self, place: &Place, link: &Gitlink, written: &str, shown: &str) -> Result<Place, Missing> {
        let url = self.address(place, written, shown)?;
        // What others fetched with their credential is not found by who has none for it.
        let of_owner = self.of_owner.filter(|authorization| authorization.covers(&url));
        let mirror = self.sources.mirrors.enter(&mirrors::name(of_owner.is_some(), url.as_str())).await;
        let git = self.git(mirror.path(), of_owner);
        let fetching = mirror.fetching().await;
        git.prepare_mirror(Some(&link.commit)).await?;
        let fetched = git.fetch_submodule(url.as_str(), &link.commit).await;
        drop(fetching);
        match fetched {
            Err(GitError::Unavailable { server, message, retry_after }) if self.waits => {
                let message = format!("{message} (it has the submodule '{shown}')");
                return Err(Missing::Fail(GitError::Unavailable { server, message, retry_after }));
            }
            other => other?,
        }
        let dir = place.dir.join(&link.path);
        // Git made it a directory. Nothing on the way there is a symlink that a stranger's tree could have.
        let real = std::fs::canonicalize(&dir).is_ok_and(|real| real == dir);
        if !real {
            return Err(Missing::Warn("its folder is not there".to_owned()));
        }
        git.check_out(&dir, &link.commit).await?;
        Ok(Place {
            dir,
            shown: [shown, "/"].concat(),
            repository: mirror.path().to_owned(),
            _in_use: Some(mirror),
            commit: link.commit.clone(),
            origin: Some(url),
            depth: place.depth + 1,
        })
    }

    /// Where it is fetched from.
    fn address(&self, place: &Place, written: &str, shown: &str) -> Result<Url, Missing> {
        let refuse = |problem| {
            let (path, url) = (shown.to_owned(), without_credentials(written).chars().take(200).collect());
            Missing::Fail(GitError::Submodule { path, url, problem })
        };
        let whole = match &place.origin {
            Some(origin) => git::over_http(origin, written)
                .or_else(|| git::submodule_url(origin, written))
                .ok_or_else(|| Missing::Warn("its address leads out of its server".to_owned()))?,
            None if git::is_relative(written) => return Err(refuse(SENT_LOCALLY)),
            None => written.to_owned(),
        };
        let schemes: &[&str] = match self.transports {
            Transports::Http => &["https", "http"],
            _ => &["https", "http", "ssh", "git"],
        };
        match git::check_url(&whole, schemes) {
            // What goes around the proxy may go where the project itself is, and nowhere else.
            Ok(url) if matches!(url.scheme(), "ssh" | "git") && !self.way.is_own_server(&url) => {
                Err(Missing::Warn(NOT_PROXIED.to_owned()))
            }
            Ok(url) => Ok(url),
            Err(UrlFlaw::OwnMachine) => Err(refuse(FROM_THIS_MACHINE)),
            Err(_) if whole.starts_with('/') => Err(refuse(FROM_THIS_MACHINE)),
            Err(flaw) => Err(Missing::Warn(flaw.to_string())),
        }
    }

    fn git<'g>(&'g self, repository: &'g Path, authorization: Option<&'g Authorization>) -> Git<'g> {
        Git { program: &self.sources.git, repository, transports: self.transports, authorization, way: Some(self.way) }
    }
}

impl Git<'_> {
    async fn fetch_submodule(&self, url: &str, commit: &str) -> Result<(), GitError> {
        if self.has(commit).await {
            self.keep(commit).await?;
            return Ok(());
        }
        match self.fetch(url, &[&format!("+{commit}:{FETCHED}")]).await {
            Ok(()) => return self.keep(commit).await.map(drop),
            Err(error) if trouble::is_clearly_away(&error) => return Err(self.diagnosed(url, None, error).await),
            Err(_) => {}
        }
        if let Err(error) = self.fetch(url, &[HEADS]).await {
            return Err(self.diagnosed(url, Some(("HEAD", no_commit(Some(commit), "any"))), error).await);
        }
        let found = self.resolve(commit).await.ok_or_else(|| no_commit(Some(commit), "any"))?;
        self.keep(&found).await.map(drop)
    }
}

/// Why a submodule is not there.
enum Missing {
    /// Whoever needs it will see.
    Warn(String),
    Fail(GitError),
}

impl From<GitError> for Missing {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Start { .. } | GitError::Directory { .. } => Self::Fail(error),
            error => Self::Warn(harmonia_core::chain(&error)),
        }
    }
}

enum Entry {
    Link(Gitlink),
    Modules,
}

/// An entry of `ls-tree -z` that has to do with submodules.
fn entry(record: &[u8]) -> Option<Entry> {
    let record = std::str::from_utf8(record).ok()?;
    let (object, path) = record.split_once('\t')?;
    let mut words = object.split(' ');
    match (words.next()?, words.next()?, words.next()?) {
        ("160000", _, commit) => Some(Entry::Link(Gitlink { path: path.to_owned(), commit: commit.to_owned() })),
        // A symlink of that name is none of ours.
        (_, "blob", _) if path == ".gitmodules" && !object.starts_with("120000") => Some(Entry::Modules),
        _ => None,
    }
}

/// Addresses by path, out of `config -z`: `submodule.<name>.<key>\n<value>\0`.
fn addresses(said: &str) -> BTreeMap<String, String> {
    let (mut paths, mut urls) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in said.split('\0').filter_map(|entry| entry.split_once('\n')) {
        let Some((name, key)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else { continue };
        match key {
            "path" => paths.insert(name, value.trim_end_matches('/')),
            _ => urls.insert(name, value),
        };
    }
    let known = paths.iter().filter_map(|(name, path)| Some(((*path).to_owned(), (*urls.get(name)?).to_owned())));
    known.collect()
}

#[cfg(test)]
mod tests;
