//! Locks that others need are short: what has many jobs to change does so in batches, each a transaction, and whoever meets it waits
//! for no more than a batch or two. After each batch all invariants hold, so that it may end anywhere. (Decision 0019.)

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harmonia_core::JobStatus::{Cancelled, Pending};
use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{EvalId, Incarnation, JobId, JobStatus, NodeId};
use harmonia_db::testing::{WITHDRAWAL_BATCH, cancel_and_crash, pool, random_token};
use harmonia_db::{Db, DbError, GraphBatch};
use harmonia_nix::store_path::StorePath;
use sqlx::Row as _;

use crate::world::{Drv, World, attr, derivation, graph, new_evaluation, new_paths};

const A: EvalId = EvalId(1001);
/// Batches that somebody may have to wait for: one that holds a row it needs, and one that holds another.
const WAITS_MAX: usize = 2;
/// Rows and index entries that a batch may read for each of its jobs, as in `cost`.
const READS_EACH: i64 = 40;

async fn many() -> World {
    let world = World::new().await;
    let db = world.test.single_connection().await;
    sqlx::raw_sql(include_str!("locks/many.sql")).execute(pool(&db)).await.expect("fill");
    db.close().await;
    world
}

/// Jobs that one transaction changed, at most, of those that came after `since`.
async fn most_at_once(db: &Db, since: i64) -> i64 {
    let most = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM build_jobs
         WHERE xmin::text::bigint > $1 GROUP BY xmin::text) t";
    sqlx::query(most).bind(since).fetch_one(pool(db)).await.expect("read").get(0)
}

async fn transaction_now(db: &Db) -> i64 {
    let now = "SELECT (pg_current_xact_id()::text::bigint % 4294967296)";
    sqlx::query(now).fetch_one(pool(db)).await.expect("a transaction").get(0)
}

async fn count(db: &Db, status: JobStatus) -> i64 {
    let count = "SELECT count(*) FROM build_jobs WHERE status = $1";
    sqlx::query(count).bind(status.as_str()).fetch_one(pool(db)).await.expect("read").get(0)
}

/// What is left of a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Some,
    Nothing,
}

/// One more transaction of a withdrawal.
async fn go_on(db: &Db, withdrawal: i64, jobs: usize) -> Left {
    let step = "SELECT is_over FROM withdraw_some($1, $2)";
    let over: bool = sqlx::query(step)
        .bind(withdrawal)
        .bind(i32::try_from(jobs).expect("few"))
        .fetch_one(pool(db))
        .await
        .expect("go on")
        .get(0);
    if over { Left::Nothing } else { Left::Some }
}

async fn withdrawals(db: &Db) -> Vec<i64> {
    let rows = sqlx::query("SELECT id FROM withdrawals ORDER BY id").fetch_all(pool(db)).await.expect("read");
    rows.into_iter().map(|row| row.get(0)).collect()
}

/// Says that an evaluation is cancelled, and no more: whoever should go on with it has crashed.
async fn say_cancelled(db: &Db, eval: EvalId) -> i64 {
    cancel_and_crash(db, eval).await;
    *withdrawals(db).await.last().expect("one")
}

