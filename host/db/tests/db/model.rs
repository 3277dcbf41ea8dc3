//! Random sequential histories against an in-memory model of the state tables: after every step each job has exactly the
//! state that the model says, and the invariant sweep finds nothing.
//!
//! `HARMONIA_TEST_SEED` replays one history, `HARMONIA_TEST_CASES` runs more of them.

mod state;

use std::collections::BTreeMap;

use harmonia_core::{FailureKind, JobStatus, ProjectId};
use harmonia_db::testing::{long_ago, pool};
use harmonia_db::{ClaimedJob, Healed, NewProject, NodeRegistration, ProjectKind};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::world::{Drv, Eval, SYSTEM, World, out_path, registration};
use state::{EvalState, Model};

const STRANGE: &str = "riscv64-linux";
const HOUR: std::time::Duration = std::time::Duration::from_hours(1);

/// Seeds of the histories to run: one given, or a number of random ones.
pub(crate) fn seeds(default_cases: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("HARMONIA_TEST_SEED") {
        vec![seed]
    } else {
        let first: u64 = rand::random();
        (0..number("HARMONIA_TEST_CASES").unwrap_or(default_cases)).map(|case| first.wrapping_add(case)).collect()
    }
}

pub(crate) fn random_graph(rng: &mut StdRng, size: usize) -> Vec<Drv> {
    let mut graph: Vec<Drv> = Vec::new();
    for number in 0..size {
        let deps: Vec<usize> = (0..number).filter(|_| rng.random_bool(0.3)).collect();
        let mut drv = Drv::new(number, &deps);
        if rng.random_bool(0.1) {
            drv.system = STRANGE;
        }
        if rng.random_bool(0.2) {
            drv.outputs.push(100 + number);
        }
        // Sometimes another way to the same output.
        if number > 0 && rng.random_bool(0.15) {
            drv.outputs.clone_from(&graph[rng.random_range(0..number)].outputs);
        }
        graph.push(drv);
    }
    graph
}

struct History {
    world: World,
    model: Model,
    rng: StdRng,
    projects: Vec<ProjectId>,
    evals: BTreeMap<i64, Eval>,
    held: BTreeMap<usize, ClaimedJob>,
    strange_run: i64,
    log: Vec<String>,
}

