//! What both fakes share: the world behind a lock, the log of requests, violations, and waiting for something to happen.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::faults::Faults;
use crate::helper::Helper;
use crate::server::Request;
use crate::world::World;

/// How long a wait may take before it fails: far longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A request as the log keeps it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// `GET`, …
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// As sent.
    pub query: String,
    /// Names in lower case; of credentials only the kind is kept.
    pub headers: Vec<(String, String)>,
    /// The body, secrets replaced.
    pub body: Vec<u8>,
    /// The status of the answer; none: the connection was dropped.
    pub status: Option<u16>,
}

impl Recorded {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The state of one fake.
pub(crate) struct Core {
    pub(crate) url: String,
    pub(crate) helper: Helper,
    pub(crate) faults: Faults,
    world: Mutex<World>,
    violations: Mutex<Vec<String>>,
    requests: Mutex<Vec<Recorded>>,
    changes: watch::Sender<u64>,
}

impl Core {
    pub(crate) fn new(url: String, helper: Helper) -> Self {
        Self {
            url,
            helper,
            faults: Faults::default(),
            world: Mutex::new(World::new()),
            violations: Mutex::default(),
            requests: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn world(&self) -> WorldGuard<'_> {
        WorldGuard { world: lock(&self.world), changes: &self.changes, edited: false }
    }

    pub(crate) fn violation(&self, request: &Request, text: &str) {
        self.object(&format!("{} {}", request.method, request.path), text);
    }

    pub(crate) fn object(&self, what: &str, text: &str) {
        lock(&self.violations).push(format!("{what}: {text}"));
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    pub(crate) fn requests(&self) -> Vec<Recorded> {
        lock(&self.requests).clone()
    }

    pub(crate) fn forget(&self) {
        lock(&self.requests).clear();
        lock(&self.violations).clear();
    }

    /// Notes a request; `secrets` are taken out of its body.
    pub(crate) fn note(&self, request: &Request, status: Option<u16>, secrets: &[&str]) {
        let headers = request.headers.iter().map(|(name, value)| {
            let kept = match name.as_str() {
                "authorization" => format!("{} …", value.split(' ').next().unwrap_or("")),
                _ => value.clone(),
            };
            (name.clone(), kept)
        });
        let mut body = request.body.clone();
        if let Ok(text) = std::str::from_utf8(&request.body) {
            let mut text = text.to_owned();
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                text = text.replace(secret, "…");
            }
            body = text.into_bytes();
        }
        lock(&self.requests).push(Recorded {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: headers.collect(),
            body,
            status,
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns once `condition` holds; asked again after every request and every edit of the world.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        let waiting = async {
            // The senders live as long as `self`.
            while !condition() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            let requests = self.requests();
            let last: Vec<String> =
                requests.iter().rev().take(10).map(|r| format!("{} {} -> {:?}", r.method, r.path, r.status)).collect();
            panic!("{what} did not happen within {PATIENCE:?}; the last requests, newest first: {last:#?}");
        }
    }
}

/// The world, while it is looked at or edited. Let go of it before the next `await`: the server waits for it.
pub struct WorldGuard<'a> {
    world: MutexGuard<'a, World>,
    changes: &'a watch::Sender<u64>,
    /// Only edits wake those who wait, or their own looking would wake them.
    edited: bool,
}

impl Deref for WorldGuard<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for WorldGuard<'_> {
    fn deref_mut(&mut self) -> &mut World {
        self.edited = true;
        &mut self.world
    }
}

impl Drop for WorldGuard<'_> {
    fn drop(&mut self) {
        if self.edited {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
