//! A policy that never comes to an end.

use harmonia_plugin::scheduler::{Candidate, Node, Policy, Project};
use harmonia_plugin::{Description, Plugin};

struct Guest;

impl Plugin for Guest {
    fn describe() -> Description {
        Description::new("guest", "0.0.1", "Thinks for ever.")
    }
}

impl Policy for Guest {
    fn rank(_: Node, _: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64> {
        let mut count = candidates.len() as u64;
        loop {
            count = std::hint::black_box(count.wrapping_add(1));
        }
    }
}

harmonia_plugin::export!(Guest: scheduler);
