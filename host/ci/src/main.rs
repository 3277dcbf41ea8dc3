//! `harmonia-ci`: configuration, command line, and the wiring of roles into one process.
//!
//! Start reading at [`cli`] for what can be asked, then at `node.rs` for how a node is put together.

#[macro_use]
mod output;

mod cli;
mod client;
mod command;
mod config;
mod exit;
mod logging;
mod node;
mod table;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command, ConfigCommand};
use command::read::Verb;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Must stay single-threaded: it makes namespaces.
    if matches!(cli.command, Command::SandboxExec) {
        node::sandbox_exec();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::Failure::failed(format!("could not start the runtime: {error}")).report(),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(command: Command) -> Result<(), exit::Failure> {
    match command {
        Command::Up(args) => command::up::run(args).await,
        Command::Serve(args) => command::serve::run(&args).await,
        Command::Eval(args) => command::eval::run(&args).await,
        Command::Status(args) => command::read::status(&args).await,
        Command::Queue(args) => command::read::queue(&args).await,
        Command::Nodes(args) => command::read::nodes(&args).await,
        Command::Evals(args) => command::read::evals(&args).await,
        Command::Log(args) => command::log::run(&args).await,
        Command::Rebuild(args) => command::read::change(&args, Verb::Rebuild).await,
        Command::Cancel(args) => command::read::change(&args, Verb::Cancel).await,
        Command::Plugin(command) => command::plugin::run(&command).await,
        Command::Project(command) => command::project::run(&command).await,
        Command::Deliveries(args) => command::project::deliveries(&args).await,
        Command::DeadLetters(args) => command::project::dead_letters(&args).await,
        Command::Keygen(args) => command::keygen::run(&args),
        Command::Migrate(args) => command::migrate::run(&args).await,
        Command::Simulate(args) => command::simulate::run(args).await,
        Command::Config(ConfigCommand::Check(args)) => command::config_check::run(&args),
        Command::SandboxExec => Ok(()),
    }
}
