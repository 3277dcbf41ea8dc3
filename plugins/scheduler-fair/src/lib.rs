//! The default scheduling policy: who consumed least for its shares goes first, then first in, first out.
//!
//! Start reading at `fair`, which is all there is to it; this file only translates.

mod fair;

use harmonia_plugin::scheduler::{Candidate, Node, Policy, Project};
use harmonia_plugin::{Description, Plugin};

struct Fair;

impl Plugin for Fair {
    fn describe() -> Description {
        Description::new(
            "scheduler-fair",
            env!("CARGO_PKG_VERSION"),
            "Least build time consumed for its shares goes first, then first in, first out.",
        )
    }
}

impl Policy for Fair {
    fn rank(_node: Node, projects: Vec<Project>, candidates: Vec<Candidate>) -> Vec<u64> {
        let loads = projects.iter().map(|project| fair::Load {
            project: project.id,
            shares: project.shares,
            consumed_seconds: project.consumed_seconds,
            running: project.running,
        });
        let heads = candidates.iter().map(|candidate| fair::Head {
            job: candidate.job,
            project: candidate.project,
            priority: candidate.priority,
        });
        fair::order(&loads.collect::<Vec<_>>(), &heads.collect::<Vec<_>>())
    }

    fn charge(project: Project, seconds: f64) -> f64 {
        fair::charge(project.consumed_seconds, seconds)
    }

    fn decay(consumed_seconds: f64, seconds: f64) -> f64 {
        fair::decay(consumed_seconds, seconds)
    }
}

harmonia_plugin::export!(Fair: scheduler);
