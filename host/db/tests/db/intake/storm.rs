//! Pushes, closings and evaluators at once: whatever meets, the invariants hold, one evaluation of a branch is live, and no
//! job waits that nobody wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harmonia_core::EvalId;
use harmonia_db::testing::{pool, random_token};
use harmonia_db::{DbError, DeliveryRowId, EvaluationRequest, Requested};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Forge;
use crate::world::{Eval, graph};

const BRANCHES: [&str; 3] = ["main", "release/1", "pull"];

/// Pushes to and closings of three branches, each with an answer that may be old by then.
async fn frontend(forge: Arc<Forge>, seed: u64, commits: Arc<AtomicUsize>) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..25 {
        let branch = BRANCHES[random.random_range(0..BRANCHES.len())];
        let key = forge.branch(branch);
        let asked = forge.db.branch_state(&key).await.expect("state");
        // A few commits only, so that some come back.
        let commit = format!("{:040}", commits.fetch_add(1, Ordering::Relaxed) % 5);
        if random.random_bool(0.2) {
            forge.db.close_evaluations(&key, DeliveryRowId(i64::MAX), "gone").await.expect("close");
            continue;
        }
        let request = EvaluationRequest {
            tree_hash: Some(commit.clone()),
            reuse_key: Some("k".to_owned()),
            ..forge.request_as_of(branch, &commit, asked)
        };
        let requested = forge.db.request_evaluation(&request).await.expect("request");
        assert_ne!(requested, Requested::Inactive);
    }
}

/// Evaluates whatever is queued, until no frontend is left that could queue more.
async fn evaluator(forge: Arc<Forge>, seed: u64, done: Arc<AtomicUsize>) {
    let mut random = StdRng::seed_from_u64(seed);
    let graph = graph(&[&[], &[0], &[0], &[1, 2], &[3], &[]]);
    loop {
        let over = done.load(Ordering::SeqCst) == 0;
        let token = random_token();
        let claimed = forge.db.claim_evaluation(&forge.world.node, forge.world.run, &token).await.expect("claim");
        let Some(claimed) = claimed else {
            if over {
                return;
            }
            tokio::task::yield_now().await;
            continue;
        };
        let eval = Eval { id: claimed.id, token };
        let roots = [random.random_range(0..6), random.random_range(0..6)];
        let fails = random.random_bool(0.2);
        match evaluate(&forge, &eval, &graph, &roots, fails).await {
            // Superseded or closed meanwhile.
            Ok(()) | Err(DbError::StaleClaim) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn evaluate(
    forge: &Forge,
    eval: &Eval,
    graph: &[crate::world::Drv],
    roots: &[usize],
    fails: bool,
) -> Result<(), DbError> {
    let roots = if roots[0] == roots[1] { &roots[..1] } else { roots };
    // What was wanted when it walked may be withdrawn when it inserts: then it walks again.
    while !forge.world.insert(eval, graph, roots).await?.missing.is_empty() {}
    if fails {
        return forge.db.fail_evaluation(eval.id, &eval.token, "broken").await;
    }
    forge.db.finish_evaluation(eval.id, &eval.token).await?;
    // What an evaluator will say of it.
    sqlx::query!("UPDATE evaluations SET embeds_commit = false, reuse_key = 'k' WHERE id = $1", eval.id.0)
        .execute(pool(&forge.db))
        .await
        .expect("set");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_pushes_closings_and_evaluators_stays_sound() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let forge = Arc::new(Forge::new().await);
    let commits = Arc::new(AtomicUsize::new(0));
    let frontends = Arc::new(AtomicUsize::new(4));
    let mut tasks = Vec::new();
    for index in 0..4 {
        let (forge, commits, frontends) = (Arc::clone(&forge), Arc::clone(&commits), Arc::clone(&frontends));
        tasks.push(tokio::spawn(async move {
            frontend(forge, seed.wrapping_add(index), commits).await;
            frontends.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    for index in 10..12 {
        tasks.push(tokio::spawn(evaluator(Arc::clone(&forge), seed.wrapping_add(index), Arc::clone(&frontends))));
    }
    for task in tasks {
        task.await.expect("well");
    }
    forge.world.assert_sound().await;
    let repaired = forge.db.repair().await.expect("repair");
    assert_eq!(repaired, harmonia_db::Repaired::default(), "nothing waits that nobody wants");
    let crowded = sqlx::query_scalar!(
        r#"SELECT count(*) AS "n!" FROM (SELECT FROM live_evaluations GROUP BY project_id, branch HAVING count(*) > 1) b"#
    );
    assert_eq!(crowded.fetch_one(pool(&forge.db)).await.expect("read"), 0, "one of each branch is live");
    let newest: Option<i64> = sqlx::query_scalar!("SELECT max(id) FROM evaluations WHERE reuses_eval_id IS NOT NULL")
        .fetch_one(pool(&forge.db))
        .await
        .expect("read");
    println!("newest reuse: {:?}", newest.map(EvalId));
}
