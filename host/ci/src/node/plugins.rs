//! The plugins of this node: which are configured, and how they come and go while the node runs.
//!
//! Start at [`NodePlugins::start`]. Every node loads what its own configuration names; a builder needs no more than a policy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use harmonia_core::SystemClock;
use harmonia_core::plugin::PluginStatus;
use harmonia_core::policy::{FirstInFirstOut, Policy};
use harmonia_core::ports::{Forge, PluginStore, Plugins, Reporter};
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, PluginHost, PluginSpec};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::exit::{Failure, chain};

/// The policy that is used when no other is configured, among the plugins that come with the program.
const DEFAULT_POLICY: &str = "scheduler-fair";

/// The plugins of a node.
#[derive(Clone)]
pub(crate) struct NodePlugins {
    pub(crate) host: PluginHost,
    /// Who orders the queue.
    pub(crate) policy: Arc<dyn Policy>,
    refused: Refused,
}

/// Why the configuration as it was last read was not taken.
type Refused = Arc<Mutex<Option<String>>>;

/// The plugins as the rest of the node sees them: the host's, and whether their configuration is the one in the file.
struct Configured {
    host: PluginHost,
    refused: Refused,
}

impl Plugins for Configured {
    fn forges(&self) -> Vec<String> {
        self.host.forges()
    }
    fn forge(&self, name: &str) -> Option<Arc<dyn Forge>> {
        self.host.forge(name)
    }
    fn reporters(&self) -> Vec<String> {
        self.host.reporters()
    }
    fn reporter(&self, name: &str) -> Option<Arc<dyn Reporter>> {
        self.host.reporter(name)
    }
    fn statuses(&self) -> Vec<PluginStatus> {
        self.host.statuses()
    }
    fn refused_configuration(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl NodePlugins {
    /// Loads what is configured. A plugin that is refused does not keep the node from starting: its status says why, and it
    /// is tried again when its file changes.
    pub(crate) async fn start(config: &Config, store: Arc<dyn PluginStore>) -> Result<Self, Failure> {
        let host = host(&config.node.state_dir, store)?;
        let mut specs = specs(config)?;
        // Which were loaded or refused, and why, the host says by itself, here and below.
        host.reload(specs.clone()).await;
        let configured = policy_of(&host.policies());
        let name = match (configured, default_policy(config)) {
            (Some(name), _) => Some(name),
            (None, Some(spec)) => {
                specs.push(spec);
                host.reload(specs).await;
                policy_of(&host.policies())
            }
            (None, None) => None,
        };
        let policy: Arc<dyn Policy> = if let Some(name) = name {
            Arc::new(host.policy(name))
        } else {
            tracing::warn!(
                "No scheduling policy: jobs are claimed by priority, then first in, first out. \
                 Set node.plugins_dir to the folder of {DEFAULT_POLICY}.wasm, or configure a policy under [[plugins]]"
            );
            Arc::new(FirstInFirstOut)
        };
        Ok(Self { host, policy, refused: Refused::default() })
    }

    /// As a port.
    pub(crate) fn port(&self) -> Arc<dyn Plugins> {
        Arc::new(Configured { host: self.host.clone(), refused: self.refused.clone() })
    }

    /// Follows changes of the plugins' files, and of the configuration's file on SIGHUP, until `stop`.
    pub(crate) async fn follow(self, config: Config, stop: CancellationToken) {
        let Ok(mut hangups) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
            tracing::error!("Could not listen for SIGHUP: plugins are reloaded when their files change only");
            self.host.watch(config.intervals.plugin_reload.0).await;
            return;
        };
        let changes = async {
            while hangups.recv().await.is_some() {
                self.reload(&config).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.host.watch(config.intervals.plugin_reload.0) => {}
            () = changes => {}
        }
    }

    /// Reads `[[plugins]]` again. What cannot be read changes nothing.
    async fn reload(&self, old: &Config) {
        let environment = std::env::vars().collect();
        let read = crate::config::load::load(old.file.as_deref(), &environment);
        // What everybody sees on a page says where, and nothing of what stands there: that is for the log.
        let read = read.map_err(|error| (error.public_text(), Failure::from(error)));
        let specs = read.and_then(|config| {
            let of_plugins = |failure| ("what [[plugins]] says cannot be used".to_owned(), failure);
            let mut specs = specs(&config).map_err(of_plugins)?;
            if self.host.policies().iter().any(|name| name == DEFAULT_POLICY)
                && !specs.iter().any(|spec| spec.name == DEFAULT_POLICY)
            {
                specs.extend(default_policy(&config));
            }
            Ok(specs)
        });
        let refused = match specs {
            Ok(specs) => {
                tracing::info!("Read the plugins' configuration again");
                self.host.reload(specs).await;
                None
            }
            Err((public, failure)) => {
                tracing::error!("The configuration was not taken: {}", failure.message());
                Some(format!("{public}; the log of this node says more"))
            }
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }
}

/// The policy in force, of those that are loaded: there can be one, and that there are more is said.
fn policy_of(loaded: &[String]) -> Option<String> {
    let name = loaded.first()?;
    if let Some(problem) = several(loaded) {
        tracing::warn!("{problem}");
    }
    Some(name.clone())
}

/// What is wrong with so many policies.
fn several(loaded: &[String]) -> Option<String> {
    let [first, others @ ..] = loaded else { return None };
    (!others.is_empty()).then(|| {
        let others = others.join(", ");
        format!("Several scheduling policies are configured: {first} orders the queue, and {others} is not used. Keep one under [[plugins]]")
    })
}

/// An engine for plugins, with its compiled code and scratch files below the state folder.
pub(crate) fn host(state_dir: &Path, store: Arc<dyn PluginStore>) -> Result<PluginHost, Failure> {
    let http = HttpClient::new(&HttpClientOptions::default()).map_err(|error| Failure::failed(chain(&error)))?;
    let options = HostOptions {
        cache_folder: state_dir.join("plugin-cache"),
        scratch_folder: state_dir.join("plugin-scratch"),
        store,
        clock: Arc::new(SystemClock),
        http,
    };
    PluginHost::new(options).map_err(|error| {
        Failure::failed(format!("could not start the engine of plugins: {}", chain(&error)))
            .hint("set node.state_dir to a folder that only this user may write")
    })
}

/// What is configured, ready to be loaded.
pub(crate) fn specs(config: &Config) -> Result<Vec<PluginSpec>, Failure> {
    if let Some(problem) = crate::config::plugins::problem(&config.plugins) {
        return Err(Failure::usage(problem));
    }
    let base = config.file.as_deref().and_then(Path::parent).map_or_else(PathBuf::new, Path::to_owned);
    let dir = plugins_dir(config);
    config.plugins.iter().map(|plugin| plugin.spec(&base, dir.as_deref()).map_err(Failure::usage)).collect()
}

fn default_policy(config: &Config) -> Option<PluginSpec> {
    let path = plugins_dir(config)?.join(format!("{DEFAULT_POLICY}.wasm"));
    path.is_file().then(|| PluginSpec::new(DEFAULT_POLICY, path))
}

/// The folder with the plugins that come with the program: configured, or where a package or a build puts it.
pub(crate) fn plugins_dir(config: &Config) -> Option<PathBuf> {
    if let Some(dir) = &config.node.plugins_dir {
        return Some(dir.clone());
    }
    let program = std::env::current_exe().ok()?;
    let bin = program.parent()?;
    ["../lib/harmonia-ci/plugins", "../plugins", "plugins"].iter().map(|place| bin.join(place)).find(|dir| dir.is_dir())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What is logged while this is held, on this thread.
    pub(in crate::node) fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
        struct Writer(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Writer {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&log);
        let format = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Writer(Arc::clone(&to)));
        (log, tracing::subscriber::set_default(format.finish()))
    }

    #[tokio::test]
    async fn a_refused_plugin_is_logged_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gone.wasm");
        let text = format!("[[plugins]]\nname = 'odd'\npath = '{}'\n", file.display());
        let mut config: Config = toml::from_str(&text).expect("a configuration");
        config.node.state_dir = folder.path().to_owned();
        let clock = Arc::new(SystemClock);
        let (log, _guard) = log();
        let plugins = NodePlugins::start(&config, Arc::new(harmonia_plugin_host::MemoryStore::new(clock))).await;
        let plugins = plugins.unwrap_or_else(|failure| panic!("{}", failure.message()));
        assert_eq!(plugins.host.forges(), Vec::<String>::new());
        let log = String::from_utf8(log.lock().expect("not poisoned").clone()).expect("text");
        let said: Vec<&str> = log.lines().filter(|line| line.contains("odd")).collect();
        assert_eq!(said.len(), 1, "{log}");
        assert!(said[0].contains("ERROR") && said[0].contains("not loaded as configured"), "{log}");
    }

    #[test]
    fn a_second_policy_is_said_to_be_unused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!((policy_of(&[]), several(&[])), (None, None));
        assert_eq!((policy_of(&names(&["fair"])), several(&names(&["fair"]))), (Some("fair".to_owned()), None));
        let two = names(&["edf", "fair"]);
        assert_eq!(policy_of(&two).as_deref(), Some("edf"));
        let said = several(&two).expect("said");
        assert!(said.contains("edf orders the queue") && said.contains("fair is not used"), "{said}");
    }
}
