//! A forge in memory that does what it is told, and counts what it is asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::plugin::PluginStatus;
use harmonia_core::ports::{Forge, Plugins, PortFuture, Reporter};

/// What the forge has.
#[derive(Default)]
pub(super) struct State {
    pub(super) heads: BTreeMap<String, String>,
    pub(super) pulls: BTreeMap<u64, PullRequest>,
    pub(super) permissions: BTreeMap<String, Permission>,
    /// Features that it lacks.
    pub(super) lacks: BTreeSet<ForgeFeature>,
    /// Errors for the next questions.
    pub(super) failures: VecDeque<ForgeError>,
    /// Every question.
    pub(super) asked: Vec<String>,
    /// What happens while the next answers are on their way.
    pub(super) meanwhile: VecDeque<PortFuture<'static, ()>>,
}

#[derive(Default)]
pub(super) struct FakeForge(Mutex<State>);

impl FakeForge {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    pub(super) fn head(&self, branch: &str, commit: &str) {
        self.state().heads.insert(branch.to_owned(), commit.to_owned());
    }

    pub(super) fn pull(&self, pull: &PullRequest) {
        self.state().pulls.insert(pull.number, pull.clone());
    }

    pub(super) fn permit(&self, user: &str, permission: Permission) {
        self.state().permissions.insert(user.to_owned(), permission);
    }

    /// What it was asked since the last time.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    /// The answer as things are now; it arrives after whatever happens meanwhile.
    fn answer<T: Send + 'static>(
        &self,
        question: String,
        feature: ForgeFeature,
        find: impl FnOnce(&State) -> Result<T, ForgeError>,
    ) -> PortFuture<'_, Result<T, ForgeError>> {
        let mut state = self.state();
        state.asked.push(question);
        let answer = if state.lacks.contains(&feature) {
            Err(ForgeError::Unsupported("it"))
        } else if let Some(failure) = state.failures.pop_front() {
            Err(failure)
        } else {
            find(&state)
        };
        let meanwhile = state.meanwhile.pop_front();
        Box::pin(async move {
            if let Some(meanwhile) = meanwhile {
                meanwhile.await;
            }
            answer
        })
    }
}

fn lacking<'a, T: Send + 'a>() -> PortFuture<'a, Result<T, ForgeError>> {
    Box::pin(async { Err(ForgeError::Unsupported("it")) })
}

impl Forge for FakeForge {
    fn has(&self, feature: ForgeFeature) -> bool {
        !self.state().lacks.contains(&feature)
    }
    fn webhook(&self, _: WebhookRequest) -> PortFuture<'_, Result<Delivery, ForgeError>> {
        lacking()
    }
    fn report(&self, _: CommitStatus) -> PortFuture<'_, Result<(), ForgeError>> {
        lacking()
    }
    fn comment(&self, _: RepositoryRef, _: u64, _: String, _: String) -> PortFuture<'_, Result<(), ForgeError>> {
        lacking()
    }
    fn repositories(&self, _: Option<String>) -> PortFuture<'_, Result<Page<ForgeRepository>, ForgeError>> {
        lacking()
    }
    fn branch_head(&self, _: RepositoryRef, branch: String) -> PortFuture<'_, Result<BranchHead, ForgeError>> {
        self.answer(format!("head {branch}"), ForgeFeature::Branches, |state| {
            let commit = state.heads.get(&branch).ok_or(ForgeError::NotFound)?.clone();
            Ok(BranchHead { commit, author: "author".to_owned(), message: "Now".to_owned() })
        })
    }
    fn tree_hash(&self, _: RepositoryRef, commit: String) -> PortFuture<'_, Result<String, ForgeError>> {
        self.answer(format!("tree {}", &commit[..1]), ForgeFeature::Branches, |_| Ok("tree".to_owned()))
    }
    fn pull_request(&self, _: RepositoryRef, number: u64) -> PortFuture<'_, Result<PullRequest, ForgeError>> {
        self.answer(format!("pull {number}"), ForgeFeature::PullRequests, |state| {
            state.pulls.get(&number).cloned().ok_or(ForgeError::NotFound)
        })
    }
    fn open_pull_requests(
        &self,
        _: RepositoryRef,
        _: Option<String>,
    ) -> PortFuture<'_, Result<Page<PullRequest>, ForgeError>> {
        lacking()
    }
    fn permission(&self, _: RepositoryRef, user: String) -> PortFuture<'_, Result<Permission, ForgeError>> {
        self.answer(format!("permission {user}"), ForgeFeature::Permissions, |state| {
            Ok(state.permissions.get(&user).copied().unwrap_or(Permission::None))
        })
    }
    fn clone_credential(&self, _: RepositoryRef) -> PortFuture<'_, Result<Option<CloneCredential>, ForgeError>> {
        lacking()
    }
    fn install_hook(&self, _: RepositoryRef, _: String) -> PortFuture<'_, Result<(), ForgeError>> {
        lacking()
    }
    fn remove_hook(&self, _: RepositoryRef, _: String) -> PortFuture<'_, Result<(), ForgeError>> {
        lacking()
    }
    fn login_url(&self, _: LoginStart) -> PortFuture<'_, Result<String, ForgeError>> {
        lacking()
    }
    fn login_complete(&self, _: LoginCompletion) -> PortFuture<'_, Result<ForgeUser, ForgeError>> {
        lacking()
    }
}

/// A node with this one forge, named `forge`.
pub(super) struct OneForge(pub(super) Arc<FakeForge>);

/// A node with this one and another, named `other`.
pub(super) struct TwoForges(pub(super) Arc<FakeForge>, pub(super) Arc<FakeForge>);

impl Plugins for OneForge {
    fn forges(&self) -> Vec<String> {
        vec!["forge".to_owned()]
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        (name == "forge").then(|| Arc::clone(&self.0) as Arc<dyn Forge>)
    }
    fn reporters(&self) -> Vec<String> {
        Vec::new()
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        None
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        Vec::new()
    }
}

impl Plugins for TwoForges {
    fn forges(&self) -> Vec<String> {
        vec!["forge".to_owned(), "other".to_owned()]
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        let forge = if name == "other" { &self.1 } else { &self.0 };
        Some(Arc::clone(forge) as Arc<dyn Forge>)
    }
    fn reporters(&self) -> Vec<String> {
        Vec::new()
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        None
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        Vec::new()
    }
}
