//! The command line: what can be asked for. What each command does is in `command/`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use harmonia_core::status::DeadLetterKind;
use harmonia_core::{EvalId, JobId};

/// Nix-native continuous integration: one binary, every role.
#[derive(Debug, Parser)]
#[command(name = "harmonia-ci", version, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: PostgreSQL, object store, builder, cache, pages
    Up(UpArgs),
    /// Run one node with the capabilities that its configuration names
    Serve(ConfigArgs),
    /// Evaluate and build a local repository or a git URL
    Eval(EvalArgs),
    /// The server on one screen
    Status(Reading),
    /// What builds, what waits, and why
    Queue(QueueArgs),
    /// Nodes and what they do
    Nodes(Reading),
    /// Newest evaluations
    Evals(Reading),
    /// Print the log of a build
    Log(LogArgs),
    /// Build a failed job again (with what failed because of it), or all failed jobs of an evaluation
    Rebuild(Target),
    /// Cancel a job, or an evaluation with the jobs that nobody else wants
    Cancel(Target),
    /// Look at plugins, try them, and see how those of a server are
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Projects: add a git repository, enable a forge's, change settings, list
    #[command(subcommand)]
    Project(ProjectCommand),
    /// What forges delivered lately, dead letters, replay
    Deliveries(DeliveriesArgs),
    /// Statuses, comments and notifications that were given up or keep failing, replay
    DeadLetters(DeadLettersArgs),
    /// Make a signing key: the secret goes to a file, the public key to standard output
    Keygen(KeygenArgs),
    /// Bring the database schema up to date
    Migrate(ConfigArgs),
    /// Try a scheduling policy on a recorded or generated queue: makespan, waits, utilisation, fairness
    Simulate(SimulateArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Runs a program in a sandbox (used by the evaluator; reads its specification from standard input)
    #[command(hide = true)]
    SandboxExec,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Folder for the database, objects, keys and the Nix store
    /// [default: /var/lib/harmonia-ci as root, else $XDG_STATE_HOME/harmonia-ci]
    #[arg(long, value_name = "DIR", env = "HARMONIA_CI_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8060")]
    pub(crate) listen: SocketAddr,
    /// Further configuration (TOML), such as plugins; what `up` brings along itself is not taken from it
    #[arg(long, value_name = "FILE", env = "HARMONIA_CI_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Add a small example repository, build it before your eyes, and say how to fetch a result
    #[arg(long)]
    pub(crate) demo: bool,
}

