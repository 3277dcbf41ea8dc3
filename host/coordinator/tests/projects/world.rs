//! A database, and a forge in memory that does as it is told and writes down what it is asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harmonia_coordinator::{AutoEnable, ProjectsOptions};
use harmonia_core::NodeId;
use harmonia_core::forge::{
    BranchHead, CloneCredential, CommitStatus, Delivery, ForgeError, ForgeFeature, ForgeRepository, ForgeUser,
    LoginCompletion, LoginStart, Page, Permission, PullRequest, RepositoryRef, WebhookRequest,
};
use harmonia_core::plugin::PluginStatus;
use harmonia_core::ports::{Forge, Plugins, PortFuture, RemoteHead, RemoteHeads, Reporter};
use harmonia_db::testing::{TestDatabase, projects_time_passes};
use harmonia_db::{Db, RepositoryId};
use tokio::sync::Notify;

pub(crate) const FORGE: &str = "forge";
/// Another, in [`World::with_other_forge`].
pub(crate) const OTHER: &str = "other";
pub(crate) const MAIN: &str = "main";

/// What the forge in memory has, and what goes wrong next.
#[derive(Default)]
pub(crate) struct Script {
    /// Pages of repositories; the cursor is the number of the page.
    pub(crate) pages: Vec<Vec<ForgeRepository>>,
    /// Heads of branches, by full name of the repository and branch.
    pub(crate) heads: HashMap<(String, String), String>,
    /// Pull requests of every repository.
    pub(crate) pulls: Vec<PullRequest>,
    /// Webhooks that are there: (repository's id, URL).
    pub(crate) hooks: Vec<(String, String)>,
    /// Errors of the next calls, whichever they are.
    pub(crate) errors: VecDeque<ForgeError>,
    /// Does what is asked, but its next answer is lost.
    pub(crate) lose_answer: bool,
    /// Does not answer.
    pub(crate) hangs: bool,
    /// What was asked,
    pub(crate) calls: Vec<String>,
    /// and that something was.
    pub(crate) asked: Arc<Notify>,
}

#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) Arc<Mutex<Script>>);

impl Memory {
    fn call<T: Send + 'static>(
        &self,
        what: String,
        act: impl FnOnce(&mut Script) -> Result<T, ForgeError>,
    ) -> PortFuture<'_, Result<T, ForgeError>> {
        let mut script = self.0.lock().expect("lock");
        script.calls.push(what);
        script.asked.notify_one();
        if script.hangs {
            return Box::pin(std::future::pending());
        }
        let answer = match script.errors.pop_front() {
            Some(error) => Err(error),
            None => act(&mut script),
        };
        let lost = std::mem::take(&mut script.lose_answer);
        let answer = if lost { Err(ForgeError::Unavailable("the answer was lost".to_owned())) } else { answer };
        Box::pin(async move { answer })
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("lock").calls)
    }
}

impl Forge for Memory {
    fn has(&self, feature: ForgeFeature) -> bool {
        feature != ForgeFeature::Login
    }
    fn webhook(&self, _: WebhookRequest) -> PortFuture<'_, Result<Delivery, ForgeError>> {
        panic!("nobody asks this here")
    }
    fn report(&self, _: CommitStatus) -> PortFuture<'_, Result<(), ForgeError>> {
        panic!("nobody asks this here")
    }
    fn comment(&self, _: RepositoryRef, _: u64, _: String, _: String) -> PortFuture<'_, Result<(), ForgeError>> {
        panic!("nobody asks this here")
    }
    fn repositories(&self, cursor: Option<String>) -> PortFuture<'_, Result<Page<ForgeRepository>, ForgeError>> {
        let at: usize = cursor.as_deref().map_or(0, |cursor| cursor.parse().expect("one of ours"));
        self.call(format!("repositories {at}"), |script| {
            let items = script.pages.get(at).cloned().ok_or(ForgeError::NotFound)?;
            Ok(Page { items, next: (at + 1 < script.pages.len()).then(|| (at + 1).to_string()) })
        })
    }
    fn branch_head(&self, repository: RepositoryRef, branch: String) -> PortFuture<'_, Result<BranchHead, ForgeError>> {
        self.call(format!("head {} {branch}", repository.full_name), |script| {
            let commit = script.heads.get(&(repository.full_name, branch)).cloned().ok_or(ForgeError::NotFound)?;
            Ok(BranchHead { commit, author: "a".to_owned(), message: "m".to_owned() })
        })
    }
    fn tree_hash(&self, _: RepositoryRef, _: String) -> PortFuture<'_, Result<String, ForgeError>> {
        panic!("nobody asks this here")
    }
    fn pull_request(&self, _: RepositoryRef, number: u64) -> PortFuture<'_, Result<PullRequest, ForgeError>> {
        self.call(format!("pull {number}"), |script| {
            script.pulls.iter().find(|pull| pull.number == number).cloned().ok_or(ForgeError::NotFound)
        })
    }
    fn open_pull_requests(
        &self,
        _: RepositoryRef,
        cursor: Option<String>,
    ) -> PortFuture<'_, Result<Page<PullRequest>, ForgeError>> {
        let at: usize = cursor.as_deref().map_or(0, |cursor| cursor.parse().expect("one of ours"));
        self.call(format!("pulls {at}"), |script| {
            let open: Vec<_> = script.pulls.iter().filter(|pull| pull.is_open).cloned().collect();
            let next = (at + 2 < open.len()).then(|| (at + 2).to_string());
            Ok(Page { items: open.into_iter().skip(at).take(2).collect(), next })
        })
    }
    fn permission(&self, _: RepositoryRef, _: String) -> PortFuture<'_, Result<Permission, ForgeError>> {
        panic!("nobody asks this here")
    }
    fn clone_credential(&self, _: RepositoryRef) -> PortFuture<'_, Result<Option<CloneCredential>, ForgeError>> {
        panic!("nobody asks this here")
    }
    fn install_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        self.call(format!("install {} {url}", repository.id), |script| {
            let hook = (repository.id, url);
            if !script.hooks.contains(&hook) {
                script.hooks.push(hook);
            }
            Ok(())
        })
    }
    fn remove_hook(&self, repository: RepositoryRef, url: String) -> PortFuture<'_, Result<(), ForgeError>> {
        self.call(format!("remove {} {url}", repository.id), |script| {
            let before = script.hooks.len();
            script.hooks.retain(|hook| *hook != (repository.id.clone(), url.clone()));
            if script.hooks.len() < before { Ok(()) } else { Err(ForgeError::NotFound) }
        })
    }
    fn login_url(&self, _: LoginStart) -> PortFuture<'_, Result<String, ForgeError>> {
        panic!("nobody asks this here")
    }
    fn login_complete(&self, _: LoginCompletion) -> PortFuture<'_, Result<ForgeUser, ForgeError>> {
        panic!("nobody asks this here")
    }
}

