//! What happens to repositories and projects without a delivery: start at [`run`]. [`crate::sync`] discovers repositories,
//! [`crate::hooks`] installs webhooks, [`crate::poll`] asks for heads. Any frontend may do each, several at once: what is
//! due is leased. Each has a `step` that does all due work once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::forge::{ForgeError, ForgeFeature, ForgeRepository};
use harmonia_core::ports::{Forge, Plugins, RemoteHeads};
use harmonia_core::retry::Backoff;
use harmonia_core::{NodeId, branches, chain};
use harmonia_db::{Channel, Db};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::in_flight::{keep_working, wake_on};
use crate::{hooks, poll, sync};

/// Longest that one call of a forge is waited for.
const CALL_TIME_MAX: Duration = Duration::from_mins(2);
/// Longest that a forge can make us wait, whatever it says.
const WAIT_MAX: Duration = Duration::from_hours(6);

/// What the three loops need.
#[derive(Clone)]
pub struct ProjectsOptions {
    /// The database.
    pub db: Db,
    /// The forges.
    pub plugins: Arc<dyn Plugins>,
    /// This node's name: who holds what is due.
    pub node: NodeId,
    /// URL of this server as forges see it, without a slash at the end.
    pub public_url: String,
    /// Asks plain git repositories.
    pub remote_heads: Arc<dyn RemoteHeads>,
    /// Which discovered repositories are enabled by themselves, by the forge's configured name.
    pub auto_enable: HashMap<String, Vec<AutoEnable>>,
    /// Time between two syncs of a forge.
    pub discover_every: Duration,
    /// Time between two looks for what is due when nothing tells of work.
    pub every: Duration,
}

/// Says of a discovered repository that it shall be a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AutoEnable {
    /// It has this topic.
    Topic(String),
    /// Its full name matches this glob (`owner/*`).
    Name(String),
}

impl AutoEnable {
    /// Whether it means this repository. What is archived is never meant.
    pub fn matches(&self, repository: &ForgeRepository) -> bool {
        !repository.is_archived
            && match self {
                Self::Topic(topic) => repository.topics.iter().any(|have| have.eq_ignore_ascii_case(topic)),
                Self::Name(glob) => branches::glob_matches(glob, &repository.full_name),
            }
    }
}

impl ProjectsOptions {
    /// Names of the forges of this node that have a feature.
    pub(crate) fn forges_with(&self, feature: ForgeFeature) -> Vec<String> {
        let has = |name: &String| self.plugins.forge(name).is_some_and(|forge| forge.has(feature));
        self.plugins.forges().into_iter().filter(has).collect()
    }

    /// The forge of this name, unless a reload took it away.
    pub(crate) fn forge(&self, name: &str) -> Result<Arc<dyn Forge>, ForgeError> {
        self.plugins.forge(name).ok_or_else(|| ForgeError::Unavailable("its plugin is not loaded".to_owned()))
    }
}

/// Runs discovery, hooks and polling until `shutdown`. At the start every forge is synced.
pub async fn run(options: ProjectsOptions, shutdown: CancellationToken) {
    let (wake, woken) = watch::channel(());
    let forges = options.forges_with(ForgeFeature::Discovery);
    if let Err(error) = options.db.request_sync(&forges).await {
        warn!(error = %chain(&error), "Could not ask for a first discovery; the regular one will come");
    }
    let every = options.every;
    let work = async {
        tokio::join!(
            wake_on(&options.db, Channel::Projects, &wake, every),
            keep_working(sync::Syncs(&options), "discovery", woken.clone(), every),
            keep_working(hooks::Hooks(&options), "webhooks at forges", woken.clone(), every),
            keep_working(poll::Polls(&options), "polling", woken, every),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        // Neither ends. What is dropped half-way goes on with the next holder of its lease.
        _ = work => {}
    }
}

/// Calls a forge, for a bounded time.
pub(crate) async fn call<T>(future: impl Future<Output = Result<T, ForgeError>>) -> Result<T, ForgeError> {
    tokio::time::timeout(CALL_TIME_MAX, future)
        .await
        .unwrap_or_else(|_| Err(ForgeError::Unavailable(format!("no answer within {CALL_TIME_MAX:?}"))))
}

/// How long to wait after a failure: what the forge says, else from 15 s on twice as long each time.
pub(crate) fn wait_after(error: &ForgeError, attempts: u32, wait_max: Duration) -> Duration {
    match error {
        ForgeError::RetryAfter(seconds) => Duration::from_secs(u64::from(*seconds).max(1)).min(WAIT_MAX),
        _ => Backoff::doubling(Duration::from_secs(15), wait_max).after(attempts.saturating_add(1), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enabled_by_itself() {
        let repository = ForgeRepository {
            id: "1".to_owned(),
            owner: "group/sub".to_owned(),
            name: "x".to_owned(),
            full_name: "group/sub/x".to_owned(),
            clone_url: String::new(),
            html_url: String::new(),
            default_branch: "main".to_owned(),
            is_private: false,
            is_archived: false,
            topics: vec!["Nix-CI".to_owned()],
        };
        let topic = |text: &str| AutoEnable::Topic(text.to_owned());
        let name = |text: &str| AutoEnable::Name(text.to_owned());
        for (rule, expected) in [
            (topic("nix-ci"), true),
            (topic("nix"), false),
            (name("group/*"), true),
            (name("group/sub/x"), true),
            (name("*/y"), false),
            (name("group"), false),
        ] {
            assert_eq!(rule.matches(&repository), expected, "{rule:?}");
            let archived = ForgeRepository { is_archived: true, ..repository.clone() };
            assert!(!rule.matches(&archived), "{rule:?}");
        }
    }

    #[test]
    fn waits_grow_and_forges_are_obeyed() {
        let limit = Duration::from_mins(15);
        let unavailable = ForgeError::Unavailable("x".to_owned());
        let waits: Vec<u64> = (0..8).map(|n| wait_after(&unavailable, n, limit).as_secs()).collect();
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(wait_after(&ForgeError::RetryAfter(3600), 0, limit), Duration::from_hours(1));
        assert_eq!(wait_after(&ForgeError::RetryAfter(u32::MAX), 0, limit), WAIT_MAX);
        assert_eq!(wait_after(&unavailable, u32::MAX, limit), limit);
    }
}
