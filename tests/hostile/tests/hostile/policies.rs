//! Policies that fail in every way: jobs are ordered and the books are kept all the same.

use harmonia_core::policy::{
    AskingNode, Candidate, FirstInFirstOut, Policy as _, ProjectLoad, charge_all, decay_all, order_candidates,
};
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, Timestamp};
use harmonia_hostile_tests::World;

fn node() -> AskingNode {
    AskingNode { node: NodeId("node".to_owned()), slots: 4, speed_factor: 1.0 }
}

fn load(id: i64) -> ProjectLoad {
    ProjectLoad { project: ProjectId(id), shares: 100, consumed_seconds: 10.0, running: 0 }
}

/// Jobs 1 to 5, of which the fourth is a manual rebuild.
fn candidates() -> Vec<Candidate> {
    let candidate = |id: i64| Candidate {
        job: JobId(id),
        project: ProjectId(id % 2 + 1),
        class: ClassId(1),
        priority: if id == 4 { 100 } else { 0 },
        queued_at: Timestamp::UNIX_EPOCH,
        retries: 0,
        path_length: 1,
    };
    (1..=5).map(candidate).collect()
}

/// The order in which jobs are claimed, and the policy's error.
fn order(world: &World, policy: &str) -> (Vec<i64>, Option<String>) {
    let (jobs, error) = order_candidates(&world.host.policy(policy), &node(), &[load(1), load(2)], &candidates());
    (jobs.into_iter().map(|job| job.0).collect(), error.map(|error| error.reason))
}

/// Priority, then first in, first out.
const FALLBACK: [i64; 5] = [4, 1, 2, 3, 5];

#[tokio::test]
async fn nonsense_invents_no_job_and_runs_none_twice() {
    let world = World::new();
    world.load(vec![world.guest("ranks_nonsense")]).await;
    assert_eq!(order(&world, "ranks_nonsense"), (vec![4, 5, 3, 2, 1], None));
}

#[tokio::test]
async fn nonsense_does_not_get_into_the_books() {
    let world = World::new();
    world.load(vec![world.guest("ranks_nonsense")]).await;
    let policy = world.host.policy("ranks_nonsense");
    let (becomes, error) = charge_all(&policy, &[(load(1), 5.0), (load(2), 0.5)]);
    assert_eq!(becomes, [15.0, 10.5]);
    let reason = error.expect("told").reason;
    assert!(
        reason.contains("plugin ranks_nonsense answered nonsense in policy.charge: charge returned NaN"),
        "{reason}"
    );
    let (becomes, error) = decay_all(&policy, &[100.0, 0.0], 3600.0);
    assert_eq!(becomes, FirstInFirstOut.decay(&[100.0, 0.0], 3600.0).expect("never fails"));
    let reason = error.expect("told").reason;
    assert!(reason.contains("decay returned -inf"), "{reason}");
    assert_eq!(policy.fallbacks(), 2);
    assert!(policy.is_falling_back());
}

#[tokio::test]
async fn a_policy_that_never_ends_costs_its_processor_time_and_no_order() {
    let world = World::new();
    let mut spec = world.guest("ranks_never");
    // That of policies: they sit in the claim path.
    spec.limits.call.cpu_ms_max = None;
    world.load(vec![spec]).await;
    let (jobs, error) = order(&world, "ranks_never");
    assert_eq!(jobs, FALLBACK);
    let error = error.expect("told");
    assert!(
        error.contains("plugin ranks_never was stopped in policy.rank: more than 100 ms of processor time"),
        "{error}"
    );
    assert!(error.contains("`limits.cpu_ms_max` of the plugin `ranks_never`"), "{error}");
}

#[tokio::test]
async fn a_policy_that_panics_is_left_alone_for_a_while_and_jobs_are_ordered_throughout() {
    let world = World::new();
    world.load(vec![world.guest("ranks_trapping")]).await;
    for _ in 0..8 {
        let (jobs, error) = order(&world, "ranks_trapping");
        assert_eq!(jobs, FALLBACK);
        assert!(error.is_some_and(|error| error.contains("plugin ranks_trapping")));
    }
    let last_error = world.status("ranks_trapping").last_error.expect("told");
    assert!(last_error.contains("no idea how to rank 5 candidates"), "{last_error}");
    assert_eq!(world.metrics("ranks_trapping").calls, 5, "the last three claims did not even try");
    assert_eq!(world.status("ranks_trapping").broken_for_s, Some(10));
    world.clock.advance(10);
    assert_eq!(order(&world, "ranks_trapping").0, FALLBACK);
    assert_eq!(world.metrics("ranks_trapping").calls, 6, "tried again");
}

#[tokio::test]
async fn no_policy_of_that_name_is_a_fallback_too() {
    let world = World::new();
    world.load(vec![world.guest("empty")]).await;
    for (name, expected) in [("nobody", "no plugin named nobody"), ("empty", "plugin empty is no scheduling policy")] {
        let (jobs, error) = order(&world, name);
        assert_eq!(jobs, FALLBACK);
        let error = error.expect("told");
        assert!(error.contains(expected), "{error}");
    }
}
