//! A policy that names jobs which do not exist, and some twice.

use harmonia_plugin::scheduler::{Candidate, Node, Policy, Project};
use harmonia_plugin::{Description, Plugin};

struct Guest;

impl Plugin for Guest {
    fn describe() -> Description {
        Description::new("guest", "0.0.1", "Names what is not there.")
    }
}

impl Policy for Guest {
    fn rank(_: Node, _: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64> {
        candidates.iter().rev().flat_map(|candidate| [candidate.job, candidate.job, u64::MAX, 0]).collect()
    }

    fn charge(_: Project, _: f64) -> f64 {
        f64::NAN
    }

    fn decay(_: f64, _: f64) -> f64 {
        f64::NEG_INFINITY
    }
}

harmonia_plugin::export!(Guest: scheduler);
