//! The policy as a component, in the true plugin host. `./dev plugins` builds it.

use harmonia_core::policy::{AskingNode, Candidate, ProjectLoad, order_candidates};
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, Timestamp};
use harmonia_plugin_harness::{Harness, component, conformance};

fn candidate(job: i64, path_length: u32, priority: i32) -> Candidate {
    Candidate {
        job: JobId(job),
        project: ProjectId(job % 3),
        class: ClassId(1),
        priority,
        queued_at: Timestamp::UNIX_EPOCH,
        retries: 0,
        path_length,
    }
}

fn node() -> AskingNode {
    AskingNode { node: NodeId("node".to_owned()), slots: 4, speed_factor: 1.0 }
}

#[tokio::test]
async fn the_longest_chain_goes_first_and_a_manual_rebuild_before_it() {
    let plugin = Harness::new(component("examples/critical-path")).start().await;
    let candidates =
        [candidate(1, 3, 0), candidate(2, 9, 0), candidate(3, 1, 100), candidate(4, 9, 0), candidate(5, 4, 0)];
    let projects: Vec<ProjectLoad> = (0..3)
        .map(|id| ProjectLoad { project: ProjectId(id), shares: 100, consumed_seconds: 0.0, running: 0 })
        .collect();
    let (order, error) = order_candidates(&*plugin.policy(), &node(), &projects, &candidates);
    assert_eq!(order, [3, 2, 4, 5, 1].map(JobId));
    assert_eq!(error, None);
}

#[tokio::test]
async fn it_keeps_books_though_it_does_not_look_at_them() {
    let plugin = Harness::new(component("examples/critical-path")).start().await;
    let load = ProjectLoad { project: ProjectId(1), shares: 100, consumed_seconds: 10.0, running: 1 };
    assert_eq!(plugin.policy().charge(&[(load, 5.0)]), Ok(vec![15.0]));
    assert_eq!(plugin.policy().decay(&[100.0], 3600.0), Ok(vec![100.0]), "and forgets nothing");
}

#[tokio::test]
async fn it_conforms() {
    let plugin = Harness::new(component("examples/critical-path")).start().await;
    let failed = conformance(&plugin).await;
    assert!(failed.is_empty(), "{failed:#?}");
}
