//! `up`: everything in one process tree on one machine.
//!
//! It only starts what a bigger installation has elsewhere (PostgreSQL, an object store, a Nix daemon), writes a
//! configuration that names them, and then runs the same node as `serve`. What it keeps is in [`data`]; started again
//! it resumes.

mod data;
mod demo;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use harmonia_core::{Capability, SecretUrl, SystemClock, without_credentials};
use harmonia_embedded::nix_daemon::{DaemonProgram, NixDaemon, NixDaemonOptions};
use harmonia_embedded::postgres::{PostgresOptions, PrivatePostgres};
use harmonia_embedded::s3::{S3Endpoint, S3Options};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::client::{Client, default_data_dir};
use crate::config::{Config, StoreDaemon, Visibility, load};
use crate::exit::{Failure, chain};
use crate::node::{self, Stop};
use crate::output::say_ready;
use data::DataDir;

/// Name of the database in the private cluster.
const DATABASE: &str = "harmonia";
/// Name of the bucket.
const BUCKET: &str = "harmonia-ci";

/// Runs until a signal ends it.
pub(crate) async fn run(args: UpArgs) -> Result<(), Failure> {
    let folder = match &args.data_dir {
        Some(folder) => folder.clone(),
        None => default_data_dir()?,
    };
    let mut log = crate::config::Log { level: "warn".to_owned(), ..crate::config::Log::default() };
    if let Ok(level) = std::env::var("HARMONIA_CI__LOG__LEVEL") {
        log.level = level;
    }
    crate::logging::set_up(&log)?;
    let stop = Stop::new();
    let signals = tokio::spawn(abort_on_signal(stop.clone()));
    let ended = Box::pin(run_in(&args, DataDir::open(folder)?, stop)).await;
    signals.abort();
    ended
}

async fn run_in(args: &UpArgs, data: DataDir, stop: Stop) -> Result<(), Failure> {
    // The port first: when it is taken, nothing else needs to start.
    let listener = node::bind(args.listen).await?;
    let secrets = data.secrets()?;
    eprintln!("data in {}", data.path().display());

    let config = load::load(args.config.as_deref(), &std::env::vars().collect())?;
    let services = tokio::select! {
        started = Services::start(&data, &secrets, &config) => started?,
        () = stop.requested() => return Ok(()),
    };
    let ended = Box::pin(run_node(args, &data, &secrets, &services, config, listener, stop)).await;
    services.stop().await;
    data.remove_server_file();
    ended
}

/// The node and, with `--demo`, the show in front of it.
async fn run_node(
    args: &UpArgs,
    data: &DataDir,
    secrets: &data::Secrets,
    services: &Services,
    config: Config,
    listener: TcpListener,
    stop: Stop,
) -> Result<(), Failure> {
    let url = node::endpoint(&config, &listener)?;
    let config = configure(config, data, secrets, services, args)?;
    data.write_config(&config)?;
    data.write_server_file(&url, &secrets.api_token)?;

    let db = node::connect(&config).await?;
    db.migrate().await.map_err(|error| Failure::failed(chain(&error)))?;
    node::allow_token(&db, "up", &secrets.api_token).await?;
    db.close().await;

    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let node = node::run(config, listener, stop.clone(), move |_: &Config| {
        let _ = ready.send(());
    });
    let client = Client::new(url.clone(), Some(secrets.api_token.clone()))?;
    let front = async {
        if is_ready.await.is_err() {
            return Ok(());
        }
        if args.demo {
            demo::build(&client, data, &secrets.public_key, &url).await?;
        }
        say_ready(&url);
        eprintln!("Ctrl-C ends it; started again it resumes.");
        Ok(())
    };
    let (ended, shown) = tokio::join!(node, async {
        let shown: Result<(), Failure> = tokio::select! { shown = front => shown, () = stop.requested() => Ok(()) };
        if shown.is_err() {
            stop.abort();
        }
        shown
    });
    ended.and(shown)
}

/// What a bigger installation has elsewhere. Dropping it stops everything without waiting.
/// It is installed beside this program.
fn harmonia_daemon() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("this program's own file is not known: {}", chain(&error))))?;
    Ok(program.with_file_name("harmonia-daemon"))
}

struct Services {
    postgres: PrivatePostgres,
    s3: S3Endpoint,
    daemon: NixDaemon,
}