/// What is configured, by name.
struct Forges(Vec<(&'static str, Memory)>);

impl Plugins for Forges {
    fn forges(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| (*name).to_owned()).collect()
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        let (_, forge) = self.0.iter().find(|(known, _)| *known == name)?;
        Some(Arc::new(forge.clone()))
    }
    fn reporters(&self) -> Vec<String> {
        vec![]
    }
    fn reporter(&self, _: &str) -> Option<Arc<dyn Reporter>> {
        None
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        vec![]
    }
}

/// Plain git repositories in memory: what asking one yields.
#[derive(Default)]
pub(crate) struct Remotes(pub(crate) Mutex<HashMap<String, Result<RemoteHead, String>>>);

impl RemoteHeads for Remotes {
    fn head(&self, url: String, branch: Option<String>) -> PortFuture<'_, Result<RemoteHead, String>> {
        let answer = self.0.lock().expect("lock").get(&url).cloned();
        Box::pin(async move {
            let head = answer.unwrap_or_else(|| Err("no such repository".to_owned()))?;
            Ok(RemoteHead { branch: branch.unwrap_or(head.branch), ..head })
        })
    }
}

pub(crate) struct World {
    pub(crate) options: ProjectsOptions,
    pub(crate) forge: Memory,
    pub(crate) remotes: Arc<Remotes>,
    test: TestDatabase,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(rules: &[AutoEnable]) -> Self {
        let test = TestDatabase::new().await;
        let forge = Memory::default();
        let remotes = Arc::new(Remotes::default());
        let options = ProjectsOptions {
            db: test.db.clone(),
            plugins: Arc::new(Forges(vec![(FORGE, forge.clone())])),
            node: NodeId("n".to_owned()),
            public_url: "https://ci.example".to_owned(),
            remote_heads: remotes.clone(),
            auto_enable: HashMap::from([(FORGE.to_owned(), rules.to_vec())]),
            discover_every: Duration::from_mins(15),
            every: Duration::from_secs(5),
        };
        Self { options, forge, remotes, test }
    }

    /// With a second forge, which is returned.
    pub(crate) async fn with_other_forge() -> (Self, Memory) {
        let mut world = Self::new().await;
        let other = Memory::default();
        world.options.plugins = Arc::new(Forges(vec![(FORGE, world.forge.clone()), (OTHER, other.clone())]));
        (world, other)
    }

    pub(crate) fn db(&self) -> &Db {
        &self.test.db
    }

    pub(crate) fn script<T>(&self, act: impl FnOnce(&mut Script) -> T) -> T {
        act(&mut self.forge.0.lock().expect("lock"))
    }

    /// A day passes.
    pub(crate) async fn later(&self) {
        projects_time_passes(self.db(), Duration::from_hours(24)).await;
    }

    /// A project of a public repository.
    pub(crate) async fn project(&self, id: &str, full_name: &str) -> RepositoryId {
        self.project_of(FORGE, id, full_name).await
    }

    pub(crate) async fn project_of(&self, forge: &str, id: &str, full_name: &str) -> RepositoryId {
        self.db().upsert_repositories(forge, &[repository(id, full_name)]).await.expect("upsert");
        let row = self.db().repository(forge, full_name).await.expect("asked").expect("there");
        self.db().enable_repository(row, &[full_name.to_owned()], "me").await.expect("enabled");
        row
    }
}

pub(crate) fn repository(id: &str, full_name: &str) -> ForgeRepository {
    let (owner, name) = full_name.rsplit_once('/').expect("owner/name");
    ForgeRepository {
        id: id.to_owned(),
        owner: owner.to_owned(),
        name: name.to_owned(),
        full_name: full_name.to_owned(),
        clone_url: format!("https://forge.example/{full_name}.git"),
        html_url: format!("https://forge.example/{full_name}"),
        default_branch: MAIN.to_owned(),
        is_private: false,
        is_archived: false,
        topics: vec![],
    }
}

pub(crate) fn pull_request(number: u64, head: &str) -> PullRequest {
    PullRequest {
        number,
        title: "t".to_owned(),
        author: "a".to_owned(),
        is_open: true,
        is_draft: false,
        labels: vec![],
        head_commit: head.to_owned(),
        head_branch: "topic".to_owned(),
        head_repository: None,
        base_branch: MAIN.to_owned(),
        base_commit: "base".to_owned(),
        head_ref: format!("refs/pull/{number}/head"),
    }
}
