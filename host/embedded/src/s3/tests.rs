//! The endpoint as clients see it: the AWS SDK, and presigned URLs sent by an HTTP client that knows nothing of S3.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::{Clock, SystemClock, Timestamp};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;

mod copy;
mod durable;
mod killed;

const ACCESS_KEY: &str = "AKtest";
const SECRET_KEY: &str = "a secret of the tests";
const BUCKET: &str = "cache";

struct World {
    folder: TempDir,
    endpoint: S3Endpoint,
    client: Client,
    http: reqwest::Client,
}

fn options(folder: &Path) -> S3Options {
    S3Options {
        folder: folder.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        buckets: vec![BUCKET.to_owned()],
        durable: false,
    }
}

fn client(url: &str, secret_key: &str, checksums: RequestChecksumCalculation) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .force_path_style(true)
        .request_checksum_calculation(checksums)
        .response_checksum_validation(ResponseChecksumValidation::WhenSupported)
        .credentials_provider(Credentials::new(ACCESS_KEY, secret_key, None, None, "test"))
        .build();
    Client::from_conf(config)
}

impl World {
    async fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock)).await
    }

    async fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let endpoint = S3Endpoint::start(options(folder.path()), clock).await.expect("starts");
        let client = client(&endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenRequired);
        Self { folder, endpoint, client, http: reqwest::Client::new() }
    }

    async fn put(&self, key: &str, body: &[u8]) {
        let body = ByteStream::from(body.to_vec());
        self.client.put_object().bucket(BUCKET).key(key).body(body).send().await.expect("puts");
    }

    async fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.client.get_object().bucket(BUCKET).key(key).send().await {
            Ok(output) => Some(output.body.collect().await.expect("a body").to_vec()),
            Err(error) => {
                assert_eq!(error.code(), Some("NoSuchKey"));
                None
            }
        }
    }

    /// A presigned PUT as a signer issues it: length, checksum, type and write-once are part of the signature.
    async fn presigned(&self, key: &str, promised: &[u8], valid_seconds: u64) -> PresignedRequest {
        self.client
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .content_length(promised.len() as i64)
            .content_type("application/x-nix-nar")
            .checksum_sha256(STANDARD.encode(Sha256::digest(promised)))
            .if_none_match("*")
            .presigned(PresigningConfig::expires_in(Duration::from_secs(valid_seconds)).expect("valid"))
            .await
            .expect("presigns")
    }

    async fn send(&self, request: &PresignedRequest, body: Vec<u8>) -> (u16, String) {
        let mut sent = self.http.put(request.uri()).body(body);
        for (name, value) in request.headers() {
            if !name.eq_ignore_ascii_case("content-length") {
                sent = sent.header(name, value);
            }
        }
        answer(sent).await
    }

    fn temporary_files(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("tmp")).expect("readable").count()
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = request.send().await.expect("answers");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("text");
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |(code, _)| code);
    (status, code.to_owned())
}

