//! The proxy. Start at [`Egress::session`]: what runs in one sandbox, or one run of git, has a session of its own, with its own
//! rules and its own list of what was refused. `proxy/reach.rs` resolves, judges and connects, `proxy/serve.rs` is one
//! connection, `proxy/head.rs` reads and rewrites heads of HTTP messages.

mod head;
mod reach;
mod serve;

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tracing::Instrument as _;

use crate::resolver::Resolver;
use crate::rules::{EgressGrant, EgressRules, Refusal};
pub use reach::TargetError;
use serve::Password;

/// Refusals that are remembered and logged of one session; each once.
const REFUSALS_MAX: usize = 20;
/// After an error of `accept` (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of one session.
#[derive(Debug, Clone, Copy)]
pub struct EgressLimits {
    /// Connections side by side; more wait until one ends.
    pub connections_max: usize,
    /// The head of one request or answer, in bytes.
    pub head_bytes_max: usize,
    /// A client that needs longer for its request's head is hung up on.
    pub head_time_max: Duration,
    /// Resolving and connecting may take this long.
    pub connect_time_max: Duration,
    /// A connection over which nothing goes for so long ends.
    pub idle_time_max: Duration,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            head_bytes_max: 32 << 10,
            head_time_max: Duration::from_secs(15),
            connect_time_max: Duration::from_secs(30),
            idle_time_max: Duration::from_mins(5),
        }
    }
}

/// The way out of this node for what it does not trust. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    rules: Arc<EgressRules>,
    resolver: Arc<dyn Resolver>,
    limits: EgressLimits,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("rules", &self.rules).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Egress {
    /// A way out under these rules.
    pub fn new(rules: EgressRules, resolver: Arc<dyn Resolver>, limits: EgressLimits) -> Self {
        Self { rules: Arc::new(rules), resolver, limits }
    }

    /// For one sandbox, or one checkout of git. `also` is allowed in this session alone.
    pub fn session(&self, also: Vec<EgressGrant>) -> Session {
        let mut rules = Arc::clone(&self.rules);
        if !also.is_empty() {
            Arc::make_mut(&mut rules).allowed.extend(also);
        }
        let way = Way { rules, resolver: Arc::clone(&self.resolver), limits: self.limits, refused: Mutex::default() };
        Session { way: Arc::new(way), serving: None }
    }
}

/// What the connections of a session share.
struct Way {
    rules: Arc<EgressRules>,
    resolver: Arc<dyn Resolver>,
    limits: EgressLimits,
    refused: Mutex<Vec<Refusal>>,
}

/// One user of the proxy. Dropping it ends all of its connections.
pub struct Session {
    way: Arc<Way>,
    serving: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("rules", &self.way.rules)
            .field("refused", &self.way.refused)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Serves whoever connects to this listener. For one in a network namespace that holds nothing but its user.
    pub fn serve(&mut self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.start(TcpListener::from_std(listener)?, None);
        Ok(())
    }

    /// Serves on this machine's loopback interface who knows the password; returns the proxy's URL with it.
    pub async fn serve_here(&mut self) -> io::Result<String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let password = Password::random();
        let url = format!("http://{}@{address}", password.user_info());
        self.start(listener, Some(password));
        Ok(url)
    }

    fn start(&mut self, listener: TcpListener, password: Option<Password>) {
        let task = accept(Arc::clone(&self.way), listener, password.map(Arc::new));
        if let Some(before) = self.serving.replace(tokio::spawn(task.in_current_span())) {
            before.abort();
        }
    }

    /// What was refused so far, each once.
    pub fn refused(&self) -> Vec<Refusal> {
        self.way.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = &self.serving {
            task.abort();
        }
    }
}

impl Way {
    /// Remembers a refusal and tells the operator, once.
    fn note(&self, refusal: &Refusal) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < REFUSALS_MAX && !refused.contains(refusal) {
            tracing::warn!(target = %refusal.target, address = %refusal.address, "Egress refused: {refusal}");
            refused.push(refusal.clone());
        }
    }
}

/// Ends, with all connections, when it is dropped.
async fn accept(way: Arc<Way>, listener: TcpListener, password: Option<Arc<Password>>) {
    let room = Arc::new(Semaphore::new(way.limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        // Nobody closes it.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let (way, password) = (Arc::clone(&way), password.clone());
                connections.spawn(async move {
                    // A client that goes away ends its own connection.
                    drop(serve::connection(&way, stream, password.as_deref()).await);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "The egress proxy could not take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
