//! Claims by an order that somebody kept: whatever became of its jobs meanwhile, only what is ready is claimed.

use harmonia_core::{FailureKind, JobId};
use harmonia_db::ClaimedJob;
use harmonia_db::testing::{pool, random_token};

use crate::world::{Drv, Eval, World, graph, number_of, registration};

/// Independent derivations, but for the last, which waits for the first.
async fn queue(jobs: usize) -> (World, Eval, Vec<JobId>) {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    let none: &[usize] = &[];
    let mut graph = graph(&vec![none; jobs]);
    graph.push(Drv::new(jobs, &[0]));
    let roots: Vec<usize> = (0..=jobs).collect();
    world.insert(&eval, &graph, &roots).await.expect("insert");
    let mut order = Vec::new();
    for number in 0..=jobs {
        order.push(world.job_id(number).await);
    }
    (world, eval, order)
}

async fn claim_kept(world: &World, order: &[JobId], count: usize) -> Vec<ClaimedJob> {
    let tokens: Vec<_> = (0..count).map(|_| random_token()).collect();
    world.db.claim_kept_jobs(&world.node, world.run, order, &tokens).await.expect("claim")
}

fn numbers(claimed: &[ClaimedJob]) -> Vec<usize> {
    claimed.iter().map(|job| number_of(job.drv_path.as_str())).collect()
}

#[tokio::test]
async fn what_an_old_order_names_is_claimed_only_if_it_is_ready_still() {
    let (world, _eval, order) = queue(8).await;
    let claimed = claim_kept(&world, &order[1..], 1).await;
    assert_eq!(numbers(&claimed), [1]);
    assert_eq!(claimed[0].name, "d1");
    world.db.cancel_job(order[2], "test").await.expect("cancel");
    let pool = pool(&world.db);
    sqlx::query!("UPDATE build_jobs SET not_before = now() + interval '1 hour' WHERE id = $1", order[3].0)
        .execute(pool)
        .await
        .expect("delay");
    sqlx::query!("UPDATE build_jobs SET avoid_node = 'n', not_before = now() WHERE id = $1", order[4].0)
        .execute(pool)
        .await
        .expect("avoid");
    sqlx::query!(
        "WITH c AS (INSERT INTO job_classes (system, features) VALUES ('x86_64-linux', '{big}') RETURNING id)
         UPDATE build_jobs SET class_id = c.id FROM c WHERE build_jobs.id = $1",
        order[5].0
    )
    .execute(pool)
    .await
    .expect("another class");
    // 8 waits for 0; 0 and 7 are ready.
    let mut rest = order[1..=6].to_vec();
    rest.extend([order[8], order[7], order[0]]);
    assert_eq!(numbers(&claim_kept(&world, &rest, 2).await), [6, 7], "in the order that was given");
    assert_eq!(numbers(&claim_kept(&world, &rest, 2).await), [0]);
    assert_eq!(numbers(&claim_kept(&world, &rest, 2).await), [0; 0]);
    assert_eq!(numbers(&claim_kept(&world, &[JobId(i64::MAX)], 1).await), [0; 0]);
    world.assert_sound().await;
}

#[tokio::test]
async fn an_old_order_is_no_good_while_a_boosted_job_is_ready() {
    let (world, _eval, order) = queue(4).await;
    let broken = claim_kept(&world, &order[3..4], 1).await.remove(0);
    world.fail(&broken, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(numbers(&claim_kept(&world, &order, 1).await), [0], "a failed one is in nobody's way");
    assert_eq!(world.db.rebuild_job(broken.job, "test").await.expect("rebuild"), 1);
    assert_eq!(numbers(&claim_kept(&world, &order, 4).await), [0; 0]);
    assert_eq!(numbers(&claim_kept(&world, &order[..3], 4).await), [0; 0], "whether the order names it or not");
    // For a node that cannot run it, it is no reason.
    let mut other = registration("other", 1);
    other.systems = vec!["aarch64-linux".to_owned()];
    world.db.register_node(&other).await.expect("register");
    let tokens = [random_token()];
    let foreign = world.db.claim_kept_jobs(&other.id, other.incarnation, &order, &tokens).await.expect("claim");
    assert_eq!(foreign, []);
    // By a look at the queue it goes first; then the order is good again.
    assert_eq!(numbers(&world.claim(1).await), [3]);
    assert_eq!(numbers(&claim_kept(&world, &order, 4).await), [1, 2]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_node_that_drains_or_lost_its_name_claims_nothing_by_an_old_order() {
    let (world, _eval, order) = queue(2).await;
    assert!(world.db.set_draining(&world.node, world.run, true).await.expect("drain"));
    assert_eq!(numbers(&claim_kept(&world, &order, 1).await), [0; 0]);
    assert!(world.db.set_draining(&world.node, world.run, false).await.expect("stop draining"));
    let token = random_token();
    world.db.revoke_claims(&world.node, world.run, std::slice::from_ref(&token)).await.expect("revoke");
    let late = world.db.claim_kept_jobs(&world.node, world.run, &order, &[token]).await.expect("claim");
    assert_eq!(late, [], "its answer would be lost");
    world.db.register_node(&registration("n", 2)).await.expect("another process");
    let refused = world.db.claim_kept_jobs(&world.node, world.run, &order, &[random_token()]).await;
    assert!(matches!(refused, Err(harmonia_db::DbError::Refused { .. })), "{refused:?}");
    world.assert_sound().await;
}

/// Deleting a job takes its attempts along, which no foreign key does any more.
#[tokio::test]
async fn a_deleted_job_takes_its_attempts_along() {
    let (world, _eval, order) = queue(2).await;
    let claimed = claim_kept(&world, &order, 2).await;
    world.fail(&claimed[1], Some(FailureKind::Build)).await.expect("fail");
    let count = || async {
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM build_attempts"#).fetch_one(pool(&world.db)).await
    };
    assert_eq!(count().await.expect("count"), 2);
    sqlx::query!("DELETE FROM build_jobs WHERE id = $1", claimed[1].job.0)
        .execute(pool(&world.db))
        .await
        .expect("delete");
    assert_eq!(count().await.expect("count"), 1);
}

#[tokio::test]
async fn a_heartbeat_finds_classes_that_were_missed() {
    let (world, _eval, order) = queue(2).await;
    // As if the class had been made while the node registered, neither seeing the other.
    sqlx::query!("UPDATE nodes SET classes = '{}'").execute(pool(&world.db)).await.expect("forget");
    assert_eq!(numbers(&claim_kept(&world, &order, 1).await), [0; 0]);
    world.db.heartbeat(&world.node, world.run, None).await.expect("heartbeat");
    assert_eq!(numbers(&claim_kept(&world, &order, 1).await), [0]);
}