impl History {
    async fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::new().await;
        let other = NewProject { name: "other".to_owned(), kind: ProjectKind::Local };
        let projects = vec![world.project, world.db.ensure_project(&other).await.expect("a project")];
        let size = rng.random_range(3..10);
        let graph = random_graph(&mut rng, size);
        let log = vec![format!("{graph:?}")];
        let model = Model::new(graph);
        let (evals, held) = (BTreeMap::new(), BTreeMap::new());
        Self { world, model, rng, projects, evals, held, strange_run: 1, log }
    }

    fn a_held_job(&mut self) -> Option<usize> {
        let held: Vec<usize> = self.held.keys().copied().collect();
        held.choose(&mut self.rng).copied()
    }

    fn an_eval(&mut self, wanted: impl Fn(&EvalState) -> bool) -> Option<i64> {
        let ids: Vec<i64> = self.model.evals.iter().filter(|(_, eval)| wanted(eval)).map(|(id, _)| *id).collect();
        ids.choose(&mut self.rng).copied()
    }

    fn a_job(&mut self) -> Option<usize> {
        let numbers: Vec<usize> = self.model.jobs.keys().copied().collect();
        numbers.choose(&mut self.rng).copied()
    }

    async fn evaluate(&mut self) {
        let (place, branch) = (self.rng.random_range(0..2), ["main", "feature"][self.rng.random_range(0..2)]);
        let eval = self.world.evaluation_of(self.projects[place], branch).await;
        self.log.push(format!("evaluation {} of {place} {branch}", eval.id));
        self.model.create_evaluation(eval.id.0, place, branch);
        self.evals.insert(eval.id.0, eval);
    }

    async fn insert(&mut self) {
        let Some(id) = self.an_eval(EvalState::is_running) else { return };
        let count = self.rng.random_range(1..3);
        let roots: Vec<usize> = (0..count).map(|_| self.rng.random_range(0..self.model.graph.len())).collect();
        let mut roots = roots;
        roots.sort_unstable();
        roots.dedup();
        self.log.push(format!("insert {roots:?} for {id}"));
        let batch = self.world.walk(&self.evals[&id], &self.model.graph, &roots).await.expect("walk");
        let walked: Vec<usize> =
            batch.derivations.iter().map(|drv| crate::world::number_of(drv.drv_path.as_str())).collect();
        assert_eq!(walked, self.model.walk(&roots), "where the walk goes");
        let eval = &self.evals[&id];
        let outcome = self.world.insert_batch(eval, &batch).await.expect("insert");
        assert_eq!(outcome.missing, [], "nothing came in between");
        assert_eq!(outcome.new_jobs as usize, self.model.insert(id, &walked, &roots), "new jobs");
    }

    async fn end_evaluation(&mut self) {
        let Some(id) = self.an_eval(EvalState::is_running) else { return };
        let eval = self.evals[&id].clone();
        match self.rng.random_range(0..3) {
            0 if !self.model.evals[&id].attrs.is_empty() => {
                self.log.push(format!("finish {id}"));
                assert!(self.world.db.finish_evaluation(eval.id, &eval.token).await.expect("finish").complete);
                self.model.finish(id);
            }
            1 => {
                self.log.push(format!("fail evaluation {id}"));
                self.world.db.fail_evaluation(eval.id, &eval.token, "broken").await.expect("fail");
                self.model.withdraw(&[id], false);
                self.model.evals.remove(&id);
            }
            _ => {
                self.log.push(format!("release and claim {id}"));
                self.world.db.release_evaluation(eval.id, &eval.token).await.expect("release");
                self.model.requeue(id);
                self.claim_evaluations().await;
            }
        }
    }

    async fn claim_evaluations(&mut self) {
        loop {
            let token = harmonia_db::testing::random_token();
            let claimed = self.world.db.claim_evaluation(&self.world.node, self.world.run, &token).await;
            let Some(claimed) = claimed.expect("claim") else { return };
            self.model.evals.get_mut(&claimed.id.0).expect("one of ours").status = harmonia_core::EvalStatus::Running;
            self.evals.insert(claimed.id.0, Eval { id: claimed.id, token });
        }
    }

    async fn cancel_evaluation(&mut self) {
        let Some(id) = self.an_eval(|_| true) else { return };
        self.log.push(format!("cancel evaluation {id}"));
        if self.rng.random_bool(0.5) {
            self.world.db.cancel_evaluation(self.evals[&id].id, "me").await.expect("cancel");
        } else {
            // A job at a time; it could end after each.
            self.world.cancel_step_by_step(self.evals[&id].id).await;
        }
        self.model.withdraw(&[id], true);
        self.model.evals.remove(&id);
        self.drop_void_claims();
    }

    /// Forgets claims that the model says are gone.
    fn drop_void_claims(&mut self) {
        self.held.retain(|number, _| self.model.jobs[number].status.is_claimed());
    }

    async fn claim(&mut self) {
        let count = self.rng.random_range(1..4);
        let claimed = self.world.claim(count).await;
        let numbers: Vec<usize> = claimed.iter().map(|c| crate::world::number_of(c.drv_path.as_str())).collect();
        self.log.push(format!("claim {numbers:?}"));
        assert_eq!(numbers, self.model.claim(count), "what is claimed");
        for (number, claimed) in numbers.into_iter().zip(claimed) {
            self.held.insert(number, claimed);
        }
    }

    async fn complete(&mut self) {
        let Some(number) = self.a_held_job() else { return };
        let claimed = self.held.remove(&number).expect("held");
        self.log.push(format!("complete {number}"));
        self.world.complete(&claimed).await.expect("complete");
        self.model.complete(number);
    }

    async fn fail(&mut self) {
        let Some(number) = self.a_held_job() else { return };
        let kinds = [None, None, Some(FailureKind::Build), Some(FailureKind::Infrastructure)];
        let kind = *kinds.choose(&mut self.rng).expect("some");
        let claimed = &self.held[&number];
        if self.model.jobs[&number].status == JobStatus::Uploading && self.model.outputs_claimed(number) {
            assert!(self.world.fail(claimed, kind).await.is_err(), "its outputs are accepted");
            return;
        }
        self.log.push(format!("fail {number} {kind:?}"));
        let claimed = self.held.remove(&number).expect("held");
        self.world.fail(&claimed, kind).await.expect("fail");
        self.model.fail(number, kind);
    }

    async fn move_on(&mut self) {
        let Some(number) = self.a_held_job() else { return };
        let claimed = self.held[&number].clone();
        if self.rng.random_bool(0.5) {
            self.log.push(format!("uploading {number}"));
            self.world.db.attempt_uploading(claimed.attempt, &claimed.token).await.expect("uploading");
            self.model.jobs.get_mut(&number).expect("known").status = JobStatus::Uploading;
        } else {
            self.log.push(format!("release {number}"));
            self.world.db.release_attempt(claimed.attempt, &claimed.token, "stopped").await.expect("release");
            self.model.give_back(&[number]);
            self.drop_void_claims();
        }
    }

    async fn rebuild(&mut self) {
        if self.rng.random_bool(0.3) {
            let Some(id) = self.an_eval(|_| true) else { return };
            self.log.push(format!("rebuild failed of {id}"));
            let changed = self.world.db.rebuild_failed(self.evals[&id].id, "me").await.expect("rebuild");
            let attrs: Vec<usize> = self.model.evals[&id].attrs.iter().copied().collect();
            assert_eq!(changed as usize, self.model.rebuild(&attrs));
            return;
        }
        let Some(number) = self.a_job() else { return };
        self.log.push(format!("rebuild {number}"));
        let job = self.world.job_id(number).await;
        let changed = self.world.db.rebuild_job(job, "me").await.expect("rebuild");
        assert_eq!(changed as usize, self.model.rebuild(&[number]));
    }

    async fn cancel_job(&mut self) {
        let Some(number) = self.a_job() else { return };
        self.log.push(format!("cancel {number}"));
        let job = self.world.job_id(number).await;
        let changed = self.world.db.cancel_job(job, "me").await;
        match self.model.cancel_job(number) {
            Some(expected) => assert_eq!(changed.expect("cancel") as usize, expected),
            None => assert!(matches!(changed, Err(harmonia_db::DbError::Refused { .. })), "{changed:?}"),
        }
        self.drop_void_claims();
    }

    async fn lose_a_path(&mut self) {
        let paths: Vec<usize> = self.model.published.iter().copied().collect();
        let Some(path) = paths.choose(&mut self.rng).copied() else { return };
        self.log.push(format!("lose path {path}"));
        let healed = self.world.db.confirm_lost_path(&out_path(path)).await.expect("lost");
        let expected = self.model.lose(path);
        assert_eq!(healed == Healed::LimitReached, expected, "{healed:?}");
    }

    /// An evaluator walks below what was in a cache and is gone.
    async fn walk_below(&mut self) {
        let token = harmonia_db::testing::random_token();
        let walk = self.world.db.claim_walk(&self.world.node, self.world.run, &token).await.expect("claim");
        let Some(walk) = walk else {
            assert!(self.model.wanted_walks().is_empty(), "{:?} are to be walked", self.model.wanted_walks());
            return;
        };
        let roots: Vec<usize> = walk.drvs.iter().map(|drv| crate::world::number_of(drv.as_str())).collect();
        self.log.push(format!("walk below {roots:?} for {}", walk.eval));
        assert!(!roots.is_empty() && self.model.walks().is_superset(&roots.iter().copied().collect()), "{roots:?}");
        let eval = Eval { id: walk.eval, token };
        let mut batch = self.world.walk(&eval, &self.model.graph, &roots).await.expect("walk");
        batch.attrs.clear();
        let walked: Vec<usize> =
            batch.derivations.iter().map(|drv| crate::world::number_of(drv.drv_path.as_str())).collect();
        assert_eq!(walked, self.model.walk(&roots), "where the walk goes");
        let outcome = self.world.insert_batch(&eval, &batch).await.expect("insert");
        assert_eq!(outcome.missing, [], "nothing came in between");
        assert_eq!(outcome.new_jobs as usize, self.model.insert(eval.id.0, &walked, &[]), "new jobs");
        self.world.db.finish_walk(&walk, &eval.token, None).await.expect("finish");
        self.model.end_walk(eval.id.0);
    }

    async fn node_trouble(&mut self) {
        let held: Vec<usize> = self.held.keys().copied().collect();
        if self.rng.random_bool(0.6) {
            let crashes = self.rng.random_bool(0.7);
            self.log.push(["the node restarts", "the node crashes and restarts"][usize::from(crashes)].to_owned());
            if !crashes {
                self.world.db.deregister_node(&self.world.node, self.world.run).await.expect("goodbye");
            }
            self.world.run.0 += 1;
            self.world.db.register_node(&registration("n", self.world.run.0)).await.expect("register");
            if crashes {
                self.model.lose_node(&held);
            } else {
                self.model.restart(&held);
            }
        } else {
            self.log.push("the node is reaped".to_owned());
            sqlx::query!("UPDATE nodes SET last_seen = now() - interval '1 day' WHERE id = 'n'")
                .execute(pool(&self.world.db))
                .await
                .expect("time passes");
            self.world.db.reap_silent_nodes(HOUR).await.expect("reap");
            self.world.db.heartbeat(&self.world.node, self.world.run, None).await.expect("it is back");
            self.model.lose_node(&held);
        }
        self.drop_void_claims();
        self.claim_evaluations().await;
    }

    async fn strange_system(&mut self) {
        if self.rng.random_bool(0.6) {
            self.log.push("nobody offers the strange system".to_owned());
            long_ago(&self.world.db, STRANGE).await;
            self.world.db.mark_unsupported(HOUR).await.expect("mark");
            self.model.mark_unsupported(STRANGE);
        } else {
            self.log.push("a node offers the strange system".to_owned());
            self.strange_run += 1;
            let node =
                NodeRegistration { systems: vec![STRANGE.to_owned()], ..registration("strange", self.strange_run) };
            self.world.db.register_node(&node).await.expect("register");
            self.model.revive_unsupported();
            // It leaves at once, and is not heard of for long.
            self.world.db.deregister_node(&node.id, node.incarnation).await.expect("goodbye");
        }
    }

    async fn repair(&mut self) {
        self.log.push("repair".to_owned());
        let repaired = self.world.db.repair().await.expect("repair");
        assert_eq!((repaired.settled, repaired.recounted), (0, 0), "nothing was wrong");
        assert_eq!(repaired.cancelled as usize, self.model.cancel_orphans());
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..10 => self.evaluate().await,
            10..30 => self.insert().await,
            30..35 => self.end_evaluation().await,
            35..38 => self.cancel_evaluation().await,
            38..56 => self.claim().await,
            56..70 => self.complete().await,
            70..80 => self.fail().await,
            80..85 => self.move_on().await,
            85..89 => self.rebuild().await,
            89..92 => self.cancel_job().await,
            92..94 => self.lose_a_path().await,
            94 => self.walk_below().await,
            95 => self.node_trouble().await,
            96..99 => self.strange_system().await,
            _ => self.repair().await,
        }
    }

    async fn check(&self) {
        // As chores do for what became wanted by one less on the way.
        self.world.db.finish_withdrawals().await.expect("withdraw");
        let jobs = self.world.jobs().await;
        let found: BTreeMap<usize, _> = jobs
            .iter()
            .map(|(number, job)| (*number, (job.status, job.kind, job.unmet, job.priority, job.retries)))
            .collect();
        assert_eq!(found, self.model.view(), "state (status, kind, unmet, priority, retries) by derivation");
        self.world.assert_sound().await;
        for (number, job) in jobs.iter().filter(|(_, job)| job.status == JobStatus::DepFailed) {
            let cause = jobs.iter().find(|(_, other)| Some(other.id) == job.cause).map(|(cause, _)| *cause);
            let cause = cause.unwrap_or_else(|| panic!("{number} is dep-failed without a cause"));
            assert!(self.model.failed_for(*number, cause), "{number} names {cause} as its cause");
        }
    }
}

#[tokio::test]
async fn sequential_histories_match_the_model() {
    for seed in seeds(12) {
        let mut history = History::new(seed).await;
        let steps = history.rng.random_range(10..80);
        let run = std::panic::AssertUnwindSafe(async {
            for _ in 0..steps {
                history.step().await;
                history.check().await;
            }
        });
        if let Err(panic) = catch(run).await {
            eprintln!("HARMONIA_TEST_SEED={seed} replays this history:\n{}", history.log.join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}

/// Runs a future, and gives back its panic.
async fn catch(future: std::panic::AssertUnwindSafe<impl Future<Output = ()>>) -> std::thread::Result<()> {
    let mut future = std::pin::pin!(future.0);
    std::future::poll_fn(move |context| {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(std::task::Poll::Ready(())) => std::task::Poll::Ready(Ok(())),
            Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    })
    .await
}

#[test]
fn the_strange_system_is_not_ours() {
    assert_ne!(STRANGE, SYSTEM);
}
