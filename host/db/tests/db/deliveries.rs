//! Deliveries: recorded once, claimed in order, ended by their holder only; heads in the order of arrival.

use std::time::Duration;

use harmonia_core::forge::{Delivery, Event, PullRequestAction, PullRequestEvent, Push, Reference, RepositoryRef};
use harmonia_core::{Capability, NodeId};
use harmonia_db::testing::{TestDatabase, pool};
use harmonia_db::{Channel, Db, NewDelivery, Notice, Recorded};

use crate::repositories::{FORGE, pull_request, reference, repository};

const LEASE: Duration = Duration::from_mins(1);

fn node(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

fn push(repository: RepositoryRef, commit: &str) -> Event {
    Event::Push(Push {
        repository,
        reference: Reference::Branch("main".to_owned()),
        commit: commit.to_owned(),
        deleted: false,
        author: "a".to_owned(),
        message: "say\0hello".to_owned(),
    })
}

fn pull(number: u64, head: &str) -> Event {
    Event::PullRequest(PullRequestEvent {
        repository: reference("1"),
        action: PullRequestAction::Pushed,
        pull_request: pull_request(number, head),
    })
}

async fn record(db: &Db, id: &str, events: Vec<Event>) -> Recorded {
    let delivery = Delivery { id: id.to_owned(), events };
    db.record_delivery(&NewDelivery { forge: FORGE, delivery: &delivery, duration_ms: 3 }).await.expect("recorded")
}

/// A database with an enabled repository "1" and a disabled "2".
async fn world() -> TestDatabase {
    let test = TestDatabase::new().await;
    test.db.upsert_repositories(FORGE, &[repository("1", "o/one"), repository("2", "o/two")]).await.expect("upsert");
    let id = test.db.repository(FORGE, "o/one").await.expect("asked").expect("there");
    test.db.enable_repository(id, &["o/one".to_owned()], "me").await.expect("enabled");
    test
}

#[tokio::test]
async fn a_delivery_is_recorded_once_and_only_when_it_concerns_a_project() {
    let test = world().await;
    let db = &test.db;
    let mut listener = db.listen(&[Channel::Deliveries]).await.expect("listen");
    let Recorded::New(id) = record(db, "d1", vec![push(reference("1"), "c1")]).await else { panic!("new") };
    let hint = tokio::time::timeout(Duration::from_secs(20), listener.next()).await.expect("a notice");
    assert_eq!(hint, Notice::Hint { channel: Channel::Deliveries, payload: id.0.to_string() });
    assert_eq!(record(db, "d1", vec![push(reference("1"), "c2")]).await, Recorded::Duplicate);
    assert_eq!(record(db, "d2", vec![push(reference("2"), "c1")]).await, Recorded::Nothing, "not enabled");
    assert_eq!(record(db, "d2", vec![push(reference("2"), "c1")]).await, Recorded::Nothing, "again");
    assert_eq!(record(db, "d3", vec![push(reference("9"), "c1")]).await, Recorded::Nothing, "unknown");
    assert_eq!(record(db, "d4", vec![Event::Ping]).await, Recorded::Nothing);
    assert!(matches!(record(db, "d5", vec![Event::Discover]).await, Recorded::New(_)));
    assert!(matches!(record(db, "d6", vec![Event::PermissionsChanged(None)]).await, Recorded::New(_)));
    // The same id of another forge is another delivery.
    let delivery = Delivery { id: "d1".to_owned(), events: vec![Event::Discover] };
    let other = db.record_delivery(&NewDelivery { forge: "other", delivery: &delivery, duration_ms: 0 }).await;
    assert!(matches!(other.expect("recorded"), Recorded::New(_)));

    let recent = db.recent_deliveries(Some(FORGE), false, None, 100).await.expect("listed");
    let states: Vec<_> = recent.iter().map(|d| (d.delivery.as_str(), d.state.as_str(), d.events.join(","))).collect();
    assert_eq!(states[5], ("d1", "queued", "push".to_owned()));
    assert_eq!(states[4], ("d2", "done", "push".to_owned()));
    assert_eq!(states[0], ("d6", "queued", "permissions-changed".to_owned()));
    assert_eq!(recent[5].repositories, ["o/1"]);
    let older = db.recent_deliveries(Some(FORGE), false, Some(recent[4].id), 100).await.expect("listed");
    assert_eq!(older.iter().map(|d| d.delivery.as_str()).collect::<Vec<_>>(), ["d1"]);
}

#[tokio::test]
async fn deliveries_are_claimed_in_order_and_ended_by_their_holder() {
    let test = world().await;
    let frontend = test.connect_as(Capability::Frontend).await;
    let db = &frontend;
    for id in ["a", "b", "c"] {
        record(db, id, vec![push(reference("1"), id)]).await;
    }
    let first = db.claim_deliveries(&node("n"), 2, LEASE).await.expect("claimed");
    assert_eq!(first.iter().map(|d| d.delivery.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let Event::Push(pushed) = &first[0].delivery.events[0] else { panic!("a push") };
    assert_eq!((pushed.message.as_str(), first[0].attempts), ("say\u{fffd}hello", 1));
    let second = db.claim_deliveries(&node("m"), 9, LEASE).await.expect("claimed");
    assert_eq!(second.iter().map(|d| d.delivery.id.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(db.delivery_done(&first[0], "evaluation 1").await.expect("done"));
    assert!(!db.delivery_done(&first[0], "evaluation 2").await.expect("answered"), "it has ended");

    // A lease that ran out: the next holder decides, the late one changes nothing.
    let retried = &first[1];
    assert!(db.delivery_retry(retried, "the forge is away", Duration::ZERO).await.expect("retried"));
    let again = db.claim_deliveries(&node("n"), 9, Duration::ZERO).await.expect("claimed").remove(0);
    assert_eq!((again.delivery.id.as_str(), again.attempts), ("b", 2));
    let taken = db.claim_deliveries(&node("n"), 9, LEASE).await.expect("claimed").remove(0);
    assert_eq!((taken.delivery.id.as_str(), taken.attempts), ("b", 3));
    assert!(!db.delivery_done(&again, "late").await.expect("answered"));
    assert!(!db.delivery_retry(&again, "late", LEASE).await.expect("answered"));
    assert!(db.delivery_dead(&taken, "makes no sense").await.expect("dead"));
    assert_eq!(db.claim_deliveries(&node("x"), 9, LEASE).await.expect("claimed"), [], "nothing is due");

    let dead = db.recent_deliveries(None, true, None, 10).await.expect("listed");
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].delivery.as_str(), dead[0].error.as_deref()), ("b", Some("makes no sense")));
    assert!(db.replay_delivery(dead[0].id, "me").await.expect("replayed"));
    assert!(!db.replay_delivery(dead[0].id, "me").await.expect("answered"), "it is queued");
    assert!(!db.replay_delivery(999, "me").await.expect("answered"), "there is none");
    let replayed = db.claim_deliveries(&node("x"), 9, LEASE).await.expect("claimed").remove(0);
    assert_eq!((replayed.delivery.id.as_str(), replayed.attempts), ("b", 1));
    assert!(!db.delivery_dead(&taken, "from before the replay").await.expect("answered"));

    // All at once, of one forge or all.
    assert!(db.delivery_dead(&replayed, "again").await.expect("dead"));
    assert_eq!(db.replay_dead_deliveries(Some("another"), "me").await.expect("replayed"), 0);
    assert_eq!(db.replay_dead_deliveries(Some(&replayed.forge), "me").await.expect("replayed"), 1);
    assert_eq!(db.replay_dead_deliveries(None, "me").await.expect("replayed"), 0);
    let replayed = db.claim_deliveries(&node("x"), 9, LEASE).await.expect("claimed").remove(0);
    assert_eq!((replayed.delivery.id.as_str(), replayed.attempts), ("b", 1));
}

#[tokio::test]
async fn what_is_put_off_is_not_due() {
    let test = world().await;
    record(&test.db, "a", vec![push(reference("1"), "c")]).await;
    let claimed = test.db.claim_deliveries(&node("n"), 9, LEASE).await.expect("claimed").remove(0);
    assert!(test.db.delivery_retry(&claimed, "later", Duration::from_hours(1)).await.expect("put off"));
    assert_eq!(test.db.claim_deliveries(&node("n"), 9, LEASE).await.expect("claimed"), []);
    let listed = test.db.recent_deliveries(None, false, None, 1).await.expect("listed").remove(0);
    assert_eq!((listed.error.as_deref(), listed.attempts), (Some("later"), 1));
    assert!(listed.next_attempt_at.is_some());
}

#[tokio::test]
async fn two_frontends_share_the_deliveries() {
    let test = world().await;
    for n in 0..40 {
        record(&test.db, &format!("d{n}"), vec![push(reference("1"), "c")]).await;
    }
    let claim = |name: &'static str| {
        let db = test.db.clone();
        async move {
            let mut ids = Vec::new();
            loop {
                let claimed = db.claim_deliveries(&node(name), 3, LEASE).await.expect("claimed");
                if claimed.is_empty() {
                    return ids;
                }
                ids.extend(claimed.iter().map(|d| d.id));
            }
        }
    };
    let (one, two, three) = tokio::join!(claim("one"), claim("two"), claim("three"));
    let mut all = [one, two, three].concat();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (40, 40), "each one once");
}

