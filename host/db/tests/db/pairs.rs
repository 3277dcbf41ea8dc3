//! Every pair of changes that may meet: the first is done but not committed when the second starts; then the first commits.
//! Whichever lock the second waits for (or does not), the invariants hold afterwards, and nothing that is wanted is cancelled.
//!
//! The pairs in [`MEETINGS`] run always, the others a sample at a time (`HARMONIA_TEST_CASES`, `HARMONIA_TEST_SEED`).

use std::time::Duration;

use harmonia_core::JobStatus::{Building, DepFailed, Failed, Pending, Succeeded};
use harmonia_core::api::ProjectChanges;
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{FailureKind, Incarnation, NodeId, ProjectId};
use harmonia_db::testing::{TestDatabase, checked, insert_graph, pool, random_token};
use harmonia_db::{ClaimedJob, Db, DbError, NewProject, ProjectKind, RetryPolicy};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::world::{
    Drv, Eval, World, assert_totals, batch, derivation, failure, graph, new_evaluation, new_paths, number_of, out_path,
    registration,
};

const HOUR: Duration = Duration::from_hours(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// `other` inserts 7 above 1.
    InsertAboveWaiting,
    /// `other` inserts 8 above 0, which builds.
    InsertAboveBuilding,
    /// `other` inserts 9 above 4, which failed.
    InsertAboveFailed,
    /// `other` inserts 10 above 5, which is dep-failed.
    InsertAboveDepFailed,
    /// `other` inserts 11 above 7, and 7 with it.
    InsertTwo,
    /// `other` names 2 as an attribute, no more.
    NameWaiting,
    /// `other` walks and inserts what is above 6, which failed of infrastructure.
    Revive,
    Complete,
    FailForGood,
    FailTransiently,
    Release,
    CancelEvaluation,
    Supersede,
    FailEvaluation,
    FinishEvaluation,
    RequeueEvaluation,
    CancelJob,
    RebuildFailed,
    Lose,
    Claim,
    Reap,
    Restart,
    Orphan,
    Repair,
    /// A private project inserts 7, which strangers must not see before a public one has it.
    InsertHidden,
    /// The project turns private.
    Hide,
}

use Change::{
    CancelEvaluation, CancelJob, Claim, Complete, FailEvaluation, FailForGood, FailTransiently, FinishEvaluation, Hide,
    InsertAboveBuilding, InsertAboveDepFailed, InsertAboveFailed, InsertAboveWaiting, InsertHidden, InsertTwo, Lose,
    NameWaiting, Orphan, Reap, RebuildFailed, Release, Repair, RequeueEvaluation, Restart, Revive, Supersede,
};

const ALL: [Change; 26] = [
    InsertAboveWaiting,
    InsertAboveBuilding,
    InsertAboveFailed,
    InsertAboveDepFailed,
    InsertTwo,
    NameWaiting,
    Revive,
    Complete,
    FailForGood,
    FailTransiently,
    Release,
    CancelEvaluation,
    Supersede,
    FailEvaluation,
    FinishEvaluation,
    RequeueEvaluation,
    CancelJob,
    RebuildFailed,
    Lose,
    Claim,
    Reap,
    Restart,
    Orphan,
    Repair,
    InsertHidden,
    Hide,
];

/// Pairs that meet on the same rows.
const MEETINGS: [(Change, Change); 31] = [
    (InsertAboveBuilding, Complete),
    (Complete, InsertAboveBuilding),
    (InsertAboveBuilding, FailForGood),
    (FailForGood, InsertAboveBuilding),
    (InsertAboveWaiting, FailForGood),
    (FailForGood, InsertAboveWaiting),
    (InsertTwo, FailForGood),
    (InsertAboveWaiting, CancelEvaluation),
    (CancelEvaluation, InsertAboveWaiting),
    (NameWaiting, CancelEvaluation),
    (NameWaiting, Supersede),
    (CancelEvaluation, NameWaiting),
    (InsertAboveDepFailed, RebuildFailed),
    (RebuildFailed, InsertAboveDepFailed),
    (InsertAboveFailed, RebuildFailed),
    (RebuildFailed, InsertAboveFailed),
    (RebuildFailed, Complete),
    (Complete, RebuildFailed),
    (Lose, Release),
    (Release, Lose),
    (Revive, FailForGood),
    (FailEvaluation, Revive),
    (InsertHidden, InsertAboveWaiting),
    (InsertAboveWaiting, InsertHidden),
    (InsertTwo, InsertHidden),
    (InsertHidden, Hide),
    (Hide, InsertHidden),
    (Complete, Hide),
    (Hide, Complete),
    (Hide, FailForGood),
    (Hide, InsertAboveBuilding),
];

