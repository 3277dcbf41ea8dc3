//! Limits of builds: the most generous that live evaluations ask, never loosened because the same is asked again.

use harmonia_core::FailureKind;
use harmonia_core::JobStatus::{DepFailed, Failed, Pending};
use harmonia_core::api::Verdict;
use harmonia_db::testing::pool;
use harmonia_db::{AskedLimits, AttrResult, FailOutcome, GraphAttr, GraphBatch, Walk};

use crate::world::{Drv, Eval, World, batch, drv_path, graph};

const DEFAULT_TIMEOUT_S: u64 = 14_400;

impl World {
    /// Inserts an attribute of that name for a derivation, with what its `meta` asks.
    async fn name(&self, eval: &Eval, graph: &[Drv], name: &str, number: usize, timeout_s: Option<u64>) -> u64 {
        let limits = AskedLimits { timeout_s, max_silent_s: None };
        let asked = [(drv_path(number), limits)];
        let paths = [drv_path(number)];
        let walks = self.db.classify_derivations(eval.id, &eval.token, &paths, &asked).await.expect("classify");
        let numbers: Vec<usize> = if walks[0].1 == Walk::Descend { vec![number] } else { Vec::new() };
        let result = AttrResult::Derivation { drv_path: drv_path(number), limits };
        let attrs = vec![GraphAttr { attr: name.to_owned(), result }];
        let batch = GraphBatch { attrs, ..batch(graph, &numbers, &[]) };
        let outcome = self.insert_batch(eval, &batch).await.expect("insert");
        assert_eq!(outcome.missing, []);
        outcome.revived
    }

    async fn timeout_s(&self, number: usize) -> u64 {
        let path = drv_path(number).to_string();
        let timeout = sqlx::query_scalar!("SELECT timeout_s FROM build_jobs WHERE drv_path = $1", path);
        timeout.fetch_one(pool(&self.db)).await.expect("a job") as u64
    }
}

#[tokio::test]
async fn a_timeout_stays_a_timeout_when_the_same_is_asked_again() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    for again in [false, true, true] {
        let eval = world.evaluation("main").await;
        let revived = world.name(&eval, &graph, "strict", 0, Some(2)).await;
        world.finish(&eval).await;
        assert_eq!(revived, 0);
        if !again {
            let claimed = world.claim_only(0).await;
            assert_eq!(claimed.limits.timeout_s, 2);
            world.fail(&claimed, Some(FailureKind::Timeout)).await.expect("fail");
        }
        assert_eq!((world.status(0).await, world.timeout_s(0).await), (Failed, 2), "again: {again}");
        assert_eq!(world.shown(eval.id).await.1, Verdict::Failed);
    }
    // Somebody asks for more.
    let eval = world.evaluation("main").await;
    assert_eq!(world.name(&eval, &graph, "strict", 0, Some(5)).await, 1);
    assert_eq!(world.claim_only(0).await.limits.timeout_s, 5);
}

#[tokio::test]
async fn the_most_generous_of_the_attributes_that_name_a_derivation_counts_in_any_order() {
    for (first, second, expected) in [
        (Some(2), None, DEFAULT_TIMEOUT_S),
        (None, Some(2), DEFAULT_TIMEOUT_S),
        (Some(2), Some(30), 30),
        (Some(30), Some(2), 30),
        (Some(u64::MAX), Some(2), 86_400),
        (Some(0), Some(0), DEFAULT_TIMEOUT_S),
    ] {
        let world = World::new().await;
        let graph = graph(&[&[], &[0]]);
        let eval = world.evaluation("main").await;
        // As a dependency first, for which the project's limits hold until an attribute names it.
        world.insert(&eval, &graph, &[1]).await.expect("insert");
        assert_eq!(world.timeout_s(0).await, DEFAULT_TIMEOUT_S);
        world.name(&eval, &graph, "a", 0, first).await;
        world.name(&eval, &graph, "b", 0, second).await;
        assert_eq!(world.timeout_s(0).await, expected, "{first:?}, {second:?}");
        assert_eq!(world.timeout_s(1).await, DEFAULT_TIMEOUT_S);
        world.finish(&eval).await;
        assert_eq!(world.timeout_s(0).await, expected, "{first:?}, {second:?}, at the end");
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn limits_are_what_live_evaluations_ask() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    let eval = world.evaluation("main").await;
    world.name(&eval, &graph, "a", 0, Some(500)).await;
    let other = world.evaluation("other").await;
    world.name(&other, &graph, "a", 0, Some(2)).await;
    assert_eq!(world.timeout_s(0).await, 500, "two want it");
    // A new commit of the only branch that wants it asks for less.
    let alone = World::new().await;
    let eval = alone.evaluation("main").await;
    alone.name(&eval, &graph, "a", 0, None).await;
    alone.finish(&eval).await;
    let eval = alone.evaluation("main").await;
    alone.name(&eval, &graph, "a", 0, Some(2)).await;
    // Superseded first, it was cancelled, and came back.
    assert_eq!((alone.status(0).await, alone.timeout_s(0).await), (Pending, 2));
}

#[tokio::test]
async fn who_allows_more_while_it_builds_gets_another_try() {
    let world = World::new().await;
    let graph = graph(&[&[]]);
    let eval = world.evaluation("main").await;
    world.name(&eval, &graph, "a", 0, Some(2)).await;
    let claimed = world.claim_only(0).await;
    let other = world.evaluation("other").await;
    world.name(&other, &graph, "a", 0, Some(100)).await;
    assert!(matches!(
        world.fail(&claimed, Some(FailureKind::Timeout)).await.expect("fail"),
        FailOutcome::Retried { .. }
    ));
    let claimed = world.claim_only(0).await;
    assert_eq!(claimed.limits.timeout_s, 100);
    assert!(matches!(
        world.fail(&claimed, Some(FailureKind::Timeout)).await.expect("fail"),
        FailOutcome::Failed { .. }
    ));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_dependency_that_nobody_names_has_the_projects_limits_when_all_names_are_known() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let eval = world.evaluation("strict").await;
    world.name(&eval, &graph, "a", 0, Some(2)).await;
    world.finish(&eval).await;
    let claimed = world.claim_only(0).await;
    world.fail(&claimed, Some(FailureKind::Timeout)).await.expect("fail");
    // Named here, too, in a later batch: as long as that may come, it stays what it is.
    let same = world.evaluation("same").await;
    world.insert(&same, &graph, &[1]).await.expect("insert");
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed)]);
    assert_eq!(world.name(&same, &graph, "a", 0, Some(2)).await, 0);
    world.finish(&same).await;
    assert_eq!(world.statuses().await, [(0, Failed), (1, DepFailed)]);
    // Not named here.
    let other = world.evaluation("other").await;
    world.insert(&other, &graph, &[1]).await.expect("insert");
    world.finish(&other).await;
    assert_eq!(world.statuses().await, [(0, Pending), (1, Pending)]);
    assert_eq!(world.timeout_s(0).await, DEFAULT_TIMEOUT_S);
    world.assert_sound().await;
}
