//! Policies as components.

use harmonia_core::policy::{AskingNode, Candidate, Policy, ProjectLoad, order_candidates};
use harmonia_core::ports::Plugins;
use harmonia_core::{ClassId, JobId, NodeId, ProjectId, Timestamp};

use crate::support::{World, policy};

fn asking() -> AskingNode {
    AskingNode { node: NodeId("n".into()), slots: 4, speed_factor: 1.0 }
}

fn candidates(count: i64) -> Vec<Candidate> {
    let candidate = |id| Candidate {
        job: JobId(id),
        project: ProjectId(1),
        class: ClassId(1),
        priority: 0,
        queued_at: Timestamp::UNIX_EPOCH,
        retries: 0,
        path_length: 1,
    };
    (1..=count).map(candidate).collect()
}

fn load(consumed_seconds: f64) -> ProjectLoad {
    ProjectLoad { project: ProjectId(1), shares: 100, consumed_seconds, running: 0 }
}

/// Last come, first served. A candidate takes 40 bytes, its id first.
const LAST_FIRST: &str = "
    (i32.store (i32.const 1024) (i32.const 4096)) (i32.store (i32.const 1028) (local.get 7))
    (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get 7)))
        (i64.store (i32.add (i32.const 4096) (i32.mul (local.get $i) (i32.const 8)))
            (i64.load (i32.add (local.get 6)
                (i32.mul (i32.sub (i32.sub (local.get 7) (local.get $i)) (i32.const 1)) (i32.const 40)))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))";
const CHARGE: &str = "(f64.add (local.get 2) (local.get 4))";
const DECAY: &str = "(f64.mul (local.get 0) (f64.const 0.5))";

#[tokio::test]
async fn a_policy_orders_charges_and_decays() {
    let world = World::new();
    world.load(world.spec("last", &policy(LAST_FIRST, CHARGE, DECAY))).await;
    let handle = world.host.policy("last");
    let order = handle.rank(&asking(), &[load(0.0)], &candidates(4)).expect("ranks");
    assert_eq!(order, [4, 3, 2, 1].map(JobId));
    assert_eq!(handle.charge(&[(load(1.0), 2.0), (load(5.0), 0.5)]), Ok(vec![3.0, 5.5]));
    assert_eq!(handle.decay(&[8.0, 2.0], 3600.0), Ok(vec![4.0, 1.0]));
    assert!(!handle.is_falling_back());
}

#[tokio::test]
async fn a_policy_that_fails_is_fallen_back_from_and_returned_to() {
    let world = World::new();
    let mut spec = world.spec("p", &policy("(loop (br 0))", "(f64.const nan)", "(f64.const -1)"));
    let handle = world.host.policy("p");
    let (order, error) = order_candidates(&handle, &asking(), &[], &candidates(3));
    assert_eq!(order, [1, 2, 3].map(JobId));
    assert!(error.expect("nothing is configured").reason.contains("no plugin named p"));

    world.load(spec.clone()).await;
    let (order, error) = order_candidates(&handle, &asking(), &[], &candidates(3));
    assert_eq!(order, [1, 2, 3].map(JobId));
    assert!(error.expect("it spins").reason.contains("more than 100 ms of processor time"));
    for (what, answer) in [("charge", handle.charge(&[(load(1.0), 1.0)])), ("decay", handle.decay(&[1.0], 1.0))] {
        let reason = answer.expect_err("no amount").reason;
        assert!(reason.contains("no amount of seconds") && reason.contains(what), "{reason}");
    }
    assert!(handle.is_falling_back() && handle.fallbacks() == 4);

    world.write("p", &policy(LAST_FIRST, CHARGE, DECAY));
    spec.settings.insert("now".into(), "better".into());
    world.load(spec).await;
    let (order, error) = order_candidates(&handle, &asking(), &[], &candidates(3));
    assert_eq!((order, error), ([3, 2, 1].map(JobId).to_vec(), None));
    assert!(!handle.is_falling_back());
    assert_eq!(world.host.statuses()[0].failures, 3);
}

#[tokio::test]
async fn a_thousand_candidates_are_ranked() {
    let world = World::new();
    world.load(world.spec("last", &policy(LAST_FIRST, CHARGE, DECAY))).await;
    let order = world.host.policy("last").rank(&asking(), &[], &candidates(1000)).expect("ranks");
    assert_eq!(order.len(), 1000);
    assert_eq!((order[0], order[999]), (JobId(1000), JobId(1)));
}
