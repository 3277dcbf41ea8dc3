//! The object store against a real endpoint: what it says when things are there, absent, forbidden or unknown.

use std::time::Duration;

use bytes::Bytes;
use harmonia_cache::{ByteRange, ObjectError, ObjectStore, ObjectStoreOptions, PutContract, PutOptions, PutOutcome};
use harmonia_core::{Clock, SystemClock};
use harmonia_nix::Sha256Hash;

use crate::support::{Bucket, options, put, start_endpoint};

const TEXT: PutOptions<'_> =
    PutOptions { content_type: "text/plain", content_encoding: None, cache_control: None, write_once: false };

fn bytes(size: usize) -> Bytes {
    (0..size).map(|index| (index * 7 % 251) as u8).collect()
}

#[tokio::test]
async fn objects_come_back_whole_and_in_parts() {
    let bucket = Bucket::start().await;
    let store = &bucket.store;
    // Odd names are what derivations have.
    let key = "log/00000000000000000000000000000000-a+b?c=d.drv.1";
    assert_eq!(store.head(key).await.expect("answers"), None);
    assert!(store.get(key, None).await.expect("answers").is_none());

    let content = bytes(3 << 20);
    let encoded = PutOptions { content_encoding: Some("zstd"), ..TEXT };
    assert_eq!(store.put(key, content.clone(), encoded).await.expect("stored"), PutOutcome::Stored);
    let head = store.head(key).await.expect("answers").expect("there");
    assert_eq!((head.size, head.sha256), (content.len() as u64, Some(Sha256Hash::of(&content))));

    let body = store.get(key, None).await.expect("answers").expect("there");
    assert_eq!((body.length, body.total, body.is_partial), (content.len() as u64, content.len() as u64, false));
    assert_eq!(body.content_encoding.as_deref(), Some("zstd"));
    assert_eq!(store.get_bytes(key, content.len()).await.expect("answers"), Some(content.clone()));
    let error = store.get_bytes(key, content.len() - 1).await.expect_err("too large");
    assert!(matches!(error, ObjectError::TooLarge { .. }));

    for (range, from, to) in [
        (ByteRange::From(1_000_000), 1_000_000, content.len()),
        (ByteRange::Between(5, 9), 5, 10),
        (ByteRange::Last(7), content.len() - 7, content.len()),
        (ByteRange::Between(10, u64::MAX >> 1), 10, content.len()),
    ] {
        let mut body = store.get(key, Some(range)).await.expect("answers").expect("there");
        assert_eq!((body.offset, body.length, body.total), (from as u64, (to - from) as u64, content.len() as u64));
        let mut found = Vec::new();
        while let Some(piece) = body.next().await.expect("a piece") {
            found.extend_from_slice(&piece);
        }
        assert!(found == content[from..to], "{range:?}");
    }
    let beyond = store.get(key, Some(ByteRange::From(content.len() as u64))).await.expect_err("beyond the end");
    assert!(matches!(beyond, ObjectError::Range { .. }), "{beyond:?}");

    let copy = "log/00000000000000000000000000000000-a+b?c=d.drv";
    store.copy(key, copy).await.expect("copied");
    let copied = store.get(copy, None).await.expect("answers").expect("there");
    assert_eq!((copied.total, copied.content_encoding.as_deref()), (content.len() as u64, Some("zstd")));
    assert!(matches!(store.copy("log/none", copy).await, Err(ObjectError::NotFound { .. })));

    assert_eq!(store.hash(copy).await.expect("read"), Some((Sha256Hash::of(&content), content.len() as u64)));
    store.delete(copy).await.expect("deleted");
    store.delete(copy).await.expect("deleted again");
    assert_eq!(store.head(copy).await.expect("answers"), None);
}

