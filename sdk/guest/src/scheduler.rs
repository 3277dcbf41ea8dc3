//! Who goes first. A policy implements [`Plugin`](crate::Plugin) and [`Policy`]. It is pure: it may read settings and write
//! to the log, and has no clock, network or store, so that a recorded queue can be replayed.

use crate::bindings::{Adapter, policy};
use crate::panic::install_hook;

pub use policy::exports::harmonia::scheduler::policy::{Candidate, Node, Project};

/// Interface `policy`.
pub trait Policy {
    /// Jobs (ids of candidates) in the order in which the node should try to claim them. May leave some out; ids that are no
    /// candidates and repeated ones are ignored. Called in the claim path: keep it under a millisecond.
    fn rank(node: Node, projects: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64>;

    /// What `project.consumed_seconds` becomes when its builds ran for `seconds` more. Adds them, unless you do otherwise.
    fn charge(project: Project, seconds: f64) -> f64 {
        project.consumed_seconds + seconds
    }

    /// What consumption becomes when `seconds` have passed. Forgets nothing, unless you do otherwise.
    fn decay(consumed_seconds: f64, seconds: f64) -> f64 {
        let _ = seconds;
        consumed_seconds
    }
}

impl<T: Policy> policy::exports::harmonia::scheduler::policy::Guest for Adapter<T> {
    fn rank(node: Node, projects: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64> {
        install_hook();
        T::rank(node, projects, candidates)
    }

    fn charge(project: Project, seconds: f64) -> f64 {
        install_hook();
        T::charge(project, seconds)
    }

    fn decay(consumed_seconds: f64, seconds: f64) -> f64 {
        install_hook();
        T::decay(consumed_seconds, seconds)
    }
}
