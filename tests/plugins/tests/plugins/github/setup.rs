//! The GitHub plugin on the bench. Start at [`Github`].

use std::ops::Deref;
use std::sync::Arc;

use harmonia_core::Clock as _;
use harmonia_core::forge::RepositoryRef;
use harmonia_fake_forges::{FakeGithub, Token};
use harmonia_plugin_harness::{Harness, Running, component};

use crate::bench::{Bench, StoppedClock};
use crate::watch::Watch;

pub(super) struct Github {
    pub(super) fake: FakeGithub,
    pub(super) clock: Arc<StoppedClock>,
    running: Running,
    bench: Bench,
}

impl Deref for Github {
    type Target = Bench;
    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl Github {
    pub(super) async fn start() -> Self {
        Self::start_with(|harness| harness).await
    }

    /// With other settings.
    pub(super) async fn start_with(change: impl FnOnce(Harness) -> Harness) -> Self {
        let fake = FakeGithub::start().await;
        let clock = StoppedClock::new();
        let forges = Arc::clone(&clock);
        fake.world().set_clock(move || forges.now());
        let watch = Watch::new(clock.clone());
        let harness = Harness::new(component("github"))
            .setting("app_id", &fake.app_id().to_string())
            .setting("api_url", fake.url())
            .setting("client_id", fake.client_id())
            .secret("webhook", fake.webhook_secret())
            .secret("key", fake.private_key())
            .secret("client_secret", fake.client_secret())
            .allow_host(fake.url())
            .clock(clock.clone())
            .store(watch.clone());
        let running = change(harness).start().await;
        let bench = Bench { forge: running.forge(), watch };
        Self { fake, clock, running, bench }
    }

    /// How the plugin is.
    pub(super) fn status(&self) -> harmonia_core::plugin::PluginStatus {
        self.running.status()
    }

    /// A new repository that the app sees, its owner's installation, and the head of `main`.
    pub(super) fn add(&self, full_name: &str) -> (RepositoryRef, u64, String) {
        let mut world = self.fake.world();
        world.add_repository(full_name);
        let owner = full_name.split('/').next().expect("owner/name");
        let id = world.repository(full_name).id;
        let known = world.installation_of(id).map(|installation| installation.id);
        let installation = known.unwrap_or_else(|| world.install(owner, None));
        let head = world.repository(full_name).head("main").to_owned();
        (RepositoryRef { id: id.to_string(), full_name: full_name.to_owned() }, installation, head)
    }

    /// How many requests there were with this method and this in their path.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        self.fake.requests().iter().filter(|request| request.method == method && request.path.contains(part)).count()
    }

    /// How many installation tokens were asked for.
    pub(super) fn minted(&self) -> usize {
        self.count("POST", "/access_tokens")
    }

    /// Removes every installation token, as GitHub does when it revokes them. Returns them.
    pub(super) fn revoke(&self) -> Vec<String> {
        let mut world = self.fake.world();
        let gone: Vec<String> = world
            .tokens
            .iter()
            .filter(|(_, token)| matches!(token, Token::Installation { .. }))
            .map(|(text, _)| text.clone())
            .collect();
        world.tokens.retain(|text, _| !gone.contains(text));
        gone
    }

    /// Ends a test: every request was one that GitHub knows, the plugin never failed by itself, and no secret was seen.
    pub(super) fn finish(self) {
        self.finish_with(Vec::new());
    }

    /// The same, with more secrets to look for.
    pub(super) fn finish_with(self, mut secrets: Vec<String>) {
        assert_eq!(self.fake.violations(), Vec::<String>::new());
        assert_eq!(self.running.status().failures, 0, "{:?}", self.running.status());
        secrets.extend(self.fake.world().tokens.keys().cloned());
        secrets.push(self.fake.client_secret().to_owned());
        secrets.push(self.fake.webhook_secret().to_owned());
        secrets.push(self.fake.private_key().lines().nth(1).expect("a line of the key").to_owned());
        self.bench.watch.assert_unseen(&secrets);
    }
}
