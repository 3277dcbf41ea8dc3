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
    /// Who orders the queue, until the node stops.
    pub(crate) policy: Arc<dyn Policy>,
    /// The plugin behind it.
    in_force: Option<String>,
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
        let configured = host.policies().into_iter().next();
        let in_force = match (configured, default_policy(config)) {
            (Some(name), _) => Some(name),
            (None, Some(spec)) => {
                specs.push(spec);
                host.reload(specs).await;
                host.policies().into_iter().next()
            }
            (None, None) => None,
        };
        let policy: Arc<dyn Policy> = if let Some(name) = &in_force {
            Arc::new(host.policy(name))
        } else {
            tracing::warn!(
                "No scheduling policy: jobs are claimed by priority, then first in, first out. \
                 Set node.plugins_dir to the folder of {DEFAULT_POLICY}.wasm, or configure a policy under [[plugins]]"
            );
            Arc::new(FirstInFirstOut)
        };
        let plugins = Self { host, policy, in_force, refused: Refused::default() };
        plugins.say_unused_policies();
        Ok(plugins)
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

    fn say_unused_policies(&self) {
        if let Some(problem) = unused_policies(self.in_force.as_deref(), &self.host.policies()) {
            tracing::warn!("{problem}");
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
                self.say_unused_policies();
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

/// What is said of loaded policies that nobody asks: there is one in force, from the start of the node to its end.
fn unused_policies(in_force: Option<&str>, loaded: &[String]) -> Option<String> {
    let unused: Vec<&str> = loaded.iter().map(String::as_str).filter(|name| Some(*name) != in_force).collect();
    let (others, are) = match &unused[..] {
        [] => return None,
        [one] => ((*one).to_owned(), "is"),
        _ => (unused.join(", "), "are"),
    };
    let now = match in_force {
        Some(name) => format!("{name} orders the queue"),
        None => "jobs are claimed by priority, then first in, first out".to_owned(),
    };
    Some(format!(
        "A node has one scheduling policy, the one that it started with: {now}, and {others} {are} not used. Keep one under \
         [[plugins]]; another one is taken when this node starts again"
    ))
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

    /// A folder with a configuration, and the plugins that it starts.
    struct Node {
        folder: tempfile::TempDir,
        config: Config,
        plugins: NodePlugins,
    }

    impl Node {
        async fn start(plugins: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(Self::file(&folder), plugins).expect("written");
            let load = crate::config::load::load(Some(&Self::file(&folder)), &std::collections::BTreeMap::new());
            let mut config = load.expect("a configuration");
            config.node.state_dir = folder.path().to_owned();
            // Whatever lies beside the test program is none of this node's.
            config.node.plugins_dir = Some(folder.path().to_owned());
            let store = Arc::new(harmonia_plugin_host::MemoryStore::new(Arc::new(SystemClock)));
            let plugins = NodePlugins::start(&config, store).await;
            Self { folder, config, plugins: plugins.unwrap_or_else(|failure| panic!("{}", failure.message())) }
        }

        fn file(folder: &tempfile::TempDir) -> PathBuf {
            folder.path().join("harmonia-ci.toml")
        }

        /// SIGHUP with another file.
        async fn reload(&self, text: &str) {
            std::fs::write(Self::file(&self.folder), text).expect("written");
            self.plugins.reload(&self.config).await;
        }
    }

    fn policies(names: &[&str]) -> String {
        let path = harmonia_plugin_harness::component("scheduler-fair");
        let one = |name: &&str| format!("[[plugins]]\nname = '{name}'\npath = '{}'\n", path.display());
        names.iter().map(one).collect()
    }

    fn lines(log: &Mutex<Vec<u8>>, part: &str) -> Vec<String> {
        let log = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
        let log = String::from_utf8(log).expect("text");
        log.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_refused_plugin_is_logged_once() {
        let (log, _guard) = log();
        let node = Node::start("[[plugins]]\nname = 'odd'\npath = '/no/such/gone.wasm'\n").await;
        assert_eq!(node.plugins.host.forges(), Vec::<String>::new());
        let said = lines(&log, "odd");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("ERROR") && said[0].contains("not loaded as configured"), "{said:?}");
    }

    #[tokio::test]
    async fn a_second_policy_is_said_to_be_unused_at_start_and_when_it_comes_later() {
        let (log, _guard) = log();
        let node = Node::start(&policies(&["fair"])).await;
        assert_eq!(lines(&log, "not used"), Vec::<String>::new());
        node.reload(&policies(&["edf", "fair"])).await;
        let said = lines(&log, "not used");
        assert!(said.len() == 1 && said[0].contains("fair orders the queue, and edf is not used"), "{said:?}");
        // The one that it started with goes: nobody takes its place.
        node.reload(&policies(&["edf"])).await;
        let said = lines(&log, "not used");
        assert!(said.len() == 1 && said[0].contains("edf is not used"), "{said:?}");
        node.reload(&policies(&["fair"])).await;
        assert_eq!(lines(&log, "not used"), Vec::<String>::new());

        Node::start(&policies(&["fair", "edf"])).await;
        let said = lines(&log, "not used");
        assert!(said.len() == 1 && said[0].contains("edf orders the queue, and fair is not used"), "{said:?}");

        let node = Node::start("").await;
        node.reload(&policies(&["edf", "fair"])).await;
        let said = lines(&log, "not used");
        assert!(said.len() == 1 && said[0].contains("first out, and edf, fair are not used"), "{said:?}");
    }

    /// The line that is wrong may hold what is secret; the page is everybody's, the log is the operator's.
    #[tokio::test]
    async fn what_a_broken_file_holds_is_for_the_log_alone() {
        let (log, _guard) = log();
        let node = Node::start("").await;
        let public = || node.plugins.port().refused_configuration();
        assert_eq!(public(), None);
        for broken in [
            "[[plugins]]\nname = \"chat\"\nsettings = { url = \"https://hooks.example/T0/hunter2\", }, }\n",
            "[[plugins]]\nname = \"hunter2\"\n",
            "[[plugins]]\nname = \"chat\"\npath = \"a.wasm\"\nallow_hosts = [\"https://ci:hunter2@ho st\"]\n",
        ] {
            node.reload(broken).await;
            let said = public().expect(broken);
            assert!(!said.contains("hunter2") && said.contains("the log of this node says more"), "{said}");
            assert_eq!(lines(&log, "The configuration was not taken").len(), 1, "{broken}");
        }
        node.reload("").await;
        assert_eq!(public(), None);
    }
}
