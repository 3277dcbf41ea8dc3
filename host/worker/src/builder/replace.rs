//! Local paths that differ from the published ones go, with all that was built from them here; who uses them on this
//! machine is waited for. Start at [`delete`].

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use harmonia_core::AttemptId;
use harmonia_core::signer_api::Failure;
use harmonia_db::ClaimedJob;
use harmonia_nix::StorePath;
use harmonia_nix::worker_protocol::types::{GcRequest, GcRoot};
use tokio::time::Instant;

use super::Node;
use super::failure::{Trouble, chain, transient, transient_error};
use super::roots::Roots;
use super::spool::AttemptLog;
use crate::store_daemon::Connection;

/// Most paths that are looked at as built from those that differ.
const REFERRERS_MAX: usize = 200_000;
/// How often users are looked for when nothing tells that one is gone.
const POLL: Duration = Duration::from_secs(2);

/// What keeps a path alive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum User {
    /// A job of this node.
    Attempt(AttemptId),
    /// Something else that runs: a process, in the daemon's words, or a job of another node of this machine.
    Process(String),
    /// A root that somebody registered to stay.
    Root(String),
}

impl User {
    fn of(root: &GcRoot, ours: &Roots) -> Self {
        let link = root.link.to_string();
        if let Some(attempt) = ours.attempt_of(&link) {
            Self::Attempt(attempt)
        } else if link.starts_with('{') || link.starts_with("/proc/") || ours.is_of_nodes(&link) {
            Self::Process(link)
        } else {
            Self::Root(link)
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt(attempt) => write!(f, "attempt {attempt} of this node"),
            Self::Process(process) => write!(f, "something that runs on this machine ({process})"),
            Self::Root(link) => write!(f, "{link}"),
        }
    }
}

/// Paths that cannot be deleted now.
#[derive(Debug)]
pub(super) struct InUse {
    /// What differs, for people.
    differs: StorePath,
    /// All that has to go.
    doomed: BTreeSet<StorePath>,
    users: BTreeSet<User>,
}

/// Deletes `wrong` and what refers to it, which the store would otherwise keep it for. In use: nothing is deleted.
pub(super) async fn delete(node: &Node, wrong: BTreeSet<StorePath>) -> Result<Option<InUse>, Failure> {
    let Some(differs) = wrong.first().cloned() else { return Ok(None) };
    // What was built over a connection is kept alive by it.
    node.connections.close_all().await;
    let mut daemon = node.daemon.connect().await.map_err(|error| transient_error(&error))?;
    let doomed = with_referrers(&mut daemon, wrong).await?;
    let Err(refusal) = daemon.collect_garbage(&GcRequest::delete(doomed.clone())).await else { return Ok(None) };
    let users = users(node, &doomed).await?;
    if users.is_empty() {
        // Whoever used it may be gone by now: the caller tries again.
        tracing::warn!(path = %differs, error = %chain(&refusal), "Could not delete a path that differs from the published one");
        return match daemon.collect_garbage(&GcRequest::delete(doomed)).await {
            Ok(_) => Ok(None),
            Err(error) => Err(transient(format!(
                "the local {differs} differs from the published one and cannot be deleted: {}",
                chain(&error)
            ))),
        };
    }
    Ok(Some(InUse { differs, doomed, users }))
}

/// With everything valid that refers to them, directly or through others.
async fn with_referrers(daemon: &mut Connection, paths: BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, Failure> {
    let mut open: Vec<StorePath> = paths.iter().cloned().collect();
    let mut all = paths;
    while let Some(path) = open.pop() {
        for referrer in daemon.query_referrers(&path).await.map_err(|error| transient_error(&error))? {
            if all.insert(referrer.clone()) {
                open.push(referrer);
            }
        }
        if all.len() > REFERRERS_MAX {
            let message =
                format!("more than {REFERRERS_MAX} local paths were built from inputs that have to be replaced");
            return Err(transient(message));
        }
    }
    Ok(all)
}

/// Who keeps any of `doomed` alive.
async fn users(node: &Node, doomed: &BTreeSet<StorePath>) -> Result<BTreeSet<User>, Failure> {
    // The daemon that refused something may have ended the conversation.
    let mut daemon = node.daemon.connect().await.map_err(|error| transient_error(&error))?;
    let roots = daemon.find_roots().await.map_err(|error| transient_error(&error))?;
    let uses = |root: &&GcRoot| doomed.contains(&root.target);
    let mut users: BTreeSet<User> = roots.iter().filter(uses).map(|root| User::of(root, &node.roots)).collect();
    // What runs beside jobs of this node is most likely theirs, and looked for again when they ended.
    if users.iter().any(|user| matches!(user, User::Attempt(_))) {
        users.retain(|user| !matches!(user, User::Process(_)));
    }
    Ok(users)
}

/// Who uses what.
impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.users.iter().map(User::to_string).collect();
        write!(f, "{} is in use by {}", self.differs, names.join(", "))
    }
}

impl InUse {
    /// Waits until nobody uses them any more, and says in the log for whom. What waits must have no roots of its own among
    /// them: two that wait would wait for each other. At `deadline` the job goes back to the queue; with a failed try when it
    /// was not for jobs of this node, which come to an end.
    pub(super) async fn wait(
        mut self,
        node: &Node,
        job: &ClaimedJob,
        log: &AttemptLog,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let mut changes = node.roots.changes();
        let mut said = BTreeSet::new();
        loop {
            if self.users.is_empty() {
                return Ok(());
            }
            let names = self.users.iter().map(User::to_string).collect::<Vec<_>>().join(", ");
            if let Some(User::Root(link)) = self.users.iter().find(|user| matches!(user, User::Root(_))) {
                let message = format!(
                    "the local {} differs from the published one and cannot be replaced, since {link} keeps it: remove that root on this node",
                    self.differs
                );
                return Err(transient(message).into());
            }
            if said != self.users {
                let line = format!(
                    "[harmonia-ci: the local {} differs from the published one and is in use; waiting for {names}]",
                    self.differs
                );
                log.line(line.as_bytes());
                tracing::info!(attempt = %job.attempt, path = %self.differs, users = names, "An input has to be replaced and is in use, attempt {} waits", job.attempt);
                said.clone_from(&self.users);
            }
            if Instant::now() >= deadline {
                let reason = format!(
                    "the local {} differs from the published one and could not be replaced: {names} used it for too long",
                    self.differs
                );
                let are_ours = self.users.iter().all(|user| matches!(user, User::Attempt(_)));
                return Err(if are_ours { Trouble::GivenBack(reason) } else { transient(reason).into() });
            }
            // Seen before they are looked for again, so that none is missed.
            let _either = tokio::time::timeout(POLL, changes.changed()).await;
            changes.mark_unchanged();
            self.users = users(node, &self.doomed).await?;
        }
    }
}
