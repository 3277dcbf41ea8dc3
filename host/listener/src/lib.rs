//! The accept loop of every HTTP listener of ours: how many connections, how long each may do nothing, how it ends.
//!
//! Start reading at [`serve`]; [`Limits`] says what a client may cost. Half a request, an idle connection, or an answer that
//! nobody reads costs one connection for a bounded time, and nobody else anything.
//!
//! Never here: what is answered, time limits of a request's body (who reads it knows them), TLS.

mod clients;
mod patient;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use clients::Clients;
pub use clients::network_of;
use patient::Patient;

/// When the system has no file descriptors left, accepting at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of a request's head; also how much of a connection is read or written at once.
const BUFFER_BYTES: usize = 64 << 10;

/// What clients may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. Later ones wait to be accepted.
    pub connections_max: usize,
    /// Connections of one client at once ([`network_of`] its address). Later ones are closed. Clients on this machine, a
    /// proxy for instance, are not counted.
    pub connections_per_client_max: usize,
    /// From connecting, or from the end of an answer, until the head of the next request is complete.
    pub head_timeout: Duration,
    /// How long a client may take nothing of an answer that waits for it.
    pub write_timeout: Duration,
    /// What a client still sends when its answer is given is thrown away for so long: a connection closed before that would
    /// take the answer with it.
    pub linger: Duration,
    /// How long answers may still take after the end was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            connections_per_client_max: 512,
            head_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_mins(1),
            linger: Duration::from_secs(5),
            drain: Duration::from_secs(25),
        }
    }
}

/// Answers connections with what `service_for` makes for each client's address, until `stop` is cancelled; then accepts no
/// more, closes idle connections, and lets answers end. Returns how many did not.
///
/// `name` completes "a connection to …".
pub async fn serve<S, B>(
    name: &'static str,
    listener: TcpListener,
    limits: Limits,
    stop: CancellationToken,
    service_for: impl Fn(SocketAddr) -> S,
) -> usize
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let clients = Clients::new(limits.connections_per_client_max);
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (Ok(permit), accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let Some(counted) = clients.enter(peer.ip()) else {
                        tracing::debug!(%peer, "Too many connections of one client to {name}, this one is closed");
                        continue;
                    };
                    let connection = converse(name, stream, limits.clone(), service_for(peer), stop.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop((permit, counted));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection to {name}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(limits.drain, all_ended).await;
    let left = connections.len();
    if left > 0 {
        tracing::warn!(left, "Giving up connections to {name} that did not end within {:?}", limits.drain);
        connections.shutdown().await;
    }
    left
}

async fn converse<S, B>(name: &'static str, stream: TcpStream, limits: Limits, service: S, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Small answers must not wait for the acknowledgement of earlier ones.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "Could not set TCP_NODELAY");
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(BUFFER_BYTES);
    let stream = TokioIo::new(Patient::new(stream, limits.write_timeout, limits.linger));
    let mut connection = pin!(builder.serve_connection(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection to {name} broke off");
    }
}

#[cfg(test)]
mod tests;
