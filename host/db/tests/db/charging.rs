//! The books: each second once, whoever tries; decay made up for.

use harmonia_core::signer_api::AttemptUsage;
use harmonia_core::{AttemptId, ProjectId, Timestamp};
use harmonia_db::testing::pool;
use harmonia_db::{Booking, Db, UnchargedAttempt};

use crate::world::{World, failure, graph};

async fn insert(world: &World, deps: &[&[usize]], roots: &[usize]) {
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph(deps), roots).await.expect("insert");
}

/// Books everything as plain addition. Whether it held.
async fn book(db: &Db, attempts: &[UnchargedAttempt], project: ProjectId, consumed_seconds: f64) -> bool {
    let becomes_seconds = consumed_seconds + attempts.iter().map(UnchargedAttempt::seconds).sum::<f64>();
    let bookings = [Booking { project, consumed_seconds, becomes_seconds }];
    db.book_charges(attempts, &bookings).await.expect("book")
}

async fn consumed(db: &Db, project: ProjectId) -> f64 {
    db.project_loads(&[project]).await.expect("loads")[0].consumed_seconds
}

async fn read(db: &Db) -> Vec<UnchargedAttempt> {
    db.uncharged_attempts(AttemptId(0), 100).await.expect("attempts")
}

/// Pretends that all attempts began `seconds` earlier.
async fn age(world: &World, seconds: f64) {
    sqlx::query("UPDATE build_attempts SET started_at = started_at - $1 * interval '1 second'")
        .bind(seconds)
        .execute(pool(&world.db))
        .await
        .expect("age");
}

#[tokio::test]
async fn a_second_is_charged_once_while_it_runs_and_when_it_ended() {
    let world = World::new().await;
    let (db, project) = (&world.db, world.project);
    insert(&world, &[&[], &[]], &[0, 1]).await;
    let claimed = world.claim(2).await;
    let loads = db.project_loads(&[project]).await.expect("loads");
    assert_eq!((loads[0].running, loads[0].shares, loads[0].consumed_seconds), (2, 100, 0.0));

    age(&world, 100.0).await;
    let first = read(db).await;
    assert_eq!(first.len(), 2);
    assert!(first.iter().all(|attempt| !attempt.ended && (100.0..130.0).contains(&attempt.seconds())), "{first:?}");
    assert!(book(db, &first, project, 0.0).await);
    let after_first = consumed(db, project).await;
    assert!((200.0..260.0).contains(&after_first), "{after_first}");

    // The same reading again, as after a crash between booking and hearing of it, or by a second frontend: nothing.
    assert!(!book(db, &first, project, 0.0).await, "neither the project");
    assert!(!book(db, &first, project, after_first).await, "nor the attempts are as they were read");
    assert_eq!(consumed(db, project).await.to_bits(), after_first.to_bits());

    // They end: what is left is charged, and then they are done with.
    age(&world, 50.0).await;
    world.complete(&claimed[0]).await.expect("complete");
    db.fail_attempt(claimed[1].attempt, &claimed[1].token, &failure(None), &AttemptUsage::default(), None)
        .await
        .expect("fail");
    let second = read(db).await;
    assert!(second.iter().all(|attempt| attempt.ended && (50.0..80.0).contains(&attempt.seconds())), "{second:?}");
    assert!(book(db, &second, project, after_first).await);
    assert_eq!(read(db).await, []);
    let total: f64 =
        sqlx::query_scalar("SELECT sum(charged_seconds) FROM build_attempts").fetch_one(pool(db)).await.expect("a sum");
    assert!((consumed(db, project).await - total).abs() < 1e-6);
}

#[tokio::test]
async fn of_many_that_book_the_same_reading_one_does() {
    let world = World::new().await;
    insert(&world, &[&[]], &[0]).await;
    let _claimed = world.claim(1).await;
    age(&world, 10.0).await;
    let attempts = read(&world.db).await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (db, attempts, project) = (world.db.clone(), attempts.clone(), world.project);
        tries.spawn(async move { book(&db, &attempts, project, 0.0).await });
    }
    let booked = tries.join_all().await.into_iter().filter(|booked| *booked).count();
    assert_eq!(booked, 1);
    assert!((consumed(&world.db, world.project).await - attempts[0].seconds()).abs() < 1e-9);
}

#[tokio::test]
async fn decay_is_booked_once_and_made_up_for_after_downtime() {
    let world = World::new().await;
    let (db, project) = (&world.db, world.project);
    let set = |consumed: f64| sqlx::query("UPDATE projects SET consumed_seconds = $1").bind(consumed).execute(pool(db));
    assert_eq!(db.decay_due().await.expect("due").consumed, [], "nobody consumed anything");
    set(1000.0).await.expect("set");
    sqlx::query("UPDATE settings SET value = to_jsonb(now() - interval '3 hours') WHERE key = 'scheduling.decayed_at'")
        .execute(pool(db))
        .await
        .expect("three hours without any frontend");
    let due = db.decay_due().await.expect("due");
    assert!((10_800.0..10_860.0).contains(&due.seconds), "{due:?}");
    assert_eq!(due.consumed, [(project, 1000.0)]);
    let booking = Booking { project, consumed_seconds: 1000.0, becomes_seconds: 857.375 };
    assert!(db.book_decay(&due, &[booking]).await.expect("book"));
    assert!(!db.book_decay(&due, &[Booking { consumed_seconds: 857.375, ..booking }]).await.expect("book"), "once");
    assert_eq!(consumed(db, project).await.to_bits(), 857.375_f64.to_bits());
    let next = db.decay_due().await.expect("due");
    assert!(next.seconds < 60.0 && next.decayed_at > due.decayed_at, "{next:?}");
    // Somebody was charged meanwhile: not booked, and the time does not count as passed.
    set(900.0).await.expect("set");
    assert!(!db.book_decay(&next, &[Booking { consumed_seconds: 857.375, ..booking }]).await.expect("book"));
    assert_eq!(db.decay_due().await.expect("due").decayed_at, next.decayed_at);
}

#[tokio::test]
async fn the_queue_can_be_recorded_with_its_graph_and_times() {
    let world = World::new().await;
    insert(&world, &[&[], &[0], &[0, 1]], &[2]).await;
    let claimed = world.claim_only(0).await;
    age(&world, 30.0).await;
    world.complete(&claimed).await.expect("complete");
    let start = Timestamp::UNIX_EPOCH;
    let jobs = world.db.recorded_jobs(start, harmonia_core::JobId(0), 2).await.expect("jobs");
    let rest = world.db.recorded_jobs(start, jobs[1].job, 2).await.expect("jobs");
    assert_eq!((jobs.len(), rest.len()), (2, 1));
    assert!(jobs[0].build_seconds.is_some_and(|seconds| (30.0..60.0).contains(&seconds)), "{jobs:?}");
    assert_eq!((jobs[1].build_seconds, jobs[1].inputs.clone()), (None, vec![jobs[0].job]));
    assert_eq!(rest[0].inputs, [jobs[0].job, jobs[1].job]);
    assert_eq!((rest[0].project.as_str(), rest[0].shares, rest[0].class.as_str()), ("local/p", 100, "x86_64-linux"));
}
