//! What is counted of a plugin, and whether it may be called now. One a name; it outlives reloads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harmonia_core::Timestamp;

use crate::breaker::Breaker;
use crate::error::{CallError, CallFailure};

/// Upper bounds of the latency buckets, in microseconds; one more bucket holds the rest.
pub const LATENCY_BUCKETS_US: [u64; 10] = [50, 100, 500, 1_000, 5_000, 20_000, 100_000, 500_000, 2_000_000, 10_000_000];

/// Counters of one plugin since this node started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginMetrics {
    /// Name of the instance.
    pub plugin: String,
    /// Calls that reached the guest.
    pub calls: u64,
    /// Calls that failed by the plugin's fault.
    pub failures: u64,
    /// Of these: traps.
    pub traps: u64,
    /// Of these: limits.
    pub limits: u64,
    /// Calls that were not made: the circuit is broken, or too many at once.
    pub refused: u64,
    /// Times that the circuit broke.
    pub breaks: u64,
    /// Time of all calls, in microseconds.
    pub duration_us: u64,
    /// Calls by their time: [`LATENCY_BUCKETS_US`], not cumulative, and the rest.
    pub latency: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// Times that a new component or configuration was taken.
    pub loads: u64,
    /// Times that one was refused.
    pub refused_loads: u64,
}

#[derive(Default)]
pub(crate) struct Stats {
    calls: AtomicU64,
    failures: AtomicU64,
    traps: AtomicU64,
    limits: AtomicU64,
    refused: AtomicU64,
    breaks: AtomicU64,
    duration_us: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS_US.len() + 1],
    pub(crate) loads: AtomicU64,
    pub(crate) refused_loads: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    breaker: Breaker,
    last_error: Option<String>,
    last_failure: Option<String>,
}

impl Health {
    fn note(&mut self, error: &CallError) {
        self.last_error = Some(error.to_string());
        self.last_failure = Some(error.public_message());
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Stats {
    /// Whether a call may be made now.
    pub(crate) fn admit(&self, now: Timestamp) -> Result<(), CallFailure> {
        self.health().breaker.admit(now).map_err(|for_s| {
            count(&self.refused);
            CallFailure::CircuitOpen { for_s }
        })
    }

    /// Notes how a call ended; true when it broke the circuit.
    pub(crate) fn ended(&self, now: Timestamp, took: Duration, error: Option<&CallError>) -> bool {
        if let Some(error) = error.filter(|error| !error.is_fault()) {
            count(&self.refused);
            self.health().note(error);
            return false;
        }
        count(&self.calls);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.duration_us.fetch_add(us, Ordering::Relaxed);
        count(&self.latency[LATENCY_BUCKETS_US.partition_point(|bound| *bound < us)]);
        let Some(error) = error else {
            self.health().breaker.succeeded();
            return false;
        };
        count(&self.failures);
        match error.failure {
            CallFailure::Trap { .. } => count(&self.traps),
            CallFailure::Limit(_) => count(&self.limits),
            _ => {}
        }
        let mut health = self.health();
        health.note(error);
        let breaks = health.breaker.failed(now);
        if breaks {
            count(&self.breaks);
        }
        breaks
    }

    /// Notes that another component is in place: it starts without a record.
    pub(crate) fn replaced(&self) {
        count(&self.loads);
        *self.health() = Health::default();
    }

    /// Notes that a component was refused.
    pub(crate) fn refused_load(&self, reason: String) {
        count(&self.refused_loads);
        self.health().last_error = Some(reason);
    }

    /// What whoever runs this server has to mend, found by a call that was none of the plugin's fault.
    pub(crate) fn note_problem(&self, problem: &str) {
        let mut health = self.health();
        health.last_error = Some(problem.to_owned());
        health.last_failure = Some("a secret of its configuration cannot be used".to_owned());
    }

    /// Its configuration says what it does not understand.
    pub(crate) fn note_unknown(&self, problem: &str) {
        let mut health = self.health();
        health.last_error = Some(problem.to_owned());
        health.last_failure = Some("its configuration names settings or secrets that it does not have".to_owned());
    }

    /// What it asks for is refused: an operator has to give it another credential, or a grant.
    pub(crate) fn note_refused(&self, export: &str, answer: &str) {
        let mut health = self.health();
        health.last_error = Some(format!("{export} is refused: {answer}"));
        health.last_failure =
            Some(format!("{export} is refused: a credential or permission is missing or has expired"));
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.health().last_error.clone()
    }

    /// As [`Self::last_error`], without what the guest said.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.health().last_failure.clone()
    }

    pub(crate) fn broken_for_s(&self, now: Timestamp) -> Option<u64> {
        self.health().breaker.broken_for_s(now)
    }

    pub(crate) fn metrics(&self, plugin: &str) -> PluginMetrics {
        let mut latency = [0; LATENCY_BUCKETS_US.len() + 1];
        for (to, from) in latency.iter_mut().zip(&self.latency) {
            *to = read(from);
        }
        PluginMetrics {
            plugin: plugin.to_owned(),
            calls: read(&self.calls),
            failures: read(&self.failures),
            traps: read(&self.traps),
            limits: read(&self.limits),
            refused: read(&self.refused),
            breaks: read(&self.breaks),
            duration_us: read(&self.duration_us),
            latency,
            loads: read(&self.loads),
            refused_loads: read(&self.refused_loads),
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // What is in there is whole after every statement: a panic elsewhere does not spoil it.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