fn answered(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn what_is_put_is_got_with_its_metadata() {
    let world = World::new().await;
    let body = b"some bytes".to_vec();
    let put = world
        .client
        .put_object()
        .bucket(BUCKET)
        .key("log/x.drv")
        .content_type("text/plain")
        .content_encoding("zstd")
        .metadata("deriver", "x.drv")
        .body(ByteStream::from(body.clone()))
        .send()
        .await
        .expect("puts");
    let get = world.client.get_object().bucket(BUCKET).key("log/x.drv").send().await.expect("gets");
    assert_eq!(get.content_type(), Some("text/plain"));
    assert_eq!(get.content_encoding(), Some("zstd"));
    assert_eq!(get.e_tag(), put.e_tag());
    assert_eq!(get.metadata().and_then(|map| map.get("deriver")).map(String::as_str), Some("x.drv"));
    assert_eq!(get.body.collect().await.expect("a body").to_vec(), body);
    let head = world
        .client
        .head_object()
        .bucket(BUCKET)
        .key("log/x.drv")
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .expect("heads");
    assert_eq!(head.content_length(), Some(10));
    assert_eq!(head.checksum_sha256(), Some(STANDARD.encode(Sha256::digest(&body)).as_str()));
    assert!(head.last_modified().is_some());

    let tag = get_tag(head.e_tag.as_ref());
    let not_modified = world
        .client
        .get_object()
        .bucket(BUCKET)
        .key("log/x.drv")
        .if_none_match(&tag)
        .send()
        .await
        .expect_err("not modified");
    assert_eq!(not_modified.raw_response().expect("answered").status().as_u16(), 304);
    let other =
        world.client.get_object().bucket(BUCKET).key("log/x.drv").if_match("\"0-1\"").send().await.expect_err("other");
    assert_eq!(other.code(), Some("PreconditionFailed"));

    // Without If-None-Match it is replaced, with a wrong If-Match it is not.
    world.put("log/x.drv", b"again").await;
    assert_eq!(world.get("log/x.drv").await.as_deref(), Some(&b"again"[..]));
    let body = ByteStream::from_static(b"no");
    let stale = world.client.put_object().bucket(BUCKET).key("log/x.drv").if_match(&tag).body(body).send().await;
    assert_eq!(stale.expect_err("stale").code(), Some("PreconditionFailed"));
    world.endpoint.stop().await;
}

fn get_tag(tag: Option<&String>) -> String {
    tag.cloned().expect("a tag")
}

#[tokio::test]
async fn the_sdk_may_send_its_own_checksums_in_trailers() {
    let world = World::new().await;
    let client = client(&world.endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenSupported);
    let file = world.folder.path().join("big");
    let body: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    std::fs::write(&file, &body).expect("writes");
    let stream = ByteStream::from_path(&file).await.expect("streams");
    let put = client.put_object().bucket(BUCKET).key("big").body(stream).send().await.expect("puts");
    assert!(put.checksum_crc32().is_some(), "{put:?}");
    assert_eq!(world.get("big").await, Some(body));
}

#[tokio::test]
async fn a_presigned_put_is_what_it_was_signed_for() {
    let world = World::new().await;
    let body = b"these bytes".to_vec();
    let request = world.presigned("nar/good", &body, 60).await;

    let (status, code) = world.send(&request, b"these byteZ".to_vec()).await;
    assert_eq!((status, code.as_str()), (400, "BadDigest"), "other bytes of the same length");
    assert_eq!(world.send(&request, b"longer than these bytes".to_vec()).await, answered(403, "SignatureDoesNotMatch"));
    assert_eq!(world.send(&request, b"short".to_vec()).await, answered(403, "SignatureDoesNotMatch"));
    let elsewhere = request.uri().replace("nar/good", "nar/evil");
    let sent = world.http.put(elsewhere).body(body.clone());
    let sent = request.headers().fold(sent, |sent, (name, value)| sent.header(name, value));
    assert_eq!(answer(sent).await, answered(403, "SignatureDoesNotMatch"), "another key");
    let bare = world.http.put(request.uri()).body(body.clone());
    assert_eq!(answer(bare).await, answered(403, "SignatureDoesNotMatch"), "without the signed headers");
    let extra = request
        .headers()
        .fold(world.http.put(request.uri()).body(body.clone()), |sent, (name, value)| sent.header(name, value));
    let extra = extra.header("x-amz-meta-smuggled", "yes");
    assert_eq!(answer(extra).await, answered(403, "AccessDenied"), "an unsigned header");
    assert_eq!(world.get("nar/good").await, None, "nothing of all that is visible");
    assert_eq!(world.get("nar/evil").await, None);
    assert_eq!(world.temporary_files(), 0);

    assert_eq!(world.send(&request, body.clone()).await.0, 200);
    assert_eq!(world.get("nar/good").await, Some(body.clone()));
    assert_eq!(world.send(&request, body).await, answered(412, "PreconditionFailed"), "write once");
}

#[tokio::test]
async fn strangers_are_refused() {
    let world = World::new().await;
    world.put("secret", b"x").await;
    let url = format!("{}/{BUCKET}/secret", world.endpoint.url());
    assert_eq!(answer(world.http.get(&url)).await, answered(403, "AccessDenied"), "unsigned");
    let wrong = client(&world.endpoint.url(), "another secret", RequestChecksumCalculation::WhenRequired);
    let error = wrong.get_object().bucket(BUCKET).key("secret").send().await.expect_err("wrong key");
    assert_eq!(error.code(), Some("SignatureDoesNotMatch"));
    let old = world.http.get(format!("{url}?AWSAccessKeyId={ACCESS_KEY}&Signature=AAAA&Expires=99999999999"));
    assert_eq!(answer(old).await.0, 403, "the old scheme");
    let unknown = world.http.get(&url).header("authorization", "AWS4-HMAC-SHA256 Credential=who/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=00").header("x-amz-date", "20260101T000000Z").header("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    assert_eq!(answer(unknown).await.0, 403, "a key of somebody else");
}

/// The machine's clock and an offset.
#[derive(Default)]
struct Shifted(Mutex<time::Duration>);

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        SystemClock.now() + *self.0.lock().expect("not poisoned")
    }
}

