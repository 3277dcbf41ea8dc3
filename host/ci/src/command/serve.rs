//! `serve`: one node with the capabilities of its configuration, until a signal ends it.

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ConfigArgs;
use crate::config::{Config, load};
use crate::exit::Failure;
use crate::node::{self, Stop};
use crate::output::say_ready;

/// Runs the node. SIGTERM or SIGINT drains it; a second one gives what runs back to the queue.
pub(crate) async fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let config = load::load(args.config.as_deref(), &std::env::vars().collect())?;
    crate::logging::set_up(&config.log)?;
    if config.node.capabilities.is_empty() {
        return Err(Failure::usage("this node has no capability")
            .hint("set node.capabilities to some of frontend, evaluator, signer, builder"));
    }
    let listener = node::bind(config.node.listen).await?;
    let stop = Stop::new();
    let signals = tokio::spawn(drain_then_abort(stop.clone()));
    let url = node::endpoint(&config, &listener)?;
    let ended = node::run(config, listener, stop, move |_: &Config| say_ready(&url)).await;
    signals.abort();
    ended
}

async fn drain_then_abort(stop: Stop) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("Could not listen for signals: the node can only be killed");
        return;
    };
    let mut next = async || {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    next().await;
    tracing::info!("Draining: what runs is finished, nothing new is claimed; a second signal aborts");
    stop.drain();
    next().await;
    tracing::info!("Aborting: builds and evaluations that run go back to the queue");
    stop.abort();
}