/// What is simulated.
#[derive(Debug, Clone, Args)]
pub(crate) struct SimulateArgs {
    /// The policy: a component's file [default: priority, then first in, first out]
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// A recorded queue (JSON lines) [default: one is generated]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jobs", "projects", "shape", "seed", "arrive_within_s"])]
    pub(crate) queue: Option<PathBuf>,
    /// Builders
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) builders: u32,
    /// Jobs that each builds at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) slots: u32,
    /// Generated: jobs
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) jobs: u32,
    /// Generated: projects, with sizes by Zipf's law
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) projects: u32,
    /// Generated: how jobs wait for each other
    #[arg(long, value_enum, default_value_t = QueueShape::Layered)]
    pub(crate) shape: QueueShape,
    /// Generated: the same seed gives the same jobs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Generated: evaluations come within that many seconds [default: half of what the work takes]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) arrive_within_s: Option<f64>,
    /// Draw it, too
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Simulate nothing: write the database's queue to a file, for --queue
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policy", "queue", "svg", "json"])]
    pub(crate) record: Option<PathBuf>,
    /// With --record: jobs queued in the last days
    #[arg(long, value_name = "N", default_value_t = 7, requires = "record")]
    pub(crate) days: u32,
    /// With --record: configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "HARMONIA_CI_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// Shape of a generated queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum QueueShape {
    /// As packages depend on each other
    Layered,
    /// No job waits for another
    Wide,
    /// Long chains
    Deep,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "HARMONIA_CI_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// How the server is found.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// URL of the server [default: the one that `up` runs on this machine]
    #[arg(long, value_name = "URL", env = "HARMONIA_CI_SERVER")]
    pub(crate) server: Option<url::Url>,
    /// API token [default: the one of `up`'s data directory]
    #[arg(long, value_name = "TOKEN", env = "HARMONIA_CI_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Data directory of `up`, to find its server and token
    #[arg(long, value_name = "DIR", env = "HARMONIA_CI_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print JSON (shapes: docs/api.md)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A local repository (its HEAD is evaluated), or a git URL (https://, ssh://, git://, file://; `#branch` picks one)
    #[arg(value_name = "FLAKE", default_value = ".")]
    pub(crate) flake: String,
    /// Flake output prefixes instead of those of .harmonia-ci.toml (repeat, or separate by commas)
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) attrs: Vec<String>,
    /// Evaluate the working tree with its uncommitted changes
    #[arg(long)]
    pub(crate) dirty: bool,
    /// Project name [default: local/<folder>]
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Wait until everything is built and show progress; exit 0 when all of it succeeded, 1 when something failed
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    /// Explain one job: its id, derivation path or attribute
    #[arg(long, value_name = "JOB")]
    pub(crate) why: Option<String>,
    /// Most waiting jobs to list
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Job id, derivation path or attribute
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Follow it until the build ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Job id, derivation path or attribute
    #[arg(value_name = "JOB", required_unless_present = "eval")]
    pub(crate) job: Option<String>,
    /// An evaluation instead of a job
    #[arg(long, value_name = "ID", conflicts_with = "job")]
    pub(crate) eval: Option<EvalId>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// Add a plain git repository, which is then polled
    Add(ProjectAddArgs),
    /// Enable a repository that a forge told of
    Enable(ProjectEnableArgs),
    /// Evaluate nothing of a project any more; what there is stays
    Disable(ProjectNameArgs),
    /// Change settings of a project
    Set(ProjectSetArgs),
    /// Projects with their settings
    List(Reading),
    /// Repositories that forges told of
    Repositories(RepositoriesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProjectAddArgs {
    /// The repository (https://, ssh://, git://, file://), without credentials
    #[arg(long, value_name = "URL")]
    pub(crate) git: String,
    /// Name of the project [default: from the end of the URL]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Branch to follow [default: the one that the remote's HEAD names]
    #[arg(long, value_name = "BRANCH")]
    pub(crate) branch: Option<String>,
    /// Seconds between two looks at it; 0: never [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) poll: Option<u32>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct ProjectEnableArgs {
    /// The repository, with the forge's configured name before it
    #[arg(value_name = "FORGE:OWNER/NAME")]
    pub(crate) repository: String,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct ProjectNameArgs {
    /// The project
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct ProjectSetArgs {
    /// The project
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Settings: enabled, is_public, scheduling_shares, pr_enabled, pr_trust, poll_interval_s, poll_pull_requests,
    /// default_branch, branch_patterns (separated by commas), build_tags, build_drafts, reuse_trees
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub(crate) settings: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct RepositoriesArgs {
    /// Only those whose name contains this
    #[arg(value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// Only those of this forge
    #[arg(long, value_name = "NAME")]
    pub(crate) forge: Option<String>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct DeliveriesArgs {
    /// Only dead letters: those that were given up
    #[arg(long)]
    pub(crate) dead: bool,
    /// Only those of this forge
    #[arg(long, value_name = "NAME")]
    pub(crate) forge: Option<String>,
    /// Process one once more, instead of listing; with --dead and no ID all dead letters
    #[arg(long, value_name = "ID", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "clap's type for an option whose value may be left out")]
    pub(crate) replay: Option<Option<i64>>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLettersArgs {
    /// Try one again as if for the first time, instead of listing (such as status/7)
    #[arg(long, value_name = "KIND/ID")]
    pub(crate) replay: Option<DeadLetterName>,
    #[command(flatten)]
    pub(crate) output: Reading,
}

/// `KIND/ID`, as the list has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeadLetterName {
    pub(crate) kind: DeadLetterKind,
    pub(crate) id: i64,
}

impl std::str::FromStr for DeadLetterName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name =
            text.split_once('/').and_then(|(kind, id)| Some(Self { kind: kind.parse().ok()?, id: id.parse().ok()? }));
        name.ok_or("write it as `harmonia-ci dead-letters` lists it, such as status/7")
    }
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Name of the key, as clients see it (cache.example.org-1)
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// File for the secret key; it must not exist
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// What a component is: kind, what it imports (so what it could ever do), size, what it says of itself
    Inspect(PluginInspect),
    /// Load a component and try the cases of its kind, without any network
    Check(PluginCheck),
    /// Call one export, with JSON in and out
    Call(PluginCall),
    /// The plugins of a server and how they are
    List(Reading),
}

#[derive(Debug, Args)]
pub(crate) struct PluginInspect {
    /// The component (.wasm)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a plugin may do that no configuration names.
#[derive(Debug, Args)]
pub(crate) struct PluginGrants {
    /// A setting that it may read
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = crate::command::plugin::pair)]
    pub(crate) settings: Vec<(String, String)>,
    /// A secret that it may use
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = crate::command::plugin::pair)]
    pub(crate) secrets: Vec<(String, String)>,
    /// A host that it may call
    #[arg(long = "allow-host", value_name = "HOST")]
    pub(crate) allow_hosts: Vec<String>,
    /// Give it a WASI: empty or scratch
    #[arg(long, value_name = "GRANT")]
    pub(crate) wasi: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginCheck {
    /// The component (.wasm)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) grants: PluginGrants,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PluginCall {
    /// The component (.wasm)
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The export: `branches.head`, `describe`
    #[arg(value_name = "EXPORT")]
    pub(crate) export: String,
    /// JSON: an object with a key for each parameter, or an array of them
    #[arg(value_name = "JSON")]
    pub(crate) input: Option<String>,
    #[command(flatten)]
    pub(crate) grants: PluginGrants,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read the configuration, say what is in force and why, and what is wrong with it
    Check(ConfigArgs),
}

/// A job as named on the command line, resolved by the server.
pub(crate) fn job_id(text: &str) -> Option<JobId> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_of_the_specification_parses() {
        for line in [
            "up --demo --data-dir /tmp/x --listen 127.0.0.1:0",
            "serve --config f.toml",
            "eval . --wait --json --attrs checks,packages",
            "queue --why 3",
            "log -f checks.x86_64-linux.hello",
            "rebuild 3",
            "rebuild --eval 3",
            "cancel 3 --json",
            "plugin inspect a.wasm --json",
            "plugin check a.wasm --setting a=b --secret c=d",
            "plugin call a.wasm branches.head {} --allow-host api.example.org",
            "plugin list --json",
            "keygen cache-1 --out key",
            "migrate",
            "config check --config f.toml",
            "project add --git https://example.org/x.git --poll 60 --name x --branch main",
            "project enable forge:owner/name",
            "project disable owner/name",
            "project set owner/name poll_interval_s=60 pr_trust=all",
            "project list --json",
            "project repositories thing --forge f",
            "deliveries --dead",
            "deliveries --replay 7",
            "deliveries --replay --dead --forge f",
            "deliveries --dead --replay --json",
            "dead-letters --json",
            "dead-letters --replay comment/7",
            "status --json",
        ] {
            let words = std::iter::once("harmonia-ci").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in
            ["", "rebuild", "rebuild 3 --eval 4", "eval . --frob", "up --listen nowhere", "dead-letters --replay 7"]
        {
            let words = std::iter::once("harmonia-ci").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
