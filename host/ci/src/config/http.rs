//! `[http]`: what clients of this node's listener may cost it, and whom it trusts as a client of others.

use std::net::IpAddr;
use std::path::PathBuf;

use harmonia_web::ListenerLimits;
use serde::{Deserialize, Serialize};

use super::value::Span;

/// Bounds of the listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) connections_max: usize,
    pub(crate) connections_per_client_max: usize,
    pub(crate) head_timeout: Span,
    pub(crate) trusted_proxies: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Default for Http {
    fn default() -> Self {
        let limits = ListenerLimits::default();
        Self {
            connections_max: limits.connections_max,
            connections_per_client_max: limits.connections_per_client_max,
            head_timeout: Span(limits.head_timeout),
            trusted_proxies: Vec::new(),
            ca_file: None,
        }
    }
}

impl Http {
    /// What the listener holds to. Half of the file descriptors are for what is done for its clients.
    pub(crate) fn limits(&self) -> ListenerLimits {
        ListenerLimits {
            connections_max: self.connections_max.min(descriptors() / 2),
            connections_per_client_max: self.connections_per_client_max,
            head_timeout: self.head_timeout.0,
            ..ListenerLimits::default()
        }
    }
}

/// Raises the soft limit of file descriptors to the hard one, within reason, and says how many there are: each connection
/// is one.
fn descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// What children inherit should not make those that walk over all of them slow.
    const ENOUGH: u64 = 65_536;
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.map_or(ENOUGH, |hard| hard.min(ENOUGH));
    let wanted = now.current.map_or(ENOUGH, |soft| soft.max(most));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum });
    let count = if raised.is_ok() { Some(wanted) } else { now.current };
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}