#[tokio::test]
async fn write_once_keeps_the_first() {
    let bucket = Bucket::start().await;
    let once = PutOptions { write_once: true, ..TEXT };
    let put = |text: &'static str| bucket.store.put("drv/a", Bytes::from(text), once);
    assert_eq!(put("first").await.expect("stored"), PutOutcome::Stored);
    assert_eq!(put("second").await.expect("answered"), PutOutcome::AlreadyThere);
    assert_eq!(bucket.store.get_bytes("drv/a", 100).await.expect("read"), Some(Bytes::from("first")));
}

#[tokio::test]
async fn a_presigned_put_stores_exactly_what_was_signed() {
    let bucket = Bucket::start().await;
    let content = bytes(1_000);
    let contract = PutContract {
        key: "nar/x.nar.zst",
        length: 1_000,
        sha256: Sha256Hash::of(&content),
        content_type: "application/x-nix-nar",
        content_encoding: None,
        write_once: true,
    };
    let now = SystemClock.now();
    let valid_for = Duration::from_mins(1);
    let signed = bucket.store.presign_put(&contract, now, valid_for).await.expect("signed");
    let mut other = content.to_vec();
    other[0] ^= 1;
    assert!(put(&signed.url, &signed.headers, other).await >= 400, "other bytes");
    assert!(put(&signed.url, &signed.headers, content[1..].to_vec()).await >= 400, "another length");
    let expired = bucket.store.presign_put(&contract, now - 2 * valid_for, valid_for).await.expect("signed");
    assert_eq!(put(&expired.url, &expired.headers, content.to_vec()).await, 403, "expired");
    assert_eq!(bucket.store.head(contract.key).await.expect("answers"), None, "nothing was stored");

    assert_eq!(put(&signed.url, &signed.headers, content.to_vec()).await, 200);
    assert_eq!(put(&signed.url, &signed.headers, content.to_vec()).await, 412, "write-once");
    assert_eq!(bucket.store.head(contract.key).await.expect("answers").expect("there").size, 1_000);
}

/// Unknown is never absent: every read says so, with what to do.
#[tokio::test]
async fn what_cannot_be_known_is_an_error() {
    let bucket = Bucket::start().await;
    let url = bucket.endpoint.url();
    let all_fail = async |options: ObjectStoreOptions, words: &str| {
        let store = ObjectStore::new(options);
        for error in [
            store.head("x").await.map(drop).expect_err("unknown"),
            store.get("x", None).await.map(drop).expect_err("unknown"),
            store.check_bucket(false).await.expect_err("unknown"),
            store.put("x", Bytes::new(), TEXT).await.map(drop).expect_err("not stored"),
        ] {
            assert!(error.to_string().contains(words), "{error}: {error:?}");
        }
    };
    all_fail(ObjectStoreOptions { bucket: "other".to_owned(), ..options(&url) }, "there is no bucket 'other'").await;
    all_fail(ObjectStoreOptions { secret_key: "wrong".to_owned(), ..options(&url) }, "check access key").await;
    all_fail(ObjectStoreOptions { access_key: "wrong".to_owned(), ..options(&url) }, "check access key").await;

    let address = bucket.endpoint.address();
    bucket.endpoint.stop().await;
    all_fail(options(&url), "does not answer").await;
    let error = bucket.store.head("x").await.expect_err("unknown");
    assert!(error.is_transient());

    // The same client goes on once the endpoint is back.
    let _endpoint = start_endpoint(&bucket.folder, &address.to_string(), &[]).await;
    assert_eq!(bucket.store.head("x").await.expect("answers"), None);
}

#[tokio::test]
async fn a_missing_bucket_is_made_only_when_asked() {
    let bucket = Bucket::start().await;
    let store = ObjectStore::new(ObjectStoreOptions { bucket: "fresh".to_owned(), ..options(&bucket.endpoint.url()) });
    assert!(matches!(store.check_bucket(false).await, Err(ObjectError::BucketMissing { .. })));
    store.check_bucket(true).await.expect("created");
    store.check_bucket(true).await.expect("there already");
    store.check_bucket(false).await.expect("there");
}