#[tokio::test]
async fn a_presigned_request_expires() {
    let clock = Arc::new(Shifted::default());
    let world = World::with_clock(Arc::<Shifted>::clone(&clock)).await;
    let first = world.presigned("a", b"a", 900).await;
    let second = world.presigned("b", b"b", 900).await;
    assert_eq!(world.send(&first, b"a".to_vec()).await.0, 200);
    *clock.0.lock().expect("not poisoned") = time::Duration::seconds(902);
    assert_eq!(world.send(&second, b"b".to_vec()).await, answered(403, "AccessDenied"));
    assert_eq!(world.get("b").await, None);
    let past = PresigningConfig::builder()
        .start_time(std::time::SystemTime::now() - Duration::from_mins(2))
        .expires_in(Duration::from_mins(1))
        .build()
        .expect("valid");
    let request = world.client.get_object().bucket(BUCKET).key("a").presigned(past).await.expect("presigns");
    assert_eq!(
        answer(world.http.get(request.uri())).await,
        answered(403, "AccessDenied"),
        "by the machine's clock too"
    );
}

#[tokio::test]
async fn of_many_writers_exactly_one_wins() {
    let world = Arc::new(World::new().await);
    let mut writers = JoinSet::new();
    for number in 0..32u8 {
        let world = Arc::clone(&world);
        writers.spawn(async move {
            let body = vec![number; 100_000];
            let request = world.presigned("nar/once", &body, 60).await;
            (number, world.send(&request, body).await.0)
        });
    }
    let answers = writers.join_all().await;
    let winners: Vec<u8> = answers.iter().filter(|(_, status)| *status == 200).map(|(number, _)| *number).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|(_, status)| matches!(status, 200 | 412)), "{answers:?}");
    assert_eq!(world.get("nar/once").await, Some(vec![winners[0]; 100_000]));
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn ranges_are_parts_of_the_whole() {
    let world = World::new().await;
    let body: Vec<u8> = (0..=255).collect();
    world.put("r", &body).await;
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=10-19", 10..20),
        ("bytes=250-", 250..256),
        ("bytes=-6", 250..256),
        ("bytes=200-999", 200..256),
    ] {
        let part = world.client.get_object().bucket(BUCKET).key("r").range(range).send().await.expect(range);
        assert_eq!(part.content_range(), Some(format!("bytes {}-{}/256", expected.start, expected.end - 1).as_str()));
        assert_eq!(part.body.collect().await.expect("a body").to_vec(), body[expected]);
    }
    let error = world.client.get_object().bucket(BUCKET).key("r").range("bytes=256-").send().await.expect_err("beyond");
    assert_eq!(error.code(), Some("InvalidRange"));
    world.put("empty", b"").await;
    assert_eq!(world.get("empty").await, Some(Vec::new()));
}

async fn all_keys(world: &World, prefix: &str, page: i32) -> (Vec<String>, usize) {
    let (mut keys, mut pages, mut token) = (Vec::new(), 0, None);
    loop {
        let request = world.client.list_objects_v2().bucket(BUCKET).prefix(prefix).max_keys(page);
        let answer = request.set_continuation_token(token).send().await.expect("lists");
        pages += 1;
        keys.extend(answer.contents().iter().map(|object| object.key().expect("a key").to_owned()));
        token = answer.next_continuation_token().map(str::to_owned);
        if token.is_none() {
            assert_eq!(answer.is_truncated(), Some(false));
            return (keys, pages);
        }
    }
}

