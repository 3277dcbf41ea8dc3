//! Serving clients: the Nix worker protocol on a Unix socket, for `nix` and for our own builder. Start at [`serve`].
//!
//! One task a connection: it greets (`connection`), reads a request, works on it (`operations`) and meanwhile passes on what
//! there is to say (`log`). What blocks (the store) runs on threads that may; a client that hangs up ends its builds.

mod auto_gc;
mod bulk;
mod connection;
mod listen;
mod log;
mod old;
mod operations;
mod options;
mod socket;

use std::sync::Arc;

use harmonia_nix::worker_protocol::Trust;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::{Config, User, Users};
use crate::schedule::Scheduler;
use crate::store::Store;

use connection::serve_stream;
pub use listen::{ListenError, listen};
pub(crate) use operations::chain;

/// Connections at the same time; more wait until one ends.
const CONNECTIONS_MAX: usize = 8192;

/// The Nix whose daemon we behave as, which is what clients ask, and who we are.
pub fn program_version() -> String {
    format!("2.8.0 (harmonia-daemon {})", env!("CARGO_PKG_VERSION"))
}

/// How this daemon builds when no client says otherwise.
pub fn build_options(config: &Config) -> crate::build::BuildOptions {
    options::own_build_options(config)
}

/// What all connections share.
#[derive(Debug)]
pub struct Daemon {
    /// How it was started.
    pub config: Config,
    /// The store.
    pub store: Arc<Store>,
    /// Who makes paths valid.
    pub scheduler: Arc<Scheduler>,
}

/// Accepts connections until `stop` says so, then ends them.
pub async fn serve(daemon: Arc<Daemon>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
    let collecting = tokio::spawn(auto_gc::run(Arc::clone(&daemon), stop.clone()));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Ok(permit) = Arc::clone(&room).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        // Those that ended meanwhile.
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely no more file descriptors: the next attempt waits for a connection to end.
                tracing::warn!(%error, "Could not accept a connection");
                connections.join_next().await;
                continue;
            }
        };
        let Some((user, trust)) = admit(&daemon.config, &stream) else { continue };
        let daemon = Arc::clone(&daemon);
        connections.spawn(async move {
            let _permit = permit;
            serve_stream(daemon, stream, user, trust).await;
        });
    }
    connections.shutdown().await;
    // A collection that runs ends with the process, which leaves a valid store.
    collecting.abort();
}

/// Who may connect, and how far we trust them.
fn admit(config: &Config, stream: &tokio::net::UnixStream) -> Option<(User, Trust)> {
    let credentials = match rustix::net::sockopt::socket_peercred(stream) {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "Could not tell who connects");
            return None;
        }
    };
    let user = Users::of_this_machine().user(credentials.uid.as_raw(), credentials.gid.as_raw());
    let settings = &config.settings;
    let ourselves = rustix::process::geteuid();
    let trust = if user.is_among(&settings.trusted_users) || credentials.uid == ourselves || credentials.uid.is_root() {
        Trust::Trusted
    } else {
        Trust::NotTrusted
    };
    let builds = settings.build_users_group();
    let is_builder = !builds.is_empty() && !credentials.uid.is_root() && user.groups.contains(builds);
    if (trust == Trust::NotTrusted && !user.is_among(&settings.allowed_users)) || is_builder {
        tracing::warn!(user = user.name, "This user may not connect (allowed-users)");
        return None;
    }
    tracing::debug!(user = user.name, pid = ?credentials.pid, ?trust, "Accepted a connection");
    Some((user, trust))
}
