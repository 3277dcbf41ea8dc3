//! What a claim sees of a long queue, where heads come from the digest.

use harmonia_core::JobId;
use harmonia_db::QueueHeads;

use crate::world::{SYSTEM, World, graph};

/// More than any digest lasts here; each try asks the database again.
const TRIES: usize = 2_000;

/// A queue of so many jobs that wait for nothing.
async fn wide(jobs: usize) -> World {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    let none: &[usize] = &[];
    let roots: Vec<usize> = (0..jobs).collect();
    world.insert(&eval, &graph(&vec![none; jobs]), &roots).await.expect("insert");
    world
}

async fn heads(world: &World, count: u32) -> QueueHeads {
    let classes = world.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await.expect("classes");
    world.db.queue_heads(&classes, count).await.expect("heads")
}

fn jobs(heads: &QueueHeads) -> Vec<JobId> {
    heads.candidates.iter().map(|candidate| candidate.job).collect()
}

#[tokio::test]
async fn a_long_queue_is_claimed_in_order_and_nothing_stays_behind() {
    let world = wide(40).await;
    let mut taken = Vec::new();
    while taken.len() < 30 {
        let seen = jobs(&heads(&world, 2).await);
        assert_eq!(seen.len(), 2, "there is plenty");
        let tokens = [(); 2].map(|()| harmonia_db::testing::random_token());
        let claimed = world.db.claim_jobs(&world.node, world.run, &seen, &tokens).await.expect("claim");
        assert_eq!(claimed.iter().map(|job| job.job).collect::<Vec<_>>(), seen, "as ordered, each of them ready");
        taken.extend(claimed);
    }
    let ids: Vec<JobId> = taken.iter().map(|job| job.job).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "first in, first out: {ids:?}");

    // The oldest comes back: older than all that the digest knows, and seen as soon as that is remade.
    world.fail(&taken[0], None).await.expect("fail, transiently");
    let mut seen = heads(&world, 2).await;
    for _ in 0..TRIES {
        if seen.candidates[0].job == ids[0] {
            break;
        }
        seen = heads(&world, 2).await;
    }
    assert_eq!((seen.candidates[0].job, seen.candidates[0].retries), (ids[0], 1));

    // What runs is counted, within the same time.
    let running = |heads: &QueueHeads| heads.projects[0].running;
    for _ in 0..TRIES {
        if running(&seen) == 29 {
            break;
        }
        seen = heads(&world, 2).await;
    }
    assert_eq!(running(&seen), 29);

    // Asked for more than there is, it is exact, at once.
    let all = jobs(&heads(&world, 30).await);
    assert_eq!(all.len(), 11, "ten that nobody took, and the one that came back");
    world.assert_sound().await;
}

#[tokio::test]
async fn boosted_jobs_are_seen_at_once_in_front_of_their_project() {
    let world = wide(20).await;
    assert_eq!(heads(&world, 2).await.candidates.len(), 2);
    let claimed = world.claim(20).await;
    let last = claimed.last().expect("claimed");
    for job in &claimed[..10] {
        world.db.release_attempt(job.attempt, &job.token, "test").await.expect("release");
    }
    heads(&world, 2).await; // a digest that knows nothing of what comes
    world.fail(last, Some(harmonia_core::FailureKind::Build)).await.expect("fail");
    assert_eq!(world.db.rebuild_job(last.job, "test").await.expect("rebuild"), 1);
    let seen = heads(&world, 2).await;
    assert_eq!((seen.candidates[0].job, seen.candidates[0].priority, seen.candidates.len()), (last.job, 100, 2));
}

#[tokio::test]
async fn the_longest_chain_above_a_job_is_kept() {
    let world = World::new().await;
    let eval = world.evaluation("main").await;
    let graph = graph(&[&[]]);
    for (length, expected) in [(3, 3), (9, 9), (2, 9), (0, 9)] {
        let mut batch = crate::world::batch(&graph, &[0], &[0]);
        batch.derivations[0].path_length = length;
        world.insert_batch(&eval, &batch).await.expect("insert");
        assert_eq!(heads(&world, 1).await.candidates[0].path_length, expected, "after {length}");
    }
}
