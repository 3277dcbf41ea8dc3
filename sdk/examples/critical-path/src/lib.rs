//! A policy: of the candidates, the job with the longest chain of jobs behind it goes first, then first in, first out. Whoever
//! queues the deepest graph goes first: no fairness at all.
//!
//! What it can do is bounded by what it is shown: of each project and kind of machine, the ready jobs that were queued first,
//! about as many as the node has free slots. So it decides between projects; within a project with many ready jobs they go
//! nearly in the order in which they were queued, and an evaluation that has the cluster to itself ends no sooner than without
//! it. `harmonia-ci simulate --projects 1` shows that.

use std::cmp::Reverse;

use harmonia_plugin::scheduler::{Candidate, Node, Policy, Project};
use harmonia_plugin::{Description, Plugin};

struct CriticalPath;

impl Plugin for CriticalPath {
    fn describe() -> Description {
        Description::new("critical-path", env!("CARGO_PKG_VERSION"), "Longest chain of waiting jobs first, then FIFO.")
    }
}

impl Policy for CriticalPath {
    fn rank(_node: Node, _projects: Vec<Project>, mut candidates: Vec<Candidate>) -> Vec<u64> {
        candidates.sort_by_key(|job| (Reverse(job.priority), Reverse(job.path_length), job.queued_at_ms, job.job));
        candidates.into_iter().map(|candidate| candidate.job).collect()
    }
}

harmonia_plugin::export!(CriticalPath: scheduler);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_chain_goes_first_then_the_oldest() {
        let job = |job, path_length, queued_at_ms| Candidate {
            job,
            project: 1,
            class: 0,
            priority: 0,
            queued_at_ms,
            retries: 0,
            path_length,
        };
        let node = Node { name: "n".to_owned(), slots: 1, speed_factor: 1.0 };
        let ranked = CriticalPath::rank(node, Vec::new(), vec![job(1, 1, 5), job(2, 9, 6), job(3, 9, 4)]);
        assert_eq!(ranked, [3, 2, 1]);
    }
}
