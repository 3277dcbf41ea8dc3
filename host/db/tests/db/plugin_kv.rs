//! The store of plugins: conditions hold against concurrent writers, bounds and expiry too.

use std::collections::BTreeSet;
use std::time::Duration;

use harmonia_core::Capability;
use harmonia_core::ports::{PluginStore as _, PluginStoreError, WriteCondition};
use harmonia_db::Db;
use harmonia_db::testing::{TestDatabase, pool};

async fn set(db: &Db, key: &str, value: &[u8], condition: WriteCondition) -> Result<u64, PluginStoreError> {
    db.set("p".to_owned(), key.to_owned(), value.to_vec(), None, condition).await
}

async fn value(db: &Db, plugin: &str, key: &str) -> Option<Vec<u8>> {
    db.get(plugin.to_owned(), key.to_owned()).await.expect("read").map(|stored| stored.value)
}

/// As if its time had passed.
async fn expire(db: &Db, key: &str) {
    let done = sqlx::query!("UPDATE plugin_kv SET expires_at = now() - interval '1 second' WHERE key = $1", key)
        .execute(pool(db))
        .await
        .expect("expire");
    assert_eq!(done.rows_affected(), 1);
}

#[tokio::test]
async fn values_are_written_read_and_deleted_by_each_plugin_for_itself() {
    let test = TestDatabase::new().await;
    let db = test.connect_as(Capability::Frontend).await;
    assert_eq!(value(&db, "p", "k").await, None);
    let first = set(&db, "k", b"one", WriteCondition::Always).await.expect("written");
    let second = set(&db, "k", b"two", WriteCondition::Always).await.expect("written");
    assert!(second > first);
    let stored = db.get("p".to_owned(), "k".to_owned()).await.expect("read").expect("a value");
    assert_eq!((stored.value, stored.version), (b"two".to_vec(), second));
    assert_eq!(value(&db, "q", "k").await, None);
    db.delete("q".to_owned(), "k".to_owned()).await.expect("absent is fine");
    assert!(value(&db, "p", "k").await.is_some());
    db.delete("p".to_owned(), "k".to_owned()).await.expect("deleted");
    assert_eq!(value(&db, "p", "k").await, None);
}

#[tokio::test]
async fn conditions_hold() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let conflict = Err(PluginStoreError::Conflict);
    assert_eq!(set(db, "k", b"x", WriteCondition::Version(1)).await, conflict, "there is none");
    let first = set(db, "k", b"1", WriteCondition::Absent).await.expect("it is absent");
    assert_eq!(set(db, "k", b"x", WriteCondition::Absent).await, conflict);
    let second = set(db, "k", b"2", WriteCondition::Version(first)).await.expect("its version");
    for wrong in [first, second + 1, u64::MAX] {
        assert_eq!(set(db, "k", b"x", WriteCondition::Version(wrong)).await, conflict, "{wrong}");
    }
    assert_eq!(value(db, "p", "k").await.as_deref(), Some(&b"2"[..]));
    // Deleted and written anew is not what was read.
    db.delete("p".to_owned(), "k".to_owned()).await.expect("deleted");
    set(db, "k", b"3", WriteCondition::Always).await.expect("written");
    assert_eq!(set(db, "k", b"x", WriteCondition::Version(second)).await, conflict);
}