/// 0 builds; 1 (above 0 and 3) and 2 (above 1) wait; 3 is built; 4 failed, and 5 (above 0 and 4) for it; 6 failed of
/// infrastructure, and 12 (above 0 and 6) for it; 13 is ready; 14 needs a system that nobody offers. 7 to 11 are new.
fn the_graph() -> Vec<Drv> {
    let mut graph =
        graph(&[&[], &[0, 3], &[1], &[], &[], &[0, 4], &[], &[1], &[0], &[4], &[5], &[7], &[0, 6], &[], &[], &[14]]);
    graph[14].system = "riscv64-linux";
    graph
}

struct Scene {
    test: TestDatabase,
    graph: Vec<Drv>,
    project: ProjectId,
    main: Eval,
    other: Eval,
    hidden: Eval,
    zero: ClaimedJob,
}

async fn scene() -> Scene {
    let world = World::new().await;
    let graph = the_graph();
    let main = world.evaluation("main").await;
    world.insert(&main, &graph, &[2, 3, 4, 6]).await.expect("insert");
    let other = world.evaluation("other").await;
    let mut zero = None;
    for claimed in world.claim(10).await {
        match number_of(claimed.drv_path.as_str()) {
            0 => zero = Some(claimed),
            3 => drop(world.complete(&claimed).await.expect("complete")),
            4 => drop(world.fail(&claimed, Some(FailureKind::Build)).await.expect("fail")),
            _ => drop(world.fail(&claimed, Some(FailureKind::Infrastructure)).await.expect("fail")),
        }
    }
    // Below and above one another, but none of it walked: as another evaluation left it.
    let numbers = [5, 12, 13, 14, 15];
    let outcome = world.insert_batch(&main, &batch(&graph, &numbers, &numbers)).await.expect("insert");
    if !outcome.missing.is_empty() {
        // 6 is to be tried again by whoever reaches it; put 12 above it as it would have been before.
        let with_six = batch(&graph, &[5, 6, 12, 13, 14, 15], &numbers);
        world.insert_batch(&main, &with_six).await.expect("insert");
        let six = world.claim(10).await.into_iter().find(|c| number_of(c.drv_path.as_str()) == 6).expect("6 is ready");
        let thirteen = sqlx::query!(
            "SELECT a.id FROM build_attempts a JOIN build_jobs j ON j.id = a.job_id WHERE a.outcome = 'running' AND j.drv_path = $1",
            crate::world::drv_path(13).to_string()
        );
        let thirteen = thirteen.fetch_one(pool(&world.db)).await.expect("13 was claimed along").id;
        world.fail(&six, Some(FailureKind::Infrastructure)).await.expect("fail");
        sqlx::query!("SELECT end_attempt($1, 'aborted', '')", thirteen)
            .execute(pool(&world.db))
            .await
            .expect("let it go");
        sqlx::query!("SELECT return_jobs(ARRAY[job_id]) FROM build_attempts WHERE id = $1", thirteen)
            .execute(pool(&world.db))
            .await
            .expect("let it go");
    }
    let expected = [
        (0, Building),
        (1, Pending),
        (2, Pending),
        (3, Succeeded),
        (4, Failed),
        (5, DepFailed),
        (6, Failed),
        (12, DepFailed),
        (13, Pending),
        (14, Pending),
        (15, Pending),
    ];
    assert_eq!(world.statuses().await, expected);
    world.assert_sound().await;
    let zero = zero.expect("0 was ready");
    // Known to signers and wanted by nobody yet, so that whoever inserts it does not wait for its registration.
    world.db.register_derivations(&[checked(&derivation(7, &graph[7]))]).await.expect("register");
    let private = NewProject { name: "local/hidden".to_owned(), kind: ProjectKind::Local };
    let private = world.db.ensure_project(&private).await.expect("a project");
    hide(&world.db, "local/hidden").await.expect("turn");
    let hidden = world.evaluation_of(private, "main").await;
    Scene { test: world.test, graph, project: world.project, main, other, hidden, zero }
}

