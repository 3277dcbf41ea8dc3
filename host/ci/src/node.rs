//! One node: the roles of its capabilities, wired together in one process behind one listener.
//!
//! Start at [`run`]: bind, connect, register, start the roles, open the listener's gate, wait for the end, and stop in
//! an order in which nobody loses what it needs. What the parts are made of is in `parts.rs`.

mod forges;
mod heartbeat;
mod http;
mod parts;
pub(crate) mod plugins;
mod secret;
mod signing;

use std::net::SocketAddr;
use std::sync::Arc;

use harmonia_cache::{PublishedHook, Reader, ReaderOptions, Signer};
use harmonia_coordinator::CoordinatorOptions;
use harmonia_core::SecretUrl;
use harmonia_core::ports::LogSpool;
use harmonia_core::{Capability, Incarnation, NodeId, SystemClock};
use harmonia_db::{Db, JobLimits, NodeRegistration};
use harmonia_web::{AppLimits, AppOptions, AppState, Gate};
use harmonia_worker::builder::Builder;
use harmonia_worker::evaluator;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config::value::Span;
use crate::config::{Config, Visibility};
use crate::exit::{Failure, chain};

pub(crate) use parts::{check, connect};

/// How a node is asked to end. Aborting implies draining.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self { drain: CancellationToken::new(), abort: CancellationToken::new() }
    }

    /// Finish what runs, claim nothing.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Give what runs back to the queue.
    pub(crate) fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Ends when either was asked for.
    pub(crate) async fn requested(&self) {
        self.drain.cancelled().await;
    }
}

/// Takes the address, so that a port in use is known before anything else starts.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::failed(format!("the address {address} is in use"))
            .hint("end the other program, or choose another address with --listen (or node.listen)"),
        _ => Failure::failed(format!("could not listen on {address}: {error}"))
            .hint("choose an address of this machine with --listen (or node.listen)"),
    })
}

/// URL under which other nodes and the CLI reach this one.
pub(crate) fn endpoint(config: &Config, listener: &TcpListener) -> Result<Url, Failure> {
    if let Some(url) = &config.node.endpoint {
        return Ok(url.expose().clone());
    }
    let address =
        listener.local_addr().map_err(|error| Failure::failed(format!("could not read the address: {error}")))?;
    Url::parse(&format!("http://{address}/")).map_err(|error| Failure::failed(error.to_string()))
}

/// Lets `token` call the API.
pub(crate) async fn allow_token(db: &Db, name: &str, token: &str) -> Result<(), Failure> {
    db.create_api_token(name, harmonia_web::api_token_hash(token))
        .await
        .map_err(|error| Failure::failed(format!("could not store the API token: {}", chain(&error))))
}

/// Runs the sandbox helper: reads its specification from standard input and becomes the program.
pub(crate) fn sandbox_exec() -> ! {
    harmonia_sandbox::helper_main()
}

/// Runs one node until it is stopped or cannot go on. `on_ready` is called once everything answers.
pub(crate) async fn run(
    config: Config,
    listener: TcpListener,
    stop: Stop,
    on_ready: impl FnOnce(&Config) + Send,
) -> Result<(), Failure> {
    let endpoint = endpoint(&config, &listener)?;
    let gate = Gate::new();
    let serving = CancellationToken::new();
    let server = tokio::spawn(harmonia_web::serve(listener, gate.router(), config.http.limits(), serving.clone()));
    let ended = run_roles(&config, &endpoint, &gate, &serving, &stop, on_ready).await;
    serving.cancel();
    match server.await {
        Ok(()) => ended,
        Err(error) => ended.and(Err(Failure::failed(format!("the listener broke: {error}")))),
    }
}

