//! `harmonia-daemon`: serves the Nix worker protocol over the local store.
//!
//! Without arguments it serves in the foreground until SIGTERM. `--stdio` passes standard input and output on to the daemon
//! that serves already, as `ssh-ng` wants it. `check` tries the walls of builds.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use harmonia_daemon::build::helper_main;
use harmonia_daemon::config::{BUILD_HELPER, Config};
use harmonia_daemon::schedule::{Scheduler, SchedulerSettings};
use harmonia_daemon::server::{Daemon, listen, serve};
use harmonia_daemon::store::Store;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const USAGE: &str = "usage: harmonia-daemon [--daemon | --stdio | --version | check]";

/// What goes wrong is told to whoever started us.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [BUILD_HELPER, ..] => helper_main(),
        [] | ["--daemon"] => start(run()),
        ["--stdio"] => relay(),
        ["check"] => start(check()),
        ["--version"] => {
            println!("nix-daemon (harmonia) {}", harmonia_daemon::server::program_version());
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("harmonia-daemon: {text}");
            ExitCode::FAILURE
        }
    }
}

fn start(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HARMONIA_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(work)
}

async fn run() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Config::from_environment()?;
    let store = Store::open(config.layout.clone(), config.store_settings())?;
    raise_open_files();
    let there = Arc::clone(&store);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = there.sweep() {
            tracing::warn!(%error, "Could not delete what was left in the store");
        }
    });
    let settings = &config.settings;
    let scheduler = Scheduler::new(
        Arc::clone(&store),
        SchedulerSettings {
            builds_max: settings.max_jobs,
            systems: settings.systems(),
            system_features: settings.system_features(),
            keep_log: settings.keep_build_log,
            compress_log: settings.compress_build_log,
            free_bytes_min: 0,
            connect_timeout: (settings.connect_timeout_s > 0).then(|| Duration::from_secs(settings.connect_timeout_s)),
        },
    );
    let listener = UnixListener::from_std(listen(&config.socket)?)?;
    tracing::info!(socket = %config.socket.display(), "Serving");
    let (stop, stopped) = watch::channel(false);
    let daemon = Arc::new(Daemon { config, store, scheduler: Arc::clone(&scheduler) });
    let serving = tokio::spawn(serve(daemon, listener, stopped));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = stop.send(true);
    serving.await?;
    scheduler.stop().await;
    Ok(())
}

/// Each connection is an open file, and so is each lock.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::debug!(%error, "Could not raise the limit of open files");
    }
}

/// Says of each wall of builds whether this machine gives it; fails when one is missing without which nothing is built.
async fn check() -> Result<(), Failure> {
    let config = Config::from_environment()?;
    let walls = harmonia_daemon::build::check(&harmonia_daemon::server::build_options(&config)).await;
    for wall in &walls {
        println!("{}: {}", wall.name, wall.missing.as_deref().unwrap_or("stands"));
    }
    match walls.iter().find(|wall| wall.is_required && wall.missing.is_some()) {
        Some(wall) => Err(format!("builds in a sandbox are refused on this machine: {}", wall.name).into()),
        None => Ok(()),
    }
}

/// Between our standard streams and the daemon.
fn relay() -> Result<(), Failure> {
    let config = Config::from_environment()?;
    let stream = UnixStream::connect(&config.socket);
    let stream = stream.map_err(|error| format!("no daemon at {}: {error}", config.socket.display()))?;
    let mut to_daemon = stream.try_clone()?;
    std::thread::spawn(move || {
        let copied = io::copy(&mut io::stdin().lock(), &mut to_daemon);
        // Whoever asked is gone, and so is the need for answers.
        let closed = to_daemon.shutdown(std::net::Shutdown::Both);
        copied.and(closed)
    });
    // The daemon hangs up when it has answered all.
    let (mut from_daemon, mut output) = (stream, io::stdout().lock());
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = from_daemon.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        output.write_all(&piece[..length])?;
        output.flush()?;
    }
}
