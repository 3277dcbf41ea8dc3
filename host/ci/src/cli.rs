//! The command line: what can be asked for. What each command does is in `command/`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
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
    /// Make a signing key: the secret goes to a file, the public key to standard output
    Keygen(KeygenArgs),
    /// Bring the database schema up to date
    Migrate(ConfigArgs),
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
            "keygen cache-1 --out key",
            "migrate",
            "config check --config f.toml",
            "status --json",
        ] {
            let words = std::iter::once("harmonia-ci").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in ["", "rebuild", "rebuild 3 --eval 4", "eval . --frob", "up --listen nowhere"] {
            let words = std::iter::once("harmonia-ci").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
