//! Runs a plugin in `cargo test`: the component itself, in the plugin host that servers run, with HTTP that the test scripts.
//!
//! ```no_run
//! # async fn test() {
//! use harmonia_plugin_harness::{Answer, Harness, component};
//!
//! let harness = Harness::new(component("examples/chat-reporter")).secret("token", "hunter2").start().await;
//! harness.server().answer("POST", "/hook", Answer::json(200, &serde_json::json!({ "ok": true })));
//! // … call it through `harness.reporter()`, `harness.forge()` or `harness.policy()`, then look at what it sent:
//! let sent = harness.server().requests();
//! # }
//! ```
//!
//! Start reading at [`Harness`]. [`conformance`] is what every plugin of a kind must pass.

mod conformance;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use harmonia_core::SystemClock;
use harmonia_core::policy::Policy;
use harmonia_core::ports::{Forge, PluginStore, Plugins as _, Reporter};
use harmonia_plugin_host::{
    HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec, SecretGrant,
};

pub use conformance::conformance;
pub use server::{Answer, Received, ScriptedServer};

/// Name of the plugin under test.
const NAME: &str = "under-test";

/// A component that was built: `github`, `examples/chat-reporter`, `guests/spins`. Looked for in `HARMONIA_PLUGINS_DIR`, else in
/// `plugins` of cargo's target folder.
///
/// # Panics
/// When it is not there: build it (`harmonia-plugin-build`, or `./dev plugins` in the project's own tree).
pub fn component(name: &str) -> PathBuf {
    let target = || {
        let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")).join("plugins")
    };
    let folder = std::env::var_os("HARMONIA_PLUGINS_DIR").map_or_else(target, PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is not there: build it, in this project's tree with ./dev plugins", path.display());
    path
}

/// A plugin to be started. Nothing is granted but what is said here, and the scripted server.
pub struct Harness {
    spec: PluginSpec,
    secrets: Vec<(String, String)>,
    server_settings: Vec<(String, String)>,
    clock: Arc<dyn harmonia_core::Clock>,
    store: Option<Arc<dyn PluginStore>>,
}

impl Harness {
    /// For this component file.
    pub fn new(component: impl Into<PathBuf>) -> Self {
        Self {
            spec: PluginSpec::new(NAME, component),
            secrets: Vec::new(),
            server_settings: Vec::new(),
            clock: Arc::new(SystemClock),
            store: None,
        }
    }

    /// A setting.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.spec.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A setting that is the scripted server's address followed by `path`.
    #[must_use]
    pub fn server_setting(mut self, name: &str, path: &str) -> Self {
        self.server_settings.push((name.to_owned(), path.to_owned()));
        self
    }

    /// A secret.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A secret in a file of the test's own, which may be missing or hold anything. Takes the place of one set before.
    #[must_use]
    pub fn secret_file(mut self, name: &str, file: impl Into<PathBuf>) -> Self {
        self.secrets.retain(|(known, _)| known != name);
        self.spec.secrets.insert(name.to_owned(), SecretGrant { file: file.into(), hosts: None });
        self
    }

    /// A host that it may call besides the scripted server.
    ///
    /// # Panics
    /// When it is no host.
    #[must_use]
    pub fn allow_host(mut self, host: &str) -> Self {
        self.spec.allow_hosts.push(host.parse().expect("a host, as in allow_hosts"));
        self
    }

    /// Changes what is configured in any other way (limits, a WASI).
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut PluginSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Another clock than the machine's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn harmonia_core::Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// A store of the test's own, to look into it, or to start with what an earlier run left.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn PluginStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// Loads it.
    ///
    /// # Panics
    /// When it is refused, with the reason.
    pub async fn start(self) -> Running {
        match self.try_start().await {
            Ok(running) => running,
            Err(reason) => panic!("the plugin is refused: {reason}"),
        }
    }

    /// Loads it, or gives the reason why it is refused.
    pub async fn try_start(mut self) -> Result<Running, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let server = ScriptedServer::start().await;
        for (name, value) in self.secrets {
            let file = folder.path().join(format!("secret-{name}"));
            std::fs::write(&file, value).map_err(|error| error.to_string())?;
            self.spec.secrets.insert(name, SecretGrant { file, hosts: None });
        }
        for (name, path) in self.server_settings {
            self.spec.settings.insert(name, format!("{}{path}", server.url()));
        }
        let grant = server.url().parse().map_err(|error| format!("{error}"))?;
        self.spec.allow_hosts.push(grant);
        let host = PluginHost::new(HostOptions {
            cache_folder: cache_folder(),
            scratch_folder: folder.path().join("scratch"),
            store: self.store.unwrap_or_else(|| Arc::new(MemoryStore::new(Arc::clone(&self.clock)))),
            clock: self.clock,
            http: HttpClient::new(&HttpClientOptions::default()).map_err(|error| harmonia_core::chain(&error))?,
        })
        .map_err(|error| harmonia_core::chain(&error))?;
        let report = host.reload(vec![self.spec.clone()]).await;
        if let Some((_, error)) = report.refused.first() {
            return Err(harmonia_core::chain(error));
        }
        Ok(Running { host, server, spec: self.spec, _folder: folder })
    }
}

/// Compiled components are kept from test to test: compiling is what takes long.
pub fn cache_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")).join("plugin-cache")
}

/// A plugin that runs.
pub struct Running {
    host: PluginHost,
    server: ScriptedServer,
    spec: PluginSpec,
    _folder: tempfile::TempDir,
}

impl Running {
    /// The server that it talks to.
    pub const fn server(&self) -> &ScriptedServer {
        &self.server
    }

    /// The host itself, for whatever is not here.
    pub const fn host(&self) -> &PluginHost {
        &self.host
    }

    /// What is configured.
    pub const fn spec(&self) -> &PluginSpec {
        &self.spec
    }

    /// The plugin as a forge.
    ///
    /// # Panics
    /// When it is none.
    pub fn forge(&self) -> Arc<dyn Forge> {
        self.host.forge(NAME).expect("a forge")
    }

    /// The plugin as a reporter.
    ///
    /// # Panics
    /// When it is none.
    pub fn reporter(&self) -> Arc<dyn Reporter> {
        self.host.reporter(NAME).expect("a reporter")
    }

    /// The plugin as a scheduling policy.
    pub fn policy(&self) -> Arc<dyn Policy> {
        Arc::new(self.host.policy(NAME))
    }

    /// How it is.
    ///
    /// # Panics
    /// When it is not there.
    pub fn status(&self) -> harmonia_core::plugin::PluginStatus {
        self.host.statuses().into_iter().find(|status| status.name == NAME).expect("it is there")
    }
}