#[tokio::test]
async fn heads_take_their_place_in_the_order_of_arrival() {
    let test = world().await;
    let db = &test.db;
    let heads = async || -> Vec<(i64, String)> {
        sqlx::query!("SELECT number, head_commit FROM pull_request_heads ORDER BY delivery_id, number")
            .fetch_all(pool(&test.db))
            .await
            .expect("read")
            .into_iter()
            .map(|row| (row.number, row.head_commit))
            .collect()
    };
    record(db, "1", vec![pull(7, "a")]).await;
    record(db, "2", vec![pull(7, "a")]).await;
    record(db, "3", vec![pull(7, "b"), pull(8, "x")]).await;
    record(db, "4", vec![pull(7, "a")]).await;
    record(db, "4", vec![pull(7, "z")]).await;
    let expected: Vec<(i64, String)> =
        [(7, "a"), (7, "b"), (8, "x"), (7, "a")].map(|(n, h)| (n, h.to_owned())).to_vec();
    assert_eq!(heads().await, expected, "each change once, going back is a change, a redelivery is none");

    // Old deliveries go, and with them all but the newest head of each pull request.
    for delivery in db.claim_deliveries(&node("n"), 99, LEASE).await.expect("claimed") {
        db.delivery_done(&delivery, "done").await.expect("done");
    }
    assert_eq!(db.delete_old_deliveries(Duration::from_hours(1)).await.expect("deleted"), 0);
    sqlx::query!("UPDATE webhook_deliveries SET received_at = now() - interval '2 hours' WHERE delivery_id <> '4'")
        .execute(pool(db))
        .await
        .expect("aged");
    assert_eq!(db.delete_old_deliveries(Duration::from_hours(1)).await.expect("deleted"), 3);
    assert_eq!(heads().await, [(8, "x".to_owned()), (7, "a".to_owned())]);
}

