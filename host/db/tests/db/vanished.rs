//! A server that vanishes without a word, and one that is busy: every call ends, and says what is wrong.

use std::time::Duration;

use harmonia_core::ProjectId;
use harmonia_db::testing::way::Way;
use harmonia_db::testing::{TestDatabase, pool};
use harmonia_db::{Channel, ComputedReport, DbError, DbOptions, Notice, Patience, ReportTarget};

/// Longer than anything here takes, and shorter than what is not to be waited for.
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(300);

const PATIENT: Patience = Patience { answer: LONG, connection: LONG, ping: LONG, idle: LONG, silence: LONG };

fn in_time<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let ended = tokio::time::timeout(LONG / 3, Box::pin(what));
    async { ended.await.expect("it ends long before that") }
}

/// The driver has its connection back, and asked whether it works.
async fn is_idle(way: &Way) {
    in_time(async {
        while pool(&way.db).num_idle() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, DbError>) {
    let error = outcome.expect_err("nobody answers");
    assert!(matches!(error, DbError::Unavailable { .. }) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn what_a_server_that_vanished_does_not_answer_is_given_up() {
    let database = TestDatabase::new().await;
    let patience = Patience { answer: SHORT, ..PATIENT };
    let way = Way::new(&database, patience, 1).await;
    way.db.ping().await.expect("it is there");
    is_idle(&way).await;
    way.forget();
    assert_unavailable(in_time(way.db.ping()).await);
    // The place of the dead connection is free for a new one.
    in_time(async { while way.db.ping().await.is_err() {} }).await;

    is_idle(&way).await;
    way.forget();
    let target = ReportTarget { project: ProjectId(1), commit: "0".repeat(40) };
    let report = way.db.compute_report(&target, &[], LONG, |_| ComputedReport::default());
    assert_unavailable(in_time(report).await);
}

#[tokio::test]
async fn a_connection_that_was_idle_is_asked_and_replaced() {
    let database = TestDatabase::new().await;
    let patience = Patience { idle: Duration::ZERO, ping: SHORT, ..PATIENT };
    let way = Way::new(&database, patience, 1).await;
    way.db.ping().await.expect("it is there");
    is_idle(&way).await;
    way.forget();
    in_time(way.db.ping()).await.expect("by a new connection");
}

#[tokio::test]
async fn a_listener_looks_again_after_a_silence_that_nobody_announced() {
    let database = TestDatabase::new().await;
    let patience = Patience { silence: SHORT, ping: SHORT, connection: SHORT, ..PATIENT };
    let way = Way::new(&database, patience, 4).await;
    let mut listener = way.db.listen(&[Channel::Nodes]).await.expect("listens");

    way.fall_silent();
    assert_unavailable(in_time(Box::pin(way.db.listen(&[Channel::Claims]))).await);
    in_time(way.connected_again()).await;
    way.speak();
    assert_eq!(in_time(listener.next()).await, Notice::Rescan);

    way.forget();
    assert_eq!(in_time(listener.next()).await, Notice::Rescan);
    sqlx::query!("SELECT pg_notify('nodes', 'n')").execute(pool(&database.db)).await.expect("notify");
    assert_eq!(in_time(listener.next()).await, Notice::Hint { channel: Channel::Nodes, payload: "n".to_owned() });
}

#[tokio::test]
async fn a_chore_is_not_held_by_who_cannot_reach_the_server() {
    let database = TestDatabase::new().await;
    let patience = Patience { ping: SHORT, connection: SHORT, ..PATIENT };
    let way = Way::new(&database, patience, 1).await;
    let mut lock = way.db.try_chore_lock("reap").await.expect("asks").expect("free");
    assert!(lock.is_held().await);
    way.forget();
    assert!(!in_time(lock.is_held()).await);
    way.fall_silent();
    assert_unavailable(in_time(way.db.try_chore_lock("reap")).await);
}

/// What the server does by itself, as `docs/limits.md` says.
#[tokio::test]
async fn the_server_ends_what_takes_too_long() {
    let database = TestDatabase::new().await;
    let setting = async |name: &str| {
        sqlx::query_scalar!(r#"SELECT current_setting($1) AS "value!""#, name).fetch_one(pool(&database.db)).await
    };
    for (name, value) in
        [("statement_timeout", "5min"), ("lock_timeout", "30s"), ("idle_in_transaction_session_timeout", "1min")]
    {
        assert_eq!(setting(name).await.expect("read"), value, "{name}");
    }
    // What we ask of a socket, on which they mean nothing, stands here.
    let asked = async |name: &str| {
        let asked = sqlx::query_scalar!(r#"SELECT reset_val AS "value!" FROM pg_settings WHERE name = $1"#, name);
        asked.fetch_one(pool(&database.db)).await.expect("read").parse::<u64>().expect("a number")
    };
    let (idle_s, interval_s) = (asked("tcp_keepalives_idle").await, asked("tcp_keepalives_interval").await);
    let silence_s = idle_s + interval_s * asked("tcp_keepalives_count").await;
    assert_eq!((silence_s, asked("tcp_user_timeout").await), (120, 120_000));

    let limits = include_str!("../../../../docs/limits.md");
    for row in [
        "| a statement; waiting for a lock; an open transaction that does nothing | 5 min; 30 s; 1 min |",
        "| silence of a client that vanished | 2 min |",
        "| an answer of the server, the wait for a connection included | 5 min 30 s |",
        "| silence on the listening connection | 1 min, then an answer within 10 s |",
    ] {
        assert!(limits.contains(row), "{row}");
    }
    let Patience { answer, silence, ping, .. } = Patience::default();
    assert_eq!((answer.as_secs(), silence.as_secs(), ping.as_secs()), (330, 60, 10));
}

/// All connections in use, or a server that is away: the driver does not say which, so the message says both.
#[tokio::test]
async fn a_node_without_a_free_connection_names_the_setting() {
    let database = TestDatabase::new().await;
    let way = Way::new(&database, Patience { connection: SHORT, ..PATIENT }, 1).await;
    let held = pool(&way.db).acquire().await.expect("the only one");
    let error = way.db.ping().await.expect_err("none is free");
    assert!(error.is_transient());
    let message = error.to_string();
    assert!(message.contains("all that this node may open are in use (database.max_connections)"), "{message}");
    assert_eq!(Patience::default().connection, Duration::from_secs(10));
    assert!(message.contains("within 10 seconds"), "{message}");
    drop(held);
    way.db.ping().await.expect("it is free again");

    let nobody = DbOptions { url: "postgres://u@127.0.0.1:1/x".parse().expect("a URL"), max_connections: 1 };
    let message = harmonia_db::Db::connect(&nobody).await.expect_err("nobody listens there").to_string();
    assert!(message.contains("check that it runs") && !message.contains("max_connections"), "{message}");
}
