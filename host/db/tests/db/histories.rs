//! Random concurrent histories: several tasks evaluate, claim, upload, fail, cancel, rebuild, reap and lose things at once
//! on one database. Whatever order they came in, no statement fails in a way its caller cannot expect, the invariants hold
//! at the end, and the queue runs dry.
//!
//! `HARMONIA_TEST_SEED` and `HARMONIA_TEST_CASES` as in `model` (a seed fixes what each task tries, not how they interleave).

use std::sync::Arc;

use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{FailureKind, Incarnation, JobId, JobStatus, NodeId};
use harmonia_db::testing::{long_ago, pool, random_token};
use harmonia_db::{Channel, ClaimedJob, DbError, GraphBatch, Notice};
use harmonia_nix::store_path::StorePath;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::model::{random_graph, seeds};
use crate::world::{Drv, Eval, SYSTEM, World, batch, new_evaluation, new_paths, number_of, out_path, registration};

const TASKS: u64 = 8;
const STEPS: usize = 40;
const HOUR: std::time::Duration = std::time::Duration::from_hours(1);

/// Errors that a caller in a concurrent world must expect: its claim is gone, or things stand otherwise by now.
fn expected<T>(result: Result<T, DbError>, what: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(DbError::StaleClaim | DbError::Refused { .. }) => None,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            panic!("{what}: {error}: {source}")
        }
    }
}

/// One task: a node of its own, with what it holds.
struct Task {
    world: Arc<World>,
    graph: Arc<Vec<Drv>>,
    rng: StdRng,
    node: NodeId,
    run: Incarnation,
    evals: Vec<Eval>,
    held: Vec<ClaimedJob>,
    /// The order of the last look at the queue.
    order: Vec<JobId>,
}

impl Task {
    async fn evaluate(&mut self) {
        let branch = *["main", "feature", "third"].choose(&mut self.rng).expect("some");
        let new = new_evaluation(self.world.project, branch);
        expected(self.world.db.create_evaluation(&new).await, "create");
        let token = random_token();
        let claimed = expected(self.world.db.claim_evaluation(&self.node, self.run, &token).await, "claim").flatten();
        if let Some(claimed) = claimed {
            self.evals.push(Eval { id: claimed.id, token });
        }
    }

    fn an_eval(&mut self) -> Option<Eval> {
        self.evals.choose(&mut self.rng).cloned()
    }

    /// Walks and inserts until nothing is missing, in one batch or two.
    async fn insert(&mut self) {
        let Some(eval) = self.an_eval() else { return };
        let roots = [self.rng.random_range(0..self.graph.len())];
        for _ in 0..100 {
            let Some(walked) = expected(self.world.walk(&eval, &self.graph, &roots).await, "walk") else { return };
            let mut batches = vec![walked.clone()];
            if walked.derivations.len() > 1 && self.rng.random_bool(0.3) {
                let cut = walked.derivations.len() / 2;
                let lower = GraphBatch { derivations: walked.derivations[..cut].to_vec(), ..GraphBatch::default() };
                let upper = GraphBatch { derivations: walked.derivations[cut..].to_vec(), ..walked };
                batches = vec![lower, upper];
            }
            let mut missing = false;
            for batch in &batches {
                let result = self.world.insert_batch(&eval, batch).await;
                let Some(outcome) = expected(result, "insert") else { return };
                missing |= !outcome.missing.is_empty();
            }
            if !missing {
                return;
            }
        }
        panic!("an input stays missing however often one walks");
    }

    async fn end_evaluation(&mut self) {
        let Some(eval) = self.an_eval() else { return };
        self.evals.retain(|other| other.id != eval.id);
        match self.rng.random_range(0..4) {
            0 => {
                expected(self.world.db.fail_evaluation(eval.id, &eval.token, "broken").await, "fail an evaluation");
            }
            1 => {
                expected(self.world.db.release_evaluation(eval.id, &eval.token).await, "release an evaluation");
            }
            2 => {
                expected(self.world.db.cancel_evaluation(eval.id, "me").await, "cancel an evaluation");
            }
            _ => {
                expected(self.world.db.finish_evaluation(eval.id, &eval.token).await, "finish");
            }
        }
    }

    async fn claim(&mut self) {
        let classes =
            expected(self.world.db.resolve_classes(&[SYSTEM.to_owned()], &[]).await, "classes").expect("classes");
        let tokens = [random_token(), random_token()];
        // Now and then from an order of whatever age, which may name jobs that are anything by now.
        let claimed = if !self.order.is_empty() && self.rng.random_bool(0.5) {
            self.world.db.claim_kept_jobs(&self.node, self.run, &self.order, &tokens).await
        } else {
            let heads = expected(self.world.db.queue_heads(&classes, 4).await, "heads").expect("heads");
            self.order = heads.candidates.iter().map(|candidate| candidate.job).collect();
            self.world.db.claim_jobs(&self.node, self.run, &self.order, &tokens).await
        };
        self.held.extend(expected(claimed, "claim").unwrap_or_default());
    }

