//! Nodes: incarnations, heartbeats, reaping, classes nobody can run.

use std::time::Duration;

use harmonia_core::JobStatus::{Building, DepFailed, Failed, Pending, Succeeded, Uploading};
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{FailureKind, Incarnation, NodeId};
use harmonia_db::testing::{long_ago, pool};
use harmonia_db::{NodeRegistration, Reaped, Released};

use crate::world::{World, graph, new_paths, out_path, registration};

const MINUTES_2: Duration = Duration::from_mins(2);
const MINUTES_30: Duration = Duration::from_mins(30);

async fn silence(world: &World, node: &str) {
    sqlx::query!("UPDATE nodes SET last_seen = now() - interval '1 hour' WHERE id = $1", node)
        .execute(pool(&world.db))
        .await
        .expect("time passes");
}

#[tokio::test]
async fn a_new_incarnation_takes_back_what_the_old_one_held() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    let claimed = world.claim(2).await;
    world
        .db
        .claim_outputs(
            claimed[1].attempt,
            &claimed[1].token,
            &new_paths(&world.db, &claimed[1], 1).await,
            &harmonia_db::Alongside::default(),
        )
        .await
        .expect("claim outputs");
    let released = world.db.register_node(&registration("n", 2)).await.expect("register");
    assert_eq!(released, Released { jobs: 1, evaluations: 1 });
    assert_eq!(world.statuses().await, [(0, Pending), (1, Uploading)]);
    // The old one hears it.
    assert!(!world.db.heartbeat(&world.node, Incarnation(1), None).await.expect("heartbeat").current);
    assert!(world.db.heartbeat(&world.node, Incarnation(2), Some("disk full")).await.expect("heartbeat").current);
    let nodes = world.db.nodes(MINUTES_2).await.expect("nodes");
    assert_eq!((nodes[0].paused.as_deref(), nodes[0].running, nodes[0].online), (Some("disk full"), 1, true));
    assert!(world.complete(&claimed[0]).await.is_err(), "its token is void");
    // Nothing was counted.
    assert_eq!(world.jobs().await[&0].retries, 0);
    world.db.publish_outputs(claimed[1].job, &[out_path(1)], &AttemptUsage::default(), None).await.expect("publish");
    assert_eq!(world.status(1).await, Succeeded);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_silent_node_is_reaped_and_five_lost_nodes_are_enough() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[0]]), &[1]).await.expect("insert");
    assert_eq!(world.db.reap_silent_nodes(MINUTES_2).await.expect("reap"), Reaped::default());
    for lost in 1..=5 {
        world.claim_only(0).await;
        silence(&world, "n").await;
        let evaluations = u64::from(lost == 1);
        assert_eq!(
            world.db.reap_silent_nodes(MINUTES_2).await.expect("reap"),
            Reaped { nodes: 1, jobs: 1, evaluations }
        );
        assert!(world.db.heartbeat(&world.node, world.run, None).await.expect("heartbeat").current);
        world.assert_sound().await;
    }
    let jobs = world.jobs().await;
    assert_eq!((jobs[&0].status, jobs[&0].kind), (Failed, Some(FailureKind::Infrastructure)));
    assert_eq!(jobs[&1].status, DepFailed);
    assert_eq!(jobs[&0].retries, 0, "counted apart");
}

