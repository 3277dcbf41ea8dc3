//! A plugin host whose plugins are guests of ours. Start at [`World`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use harmonia_core::forge::{BranchHead, ForgeError, RepositoryRef};
use harmonia_core::plugin::PluginStatus;
use harmonia_core::ports::{Forge, PluginStore, Plugins};
use harmonia_core::{Clock, Timestamp};
use harmonia_plugin_harness::component;
use harmonia_plugin_host::{
    HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginMetrics, PluginSpec, SecretGrant,
};

/// A clock that tests move.
pub struct TestClock(Mutex<Timestamp>);

impl TestClock {
    /// Lets so many seconds pass.
    pub fn advance(&self, seconds: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time::Duration::seconds(seconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A plugin host with a folder, a store and a clock of its own.
pub struct World {
    /// The host.
    pub host: PluginHost,
    /// Its time.
    pub clock: Arc<TestClock>,
    /// What plugins stored.
    pub store: Arc<dyn PluginStore>,
    folder: tempfile::TempDir,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// With a store in memory and the machine's own resolver.
    pub fn new() -> Self {
        Self::with(HttpClientOptions::default(), |store| store)
    }

    /// With another resolver, and something around the store.
    ///
    /// # Panics
    /// When the host does not start.
    pub fn with(http: HttpClientOptions, wrap: impl FnOnce(Arc<dyn PluginStore>) -> Arc<dyn PluginStore>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(TestClock(Mutex::new(time::macros::datetime!(2026-01-01 00:00 UTC))));
        let store = wrap(Arc::new(MemoryStore::new(clock.clone())));
        let host = PluginHost::new(HostOptions {
            cache_folder: cache_folder(),
            scratch_folder: folder.path().join("scratch"),
            store: store.clone(),
            clock: clock.clone(),
            http: HttpClient::new(&http).expect("a client"),
        })
        .expect("the host starts");
        Self { host, clock, store, folder }
    }

    /// The guest of this name, as a plugin of the same name with nothing granted and small limits.
    pub fn guest(&self, name: &str) -> PluginSpec {
        let mut spec = PluginSpec::new(name, component(&format!("guests/{name}")));
        spec.limits.call.cpu_ms_max = Some(100);
        spec.limits.call.memory_bytes_max = Some(16 << 20);
        spec.limits.call.output_bytes_max = Some(64 << 10);
        spec
    }

    /// The guest with a secret `token`.
    ///
    /// # Panics
    /// When the secret cannot be written.
    pub fn guest_with_secret(&self, name: &str, secret: &str) -> PluginSpec {
        let mut spec = self.guest(name);
        let file = self.path("token");
        std::fs::write(&file, secret).expect("written");
        spec.secrets.insert("token".to_owned(), SecretGrant { file, hosts: None });
        spec
    }

    /// A place in the world's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes these the plugins.
    ///
    /// # Panics
    /// When one is refused.
    pub async fn load(&self, specs: Vec<PluginSpec>) {
        let report = self.host.reload(specs).await;
        assert!(report.refused.is_empty(), "{report:?}");
    }

    /// Why this plugin is refused.
    ///
    /// # Panics
    /// When it is not.
    pub async fn refusal(&self, spec: PluginSpec) -> String {
        let report = self.host.reload(vec![spec]).await;
        let [(_, error)] = report.refused.as_slice() else { panic!("not refused: {report:?}") };
        harmonia_core::chain(error)
    }

    /// The guest as a forge.
    ///
    /// # Panics
    /// When it is none.
    pub fn forge(&self, plugin: &str) -> Arc<dyn Forge> {
        self.host.forge(plugin).unwrap_or_else(|| panic!("{plugin} is no forge"))
    }

    /// What the guest makes of `argument`.
    pub async fn ask(&self, plugin: &str, argument: &str) -> Result<String, ForgeError> {
        ask(&*self.forge(plugin), argument).await
    }

    /// What the guest answers.
    ///
    /// # Panics
    /// When it fails.
    pub async fn answer(&self, plugin: &str, argument: &str) -> String {
        self.ask(plugin, argument).await.unwrap_or_else(|error| panic!("{plugin}: {error}"))
    }

    /// How the call of the guest fails by the guest's fault.
    ///
    /// # Panics
    /// When it does not.
    pub async fn fault(&self, plugin: &str, argument: &str) -> String {
        match self.ask(plugin, argument).await {
            Err(ForgeError::Plugin(text)) => text,
            other => panic!("{plugin}: {other:?}"),
        }
    }

    /// A call of the same plugin in which it has no chance to misbehave.
    ///
    /// # Panics
    /// When it fails.
    pub async fn good_call(&self, plugin: &str) {
        let answer = self.forge(plugin).tree_hash(repository(), "c0ffee".to_owned()).await;
        assert_eq!(answer.as_deref(), Ok("c0ffee"), "{plugin}");
    }

    /// How a plugin is.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn status(&self, plugin: &str) -> PluginStatus {
        self.host.statuses().into_iter().find(|status| status.name == plugin).expect("it is there")
    }

    /// What is counted of a plugin.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn metrics(&self, plugin: &str) -> PluginMetrics {
        self.host.metrics().into_iter().find(|metrics| metrics.plugin == plugin).expect("it is there")
    }
}

/// What a guest makes of `argument`.
pub async fn ask(forge: &dyn Forge, argument: &str) -> Result<String, ForgeError> {
    let BranchHead { commit, .. } = forge.branch_head(repository(), argument.to_owned()).await?;
    Ok(commit)
}

fn repository() -> RepositoryRef {
    RepositoryRef { id: "1".to_owned(), full_name: "owner/name".to_owned() }
}

/// Compiled guests are kept from test to test: compiling is what takes long.
fn cache_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")).join("plugin-cache")
}