#[tokio::test]
async fn of_concurrent_writers_one_wins() {
    let test = TestDatabase::new().await;
    for condition in [WriteCondition::Absent, WriteCondition::Version(0)] {
        let condition = match condition {
            WriteCondition::Version(_) => {
                let stored = test.db.get("p".to_owned(), "k".to_owned()).await.expect("read").expect("a value");
                WriteCondition::Version(stored.version)
            }
            other => other,
        };
        let writers: Vec<_> = (0..16_u8)
            .map(|writer| {
                let db = test.db.clone();
                tokio::spawn(async move { set(&db, "k", &[writer], condition).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (writer, outcome) in writers.into_iter().enumerate() {
            match outcome.await.expect("no panic") {
                Ok(_) => winners.push(writer as u8),
                Err(error) => assert_eq!(error, PluginStoreError::Conflict),
            }
        }
        assert_eq!(winners.len(), 1, "{condition:?}");
        assert_eq!(value(&test.db, "p", "k").await, Some(winners));
    }
}

#[tokio::test]
async fn expired_values_are_absent_and_get_deleted() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let hour = Some(Duration::from_hours(1));
    for key in ["a", "b", "c"] {
        db.set("p".to_owned(), key.to_owned(), b"x".to_vec(), hour, WriteCondition::Always).await.expect("written");
    }
    set(db, "forever", b"x", WriteCondition::Always).await.expect("written");
    let before = db.get("p".to_owned(), "a".to_owned()).await.expect("read").expect("a value").version;
    expire(db, "a").await;
    expire(db, "b").await;
    assert_eq!(value(db, "p", "a").await, None);
    let conflict = Err(PluginStoreError::Conflict);
    assert_eq!(set(db, "a", b"y", WriteCondition::Version(before)).await, conflict);
    let after = set(db, "a", b"y", WriteCondition::Absent).await.expect("expired is absent");
    assert!(after > before);
    assert_eq!(db.delete_expired_kv().await.expect("deleted"), 1, "b alone");
    let left = sqlx::query_scalar!("SELECT key FROM plugin_kv").fetch_all(pool(db)).await.expect("rows");
    assert_eq!(left.into_iter().collect::<BTreeSet<_>>(), ["a", "c", "forever"].map(str::to_owned).into());
}

#[tokio::test]
async fn sizes_and_the_number_of_keys_are_bounded() {
    let test = TestDatabase::new().await;
    let db = &test.db;
    let is_limit = |outcome: Result<u64, _>, what: &str| match outcome {
        Err(PluginStoreError::Limit(text)) => assert!(text.contains(what), "{text}"),
        other => panic!("{what}: {other:?}"),
    };
    set(db, &"k".repeat(512), &vec![0; 64 * 1024], WriteCondition::Always).await.expect("just fits");
    is_limit(set(db, &"k".repeat(513), b"", WriteCondition::Always).await, "512");
    is_limit(set(db, "k", &vec![0; 64 * 1024 + 1], WriteCondition::Always).await, "65536");
    is_limit(set(db, "a\0b", b"", WriteCondition::Always).await, "NUL");
    sqlx::query!(
        "INSERT INTO plugin_kv (plugin, key, value) SELECT 'p', 'n' || n, '' FROM generate_series(1, 9998) AS n"
    )
    .execute(pool(db))
    .await
    .expect("fill");
    // One place is left, and sixteen want it.
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let db = db.clone();
            tokio::spawn(async move { set(&db, &format!("w{writer}"), b"", WriteCondition::Always).await })
        })
        .collect();
    let mut written = 0;
    for writer in writers {
        match writer.await.expect("no panic") {
            Ok(_) => written += 1,
            outcome => is_limit(outcome, "10000"),
        }
    }
    assert_eq!(written, 1);
    set(db, "n1", b"new", WriteCondition::Always).await.expect("no new key");
    db.set("q".to_owned(), "k".to_owned(), Vec::new(), None, WriteCondition::Always).await.expect("another plugin");
    expire(db, "n2").await;
    set(db, "one more", b"", WriteCondition::Always).await.expect("the expired one makes room");
    is_limit(set(db, "and another", b"", WriteCondition::Always).await, "10000");
}

#[tokio::test]
async fn only_frontends_reach_the_store() {
    let test = TestDatabase::new().await;
    for capability in [Capability::Evaluator, Capability::Builder, Capability::Signer] {
        let db = test.connect_as(capability).await;
        let unavailable = |text: &PluginStoreError| matches!(text, PluginStoreError::Unavailable(_));
        assert!(set(&db, "k", b"x", WriteCondition::Always).await.as_ref().is_err_and(unavailable), "{capability}");
        assert!(db.get("p".to_owned(), "k".to_owned()).await.as_ref().is_err_and(unavailable), "{capability}");
    }
}