impl World {
    /// Cancels an evaluation a job at a time. All invariants hold after each.
    pub(crate) async fn cancel_step_by_step(&self, eval: EvalId) {
        let withdrawal = say_cancelled(&self.db, eval).await;
        while go_on(&self.db, withdrawal, 1).await == Left::Some {
            self.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn no_transaction_changes_more_than_a_batch() {
    let world = many().await;
    let since = transaction_now(&world.db).await;
    assert_eq!(world.db.cancel_evaluation(A, "me").await.expect("cancel"), 10_001);
    let pushed = world.db.create_evaluation(&new_evaluation(world.project, "b")).await.expect("push");
    assert_eq!(pushed.superseded, [EvalId(1002)]);
    assert_eq!(count(&world.db, Cancelled).await, 12_000);
    let repaired = world.db.repair().await.expect("repair");
    assert_eq!((repaired.settled, repaired.cancelled, repaired.recounted), (1_000, 1_000, 0));
    world.assert_sound().await;
    let most = most_at_once(&world.db, since).await;
    assert!(usize::try_from(most).expect("few") <= WITHDRAWAL_BATCH, "{most} jobs were changed by one transaction");
    assert!(withdrawals(&world.db).await.is_empty(), "nothing is left");
}

#[tokio::test]
async fn a_batch_reads_what_it_is_about_however_much_is_withdrawn() {
    let world = many().await;
    let db = world.test.single_connection().await;
    let reads = async || -> i64 {
        // What this connection counted is there for others once this has ended.
        sqlx::query("SELECT pg_stat_force_next_flush()::text").fetch_one(pool(&db)).await.expect("flush");
        let sum = "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)::bigint
            + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)::bigint";
        sqlx::query(sum).fetch_one(pool(&db)).await.expect("read the counters").get(0)
    };
    let mut most = 0;
    let withdrawal = say_cancelled(&db, A).await;
    assert_eq!(go_on(&db, withdrawal, WITHDRAWAL_BATCH).await, Left::Some, "it looked, and found some");
    loop {
        let before = reads().await;
        let left = go_on(&db, withdrawal, WITHDRAWAL_BATCH).await;
        most = most.max(reads().await - before);
        if left == Left::Nothing {
            break;
        }
    }
    assert_eq!(count(&db, Cancelled).await, 10_000);
    let bound = READS_EACH * i64::try_from(WITHDRAWAL_BATCH).expect("few");
    assert!(most <= bound, "a batch of {WITHDRAWAL_BATCH} jobs read {most} rows, more than {bound}");
}

/// Something that goes on beside a withdrawal, time and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Beside {
    /// A node claims a job and builds it.
    Build,
    /// An evaluation is asked for, evaluated and fails.
    Evaluate,
    /// An evaluation inserts jobs above some that are being cancelled.
    Insert,
    /// A frontend counts what ended.
    Count,
}

const BESIDE: [Beside; 4] = [Beside::Build, Beside::Evaluate, Beside::Insert, Beside::Count];

/// One of them, once. What it did in vain, since what it worked on was cancelled, is fine.
async fn beside(db: Db, what: Beside, project: harmonia_core::ProjectId, round: usize) -> Result<(), DbError> {
    let node = NodeId("n".to_owned());
    match what {
        // (Claims take nothing that is held; of the others there are enough.)
        Beside::Build => {
            let classes = db.resolve_classes(&["x86_64-linux".to_owned()], &[]).await?;
            let heads = db.queue_heads(&classes, 64).await?;
            let order: Vec<JobId> = heads.candidates.iter().map(|candidate| candidate.job).collect();
            for claimed in db.claim_jobs(&node, Incarnation(1), &order, &[random_token()]).await? {
                let outputs = new_paths(&db, &claimed, 1).await;
                let paths: Vec<StorePath> = outputs.iter().map(|output| output.path.clone()).collect();
                let built = async {
                    db.claim_outputs(claimed.attempt, &claimed.token, &outputs, &harmonia_db::Alongside::default())
                        .await?;
                    db.publish_outputs(claimed.job, &paths, &AttemptUsage::default(), None).await
                };
                match built.await {
                    Ok(_) | Err(DbError::StaleClaim) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Beside::Evaluate => {
            db.create_evaluation(&new_evaluation(project, &format!("e{round}"))).await?;
            let token = random_token();
            let claimed = db.claim_evaluation(&node, Incarnation(1), &token).await?;
            if let Some(claimed) = claimed {
                db.fail_evaluation(claimed.id, &token, "done").await?;
            }
        }
        Beside::Insert => {
            let created = db.create_evaluation(&new_evaluation(project, "above")).await?;
            let token = random_token();
            let Some(claimed) = db.claim_evaluation(&node, Incarnation(1), &token).await? else { return Ok(()) };
            // On those that are being cancelled, and on some of the next batches and of the last.
            let leans = "(SELECT drv_path FROM build_jobs WHERE id / 100000 = 1001 AND status = 'pending' ORDER BY id DESC LIMIT 600)
                 UNION ALL (SELECT drv_path FROM build_jobs WHERE id / 100000 = 1001 AND status = 'pending' ORDER BY id LIMIT 10)";
            let below: Vec<String> = sqlx::query(leans)
                .fetch_all(pool(&db))
                .await
                .expect("read")
                .into_iter()
                .map(|row| row.get(0))
                .collect();
            let mut above = derivation(round, &Drv::new(round, &[]));
            above.inputs = below
                .iter()
                .step_by(100)
                .map(|drv| (drv.parse::<StorePath>().expect("a path"), vec!["out".to_owned()]))
                .collect();
            let batch = GraphBatch { derivations: vec![above], attrs: vec![attr(round)], ..GraphBatch::default() };
            if claimed.id == created.id {
                harmonia_db::testing::insert_graph(&db, claimed.id, &token, &batch).await?;
            }
            db.fail_evaluation(claimed.id, &token, "done").await?;
        }
        Beside::Count => drop(db.take_job_marks().await?),
    }
    Ok(())
}

/// When the transaction began in which this connection waits for that one, or for another that does; `None`: it does not.
async fn waits_since(db: &Db, waiter: i32, holder: i32) -> Option<String> {
    let since = "WITH RECURSIVE blocking(pid) AS (
             SELECT unnest(pg_blocking_pids($1)) UNION SELECT unnest(pg_blocking_pids(pid)) FROM blocking
         ) SELECT xact_start::text FROM pg_stat_activity WHERE pid = $1 AND $2 IN (SELECT pid FROM blocking)";
    let row = sqlx::query(since).bind(waiter).bind(holder).fetch_optional(pool(db)).await.expect("activity");
    row.and_then(|row| row.get(0))
}

async fn pid(db: &Db) -> i32 {
    sqlx::query("SELECT pg_backend_pid()").fetch_one(pool(db)).await.expect("a pid").get(0)
}

/// Each transaction of a withdrawal is held open until all that goes on beside it has ended, or waits for it.
#[tokio::test]
async fn whoever_meets_a_withdrawal_waits_for_no_more_than_two_batches() {
    let world = many().await;
    let (one, look) = (world.test.single_connection().await, world.test.single_connection().await);
    let holder = pid(&one).await;
    let mut others = Vec::new();
    for what in BESIDE {
        let db = world.test.single_connection().await;
        let pid = pid(&db).await;
        others.push((what, db, pid));
    }
    let withdrawal = say_cancelled(&one, A).await;
    let (mut step, mut left) = (0, Left::Some);
    let mut tasks: Vec<Option<tokio::task::JoinHandle<_>>> = BESIDE.iter().map(|_| None).collect();
    let mut waits: BTreeMap<(Beside, String), usize> = BTreeMap::new();
    let mut done: BTreeMap<Beside, usize> = BTreeMap::new();
    while left == Left::Some {
        sqlx::query("BEGIN").execute(pool(&one)).await.expect("begin");
        left = go_on(&one, withdrawal, WITHDRAWAL_BATCH).await;
        for (place, (what, db, pid)) in others.iter().enumerate() {
            let task =
                tasks[place].take().unwrap_or_else(|| tokio::spawn(beside(db.clone(), *what, world.project, 1 + step)));
            let deadline = Instant::now() + Duration::from_mins(1);
            let since = loop {
                if task.is_finished() {
                    break None;
                }
                if let Some(since) = waits_since(&look, *pid, holder).await {
                    break Some(since);
                }
                assert!(Instant::now() < deadline, "{what:?} neither ended nor waited");
            };
            if let Some(since) = since {
                assert!(step > 0, "{what:?} waits while all that is done is to look");
                let waited = waits.entry((*what, since)).or_default();
                *waited += 1;
                assert!(*waited <= WAITS_MAX, "a transaction of {what:?} waited for {waited} batches");
                tasks[place] = Some(task);
            } else {
                task.await.expect("no panic").unwrap_or_else(|error| panic!("{what:?}: {error:?}"));
                *done.entry(*what).or_default() += 1;
            }
        }
        sqlx::query("COMMIT").execute(pool(&one)).await.expect("commit");
        step += 1;
        if step % 8 == 0 {
            assert_eq!(
                world.db.sweep_invariants().await.expect("sweep").iter().filter(|v| v.invariant != 2).count(),
                0
            );
        }
    }
    for (task, (what, ..)) in tasks.into_iter().zip(&others) {
        if let Some(task) = task {
            task.await.expect("no panic").unwrap_or_else(|error| panic!("{what:?}: {error:?}"));
        }
    }
    assert!(done.len() == BESIDE.len() && done.values().all(|times| *times > 10), "{done:?} in {step} batches");
    assert!(waits.keys().any(|(what, _)| *what == Beside::Insert), "nobody ever waited: then this shows nothing");
    world.db.finish_withdrawals().await.expect("the rest");
    let left: i64 = sqlx::query(
        "SELECT count(*) FROM build_jobs WHERE id / 100000 = 1001 AND status NOT IN ('cancelled', 'succeeded')",
    )
    .fetch_one(pool(&look))
    .await
    .expect("read")
    .get(0);
    assert_eq!(left, 0, "what an evaluation held for a moment went when that failed");
}

#[tokio::test]
async fn what_a_crash_left_is_gone_on_with() {
    let world = World::new().await;
    // Two chains with a common beginning.
    let graph = graph(&[&[], &[0], &[1], &[2], &[3], &[1], &[5], &[6]]);
    let main = world.evaluation("main").await;
    world.insert(&main, &graph, &[4, 7]).await.expect("insert");
    let other = world.evaluation("other").await;
    world.insert(&other, &graph, &[5]).await.expect("insert");
    let withdrawal = say_cancelled(&world.db, main.id).await;
    let view = world.db.view_evaluation_head(main.id).await.expect("read").expect("there");
    assert_eq!(view.status, harmonia_core::EvalStatus::Cancelled, "at once");
    let mut cancelled = Vec::new();
    // It looks, cancels one job, and crashes.
    for _ in 0..2 {
        assert_eq!(go_on(&world.db, withdrawal, 1).await, Left::Some);
        cancelled.push(count(&world.db, Cancelled).await);
        world.assert_sound().await;
    }
    assert_eq!(cancelled, [0, 1]);
    assert_eq!(world.db.finish_withdrawals().await.expect("the chores"), 4);
    world.assert_sound().await;
    let expected = [Pending, Pending, Cancelled, Cancelled, Cancelled, Pending, Cancelled, Cancelled];
    assert_eq!(world.statuses().await, expected.into_iter().enumerate().collect::<Vec<_>>());
    assert_eq!(world.db.finish_withdrawals().await.expect("nothing is left"), 0);
    assert_eq!(world.db.repair().await.expect("repair"), harmonia_db::Repaired::default());
}

#[tokio::test]
async fn what_is_wanted_by_the_time_of_its_batch_stays() {
    // Named, and inserted above.
    for named in [true, false] {
        let world = World::new().await;
        let graph = graph(&[&[], &[0], &[1], &[2], &[3], &[4], &[2]]);
        let main = world.evaluation("main").await;
        world.insert(&main, &graph, &[5]).await.expect("insert");
        let other = world.evaluation("other").await;
        let withdrawal = say_cancelled(&world.db, main.id).await;
        assert_eq!(go_on(&world.db, withdrawal, 1).await, Left::Some, "it looked");
        world.insert(&other, &graph, &[if named { 2 } else { 6 }]).await.expect("insert");
        while go_on(&world.db, withdrawal, 2).await == Left::Some {
            world.assert_sound().await;
        }
        world.assert_sound().await;
        let mut expected =
            vec![(0, Pending), (1, Pending), (2, Pending), (3, Cancelled), (4, Cancelled), (5, Cancelled)];
        if !named {
            expected.push((6, Pending));
        }
        assert_eq!(world.statuses().await, expected, "named: {named}");
    }
}

#[tokio::test]
async fn what_is_claimed_after_nobody_wants_it_is_taken_back() {
    let world = World::new().await;
    let graph = graph(&[&[], &[0]]);
    let main = world.evaluation("main").await;
    world.insert(&main, &graph, &[1]).await.expect("insert");
    // Superseded, which lets go on what is built: but this was not then.
    let superseded = "SELECT end_evaluations(ARRAY[$1], (SELECT max(id) FROM evaluations), 'superseded')";
    let other = world.evaluation("other").await;
    assert!(other.id.0 > main.id.0);
    sqlx::query(superseded).bind(main.id.0).execute(pool(&world.db)).await.expect("supersede");
    let late = world.claim_only(0).await;
    assert_eq!(world.db.finish_withdrawals().await.expect("withdraw"), 2);
    assert_eq!(world.statuses().await, [(0, Cancelled), (1, Cancelled)]);
    assert_eq!(world.db.void_claims(&[(late.attempt, late.token.clone())]).await.expect("ask"), [late.attempt]);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_job_goes_with_what_waits_for_it_from_the_top_down() {
    let world = World::new().await;
    // 1 to 5 wait for 0, and 6 comes above them while they are being cancelled; 7 has nothing to do with it.
    let graph = graph(&[&[], &[0], &[1], &[2], &[3], &[4], &[5], &[]]);
    let main = world.evaluation("main").await;
    world.insert(&main, &graph, &[5, 7]).await.expect("insert");
    let job = world.job_id(0).await;
    let asked =
        sqlx::query("SELECT cancel_job($1, 'me')").bind(job.0).fetch_one(pool(&world.db)).await.expect("cancel");
    let withdrawal: i64 = asked.get(0);
    assert_eq!(go_on(&world.db, withdrawal, 1).await, Left::Some, "it looked");
    let before = count(&world.db, Cancelled).await;
    world.insert(&main, &graph, &[6]).await.expect("insert");
    let mut steps = 0;
    while go_on(&world.db, withdrawal, 1).await == Left::Some {
        steps += 1;
        world.assert_sound().await;
        assert!(count(&world.db, Cancelled).await - before <= steps, "one at a time");
    }
    world.assert_sound().await;
    let mut expected: Vec<(usize, JobStatus)> = (0..7).map(|number| (number, Cancelled)).collect();
    expected.push((7, Pending));
    assert_eq!(world.statuses().await, expected);
    assert!(steps >= 7, "{steps}");
}
