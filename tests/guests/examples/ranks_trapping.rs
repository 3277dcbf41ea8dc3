//! A policy that panics.

use harmonia_plugin::scheduler::{Candidate, Node, Policy, Project};
use harmonia_plugin::{Description, Plugin};

struct Guest;

impl Plugin for Guest {
    fn describe() -> Description {
        Description::new("guest", "0.0.1", "Panics.")
    }
}

impl Policy for Guest {
    fn rank(_: Node, _: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64> {
        panic!("no idea how to rank {} candidates", candidates.len())
    }
}

harmonia_plugin::export!(Guest: scheduler);