async fn hide(db: &Db, project: &str) -> Result<(), DbError> {
    let private = ProjectChanges { is_public: Some(false), ..ProjectChanges::default() };
    db.set_project(project, &private, "me").await
}

/// The same scene on a copy of its database.
struct Act<'a> {
    scene: &'a Scene,
    db: Db,
}

impl Act<'_> {
    async fn insert(&self, numbers: &[usize], roots: &[usize]) -> Result<(), DbError> {
        self.insert_for(&self.scene.other, numbers, roots).await
    }

    async fn insert_for(&self, eval: &Eval, numbers: &[usize], roots: &[usize]) -> Result<(), DbError> {
        let batch = batch(&self.scene.graph, numbers, roots);
        // Something missing means that nothing was inserted: fine here, the evaluator would walk again.
        insert_graph(&self.db, eval.id, &eval.token, &batch).await.map(|_| ())
    }

    async fn job(&self, number: usize) -> harmonia_core::JobId {
        let path = crate::world::drv_path(number).to_string();
        let id =
            sqlx::query_scalar!("SELECT id FROM build_jobs WHERE drv_path = $1", path).fetch_one(pool(&self.db)).await;
        harmonia_core::JobId(id.expect("a job"))
    }

    async fn perform(&self, change: Change) -> Result<(), DbError> {
        let (db, Scene { main, zero, .. }) = (&self.db, self.scene);
        match change {
            InsertAboveWaiting => self.insert(&[7], &[7]).await,
            InsertAboveBuilding => self.insert(&[8], &[8]).await,
            InsertAboveFailed => self.insert(&[9], &[9]).await,
            InsertAboveDepFailed => self.insert(&[10], &[10]).await,
            InsertTwo => self.insert(&[7, 11], &[11]).await,
            NameWaiting => self.insert(&[], &[2]).await,
            Revive => self.insert(&[6, 12], &[12]).await,
            Complete => {
                db.claim_outputs(
                    zero.attempt,
                    &zero.token,
                    &new_paths(db, zero, 1).await,
                    &harmonia_db::Alongside::default(),
                )
                .await?;
                db.publish_outputs(zero.job, &[out_path(0)], &AttemptUsage::default(), None).await.map(|_| ())
            }
            FailForGood => {
                let failure = failure(Some(FailureKind::Build));
                db.fail_attempt(zero.attempt, &zero.token, &failure, &AttemptUsage::default(), None).await.map(|_| ())
            }
            FailTransiently => {
                let failure = failure(None);
                db.fail_attempt(zero.attempt, &zero.token, &failure, &AttemptUsage::default(), None).await.map(|_| ())
            }
            Release => db.release_attempt(zero.attempt, &zero.token, "stopped").await,
            CancelEvaluation => db.cancel_evaluation(main.id, "me").await.map(|_| ()),
            Supersede => db.create_evaluation(&new_evaluation(self.scene.project, "main")).await.map(|_| ()),
            FailEvaluation => db.fail_evaluation(main.id, &main.token, "broken").await,
            FinishEvaluation => db.finish_evaluation(main.id, &main.token).await.map(|_| ()),
            RequeueEvaluation => db.release_evaluation(main.id, &main.token).await,
            CancelJob => db.cancel_job(self.job(1).await, "me").await.map(|_| ()),
            RebuildFailed => db.rebuild_failed(main.id, "me").await.map(|_| ()),
            Lose => db.confirm_lost_path(&out_path(3)).await.map(|_| ()),
            Claim => {
                let jobs = [self.job(13).await];
                db.claim_jobs(&NodeId("n".to_owned()), Incarnation(1), &jobs, &[random_token()]).await.map(|_| ())
            }
            Reap => db.reap_silent_nodes(Duration::ZERO).await.map(|_| ()),
            Restart => db.register_node(&registration("n", 2)).await.map(|_| ()),
            Orphan => db.mark_unsupported(HOUR).await.map(|_| ()),
            Repair => db.repair().await.map(|_| ()),
            InsertHidden => self.insert_for(&self.scene.hidden, &[7], &[7]).await,
            Hide => hide(db, "local/p").await,
        }
    }
}

