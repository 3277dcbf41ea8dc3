//! How the fakes fail on command.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

/// Which requests a fault concerns. The default: all.
#[derive(Clone, Debug, Default)]
pub struct When {
    method: Option<String>,
    path_part: Option<String>,
    times: Option<u32>,
}

impl When {
    /// All requests.
    pub fn always() -> Self {
        Self::default()
    }

    /// Requests with this method whose path contains `path_part`.
    pub fn request(method: &str, path_part: &str) -> Self {
        Self { method: Some(method.to_owned()), path_part: Some(path_part.to_owned()), times: None }
    }

    /// Requests whose path contains `path_part`.
    pub fn path(path_part: &str) -> Self {
        Self { method: None, path_part: Some(path_part.to_owned()), times: None }
    }

    /// Only so many requests; the fault is gone then.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    fn concerns(&self, method: &str, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && self.path_part.as_ref().is_none_or(|part| path.contains(part.as_str()))
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Effect {
    /// The connection closes before the request was looked at.
    DropBefore,
    /// The request is applied, then the connection closes without an answer.
    DropAfter,
    /// Answered with this status (502, 503, …) and a page of text, not applied.
    Status(u16),
    /// 429 with `retry-after`, not applied.
    TooManyRequests {
        /// Seconds.
        retry_after: u32,
    },
    /// GitHub's 403 when the hourly budget is used up: `x-ratelimit-remaining: 0` and `x-ratelimit-reset`.
    RateLimitUsedUp {
        /// Seconds until `x-ratelimit-reset`.
        reset_after: u32,
    },
    /// GitHub's 403 against bursts: `retry-after`, with requests remaining.
    SecondaryRateLimit {
        /// Seconds.
        retry_after: u32,
    },
    /// Applied, and answered only after this time.
    Slow(Duration),
    /// Applied, and answered when the gate is opened.
    Hold(Gate),
    /// Applied, and answered with a body that is cut off in the middle of the announced length.
    CutOff,
    /// Applied, and answered with 200 and a page of text instead of JSON, as proxies do.
    Gibberish,
}

/// Holds answers back until the test opens it.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<Semaphore>,
    waiting: Arc<watch::Sender<u32>>,
}

impl Gate {
    fn new() -> Self {
        Self { open: Arc::new(Semaphore::new(0)), waiting: Arc::new(watch::Sender::new(0)) }
    }

    /// Returns once so many requests have reached the gate since it was made.
    pub async fn reached_by(&self, requests: u32) {
        let mut waiting = self.waiting.subscribe();
        let reached = tokio::time::timeout(crate::forge::PATIENCE, waiting.wait_for(|count| *count >= requests)).await;
        assert!(reached.is_ok(), "{requests} requests should have reached the gate");
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.open.close();
    }

    pub(crate) async fn pass(&self) {
        self.waiting.send_modify(|count| *count += 1);
        // Nothing is ever added: it returns when the semaphore is closed.
        let _closed = self.open.acquire().await;
    }
}

/// What goes wrong at present. Shared with the server: changes take effect with the next request.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<(When, Effect)>>,
}

impl Faults {
    /// Requests that `when` concerns suffer `effect`. Older faults come first.
    pub fn add(&self, when: When, effect: Effect) {
        self.lock().push((when, effect));
    }

    /// Everything is answered with 502.
    pub fn down(&self) {
        self.add(When::always(), Effect::Status(502));
    }

    /// Every connection is closed without a word: as good as refused, but the port stays ours.
    pub fn unreachable(&self) {
        self.add(When::always(), Effect::DropBefore);
    }

    /// Answers to these requests are held back until the gate is opened.
    pub fn hold(&self, when: When) -> Gate {
        let gate = Gate::new();
        self.add(when, Effect::Hold(gate.clone()));
        gate
    }

    /// All is well again. Answers that are held back are let through.
    pub fn clear(&self) {
        for (_, effect) in self.lock().drain(..) {
            if let Effect::Hold(gate) = effect {
                gate.open();
            }
        }
    }

    /// The effect on this request; counts it.
    pub(crate) fn take(&self, method: &str, path: &str) -> Option<Effect> {
        let mut rules = self.lock();
        let index = rules.iter().position(|(when, _)| when.concerns(method, path))?;
        let (when, effect) = &mut rules[index];
        let effect = effect.clone();
        if let Some(times) = &mut when.times {
            *times -= 1;
            if *times == 0 {
                rules.remove(index);
            }
        }
        Some(effect)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(When, Effect)>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