    fn take(&mut self) -> Option<ClaimedJob> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(self.rng.random_range(0..self.held.len())))
    }

    async fn complete(&mut self) {
        let Some(claimed) = self.take() else { return };
        let db = &self.world.db;
        if self.rng.random_bool(0.5)
            && expected(db.attempt_uploading(claimed.attempt, &claimed.token).await, "uploading").is_none()
        {
            return;
        }
        let outputs = new_paths(&self.world.db, &claimed, self.rng.random_range(1..3)).await;
        if expected(
            db.claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default()).await,
            "claim outputs",
        )
        .is_none()
        {
            return;
        }
        // Now and then the signer dies here; any other finishes it.
        if self.rng.random_bool(0.8) {
            let paths: Vec<StorePath> = outputs.into_iter().map(|output| output.path).collect();
            expected(db.publish_outputs(claimed.job, &paths, &AttemptUsage::default(), None).await, "publish");
        }
    }

    async fn finish_unfinished(&mut self) {
        for unfinished in expected(self.world.db.unfinished_publications(10).await, "unfinished").unwrap_or_default() {
            let paths: Vec<StorePath> = unfinished.rows.into_iter().map(|row| row.path).collect();
            expected(
                self.world.db.publish_outputs(unfinished.job, &paths, &AttemptUsage::default(), None).await,
                "publish",
            );
        }
    }

    async fn fail(&mut self) {
        let Some(claimed) = self.take() else { return };
        if self.rng.random_bool(0.3) {
            let released = self.world.db.release_attempt(claimed.attempt, &claimed.token, "stopped").await;
            expected(released, "release");
            return;
        }
        let kinds = [None, None, Some(FailureKind::Build), Some(FailureKind::Infrastructure)];
        let kind = *kinds.choose(&mut self.rng).expect("some");
        expected(self.world.fail(&claimed, kind).await, "fail");
    }

    async fn change_a_job(&mut self) {
        let ids: Vec<i64> =
            sqlx::query_scalar!("SELECT id FROM build_jobs").fetch_all(pool(&self.world.db)).await.expect("ids");
        let Some(job) = ids.choose(&mut self.rng).copied().map(JobId) else { return };
        if self.rng.random_bool(0.6) {
            expected(self.world.db.rebuild_job(job, "me").await, "rebuild");
        } else {
            expected(self.world.db.cancel_job(job, "me").await, "cancel");
        }
    }

    async fn trouble(&mut self) {
        match self.rng.random_range(0..5) {
            0 => {
                self.run.0 += 1;
                self.world.db.register_node(&registration(&self.node.0, self.run.0)).await.expect("register");
                self.held.clear();
                self.evals.clear();
            }
            1 => {
                sqlx::query!("UPDATE nodes SET last_seen = now() - interval '1 day' WHERE id = $1", self.node.0)
                    .execute(pool(&self.world.db))
                    .await
                    .expect("time passes");
                expected(self.world.db.reap_silent_nodes(HOUR).await, "reap");
                expected(self.world.db.heartbeat(&self.node, self.run, None).await, "heartbeat");
            }
            2 => {
                expected(self.world.db.repair().await, "repair");
            }
            3 => {
                for system in ["aarch64-linux", "riscv64-linux"] {
                    long_ago(&self.world.db, system).await;
                }
                expected(self.world.db.mark_unsupported(HOUR).await, "mark unsupported");
            }
            _ => {
                let path = out_path(self.rng.random_range(0..self.graph.len()));
                expected(self.world.db.confirm_lost_path(&path).await, "heal");
            }
        }
    }

    async fn run(mut self) {
        self.world.db.register_node(&registration(&self.node.0, self.run.0)).await.expect("register");
        for _ in 0..STEPS {
            match self.rng.random_range(0..100) {
                0..12 => self.evaluate().await,
                12..32 => self.insert().await,
                32..37 => self.end_evaluation().await,
                37..55 => self.claim().await,
                55..73 => self.complete().await,
                73..83 => self.fail().await,
                83..86 => self.finish_unfinished().await,
                86..93 => self.change_a_job().await,
                _ => self.trouble().await,
            }
        }
    }
}

/// Makes every change of jobs and attributes linger before its transaction ends, so that transactions overlap in many more
/// ways than they would on a quiet machine.
async fn linger(world: &World) {
    let pool = pool(&world.db);
    sqlx::query!(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_sleep(random() * random() * 0.008); RETURN NULL; END'"
    )
    .execute(pool)
    .await
    .expect("a function");
    for statement in [
        "CREATE TRIGGER linger AFTER INSERT OR UPDATE ON build_jobs FOR EACH STATEMENT EXECUTE FUNCTION linger()",
        "CREATE TRIGGER linger AFTER INSERT ON derivation_sources FOR EACH STATEMENT EXECUTE FUNCTION linger()",
        "CREATE TRIGGER linger AFTER INSERT ON eval_attrs FOR EACH STATEMENT EXECUTE FUNCTION linger()",
        "CREATE TRIGGER linger AFTER UPDATE ON evaluations FOR EACH STATEMENT EXECUTE FUNCTION linger()",
    ] {
        sqlx::query(statement).execute(pool).await.expect("a trigger");
    }
}

