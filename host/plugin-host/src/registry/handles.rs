//! Core's ports over a place in the registry: each call goes to what runs there at that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use harmonia_core::JobId;
use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::policy::{AskingNode, Candidate, Policy, PolicyError, ProjectLoad};
use harmonia_core::ports::{Forge, PortFuture, Reporter};
use harmonia_core::reporter::{Notification, ReportError};

use super::PluginHost;
use super::slot::Slot;
use crate::plugin::Adapter;

/// A forge by its place.
pub(super) struct ForgeHandle(pub(super) Arc<Slot>);

impl ForgeHandle {
    fn now(&self) -> Result<Arc<dyn Forge>, ForgeError> {
        match &self.0.plugin().map_err(ForgeError::Plugin)?.adapter {
            Adapter::Forge(forge) => Ok(forge.clone()),
            _ => Err(ForgeError::Plugin(format!("plugin {} is no forge any more", self.0.name))),
        }
    }
}

/// Hands one method on to what runs now.
macro_rules! hand_on {
    ($self:ident . $method:ident ( $($argument:ident),* )) => {
        Box::pin(async move { $self.now()?.$method($($argument),*).await })
    };
}

impl Forge for ForgeHandle {
    fn has(&self, feature: ForgeFeature) -> bool {
        self.now().is_ok_and(|forge| forge.has(feature))
    }
    fn webhook(&self, request: WebhookRequest) -> PortFuture<'_, Result<Delivery, ForgeError>> {
        hand_on!(self.webhook(request))
    }
    fn report(&self, status: CommitStatus) -> PortFuture<'_, Result<(), ForgeError>> {
        hand_on!(self.report(status))
    }
    fn comment(
        &self,
        repository: RepositoryRef,
        number: u64,
        key: String,
        body: String,
    ) -> PortFuture<'_, Result<(), ForgeError>> {
        hand_on!(self.comment(repository, number, key, body))
    }
    fn repositories(&self, cursor: Option<String>) -> PortFuture<'_, Result<Page<ForgeRepository>, ForgeError>> {
        hand_on!(self.repositories(cursor))
    }
    fn branch_head(&self, repository: RepositoryRef, branch: String) -> PortFuture<'_, Result<BranchHead, ForgeError>> {
        hand_on!(self.branch_head(repository, branch))
    }
    fn tree_hash(&self, repository: RepositoryRef, commit: String) -> PortFuture<'_, Result<String, ForgeError>> {
        hand_on!(self.tree_hash(repository, commit))
    }
    fn pull_request(&self, repository: RepositoryRef, number: u64) -> PortFuture<'_, Result<PullRequest, ForgeError>> {
        hand_on!(self.pull_request(repository, number))
    }
    fn open_pull_requests(
        &self,
        repository: RepositoryRef,
        cursor: Option<String>,
    ) -> PortFuture<'_, Result<Page<PullRequest>, ForgeError>> {
        hand_on!(self.open_pull_requests(repository, cursor))
    }
    fn permission(&self, repository: RepositoryRef, user: String) -> PortFuture<'_, Result<Permission, ForgeError>> {
        hand_on!(self.permission(repository, user))
    }
    fn clone_credential(
        &self,
        repository: RepositoryRef,
    ) -> PortFuture<'_, Result<Option<CloneCredential>, ForgeError>> {
        hand_on!(self.clone_credential(repository))
    }
    fn install_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        hand_on!(self.install_hook(repository, url))
    }
    fn remove_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        hand_on!(self.remove_hook(repository, url))
    }
    fn login_url(&self, start: LoginStart) -> PortFuture<'_, Result<String, ForgeError>> {
        hand_on!(self.login_url(start))
    }
    fn login_complete(&self, completion: LoginCompletion) -> PortFuture<'_, Result<ForgeUser, ForgeError>> {
        hand_on!(self.login_complete(completion))
    }
}

/// A reporter by its place.
pub(super) struct ReporterHandle(pub(super) Arc<Slot>);

impl Reporter for ReporterHandle {
    fn report(&self, notification: Notification) -> PortFuture<'_, Result<(), ReportError>> {
        Box::pin(async move {
            let plugin = self.0.plugin().map_err(ReportError::Plugin)?;
            match &plugin.adapter {
                Adapter::Reporter(reporter) => reporter.report(notification).await,
                _ => Err(ReportError::Plugin(format!("plugin {} is no reporter any more", self.0.name))),
            }
        })
    }
}

/// A policy by its name: whatever is configured there when it is asked. It answers errors while there is none or it fails;
/// whoever asks falls back then, and the log says when that begins and ends.
pub struct PolicyHandle {
    host: PluginHost,
    name: String,
    failing: AtomicBool,
    fallbacks: AtomicU64,
}

impl PolicyHandle {
    pub(super) fn new(host: PluginHost, name: String) -> Self {
        Self { host, name, failing: AtomicBool::new(false), fallbacks: AtomicU64::new(0) }
    }

    /// Whether the last call failed, so that its caller fell back.
    pub fn is_falling_back(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Calls that failed since this handle was made.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Ordering::Relaxed)
    }

    fn ask<T>(&self, ask: impl FnOnce(&dyn Policy) -> Result<T, PolicyError>) -> Result<T, PolicyError> {
        let answer = self.now().and_then(|policy| ask(&*policy));
        let failing = answer.is_err();
        let was_failing = self.failing.swap(failing, Ordering::Relaxed);
        match &answer {
            Err(error) => {
                self.fallbacks.fetch_add(1, Ordering::Relaxed);
                if !was_failing {
                    tracing::warn!(
                        plugin = %self.name,
                        "Scheduling falls back to priority, then first in, first out: {}",
                        error.reason
                    );
                }
            }
            Ok(_) if was_failing => {
                tracing::info!(plugin = %self.name, "Scheduling follows the policy {} again", self.name);
            }
            Ok(_) => {}
        }
        answer
    }

    fn now(&self) -> Result<Arc<dyn Policy>, PolicyError> {
        let error = |reason| PolicyError { reason };
        let Some(slot) = self.host.slot(&self.name) else {
            return Err(error(format!("no plugin named {} is configured", self.name)));
        };
        match &slot.plugin().map_err(error)?.adapter {
            Adapter::Scheduler(policy) => Ok(policy.clone()),
            _ => Err(error(format!("plugin {} is no scheduling policy", self.name))),
        }
    }
}

impl Policy for PolicyHandle {
    fn rank(
        &self,
        node: &AskingNode,
        projects: &[ProjectLoad],
        candidates: &[Candidate],
    ) -> Result<Vec<JobId>, PolicyError> {
        self.ask(|policy| policy.rank(node, projects, candidates))
    }

    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        self.ask(|policy| policy.charge(charges))
    }

    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
        self.ask(|policy| policy.decay(consumed_seconds, seconds))
    }
}
