//! Counts of what cannot change by itself are stored, and are those that counting gives whenever somebody looks.

use harmonia_core::api::AttrCounts;
use harmonia_core::{EvalId, FailureKind, Viewer};
use harmonia_db::testing::{pool, upstream_has};

use crate::world::{World, graph, number_of, out_path};

impl World {
    /// What a list says of it, which is what counting says.
    async fn listed(&self, eval: EvalId) -> AttrCounts {
        let db = self.db.seen_by(Viewer::Token);
        let counted = db.view_evaluation_head(eval).await.expect("read").expect("there");
        let listed = db.view_evaluations(None, None, 100).await.expect("read");
        let listed = listed.into_iter().find(|evaluation| evaluation.id == eval).expect("there");
        assert_eq!(listed, counted);
        listed.counts
    }

    /// How many attributes are said to be there, where that is stored.
    async fn stored(&self, eval: EvalId) -> Option<i64> {
        sqlx::query_scalar("SELECT counts[1] FROM settled_counts WHERE eval_id = $1")
            .bind(eval.0)
            .fetch_optional(pool(&self.db))
            .await
            .expect("read")
            .flatten()
    }
}

#[tokio::test]
async fn counts_are_stored_when_all_has_ended_and_forgotten_when_something_is_built_again() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    let graph = graph(&[&[], &[], &[1]]);
    world.insert(&eval, &graph, &[0, 2]).await.expect("insert");
    world.finish(&eval).await;
    assert_eq!(world.listed(eval.id).await.pending, 2);
    assert_eq!(world.stored(eval.id).await, None, "it is being built");
    let claimed = world.claim(2).await;
    let of = |number: usize| claimed.iter().find(|job| number_of(job.drv_path.as_str()) == number).expect("claimed");
    world.fail(of(1), Some(FailureKind::Build)).await.expect("fail");
    world.complete(of(0)).await.expect("complete");
    let counts = world.listed(eval.id).await;
    assert_eq!((counts.total, counts.succeeded, counts.dep_failed), (2, 1, 1));
    assert_eq!(world.stored(eval.id).await, Some(2));
    // They are what a list reads.
    sqlx::query("UPDATE settled_counts SET counts = '{7,7,0,0,0,0}'").execute(pool(&world.db)).await.expect("change");
    let listed = world.db.seen_by(Viewer::Token).view_evaluations(None, None, 1).await.expect("read");
    assert_eq!(listed[0].counts.total, 7);
    sqlx::query("UPDATE settled_counts SET counts = '{2,1,0,1,0,0}'").execute(pool(&world.db)).await.expect("change");
    // Marks of what ended say nothing new.
    while world.db.take_job_marks().await.expect("take") > 0 {}
    assert_eq!(world.stored(eval.id).await, Some(2));

    world.db.rebuild_failed(eval.id, "me").await.expect("rebuild");
    assert_eq!(world.listed(eval.id).await.pending, 1, "before anybody took the marks");
    while world.db.take_job_marks().await.expect("take") > 0 {}
    assert_eq!(world.stored(eval.id).await, None);
    assert_eq!(world.listed(eval.id).await.pending, 1);
    for number in [1, 2] {
        world.complete(&world.claim_only(number).await).await.expect("complete");
    }
    assert_eq!(world.listed(eval.id).await.succeeded, 2);
    assert_eq!(world.stored(eval.id).await, Some(2));
    world.assert_sound().await;
}

#[tokio::test]
async fn counts_are_forgotten_when_outputs_are_gone() {
    let world = World::new().await;
    upstream_has(&world.db, [out_path(0)].iter()).await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    world.finish(&eval).await;
    assert_eq!(world.listed(eval.id).await.succeeded, 1);
    assert_eq!(world.stored(eval.id).await, Some(1));
    sqlx::query(
        "INSERT INTO upstream_reports (path, cache, roots, reason, attempt_id)
         SELECT path, cache, ARRAY[path], '', 0 FROM upstream_paths",
    )
    .execute(pool(&world.db))
    .await
    .expect("report");
    let (path, cache) = (out_path(0), crate::upstream::UPSTREAM);
    world.db.confirm_upstream_fault(&world.node, world.run, &path, cache, "it is gone").await.expect("confirms");
    assert_eq!(world.listed(eval.id).await.pending, 1);
    assert_eq!(world.stored(eval.id).await, None);
    world.assert_sound().await;
}

/// Whoever says that something changed while it is counted has the last word.
#[tokio::test]
async fn what_changes_while_it_is_counted_is_not_stored() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(&[&[]]), &[0]).await.expect("insert");
    world.finish(&eval).await;
    world.fail(&world.claim_only(0).await, Some(FailureKind::Build)).await.expect("fail");
    while world.db.take_job_marks().await.expect("take") > 0 {}
    let run = async |statement: &'static str| sqlx::query(statement).bind(eval.id.0).execute(pool(&world.db)).await;
    run("SELECT begin_counts($1)").await.expect("begin");
    world.db.rebuild_failed(eval.id, "me").await.expect("rebuild");
    world.complete(&world.claim_only(0).await).await.expect("complete");
    while world.db.take_job_marks().await.expect("take") > 0 {}
    run("SELECT settle_counts($1)").await.expect("count");
    assert_eq!(world.stored(eval.id).await, None, "who began to count begins again");
    assert_eq!(world.listed(eval.id).await.succeeded, 1);
    assert_eq!(world.stored(eval.id).await, Some(1));
}
