//! Where branches of plain git repositories are: `git ls-remote`, for the polling of projects without forge. Start at
//! [`GitRemoteHeads`].
//!
//! URL and branch are what an admin wrote, the answer is hostile: git runs as for strangers ([`crate::git`]), for a bounded
//! time, and where the server leads on to another one, only to what evaluations may reach as well (`git/way.rs`).

use std::path::PathBuf;
use std::time::Duration;

use harmonia_core::foreign_text::is_unshown;
use harmonia_core::git::{self, FETCHED_SCHEMES};
use harmonia_core::ports::{PortFuture, RemoteHead, RemoteHeads};
use harmonia_core::without_credentials;
use harmonia_egress::{Egress, EgressGrant};
use tokio::sync::Semaphore;
use url::Url;

use crate::git::way::{Way, egress};
use crate::git::{GitCommand, GitFailure, Transports};

/// Most that is shown of git's own words, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// Most gits at the same time.
const PARALLEL_MAX: usize = 8;

/// Asks with the git program.
#[derive(Debug)]
pub struct GitRemoteHeads {
    git: PathBuf,
    allow_file_urls: bool,
    egress: Egress,
    time_max: Duration,
    running: Semaphore,
}

impl GitRemoteHeads {
    /// `git` is the program; `allow_file_urls`: whether repositories of this machine may be asked; `allow_hosts`: what a
    /// server may lead to beside public addresses; `time_max`: how long one answer may take.
    pub fn new(git: PathBuf, allow_file_urls: bool, allow_hosts: Vec<EgressGrant>, time_max: Duration) -> Self {
        Self { git, allow_file_urls, egress: egress(allow_hosts), time_max, running: Semaphore::new(PARALLEL_MAX) }
    }

    async fn ask(&self, url: &str, branch: Option<&str>) -> Result<RemoteHead, String> {
        let schemes: Vec<&str> =
            FETCHED_SCHEMES.iter().copied().filter(|scheme| self.allow_file_urls || *scheme != "file").collect();
        git::check_url(url, &schemes).map_err(|flaw| format!("{} cannot be asked: {flaw}", shown(url)))?;
        if let Some(branch) = branch {
            git::check_ref_name(branch).map_err(|flaw| flaw.to_string())?;
        }
        let _permit = self.running.acquire().await.map_err(|error| error.to_string())?;
        let output = self.ls_remote(url, branch).await?;
        match branch {
            Some(branch) => {
                let wanted = format!("refs/heads/{branch}");
                let commit = refs(&output).find(|(_, name)| *name == wanted).map(|(commit, _)| commit);
                commit
                    .map(|commit| RemoteHead { branch: branch.to_owned(), commit: commit.to_owned() })
                    .ok_or_else(|| format!("{} has no branch {branch}", shown(url)))
            }
            None => head_of(&output)
                .ok_or_else(|| format!("{} does not say which branch is its default: name one", shown(url))),
        }
    }

    async fn ls_remote(&self, url: &str, branch: Option<&str>) -> Result<String, String> {
        let nowhere = tempfile::tempdir().map_err(|error| format!("could not make a temporary directory: {error}"))?;
        let transports = if self.allow_file_urls { Transports::ServersAndFiles } else { Transports::Servers };
        let way = Way::open(&self.egress, Url::parse(url).ok().as_ref()).await;
        let way = way.map_err(|error| format!("the egress proxy for git could not listen: {error}"))?;
        let command = GitCommand::server(&self.git, nowhere.path(), "ls-remote", transports).time_max(self.time_max);
        let command = way.apply(command);
        let command = match branch {
            Some(branch) => command.args(["ls-remote", "--quiet", "--", url, &format!("refs/heads/{branch}")]),
            None => command.args(["ls-remote", "--quiet", "--symref", "--", url, "HEAD"]),
        };
        command.text().await.map_err(|failure| match failure {
            GitFailure::Timeout { after, .. } => format!("{} did not answer within {after:?}", shown(url)),
            GitFailure::Failed { message, .. } => {
                if let Some(refusal) = way.refusal(url, &[]) {
                    return format!("{} leads elsewhere: {refusal}", shown(url));
                }
                let words = message.lines().collect::<Vec<_>>().join("; ");
                let words: String = words.chars().filter(|c| !is_unshown(*c)).take(MESSAGE_CHARS_MAX).collect();
                format!("git could not ask {}: {words}", shown(url))
            }
            failure @ GitFailure::Start { .. } => harmonia_core::chain(&failure),
        })
    }
}

impl RemoteHeads for GitRemoteHeads {
    fn head(&self, url: String, branch: Option<String>) -> PortFuture<'_, Result<RemoteHead, String>> {
        Box::pin(async move { self.ask(&url, branch.as_deref()).await })
    }
}

/// Hash and name of each ref that `ls-remote` printed.
pub(crate) fn refs(output: &str) -> impl Iterator<Item = (&str, &str)> {
    output.lines().filter_map(|line| line.split_once('\t')).filter(|(commit, _)| git::is_commit(commit))
}

/// The branch that `ref: refs/heads/<branch>\tHEAD` names, with the commit of `HEAD`.
fn head_of(output: &str) -> Option<RemoteHead> {
    let branch = output.lines().find_map(|line| line.strip_prefix("ref: refs/heads/")?.strip_suffix("\tHEAD"))?;
    git::check_ref_name(branch).ok()?;
    let (commit, _) = refs(output).find(|(_, name)| *name == "HEAD")?;
    Some(RemoteHead { branch: branch.to_owned(), commit: commit.to_owned() })
}

/// Keeps messages readable whatever is in them.
fn shown(text: &str) -> String {
    without_credentials(text).chars().filter(|c| !is_unshown(*c)).take(200).collect()
}

#[cfg(test)]
mod tests;