async fn run_roles(
    config: &Config,
    endpoint: &Url,
    gate: &Gate,
    serving: &CancellationToken,
    stop: &Stop,
    on_ready: impl FnOnce(&Config) + Send,
) -> Result<(), Failure> {
    let db = connect(config).await?;
    db.check_schema().await.map_err(|error| Failure::failed(chain(&error)).hint("run `harmonia-ci migrate`"))?;
    let identity = Identity::new(config)?;
    let parts = parts::Parts::new(config, endpoint, db.clone()).await?;
    let plugins = plugins::NodePlugins::start(config, Arc::new(db.clone())).await?;
    http::warn_of_clear_text(endpoint);
    let registration = registration(config, endpoint, &identity)?;
    let released = db
        .register_node(&registration)
        .await
        .map_err(|error| Failure::failed(format!("could not register this node: {}", chain(&error))))?;
    if released.jobs > 0 || released.evaluations > 0 {
        tracing::info!(
            jobs = released.jobs,
            evaluations = released.evaluations,
            "Gave back to the queue what an earlier run of this node held"
        );
    }

    if config.has(Capability::Frontend) {
        set_limits(config, &db).await?;
        let local_public = config.auth.local_projects == Some(Visibility::Public);
        db.set_local_visibility(local_public).await.map_err(|error| {
            Failure::failed(format!("could not store who may see local projects: {}", chain(&error)))
        })?;
    }
    if config.has(Capability::Signer) {
        let keys: Vec<String> = parts.public_keys.iter().map(ToString::to_string).collect();
        db.set_signer_keys(&identity.node, identity.incarnation, &keys)
            .await
            .map_err(|error| Failure::failed(format!("could not record the signing keys: {}", chain(&error))))?;
    }

    let reader = parts.store.as_ref().map(|store| {
        let options = ReaderOptions {
            public_keys: parts.public_keys.clone(),
            priority: config.cache.priority,
            ..ReaderOptions::default()
        };
        Reader::new(store.clone(), db.clone(), options)
    });
    let signer = match (&parts.store, config.has(Capability::Signer)) {
        (Some(store), true) => {
            let hook = reader.clone().map(|reader| -> PublishedHook { Arc::new(move |paths| reader.published(paths)) });
            let options = signing::options(config, hook);
            Some(Signer::new(db.clone(), store.clone(), parts.secret_keys.clone(), options))
        }
        _ => None,
    };

    let mut roles: JoinSet<Result<(), Failure>> = JoinSet::new();
    let background = CancellationToken::new();
    let mut spool: Option<Arc<dyn LogSpool>> = None;
    let mut paused = None;
    if config.has(Capability::Builder) {
        let builder = Builder::new(parts.builder_options(config, &identity, Arc::clone(&plugins.policy))?)
            .map_err(|error| Failure::failed(format!("could not start the builder: {}", chain(&error))))?;
        spool = Some(builder.spool());
        paused = Some(builder.paused());
        let (drain, abort) = (stop.drain.clone(), stop.abort.clone());
        roles.spawn(async move {
            builder
                .run(drain, abort)
                .await
                .map_err(|error| Failure::failed(format!("the builder ended: {}", chain(&error))))
        });
    }
    if config.has(Capability::Evaluator) {
        let options = parts.evaluator_options(config, &identity)?;
        let (drain, abort) = (stop.drain.clone(), stop.abort.clone());
        roles.spawn(async move {
            evaluator::run(options, drain, abort)
                .await
                .map_err(|error| Failure::failed(format!("the evaluator ended: {}", chain(&error))))
        });
    }
    let public_url =
        config.node.public_url.as_ref().map_or(endpoint, SecretUrl::expose).as_str().trim_end_matches('/').to_owned();
    let forge_plugins = plugins.port();
    let mut helpers = JoinSet::new();
    helpers.spawn(plugins.clone().follow(config.clone(), background.clone()));
    if config.has(Capability::Frontend) {
        let options = CoordinatorOptions {
            db: db.clone(),
            every: config.intervals.chores.0,
            node_dead_after: config.intervals.node_dead_after.0,
            unsupported_after: config.intervals.unsupported_after.0,
            policy: Arc::clone(&plugins.policy),
        };
        helpers.spawn(harmonia_coordinator::run(options, background.clone()));
        let options = forges::projects_options(
            config,
            db.clone(),
            forge_plugins.clone(),
            identity.node.clone(),
            public_url.clone(),
        );
        helpers.spawn(harmonia_coordinator::run_projects(options, background.clone()));
        let options = forges::intake_options(config, db.clone(), forge_plugins.clone(), identity.node.clone());
        helpers.spawn(harmonia_coordinator::run_intake(options, background.clone()));
        let options =
            forges::report_options(config, db.clone(), forge_plugins.clone(), identity.node.clone(), &public_url);
        helpers.spawn(harmonia_coordinator::report::run(options, background.clone()));
    }
    if let Some(signer) = &signer {
        helpers.spawn(signing::run(signer.clone(), db.clone(), background.clone()));
    }
    let lost =
        heartbeat::start(&mut helpers, &db, &identity, config.intervals.heartbeat.0, paused, &stop.drain, &background);

    let app = AppState::new(AppOptions {
        db: db.clone(),
        signer,
        reader,
        spool,
        plugins: forge_plugins,
        remote_heads: config.has(Capability::Frontend).then(|| forges::remote_heads(config)),
        public_url,
        public_keys: parts.public_keys.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_silent_after: config.intervals.node_dead_after.0,
        clock: Arc::new(SystemClock),
        trusted_proxies: config.http.trusted_proxies.clone(),
        limits: AppLimits::default(),
        shutdown: serving.clone(),
    });
    gate.open(harmonia_web::router(app));
    on_ready(config);

    let ended = tokio::select! {
        ended = wait_for_roles(&mut roles, stop) => ended,
        () = lost.cancelled() => Err(lost_its_name(&identity.node)),
    };
    if ended.is_err() {
        stop.abort();
        // What is left gives its work back before the connections go.
        while roles.join_next().await.is_some() {}
    }
    background.cancel();
    while helpers.join_next().await.is_some() {}
    if let Err(error) = db.deregister_node(&identity.node, identity.incarnation).await {
        tracing::warn!(error = %chain(&error), "Could not say goodbye; the others notice by the missing heartbeat");
    }
    ended
}