/// Errors that the second of a pair must expect.
fn tolerate(result: Result<(), DbError>, what: &str) {
    match result {
        Ok(()) | Err(DbError::StaleClaim | DbError::Refused { .. }) => {}
        Err(error) => panic!("{what}: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)),
    }
}

/// Waits until somebody in this database waits for a lock, or until `done` says that nobody is going to.
async fn someone_waits(db: &Db, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        let waiting = sqlx::query_scalar!(
            r#"SELECT count(*) AS "n!" FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"#
        );
        if waiting.fetch_one(pool(db)).await.expect("activity") > 0 {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "the second change neither ended nor waited");
        tokio::task::yield_now().await;
    }
}

async fn meet(scene: &Scene, first: Change, second: Change) {
    let test = TestDatabase::copy_of(&scene.test).await;
    let at_once = RetryPolicy { tries_max: 3, first_delay: Duration::ZERO, delay_max: Duration::ZERO };
    sqlx::query!("UPDATE job_classes SET last_seen = now() - interval '1 day' WHERE system LIKE 'riscv%'")
        .execute(pool(&test.db))
        .await
        .expect("time passes");
    let one = test.single_connection().await.with_retry_policy(at_once);
    let one = Act { scene, db: one };
    let two = Act { scene, db: test.db.clone().with_retry_policy(at_once) };
    sqlx::query("BEGIN").execute(pool(&one.db)).await.expect("begin");
    one.perform(first).await.unwrap_or_else(|error| panic!("{first:?} alone: {error}"));
    let ended = std::cell::Cell::new(false);
    let second_change = async {
        let result = two.perform(second).await;
        ended.set(true);
        tolerate(result, &format!("{second:?} after {first:?}"));
    };
    let commit = async {
        someone_waits(&two.db, || ended.get()).await;
        sqlx::query("COMMIT").execute(pool(&one.db)).await.expect("commit");
    };
    tokio::join!(second_change, commit);

    let violations = two.db.sweep_invariants().await.expect("sweep");
    assert_eq!(violations, [], "after {first:?}, then {second:?}");
    eprintln!("{first:?}, then {second:?}");
    assert_totals(&two.db).await;
    let lost = sqlx::query_scalar!(
        r#"WITH RECURSIVE reached(drv_path) AS (
               SELECT a.drv_path FROM eval_attrs a JOIN live_evaluations e ON e.attrs_of = a.eval_id WHERE a.drv_path IS NOT NULL
               UNION
               SELECT d.input_drv FROM reached r JOIN derivation_inputs d ON d.referrer = r.drv_path
               JOIN build_jobs j ON j.drv_path = r.drv_path WHERE j.status <> 'succeeded'
           )
           SELECT j.drv_path FROM reached JOIN build_jobs j USING (drv_path)
           WHERE j.status = 'cancelled' AND j.message NOT LIKE 'cancelled by%'"#
    );
    let lost = lost.fetch_all(pool(&two.db)).await.expect("read");
    let by_hand = [first, second].contains(&CancelJob);
    assert!(lost.is_empty() || by_hand, "after {first:?}, then {second:?}: wanted, and cancelled: {lost:?}");
}

#[tokio::test]
async fn changes_that_meet_leave_the_invariants_standing() {
    let scene = scene().await;
    for (first, second) in MEETINGS {
        meet(&scene, first, second).await;
    }
}

#[tokio::test]
async fn any_two_changes_leave_the_invariants_standing() {
    let seeds = crate::model::seeds(24);
    eprintln!("HARMONIA_TEST_SEED={} HARMONIA_TEST_CASES={}", seeds[0], seeds.len());
    let mut pairs: Vec<(Change, Change)> = ALL.iter().flat_map(|first| ALL.map(|second| (*first, second))).collect();
    pairs.shuffle(&mut StdRng::seed_from_u64(seeds[0]));
    let scene = scene().await;
    for (first, second) in pairs.into_iter().take(seeds.len().max(24)) {
        meet(&scene, first, second).await;
    }
}