#[tokio::test]
async fn deliveries_recorded_together_are_as_if_one_came_after_the_other() {
    let test = world().await;
    let db = &test.db;
    let delivery = |id: &str, events| Delivery { id: id.to_owned(), events };
    let all = [
        delivery("z", vec![pull(7, "a"), push(reference("1"), "c1")]),
        delivery("y", vec![push(reference("2"), "c1")]),
        delivery("z", vec![pull(7, "b")]),
        delivery("x", vec![pull(7, "b")]),
        delivery("w", vec![pull(7, "a")]),
    ];
    let new: Vec<_> = all.iter().map(|delivery| NewDelivery { forge: FORGE, delivery, duration_ms: 3 }).collect();
    let recorded = db.record_deliveries(&new).await.expect("recorded");
    let ids: Vec<_> =
        recorded.iter().filter_map(|r| if let Recorded::New(id) = r { Some(*id) } else { None }).collect();
    assert!(ids.len() == 3 && ids.is_sorted(), "{recorded:?}");
    assert_eq!((recorded[1], recorded[2]), (Recorded::Nothing, Recorded::Duplicate));
    let heads = sqlx::query!("SELECT number, head_commit FROM pull_request_heads ORDER BY delivery_id, number")
        .fetch_all(pool(db))
        .await
        .expect("read");
    assert_eq!(heads.iter().map(|row| row.head_commit.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
    assert_eq!(db.record_deliveries(&[]).await.expect("recorded"), []);

    // All or none.
    let mut seed = 7_u64;
    let mut letter = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + ((seed >> 40) % 90) as u8)
    };
    let long: String = (0..9_000).map(|_| letter()).collect();
    let bad = [delivery("v", vec![Event::Discover]), delivery(&long, vec![Event::Discover])];
    let new: Vec<_> = bad.iter().map(|delivery| NewDelivery { forge: FORGE, delivery, duration_ms: 3 }).collect();
    db.record_deliveries(&new).await.expect_err("an id that fits into no index");
    assert!(db.recent_deliveries(None, false, None, 9).await.expect("listed").iter().all(|d| d.delivery != "v"));
}

#[tokio::test]
async fn permissions_are_forgotten_when_the_forge_says_so() {
    let test = world().await;
    let remember = async || {
        sqlx::query!(
            "INSERT INTO forge_permissions (repository_id, user_login, permission)
             SELECT id, 'u', 'write' FROM repositories ON CONFLICT DO NOTHING"
        )
        .execute(pool(&test.db))
        .await
        .expect("inserted");
    };
    let known = async || {
        sqlx::query_scalar!(
            r#"SELECT r.external_id FROM forge_permissions JOIN repositories r ON r.id = repository_id ORDER BY 1"#
        )
        .fetch_all(pool(&test.db))
        .await
        .expect("read")
    };
    remember().await;
    record(&test.db, "1", vec![Event::PermissionsChanged(Some(reference("2")))]).await;
    assert_eq!(known().await, ["1"]);
    remember().await;
    record(&test.db, "2", vec![Event::PermissionsChanged(None)]).await;
    assert_eq!(known().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_forge_delivered_comes_before_what_polling_found() {
    let test = world().await;
    for number in 0..20 {
        record(&test.db, &format!("poll:1:pull/{number}:1:c"), vec![pull(number, "c")]).await;
    }
    record(&test.db, "d1", vec![push(reference("1"), "c1")]).await;
    let claimed = test.db.claim_deliveries(&node("n"), 1, LEASE).await.expect("claimed").remove(0);
    assert_eq!(claimed.delivery.id, "d1");
    let polled = test.db.claim_deliveries(&node("n"), 99, LEASE).await.expect("claimed");
    assert_eq!((polled.len(), polled[0].delivery.id.as_str()), (20, "poll:1:pull/0:1:c"));
}
