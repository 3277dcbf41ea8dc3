//! The Gitea plugin on the bench. Start at [`Gitea`].

use std::ops::Deref;
use std::sync::Arc;

use harmonia_core::Clock as _;
use harmonia_core::forge::RepositoryRef;
use harmonia_fake_forges::{FakeGitea, Hook, Permission};
use harmonia_plugin_harness::{Harness, Running, component};

use crate::bench::{Bench, StoppedClock};
use crate::watch::Watch;

/// What the installed webhooks sign with.
pub(super) const HOOK_SECRET: &str = "hook secret: with \"quotes\" & ünïcode";

pub(super) struct Gitea {
    pub(super) fake: FakeGitea,
    pub(super) clock: Arc<StoppedClock>,
    running: Running,
    bench: Bench,
}

impl Deref for Gitea {
    type Target = Bench;
    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Gitea {
    pub(super) async fn start() -> Self {
        Self::of(FakeGitea::start().await).await
    }

    /// A Forgejo.
    pub(super) async fn start_forgejo() -> Self {
        Self::of(FakeGitea::start_forgejo().await).await
    }

    /// One whose configuration names a file for this secret that is not there.
    pub(super) async fn start_with_secret_missing(name: &str) -> Self {
        Self::configured(FakeGitea::start().await, |harness| harness.secret_file(name, "/no/such/hook-secret")).await
    }

    async fn of(fake: FakeGitea) -> Self {
        Self::configured(fake, |harness| harness).await
    }

    async fn configured(fake: FakeGitea, change: impl FnOnce(Harness) -> Harness) -> Self {
        let clock = StoppedClock::new();
        let forges = Arc::clone(&clock);
        fake.world().set_clock(move || forges.now());
        let watch = Watch::new(clock.clone());
        let harness = Harness::new(component("gitea"))
            .setting("instance", fake.url())
            .setting("client_id", fake.client_id())
            .secret("token", fake.token())
            .secret("client_secret", fake.client_secret())
            .secret("webhook", HOOK_SECRET)
            .allow_host(fake.url())
            .clock(clock.clone())
            .store(watch.clone());
        let running = change(harness).start().await;
        let bench = Bench { forge: running.forge(), watch };
        Self { fake, clock, running, bench }
    }

    /// What the nodes page shows of the plugin.
    pub(super) fn status(&self) -> harmonia_core::plugin::PluginStatus {
        self.running.status()
    }

    /// A new repository that the token may administer, and the head of `main`.
    pub(super) fn add(&self, full_name: &str) -> (RepositoryRef, String) {
        let id = self.fake.add_repository(full_name);
        let head = self.fake.world().repository(full_name).head("main").to_owned();
        (RepositoryRef { id: id.to_string(), full_name: full_name.to_owned() }, head)
    }

    /// What the token may do with a repository.
    pub(super) fn allow(&self, full_name: &str, permission: Permission) {
        self.fake.world().repository_mut(full_name).collaborators.insert(self.fake.bot().to_owned(), permission);
    }

    pub(super) fn hooks(&self, full_name: &str) -> Vec<Hook> {
        self.fake.world().repository(full_name).hooks.values().cloned().collect()
    }

    /// How many requests there were with this method and this in their path.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        self.fake.requests().iter().filter(|request| request.method == method && request.path.contains(part)).count()
    }

    /// Ends a test: every request was one that the forge knows, the plugin never failed by itself, and no secret was seen.
    pub(super) fn finish(self) {
        assert_eq!(self.fake.violations(), Vec::<String>::new());
        assert_eq!(self.running.status().failures, 0, "{:?}", self.running.status());
        let mut secrets: Vec<String> = self.fake.world().tokens.keys().cloned().collect();
        secrets.push(self.fake.token().to_owned());
        secrets.push(self.fake.client_secret().to_owned());
        secrets.push(HOOK_SECRET.to_owned());
        self.bench.watch.assert_unseen(&secrets);
    }
}