#[tokio::test]
async fn saying_goodbye_gives_everything_back() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    world.claim_only(0).await;
    world.db.deregister_node(&world.node, Incarnation(7)).await.expect("not its run");
    assert_eq!(world.status(0).await, Building);
    world.db.deregister_node(&world.node, world.run).await.expect("goodbye");
    assert_eq!(world.status(0).await, Pending);
    assert!(!world.db.evaluation_held(eval.id, &eval.token).await.expect("held"));
    assert!(world.db.live_signers(MINUTES_2).await.expect("signers").is_empty());
    assert!(world.db.nodes(MINUTES_2).await.expect("nodes").is_empty());
    assert!(!world.db.set_draining(&world.node, world.run, true).await.expect("drain"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_class_without_nodes_fails_after_a_while_and_comes_back_with_a_node() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[0], &[]]);
    graph[0].system = "aarch64-linux";
    graph[0].features = vec!["kvm".to_owned(), "big-parallel".to_owned()];
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1, 2]).await.expect("insert");
    assert_eq!(world.db.mark_unsupported(MINUTES_30).await.expect("mark"), 0, "the class is new");
    sqlx::query!("UPDATE job_classes SET last_seen = now() - interval '31 minutes'")
        .execute(pool(&world.db))
        .await
        .expect("time");
    assert_eq!(world.db.mark_unsupported(MINUTES_30).await.expect("mark"), 1, "x86_64 has a live node");
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed), (2, Pending)]);
    let message =
        sqlx::query_scalar!("SELECT message FROM build_jobs WHERE status = 'failed'").fetch_one(pool(&world.db)).await;
    assert_eq!(message.expect("one").as_deref(), Some("no node offers aarch64-linux with big-parallel, kvm"));
    world.assert_sound().await;
    assert_eq!(world.db.revive_unsupported().await.expect("revive"), 0);

    let arm = NodeRegistration {
        id: NodeId("arm".to_owned()),
        systems: vec!["aarch64-linux".to_owned()],
        features: vec!["big-parallel".to_owned(), "kvm".to_owned(), "more".to_owned()],
        ..registration("arm", 1)
    };
    world.db.register_node(&arm).await.expect("register");
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending), (2, Pending)]);
    assert_eq!(world.db.builder_systems().await.expect("systems"), ["aarch64-linux", "x86_64-linux"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn jobs_wait_for_a_builder_that_is_away_as_long_as_its_systems_are_evaluated() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[]]);
    for (drv, features) in graph.iter_mut().zip([vec![], vec!["kvm".to_owned()]]) {
        drv.system = "aarch64-linux";
        drv.features = features;
    }
    let arm = NodeRegistration {
        systems: vec!["aarch64-linux".to_owned()],
        features: vec!["kvm".to_owned()],
        ..registration("arm", 1)
    };
    world.db.register_node(&arm).await.expect("register");
    world.db.deregister_node(&arm.id, arm.incarnation).await.expect("goodbye");
    // Classes that are new while it is away, and that it could run.
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[0, 1]).await.expect("insert");
    sqlx::query!("UPDATE job_classes SET last_seen = now() - interval '2 days'")
        .execute(pool(&world.db))
        .await
        .expect("time");
    assert_eq!(world.db.mark_unsupported(MINUTES_30).await.expect("mark"), 0);
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);
    let why = world.db.why(&[world.job_id(1).await], time::OffsetDateTime::now_utc()).await.expect("why");
    let sentences: Vec<String> = why.into_values().flatten().collect();
    assert!(
        matches!(sentences.as_slice(), [one] if one.starts_with("no node offers aarch64-linux with kvm now; one did until "))
    );

    long_ago(&world.db, "aarch64-linux").await;
    assert!(world.db.builder_systems().await.expect("systems").iter().all(|system| system != "aarch64-linux"));
    assert_eq!(world.db.mark_unsupported(MINUTES_30).await.expect("mark"), 2);
    world.assert_sound().await;
}

#[tokio::test]
async fn what_nobody_wants_any_more_does_not_come_back_with_a_node() {
    let world = World::new().await;
    let mut graph = graph(&[&[], &[0]]);
    graph[0].system = "aarch64-linux";
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1]).await.expect("insert");
    sqlx::query!("UPDATE job_classes SET last_seen = now() - interval '31 minutes'")
        .execute(pool(&world.db))
        .await
        .expect("time");
    world.db.mark_unsupported(MINUTES_30).await.expect("mark");
    world.db.cancel_evaluation(eval.id, "me").await.expect("cancel");
    let arm = NodeRegistration { systems: vec!["aarch64-linux".to_owned()], ..registration("arm", 1) };
    world.db.register_node(&arm).await.expect("register");
    world.db.finish_withdrawals().await.expect("the chores are woken");
    assert!(world.statuses().await.iter().all(|(_, status)| *status == harmonia_core::JobStatus::Cancelled));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_chore_has_one_holder_at_a_time() {
    let world = World::new().await;
    let mut first = world.db.try_chore_lock("reap").await.expect("ask").expect("free");
    assert!(world.db.try_chore_lock("reap").await.expect("ask").is_none());
    assert!(world.db.try_chore_lock("other").await.expect("ask").is_some());
    assert!(first.is_held().await);
    first.release().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while world.db.try_chore_lock("reap").await.expect("ask").is_none() {
        assert!(std::time::Instant::now() < deadline, "the lock was not given back");
        tokio::task::yield_now().await;
    }
}
