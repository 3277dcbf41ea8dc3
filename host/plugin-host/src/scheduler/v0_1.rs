//! Track 0.1 of `wit/scheduler`. Calls wait on the caller's thread: they sit in the claim path and call nothing that waits.

use std::sync::Arc;

use harmonia_core::JobId;
use harmonia_core::policy::{AskingNode, Candidate, Policy, PolicyError, ProjectLoad};
use wasmtime::Store;
use wasmtime::component::Instance;

use self::bindings::exports::harmonia::scheduler::policy as wit;
use crate::call::{Caller, Invalid, Network};
use crate::error::CallError;
use crate::reporter::v0_1::milliseconds;
use crate::state::State;

/// What `bindgen!` makes of the track.
mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/plugin/0.1", "../../wit/scheduler/0.1"],
        inline: "package harmonia:host; world policy { export harmonia:scheduler/policy@0.1.0; }",
        world: "harmonia:host/policy",
    });
}

/// A policy that speaks track 0.1.
pub(crate) struct Adapter {
    caller: Arc<Caller>,
    policy: wit::GuestIndices,
}

impl Adapter {
    /// The error says which function is missing.
    pub(crate) fn new(caller: Arc<Caller>) -> wasmtime::Result<Self> {
        Ok(Self { policy: wit::GuestIndices::new(&caller.instances)?, caller })
    }

    /// Checks the types of its functions.
    pub(crate) async fn check_types(&self) -> Result<(), CallError> {
        let check = self.caller.call("policy", Network::Closed, |guest| {
            Box::pin(async { self.policy.load(guest.store, guest.instance).map(drop) })
        });
        check.await
    }

    fn call<R>(
        &self,
        export: &str,
        run: impl FnOnce(&wit::Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, PolicyError> {
        let run = |store: &mut Store<State>, instance: &Instance| {
            let guest = self.policy.load(&mut *store, instance)?;
            run(&guest, store)
        };
        Ok(self.caller.call_blocking(export, run)?)
    }
}

impl Policy for Adapter {
    fn rank(
        &self,
        node: &AskingNode,
        projects: &[ProjectLoad],
        candidates: &[Candidate],
    ) -> Result<Vec<JobId>, PolicyError> {
        let node = wit::Node { name: node.node.0.clone(), slots: node.slots, speed_factor: node.speed_factor };
        let projects: Vec<wit::Project> = projects.iter().map(project).collect();
        let candidates: Vec<wit::Candidate> = candidates.iter().map(candidate).collect();
        let order = self.call("policy.rank", |policy, store| policy.call_rank(store, &node, &projects, &candidates))?;
        // Numbers that no job can have are no candidates: left to whoever checks that.
        Ok(order.into_iter().filter_map(|job| i64::try_from(job).ok()).map(JobId).collect())
    }

    fn charge(&self, charges: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        // All in one instance: a policy is pure, so what one sees of another's charge is nothing.
        self.call("policy.charge", |policy, store| {
            charges
                .iter()
                .map(|(load, seconds)| finite("charge", policy.call_charge(&mut *store, project(load), *seconds)?))
                .collect()
        })
    }

    fn decay(&self, consumed_seconds: &[f64], seconds: f64) -> Result<Vec<f64>, PolicyError> {
        self.call("policy.decay", |policy, store| {
            consumed_seconds
                .iter()
                .map(|consumed| finite("decay", policy.call_decay(&mut *store, *consumed, seconds)?))
                .collect()
        })
    }
}

/// Consumption is stored: what is no amount must not get there.
fn finite(what: &str, consumed: f64) -> wasmtime::Result<f64> {
    if consumed.is_finite() && consumed >= 0.0 {
        return Ok(consumed);
    }
    Err(Invalid(format!("{what} returned {consumed}, which is no amount of seconds")).into())
}

fn project(load: &ProjectLoad) -> wit::Project {
    wit::Project {
        id: load.project.0.cast_unsigned(),
        shares: load.shares.max(1),
        consumed_seconds: load.consumed_seconds,
        running: load.running,
    }
}

fn candidate(candidate: &Candidate) -> wit::Candidate {
    wit::Candidate {
        job: candidate.job.0.cast_unsigned(),
        project: candidate.project.0.cast_unsigned(),
        class: candidate.class.0.cast_unsigned(),
        priority: candidate.priority,
        queued_at_ms: milliseconds(candidate.queued_at),
        retries: candidate.retries,
        path_length: candidate.path_length,
    }
}
