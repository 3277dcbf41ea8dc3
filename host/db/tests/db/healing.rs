//! Lost paths: the queue heals itself, within bounds.

use harmonia_core::FailureKind;
use harmonia_core::JobStatus::{Building, DepFailed, Failed, Pending};
use harmonia_db::testing::pool;
use harmonia_db::{Healed, MissingPath, PathState, Violation};

use crate::world::{World, graph, out_path};

#[tokio::test]
async fn a_lost_input_is_built_again_under_a_new_generation() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[0]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1, 2]).await.expect("insert");
    let zero = world.claim_only(0).await;
    world.complete(&zero).await.expect("complete");
    let one = world.claim(1).await.remove(0);
    world.db.report_missing_path(one.attempt, &one.token, &out_path(0), true).await.expect("report");
    assert!(world.db.report_missing_path(one.attempt, &one.token, &out_path(77), false).await.is_err(), "no input");
    world.fail(&one, None).await.expect("transient");
    let reported = world.db.missing_paths(10).await.expect("reports");
    assert_eq!(reported, [MissingPath { path: out_path(0), damaged: true }]);
    world.db.dismiss_missing_path(&out_path(0)).await.expect("false alarm");
    assert!(world.db.missing_paths(10).await.expect("reports").is_empty());

    assert_eq!(world.db.confirm_lost_path(&out_path(0)).await.expect("lost"), Healed::Rebuilding);
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending), (2, Pending)]);
    assert_eq!(world.jobs().await[&2].unmet, 1);
    assert!(world.db.canonical_paths(&[out_path(0)]).await.expect("canonical").is_empty());
    world.assert_sound().await;
    assert_eq!(world.db.confirm_lost_path(&out_path(0)).await.expect("again"), Healed::NotPublished);

    let zero = world.claim_only(0).await;
    world.complete(&zero).await.expect("complete");
    let row = world.db.path_rows(&[out_path(0)]).await.expect("rows").remove(0);
    assert_eq!((row.generation, row.state, row.producing_attempt), (2, PathState::Published, Some(zero.attempt)));
    assert_eq!(world.claim(10).await.len(), 2);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_path_that_is_lost_a_third_time_within_the_hour_is_an_infrastructure_failure() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1]).await.expect("insert");
    for expected in [Healed::Rebuilding, Healed::Rebuilding, Healed::LimitReached] {
        let zero = world.claim_only(0).await;
        world.complete(&zero).await.expect("complete");
        assert_eq!(world.db.confirm_lost_path(&out_path(0)).await.expect("lost"), expected);
        world.assert_sound().await;
    }
    let jobs = world.jobs().await;
    assert_eq!((jobs[&0].status, jobs[&0].kind), (Failed, Some(FailureKind::Infrastructure)));
    assert_eq!(jobs[&1].status, DepFailed);
}

#[tokio::test]
async fn a_running_dependent_goes_on_and_waits_when_it_comes_back() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1]).await.expect("insert");
    let zero = world.claim_only(0).await;
    world.complete(&zero).await.expect("complete");
    let one = world.claim_only(1).await;
    world.db.confirm_lost_path(&out_path(0)).await.expect("lost");
    assert_eq!(world.statuses().await, [(0, Pending), (1, Building)]);
    // 0 fails for good meanwhile; 1 must not stay pending when it is given back.
    let zero = world.claim_only(0).await;
    world.fail(&zero, Some(FailureKind::Build)).await.expect("fail");
    assert_eq!(world.status(1).await, Building);
    world.db.release_attempt(one.attempt, &one.token, "stopped").await.expect("release");
    assert_eq!(world.status(1).await, DepFailed);
    world.assert_sound().await;
}

#[tokio::test]
async fn totals_that_are_wrong_are_counted_again() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[], &[]]), &[0, 1]).await.expect("insert");
    world.db.take_job_marks().await.expect("take");
    world.complete(&world.claim(1).await[0]).await.expect("complete"); // which waits as a mark
    let wrong = "UPDATE job_totals SET jobs = jobs + 3; INSERT INTO job_totals VALUES ('failed', false, 1)";
    sqlx::raw_sql(wrong).execute(pool(&world.db)).await.expect("miscount");
    assert_eq!(world.db.repair().await.expect("repair").recounted, 2);
    world.assert_sound().await;
    world.db.take_job_marks().await.expect("take");
    world.assert_sound().await;
    assert_eq!(world.db.repair().await.expect("repair").recounted, 0);
}

#[tokio::test]
async fn a_sweep_finds_what_is_wrong_and_a_repair_corrects_it() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0], &[1], &[]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[2, 3]).await.expect("insert");
    assert_eq!(world.db.repair().await.expect("repair"), harmonia_db::Repaired::default());
    // Past the functions: a wrong count, and a failure that told nobody.
    sqlx::query!("UPDATE build_jobs SET unmet_deps = 2 WHERE drv_path = $1", crate::world::drv_path(2).to_string())
        .execute(pool(&world.db))
        .await
        .expect("break a count");
    sqlx::query!(
        "UPDATE build_jobs SET status = 'failed', failure_kind = 'build' WHERE drv_path = $1",
        crate::world::drv_path(0).to_string()
    )
    .execute(pool(&world.db))
    .await
    .expect("break a state");
    let found: Vec<u8> =
        world.db.sweep_invariants().await.expect("sweep").iter().map(|v: &Violation| v.invariant).collect();
    assert_eq!(found, [2, 3]);
    assert!(world.db.repair().await.expect("repair").settled >= 2);
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed), (2, DepFailed), (3, Pending)]);
    world.assert_sound().await;
    // What nobody wants goes.
    sqlx::query!("DELETE FROM eval_attrs WHERE attr = 'a3'")
        .execute(pool(&world.db))
        .await
        .expect("forget an attribute");
    sqlx::query!("DELETE FROM eval_holds").execute(pool(&world.db)).await.expect("forget holds");
    assert_eq!(world.db.repair().await.expect("repair").cancelled, 1);
    world.assert_sound().await;
}
