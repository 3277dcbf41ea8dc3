//! The loops of a frontend that have to do with forges and reporters: deliveries, discovery, webhooks at forges, polling,
//! statuses, notifications.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_coordinator::report::ReportOptions;
use harmonia_coordinator::{AutoEnable, INTAKE_RETRIES, IntakeOptions, ProjectsOptions};
use harmonia_core::NodeId;
use harmonia_core::ports::{Plugins, RemoteHeads};
use harmonia_db::Db;
use harmonia_worker::remote_heads::GitRemoteHeads;

use crate::config::Config;

/// How long a plain git repository has to say where its branches are; whoever asks for an evaluation waits for it.
const REMOTE_TIME_MAX: Duration = Duration::from_secs(45);

/// Asks plain git repositories where their branches are.
pub(super) fn remote_heads(config: &Config) -> Arc<dyn RemoteHeads> {
    let eval = &config.eval;
    Arc::new(GitRemoteHeads::new(PathBuf::from("git"), eval.allow_file_urls, eval.allow_hosts.clone(), REMOTE_TIME_MAX))
}

/// What discovery, hooks and polling need, from the configuration.
pub(super) fn projects_options(
    config: &Config,
    db: Db,
    plugins: Arc<dyn Plugins>,
    node: NodeId,
    public_url: String,
) -> ProjectsOptions {
    let rules = config.plugins.iter().map(|plugin| {
        let topics = plugin.auto_enable.topics.iter().cloned().map(AutoEnable::Topic);
        let names = plugin.auto_enable.names.iter().cloned().map(AutoEnable::Name);
        (plugin.name.clone(), topics.chain(names).collect())
    });
    ProjectsOptions {
        db,
        plugins,
        node,
        public_url,
        remote_heads: remote_heads(config),
        auto_enable: rules.collect(),
        discover_every: config.intervals.discovery.0,
        every: config.intervals.forge_loops.0,
    }
}

/// What processing deliveries needs.
pub(super) fn intake_options(config: &Config, db: Db, plugins: Arc<dyn Plugins>, node: NodeId) -> IntakeOptions {
    IntakeOptions {
        db,
        plugins,
        node,
        merge_branches: config.forges.merge_branches.clone(),
        reuse_silent_after: Some(config.intervals.node_dead_after.0),
        retries: INTAKE_RETRIES,
        every: config.intervals.forge_loops.0,
    }
}

/// What statuses, comments and notifications need.
pub(super) fn report_options(
    config: &Config,
    db: Db,
    plugins: Arc<dyn Plugins>,
    node: NodeId,
    public_url: &str,
) -> ReportOptions {
    let mut options = ReportOptions::new(db, plugins, node, public_url);
    options.status.prefix.clone_from(&config.statuses.prefix);
    options.status.failed_attrs_max = config.statuses.failed_attributes_max as usize;
    options.burst = config.intervals.reports.0;
    options.poll = config.intervals.forge_loops.0;
    options
}