#[tokio::test]
async fn odd_keys_are_stored_listed_and_deleted() {
    let world = World::new().await;
    let long = "l".repeat(1024);
    let keys: BTreeSet<String> = [
        "a",
        "a/b",
        "a/b/c",
        "a-b",
        "a.o",
        "a.d/x",
        "..",
        "../../etc/passwd",
        "/leading",
        "trailing/",
        "a//b",
        "with space+plus",
        "ünïcödé/雪",
        "%41",
        "q?x=1&y=2",
        "star*",
        "back\\slash",
        ".",
        "./x",
        "nul-free\u{1}control",
        &long,
    ]
    .map(str::to_owned)
    .into();
    for key in &keys {
        world.put(key, key.as_bytes()).await;
    }
    for key in &keys {
        assert_eq!(world.get(key).await.as_deref(), Some(key.as_bytes()), "{key:?}");
    }
    // Control characters cannot stand in XML, which is what encoding-type=url is for; the rest reads as it is.
    let plain: Vec<String> = keys.iter().filter(|key| !key.contains('\u{1}')).cloned().collect();
    world.client.delete_object().bucket(BUCKET).key("nul-free\u{1}control").send().await.expect("deletes");
    assert_eq!(all_keys(&world, "", 1000).await, (plain.clone(), 1));
    assert_eq!(all_keys(&world, "", 3).await, (plain, 7));
    assert_eq!(all_keys(&world, "a/", 1).await.0, ["a//b", "a/b", "a/b/c"]);
    let lines = world.client.list_objects_v2().bucket(BUCKET).prefix("a").delimiter("/").send().await.expect("lists");
    let prefixes: Vec<_> = lines.common_prefixes().iter().filter_map(|line| line.prefix()).collect();
    assert_eq!(prefixes, ["a.d/", "a/"]);
    assert_eq!(lines.contents().iter().filter_map(|object| object.key()).collect::<Vec<_>>(), ["a", "a-b", "a.o"]);

    let too_long =
        world.client.put_object().bucket(BUCKET).key("l".repeat(1025)).body(ByteStream::from_static(b"")).send().await;
    assert_eq!(too_long.expect_err("too long").code(), Some("KeyTooLongError"));
    for key in keys.iter().filter(|key| *key != "a") {
        world.client.delete_object().bucket(BUCKET).key(key).send().await.expect("deletes");
    }
    assert_eq!(all_keys(&world, "", 1000).await.0, ["a"]);
    let left = std::fs::read_dir(world.folder.path().join("buckets").join(BUCKET)).expect("readable").count();
    assert_eq!(left, 1, "empty directories are gone");
    assert!(!world.folder.path().join("etc").exists());
}

#[tokio::test]
async fn buckets_and_bulk_deletion() {
    let world = World::new().await;
    world.client.create_bucket().bucket("second").send().await.expect("creates");
    let again = world.client.create_bucket().bucket("second").send().await.expect_err("exists");
    assert_eq!(again.code(), Some("BucketAlreadyOwnedByYou"));
    let buckets = world.client.list_buckets().send().await.expect("lists");
    assert_eq!(buckets.buckets().iter().filter_map(|bucket| bucket.name()).collect::<Vec<_>>(), [BUCKET, "second"]);
    world.client.head_bucket().bucket("second").send().await.expect("there");
    assert!(world.client.head_bucket().bucket("third").send().await.is_err());
    world.client.get_bucket_location().bucket("second").send().await.expect("there");
    let missing = world.client.put_object().bucket("third").key("k").body(ByteStream::from_static(b"")).send().await;
    assert_eq!(missing.expect_err("no bucket").code(), Some("NoSuchBucket"));

    for key in ["x", "y/z", "keep"] {
        world.put(key, b"1").await;
    }
    let mut delete = Delete::builder();
    for key in ["x", "y/z", "was never there"] {
        delete = delete.objects(ObjectIdentifier::builder().key(key).build().expect("complete"));
    }
    let answer = world.client.delete_objects().bucket(BUCKET).delete(delete.build().expect("complete")).send().await;
    assert_eq!(answer.expect("deletes").deleted().len(), 3);
    assert_eq!(all_keys(&world, "", 10).await.0, ["keep"]);
}

