//! Where branches of plain git repositories are: `git ls-remote`, for the polling of projects without forge. Start at
//! [`GitRemoteHeads`].
//!
//! URL and branch are what an admin wrote, the answer is hostile: git gets an empty environment, no configuration, only the
//! transports we allow, a bounded time, and its output is read up to a bound.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use harmonia_core::ports::{PortFuture, RemoteHead, RemoteHeads};
use harmonia_core::without_credentials;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Most that is read of what git prints.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Most that is shown of git's own words, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// Most gits at the same time.
const PARALLEL_MAX: usize = 8;
const URL_BYTES_MAX: usize = 2_000;
const BRANCH_BYTES_MAX: usize = 250;

/// Asks with the git program.
#[derive(Debug)]
pub struct GitRemoteHeads {
    git: PathBuf,
    allow_file_urls: bool,
    time_max: Duration,
    running: Semaphore,
}

impl GitRemoteHeads {
    /// `git` is the program; `allow_file_urls`: whether repositories of this machine may be asked; `time_max`: how long
    /// one answer may take.
    pub fn new(git: PathBuf, allow_file_urls: bool, time_max: Duration) -> Self {
        Self { git, allow_file_urls, time_max, running: Semaphore::new(PARALLEL_MAX) }
    }

    async fn ask(&self, url: &str, branch: Option<&str>) -> Result<RemoteHead, String> {
        check_url(url, self.allow_file_urls)?;
        if let Some(branch) = branch {
            check_branch(branch)?;
        }
        let _permit = self.running.acquire().await.map_err(|error| error.to_string())?;
        let output = tokio::time::timeout(self.time_max, self.ls_remote(url, branch))
            .await
            .map_err(|_| format!("{} did not answer within {:?}", shown(url), self.time_max))??;
        match branch {
            Some(branch) => {
                let wanted = format!("refs/heads/{branch}");
                let commit = lines(&output).find(|(_, name)| *name == wanted).map(|(commit, _)| commit);
                commit
                    .map(|commit| RemoteHead { branch: branch.to_owned(), commit: commit.to_owned() })
                    .ok_or_else(|| format!("{} has no branch {branch}", shown(url)))
            }
            None => head_of(&output).ok_or_else(|| {
                format!("{} does not say which branch is its default: name one for the project", shown(url))
            }),
        }
    }

    async fn ls_remote(&self, url: &str, branch: Option<&str>) -> Result<String, String> {
        let protocols = if self.allow_file_urls { "https:http:ssh:git:file" } else { "https:http:ssh:git" };
        let nowhere = tempfile::tempdir().map_err(|error| format!("could not make a temporary directory: {error}"))?;
        let mut command = Command::new(&self.git);
        command
            .current_dir(nowhere.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", nowhere.path())
            .env("LANG", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .env("GIT_CEILING_DIRECTORIES", nowhere.path());
        for setting in ["protocol.ext.allow=never", "safe.directory=*", "http.followRedirects=initial"] {
            command.args(["-c", setting]);
        }
        match branch {
            Some(branch) => command.args(["ls-remote", "--quiet", "--", url, &format!("refs/heads/{branch}")]),
            None => command.args(["ls-remote", "--quiet", "--symref", "--", url, "HEAD"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("could not run {}: {error}", self.git.display()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr, status) = tokio::join!(read_bounded(stdout), read_bounded(stderr), child.wait());
        match status {
            Ok(status) if status.success() => Ok(stdout),
            _ => {
                let words: String = stderr.trim().chars().filter(|c| !c.is_control() || *c == '\n').collect();
                let words: String = without_credentials(&words).lines().collect::<Vec<_>>().join("; ");
                Err(format!(
                    "git could not ask {}: {}",
                    shown(url),
                    words.chars().take(MESSAGE_CHARS_MAX).collect::<String>()
                ))
            }
        }
    }
}

impl RemoteHeads for GitRemoteHeads {
    fn head(&self, url: String, branch: Option<String>) -> PortFuture<'_, Result<RemoteHead, String>> {
        Box::pin(async move { self.ask(&url, branch.as_deref()).await })
    }
}

/// `<hash>\t<name>` lines with a full hash.
fn lines(output: &str) -> impl Iterator<Item = (&str, &str)> {
    output.lines().filter_map(|line| line.split_once('\t')).filter(|(commit, _)| is_commit(commit))
}

/// The branch that `ref: refs/heads/<branch>\tHEAD` names, with the commit of `HEAD`.
fn head_of(output: &str) -> Option<RemoteHead> {
    let branch = output.lines().find_map(|line| line.strip_prefix("ref: refs/heads/")?.strip_suffix("\tHEAD"))?;
    check_branch(branch).ok()?;
    let (commit, _) = lines(output).find(|(_, name)| *name == "HEAD")?;
    Some(RemoteHead { branch: branch.to_owned(), commit: commit.to_owned() })
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut bytes = Vec::new();
    // The rest is read and dropped, so that git does not wait for us; what cannot be read is empty.
    drop((&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await);
    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rules of git-check-ref-format(1), as far as they matter, and no option.
fn check_branch(branch: &str) -> Result<(), String> {
    let is_name = !branch.is_empty()
        && branch.len() <= BRANCH_BYTES_MAX
        && !branch.starts_with(['-', '/', '.'])
        && !branch.ends_with(['/', '.'])
        && !["..", "//", "@{", "/."].iter().any(|bad| branch.contains(bad))
        && !branch.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c));
    if is_name { Ok(()) } else { Err(format!("'{}' is no branch name", shown(branch))) }
}

fn check_url(url: &str, allow_file: bool) -> Result<(), String> {
    let parsed =
        url::Url::parse(url).ok().filter(|_| url.len() <= URL_BYTES_MAX && url.bytes().all(|b| b.is_ascii_graphic()));
    match parsed {
        Some(parsed) if parsed.scheme() == "file" && !allow_file => {
            Err(format!("{} is a repository of this machine, which eval.allow_file_urls does not allow", shown(url)))
        }
        Some(parsed)
            if ["https", "http", "ssh", "git", "file"].contains(&parsed.scheme())
                && !parsed.host_str().unwrap_or_default().starts_with('-') =>
        {
            Ok(())
        }
        _ => Err(format!("'{}' is no git URL (https://, http://, ssh://, git:// or file://)", shown(url))),
    }
}

/// Keeps messages readable whatever is in them.
fn shown(text: &str) -> String {
    without_credentials(text).chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