impl Services {
    async fn start(data: &DataDir, secrets: &data::Secrets, config: &Config) -> Result<Self, Failure> {
        let mut postgres = PostgresOptions::new(data.postgres());
        postgres.databases = vec![DATABASE.to_owned()];
        let s3 = S3Options {
            folder: data.objects(),
            listen: ([127, 0, 0, 1], 0).into(),
            access_key: secrets.access_key.clone(),
            secret_key: secrets.secret_key.clone(),
            buckets: vec![BUCKET.to_owned()],
            durable: true,
        };
        let daemon = NixDaemonOptions {
            program: match config.store.daemon {
                StoreDaemon::Harmonia => DaemonProgram::Harmonia(harmonia_daemon()?),
                StoreDaemon::Nix => DaemonProgram::Nix,
            },
            root: data.store(),
            state_dir: data.nix_state(),
            socket: data.daemon_socket(),
            sandbox: true,
            shell: None,
            max_jobs: config.builder.max_jobs,
            cores: config.build.cores,
            settings: Vec::new(),
        };
        let (postgres, s3, daemon) = tokio::join!(
            PrivatePostgres::start(postgres),
            S3Endpoint::start(s3, Arc::new(SystemClock)),
            NixDaemon::start(daemon),
        );
        match (postgres, s3, daemon) {
            (Ok(postgres), Ok(s3), Ok(daemon)) => Ok(Self { postgres, s3, daemon }),
            // What did start is ended before the error is told: nothing stays behind.
            (postgres, s3, daemon) => {
                let mut failures = Vec::new();
                match postgres {
                    Ok(postgres) => postgres.stop().await,
                    Err(error) => failures.push(format!("the private PostgreSQL: {}", chain(&error))),
                }
                match s3 {
                    Ok(s3) => s3.stop().await,
                    Err(error) => failures.push(format!("the object store: {}", chain(&error))),
                }
                match daemon {
                    Ok(daemon) => daemon.stop().await,
                    Err(error) => failures.push(format!("the Nix daemon: {}", chain(&error))),
                }
                Err(Failure::failed(format!("could not start {}", failures.join("; and "))))
            }
        }
    }

    /// Ends them cleanly, the database last.
    async fn stop(self) {
        tokio::join!(self.daemon.stop(), self.s3.stop());
        self.postgres.stop().await;
    }
}

/// The configuration of the one node, with what the environment overrides.
fn configure(
    mut config: Config,
    data: &DataDir,
    secrets: &data::Secrets,
    services: &Services,
    args: &UpArgs,
) -> Result<Config, Failure> {
    config.node.name = Some("local".to_owned());
    config.node.capabilities = Capability::ALL.to_vec();
    config.node.listen = args.listen;
    config.node.state_dir = data.state();
    config.database.url = Some(private(&services.postgres.url(DATABASE))?);
    config.object_store.endpoint = Some(private(&services.s3.url())?);
    BUCKET.clone_into(&mut config.object_store.bucket);
    config.object_store.access_key_file = Some(secrets.access_key_file.clone());
    config.object_store.secret_key_file = Some(secrets.secret_key_file.clone());
    config.signer.key_files = vec![secrets.signing_key_file.clone()];
    config.auth.local_projects = local_projects(&config, args.listen);
    // Server and user are one person on one machine.
    config.eval.allow_file_urls = true;
    // The file that is written lies elsewhere.
    let specs = node::plugins::specs(&config)?;
    for (plugin, spec) in config.plugins.iter_mut().zip(specs) {
        plugin.path = spec.path;
    }
    config.file.clone_from(&args.config);
    services.daemon.socket().clone_into(&mut config.store.daemon_socket);
    config.store.root = data.store();
    Ok(config)
}

/// Who may see projects without a forge, when the operator does not say. Who reaches a loopback address is on this machine;
/// whoever is served by a proxy in front of it is not.
fn local_projects(config: &Config, listen: SocketAddr) -> Option<Visibility> {
    let is_for_this_machine = listen.ip().is_loopback() && config.node.public_url.is_none();
    config.auth.local_projects.or(is_for_this_machine.then_some(Visibility::Public))
}

/// The URL of something that runs beside us.
fn private(url: &str) -> Result<SecretUrl, Failure> {
    url.parse().map_err(|error| Failure::failed(format!("'{}' is not a URL: {error}", without_credentials(url))))
}

/// The first signal ends everything (running builds go back to the queue); a second one does not wait.
async fn abort_on_signal(stop: Stop) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("Could not listen for signals: `up` can only be killed");
        return;
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    eprintln!("stopping: running builds go back to the queue");
    stop.abort();
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    eprintln!("stopping at once");
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_else_reaches_shows_local_projects_unasked() {
        use Visibility::{Private, Public};
        // Where it listens, node.public_url, auth.local_projects. (Unset is private: see `AppState`.)
        for (listen, public_url, configured, expected) in [
            ("127.0.0.1:8080", None, None, Some(Public)),
            ("[::1]:8080", None, None, Some(Public)),
            ("127.0.0.1:8080", None, Some(Private), Some(Private)),
            ("127.0.0.1:8080", Some("https://ci.example.org/"), None, None),
            ("127.0.0.1:8080", Some("https://ci.example.org/"), Some(Public), Some(Public)),
            ("0.0.0.0:8080", None, None, None),
            ("[::]:8080", None, None, None),
            ("192.168.1.2:8080", None, None, None),
            ("192.168.1.2:8080", None, Some(Public), Some(Public)),
        ] {
            let mut config = Config::default();
            config.node.public_url = public_url.map(|url| url.parse().expect("a URL"));
            config.auth.local_projects = configured;
            let found = local_projects(&config, listen.parse().expect("an address"));
            assert_eq!(found, expected, "{listen} {public_url:?} {configured:?}");
        }
    }
}
