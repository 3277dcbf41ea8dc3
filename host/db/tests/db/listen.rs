//! Hints arrive, and a broken connection comes back with a rescan.

use std::time::Duration;

use harmonia_db::testing::pool;
use harmonia_db::{Channel, Listener, Notice};

use crate::world::{World, graph};

async fn next(listener: &mut Listener) -> Notice {
    tokio::time::timeout(Duration::from_secs(20), listener.next()).await.expect("a notice within 20 s")
}

fn hint(channel: Channel, payload: impl Into<String>) -> Notice {
    Notice::Hint { channel, payload: payload.into() }
}

#[tokio::test]
async fn work_and_ends_are_told_once_a_class() {
    let world = World::new().await;
    let mut listener = world.db.listen(&[Channel::BuildJobs, Channel::Claims]).await.expect("listen");
    let graph = graph(&[&[], &[], &[0]]);
    let eval = world.evaluation("main").await;
    world.insert(&eval, &graph, &[1, 2]).await.expect("insert");
    let class = world.db.resolve_classes(&[crate::world::SYSTEM.to_owned()], &[]).await.expect("classes")[0];
    assert_eq!(next(&mut listener).await, hint(Channel::BuildJobs, format!("class:{class}")));
    let claimed = world.claim(2).await;
    world.complete(&claimed[0]).await.expect("complete");
    assert_eq!(next(&mut listener).await, hint(Channel::BuildJobs, format!("done:{}", claimed[0].job)));
    assert_eq!(next(&mut listener).await, hint(Channel::BuildJobs, format!("class:{class}")));
    world.db.cancel_job(claimed[1].job, "me").await.expect("cancel");
    assert_eq!(next(&mut listener).await, hint(Channel::Claims, "n"));
}

async fn listening(world: &World) -> i64 {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "n!" FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"#
    )
    .fetch_one(pool(&world.db))
    .await
    .expect("count")
}

#[tokio::test]
async fn all_listeners_of_a_process_share_one_connection() {
    let world = World::new().await;
    let mut listeners = Vec::new();
    for channels in Channel::ALL.chunks(2) {
        for db in [world.db.clone(), world.db.clone().with_retry_policy(harmonia_db::RetryPolicy::default())] {
            listeners.push(db.listen(channels).await.expect("listen"));
        }
    }
    assert_eq!(listening(&world).await, 1);
    // Each hears what it asked for, and nothing else.
    world.db.set_draining(&world.node, world.run, true).await.expect("drain");
    for listener in listeners.iter_mut().filter(|listener| listener.channels().contains(&Channel::Nodes)) {
        assert_eq!(next(listener).await, hint(Channel::Nodes, "n"));
    }
    world.db.set_draining(&world.node, world.run, false).await.expect("stop draining");
    let mut evaluations = world.db.listen(&[Channel::Evaluations]).await.expect("listen");
    world.evaluation("other").await;
    assert!(matches!(next(&mut evaluations).await, Notice::Hint { channel: Channel::Evaluations, .. }));
    // Whoever falls behind is told to look again, and holds up nobody.
    let mut slow = world.db.listen(&[Channel::Projects]).await.expect("listen");
    sqlx::raw_sql("DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_notify('projects', i::text); END LOOP; END $$")
        .execute(pool(&world.db))
        .await
        .expect("notify");
    let mut last = world.db.listen(&[Channel::Projects, Channel::Claims]).await.expect("listen");
    sqlx::query!("SELECT pg_notify('claims', 'end')").execute(pool(&world.db)).await.expect("notify");
    while next(&mut last).await != hint(Channel::Claims, "end") {}
    assert_eq!(next(&mut slow).await, Notice::Rescan);
    // Without listeners there is no connection, and with a new one there is again.
    drop((listeners, evaluations, slow, last));
    while listening(&world).await > 0 {}
    let mut again = world.db.listen(&[Channel::Nodes]).await.expect("listen");
    world.db.set_draining(&world.node, world.run, true).await.expect("drain");
    assert_eq!(next(&mut again).await, hint(Channel::Nodes, "n"));
}

#[tokio::test]
async fn a_broken_connection_comes_back_with_a_rescan() {
    let world = World::new().await;
    let mut listener = world.db.listen(&[Channel::Nodes]).await.expect("listen");
    let killed = sqlx::query_scalar!(
        r#"SELECT count(pg_terminate_backend(pid)) AS "n!" FROM pg_stat_activity
           WHERE datname = current_database() AND query LIKE 'LISTEN%'"#
    )
    .fetch_one(pool(&world.db))
    .await
    .expect("terminate");
    assert_eq!(killed, 1);
    assert_eq!(next(&mut listener).await, Notice::Rescan);
    world.db.set_draining(&world.node, world.run, true).await.expect("drain");
    assert_eq!(next(&mut listener).await, hint(Channel::Nodes, "n"));
}