/// After the storm: everything is given back, evaluated once more, and built to the end.
async fn run_dry(world: &World, graph: &Arc<Vec<Drv>>) {
    for task in 0..TASKS {
        world.db.register_node(&registration(&format!("node{task}"), 1_000)).await.expect("register");
    }
    let node = registration("last", 1);
    world
        .db
        .register_node(&harmonia_db::NodeRegistration {
            systems: vec![SYSTEM.to_owned(), "riscv64-linux".to_owned()],
            ..node
        })
        .await
        .expect("register");
    let unfinished = world.db.unfinished_publications(1_000).await.expect("unfinished");
    for unfinished in unfinished {
        let paths: Vec<StorePath> = unfinished.rows.into_iter().map(|row| row.path).collect();
        world.db.publish_outputs(unfinished.job, &paths, &AttemptUsage::default(), None).await.expect("publish");
    }
    world.assert_sound().await;
    sqlx::query!("DROP FUNCTION linger CASCADE").execute(pool(&world.db)).await.expect("calm");
    // Old evaluations, claimed and ended, so that only the last one wants anything.
    loop {
        let token = random_token();
        let claimed =
            world.db.claim_evaluation(&NodeId("last".to_owned()), Incarnation(1), &token).await.expect("claim");
        let Some(claimed) = claimed else { break };
        world.db.fail_evaluation(claimed.id, &token, "the storm is over").await.expect("fail");
    }
    let eval = world.evaluation("last").await;
    let roots: Vec<usize> = (0..graph.len()).collect();
    world.insert(&eval, graph, &roots).await.expect("insert");
    world.assert_sound().await;
    for id in world.jobs().await.into_values().map(|job| job.id) {
        world.db.rebuild_job(id, "me").await.expect("rebuild");
    }
    world.assert_sound().await;
    let systems = [SYSTEM.to_owned(), "riscv64-linux".to_owned()];
    loop {
        let classes = world.db.resolve_classes(&systems, &[]).await.expect("classes");
        let heads = world.db.queue_heads(&classes, 100).await.expect("heads");
        let order: Vec<JobId> = heads.candidates.iter().map(|candidate| candidate.job).collect();
        let tokens: Vec<_> = order.iter().map(|_| random_token()).collect();
        let claimed =
            world.db.claim_jobs(&NodeId("last".to_owned()), Incarnation(1), &order, &tokens).await.expect("claim");
        if claimed.is_empty() {
            break;
        }
        for claimed in claimed {
            world.complete(&claimed).await.expect("complete");
        }
        world.assert_sound().await;
    }
    let open: Vec<_> =
        world.statuses().await.into_iter().filter(|(_, status)| *status != JobStatus::Succeeded).collect();
    assert_eq!(open, [], "everything that was wanted is built");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_histories_keep_the_invariants() {
    for seed in seeds(3) {
        eprintln!("HARMONIA_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let graph = Arc::new(random_graph(&mut rng, 12));
        let world = Arc::new(World::new().await);
        linger(&world).await;
        let tasks = (0..TASKS).map(|task| {
            let task = Task {
                world: Arc::clone(&world),
                graph: Arc::clone(&graph),
                rng: StdRng::seed_from_u64(seed ^ (task << 56) ^ task),
                node: NodeId(format!("node{task}")),
                run: Incarnation(1),
                evals: Vec::new(),
                held: Vec::new(),
                order: Vec::new(),
            };
            tokio::spawn(task.run())
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no task fails");
        }
        world.assert_sound().await;
        run_dry(&world, &graph).await;
    }
}

/// Claimers that race for the same heads never get the same job, and get all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_claimers_share_the_queue_without_overlap() {
    let world = Arc::new(World::new().await);
    let graph: Vec<Drv> = (0..200).map(|number| Drv::new(number, &[])).collect();
    let eval = world.evaluation("main").await;
    let all: Vec<usize> = (0..200).collect();
    world.insert_batch(&eval, &batch(&graph, &all, &all)).await.expect("insert");
    let mut listener = world.db.listen(&[Channel::BuildJobs]).await.expect("listen");
    let claimers = (0..8).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = world.claim(3).await;
                if claimed.is_empty() {
                    return mine;
                }
                for claimed in claimed {
                    mine.push(number_of(claimed.drv_path.as_str()));
                    world.complete(&claimed).await.expect("complete");
                }
            }
        })
    });
    let mut got = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        got.extend(claimer.await.expect("no claimer fails"));
    }
    let unfinished: Vec<_> =
        world.statuses().await.into_iter().filter(|(_, status)| *status == JobStatus::Pending).collect();
    assert_eq!(unfinished, [], "nothing is left over");
    got.sort_unstable();
    got.dedup();
    let succeeded = world.statuses().await.iter().filter(|(_, status)| *status == JobStatus::Succeeded).count();
    assert_eq!(got.len(), succeeded, "each completed once");
    assert!(matches!(listener.next().await, Notice::Hint { .. }));
    world.assert_sound().await;
}