/// What ends a process whose node is not its own any more. Which of both happened, the database does not tell.
fn lost_its_name(node: &NodeId) -> Failure {
    Failure::failed(format!(
        "this process is no longer node '{node}': another one registered under its name with the same state folder, or the \
         node was ended in the database"
    ))
    .hint("run one process with each node.state_dir, and give each node a name of its own (node.name)")
}

/// What `[build]` says holds for every project of the cluster that has no limits of its own.
async fn set_limits(config: &Config, db: &Db) -> Result<(), Failure> {
    let build = &config.build;
    // The database counts whole seconds; less than one would be none.
    let seconds = |span: Span| span.0.as_secs() + u64::from(span.0.subsec_nanos() > 0);
    let limits = JobLimits {
        timeout_s: seconds(build.timeout),
        max_silent_s: seconds(build.max_silent),
        output_bytes_max: build.output_max.0,
        log_bytes_max: build.log_max.0,
    };
    db.set_default_limits(&limits).await.map_err(|error| {
        Failure::failed(format!("could not store the limits of builds: {}", chain(&error)))
            .hint("look at build.timeout, build.max_silent, build.output_max and build.log_max")
    })
}

/// Until all roles ended after a stop, or the first one broke.
async fn wait_for_roles(roles: &mut JoinSet<Result<(), Failure>>, stop: &Stop) -> Result<(), Failure> {
    stop_or_failure(roles, stop).await?;
    while let Some(ended) = roles.join_next().await {
        flatten(ended)?;
    }
    Ok(())
}

async fn stop_or_failure(roles: &mut JoinSet<Result<(), Failure>>, stop: &Stop) -> Result<(), Failure> {
    loop {
        tokio::select! {
            () = stop.requested() => return Ok(()),
            Some(ended) = roles.join_next() => {
                flatten(ended)?;
                if !stop.drain.is_cancelled() {
                    return Err(Failure::failed("a role ended by itself"));
                }
            }
        }
    }
}

fn flatten(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    ended.unwrap_or_else(|error| Err(Failure::failed(format!("a role broke: {error}"))))
}

/// Under which name, and which run of it.
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
}

impl Identity {
    fn new(config: &Config) -> Result<Self, Failure> {
        let name = match &config.node.name {
            Some(name) => name.clone(),
            None => rustix::system::uname()
                .nodename()
                .to_str()
                .map_err(|_| Failure::usage("the host's name is not UTF-8").hint("set node.name"))?
                .to_owned(),
        };
        Ok(Self { node: NodeId(name), incarnation: Incarnation(rand::random::<i64>() & i64::MAX) })
    }
}

fn registration(config: &Config, endpoint: &Url, identity: &Identity) -> Result<NodeRegistration, Failure> {
    let builds = config.has(Capability::Builder);
    Ok(NodeRegistration {
        secret: secret::of_node(&config.node.state_dir, &identity.node)?,
        id: identity.node.clone(),
        incarnation: identity.incarnation,
        capabilities: config.node.capabilities.clone(),
        endpoint: Some(endpoint.as_str().trim_end_matches('/').to_owned()),
        systems: if builds { config.builder.systems.clone() } else { Vec::new() },
        features: if builds { config.builder.features.clone() } else { Vec::new() },
        max_jobs: if builds { config.builder.max_jobs } else { 0 },
        max_evals: if config.has(Capability::Evaluator) { config.evaluator.max_evals } else { 0 },
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lost_its_name_hears_of_both_ways_to_lose_it() {
        let failure = lost_its_name(&NodeId("builder-1".to_owned()));
        for words in ["no longer node 'builder-1'", "registered under its name", "ended in the database"] {
            assert!(failure.message().contains(words), "{}", failure.message());
        }
    }
}
