//! Ports: what one crate needs of another without knowing it. `ci` wires them.

use std::future::Future;
use std::pin::Pin;

use crate::ids::AttemptId;

/// A future that a port returns.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes of a running build's log, from the spool of the builder that runs it.
pub trait LogSpool: Send + Sync {
    /// Up to `bytes_max` bytes of the uncompressed log from `offset`; `None` when this spool does not hold the attempt.
    fn read(&self, attempt: AttemptId, offset: u64, bytes_max: usize) -> PortFuture<'_, Option<Vec<u8>>>;
}