#[tokio::test]
async fn an_upload_in_parts() {
    let world = World::new().await;
    let new = world
        .client
        .create_multipart_upload()
        .bucket(BUCKET)
        .key("big")
        .content_type("x/y")
        .send()
        .await
        .expect("begins");
    let id = new.upload_id().expect("an id").to_owned();
    let parts = [vec![1u8; 5 << 20], vec![2u8; 7]];
    let mut named = Vec::new();
    for (part, number) in parts.iter().zip(1..) {
        let sum = STANDARD.encode(Sha256::digest(part));
        let request = world
            .client
            .upload_part()
            .bucket(BUCKET)
            .key("big")
            .upload_id(&id)
            .part_number(number)
            .content_length(part.len() as i64)
            .checksum_sha256(&sum)
            .presigned(PresigningConfig::expires_in(Duration::from_mins(1)).expect("valid"))
            .await
            .expect("presigns");
        let mut wrong = part.clone();
        wrong[0] ^= 1;
        assert_eq!(world.send(&request, wrong).await, answered(400, "BadDigest"));
        assert_eq!(world.send(&request, part.clone()).await.0, 200);
    }
    assert_eq!(world.get("big").await, None, "not there before it is complete");
    let stored = world.client.list_parts().bucket(BUCKET).key("big").upload_id(&id).send().await.expect("lists");
    for (part, bytes) in stored.parts().iter().zip(&parts) {
        assert_eq!(part.size(), Some(bytes.len() as i64));
        let sum = STANDARD.encode(Sha256::digest(bytes));
        assert_eq!(part.checksum_sha256(), Some(sum.as_str()));
        let part = CompletedPart::builder()
            .part_number(part.part_number().expect("a number"))
            .e_tag(get_tag(part.e_tag.as_ref()));
        named.push(part.checksum_sha256(sum).build());
    }
    let uploads = world.client.list_multipart_uploads().bucket(BUCKET).send().await.expect("lists");
    assert_eq!(uploads.uploads().len(), 1);
    let complete = |parts: Vec<CompletedPart>| {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        world.client.complete_multipart_upload().bucket(BUCKET).key("big").upload_id(&id).multipart_upload(parts).send()
    };
    let reversed = complete(named.iter().rev().cloned().collect()).await.expect_err("wrong order");
    assert_eq!(reversed.code(), Some("InvalidPartOrder"));
    complete(named).await.expect("completes");
    let get = world.client.get_object().bucket(BUCKET).key("big").send().await.expect("gets");
    assert_eq!(get.content_type(), Some("x/y"));
    assert_eq!(get.body.collect().await.expect("a body").to_vec(), parts.concat());

    let new = world.client.create_multipart_upload().bucket(BUCKET).key("other").send().await.expect("begins");
    let id = new.upload_id().expect("an id");
    world.client.abort_multipart_upload().bucket(BUCKET).key("other").upload_id(id).send().await.expect("aborts");
    let gone = world.client.list_parts().bucket(BUCKET).key("other").upload_id(id).send().await.expect_err("aborted");
    assert_eq!(gone.code(), Some("NoSuchUpload"));
    let escape =
        world.client.list_parts().bucket(BUCKET).key("other").upload_id("../buckets").send().await.expect_err("no id");
    assert_eq!(escape.code(), Some("NoSuchUpload"));
    assert_eq!(std::fs::read_dir(world.folder.path().join("uploads")).expect("readable").count(), 0);
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn objects_outlive_the_endpoint() {
    let world = World::new().await;
    world.put("kept", b"value").await;
    let busy = S3Endpoint::start(options(world.folder.path()), Arc::new(SystemClock)).await.expect_err("in use");
    assert!(matches!(busy, S3Error::InUse { .. }), "{busy}");
    let World { folder, endpoint, http, .. } = world;
    let taken = S3Options { listen: endpoint.address(), ..options(tempfile::tempdir().expect("temporary").path()) };
    let taken = S3Endpoint::start(taken, Arc::new(SystemClock)).await.expect_err("port taken");
    assert!(taken.to_string().contains("choose another one"), "{taken}");
    endpoint.stop().await;
    std::fs::write(folder.path().join("tmp/left-over"), "of an earlier run").expect("writes");
    let endpoint = S3Endpoint::start(options(folder.path()), Arc::new(SystemClock)).await.expect("starts again");
    let client = client(&endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenRequired);
    let world = World { folder, endpoint, client, http };
    assert_eq!(world.get("kept").await.as_deref(), Some(&b"value"[..]));
    assert_eq!(world.temporary_files(), 0);
}
