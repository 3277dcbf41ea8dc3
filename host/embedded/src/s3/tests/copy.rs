//! Copies as clients ask for them.

use aws_sdk_s3::operation::copy_object::builders::CopyObjectFluentBuilder;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::MetadataDirective;

use super::*;
use crate::percent::percent_encoded;

impl World {
    fn copy(&self, from: &str, to: &str) -> CopyObjectFluentBuilder {
        let source = format!("{BUCKET}/{}", percent_encoded(from.as_bytes()));
        self.client.copy_object().copy_source(source).bucket(BUCKET).key(to)
    }

    async fn head(&self, key: &str) -> HeadObjectOutput {
        let request = self.client.head_object().bucket(BUCKET).key(key).checksum_mode(ChecksumMode::Enabled);
        request.send().await.expect("heads")
    }
}

/// Status and code of a refused copy.
async fn refused(request: CopyObjectFluentBuilder) -> (u16, String) {
    let error = request.send().await.expect_err("refused");
    let status = error.raw_response().expect("answered").status().as_u16();
    (status, error.code().unwrap_or_default().to_owned())
}

fn sum(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}

async fn put_log(world: &World, body: &[u8]) {
    let put = world.client.put_object().bucket(BUCKET).key("log/x.drv.1").content_type("text/plain");
    let put = put.content_encoding("zstd").cache_control("immutable").content_language("en");
    let put = put.content_disposition("inline").metadata("deriver", "x.drv");
    put.body(ByteStream::from(body.to_vec())).send().await.expect("puts");
}

#[tokio::test]
async fn a_copy_has_bytes_metadata_and_checksum_of_its_source() {
    let world = World::new().await;
    let body: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    put_log(&world, &body).await;
    let source = world.head("log/x.drv.1").await;
    // Of what the request says about the copy, nothing is taken without REPLACE.
    let copied = world.copy("log/x.drv.1", "log/x.drv").content_type("not/this").send().await.expect("copies");
    let result = copied.copy_object_result().expect("a result");
    assert_eq!(result.checksum_sha256(), Some(sum(&body).as_str()));
    assert_eq!(result.e_tag(), source.e_tag());
    assert_eq!(world.get("log/x.drv").await.as_deref(), Some(&body[..]));
    let copy = world.head("log/x.drv").await;
    assert_eq!(result.last_modified().map(DateTime::secs), copy.last_modified().map(DateTime::secs));
    assert_eq!(copy.content_length(), Some(3_000_000));
    assert_eq!(copy.checksum_sha256(), Some(sum(&body).as_str()));
    assert_eq!(copy.content_type(), Some("text/plain"));
    assert_eq!(copy.content_encoding(), Some("zstd"));
    assert_eq!(copy.cache_control(), Some("immutable"));
    assert_eq!(copy.content_language(), Some("en"));
    assert_eq!(copy.content_disposition(), Some("inline"));
    assert_eq!(copy.metadata(), source.metadata());
    assert_eq!(all_keys(&world, "log/", 10).await.0, ["log/x.drv", "log/x.drv.1"]);

    // It is an object of its own.
    world.client.delete_object().bucket(BUCKET).key("log/x.drv.1").send().await.expect("deletes");
    assert_eq!(world.get("log/x.drv").await, Some(body));
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn metadata_may_be_replaced() {
    let world = World::new().await;
    put_log(&world, b"some bytes").await;
    let replace = |to: &str| world.copy("log/x.drv.1", to).metadata_directive(MetadataDirective::Replace);
    // Onto itself as well: that is how S3 changes metadata.
    for key in ["copy", "log/x.drv.1"] {
        replace(key).content_type("new/type").metadata("other", "value").send().await.expect("copies");
        let head = world.head(key).await;
        assert_eq!(head.content_type(), Some("new/type"));
        assert_eq!((head.content_encoding(), head.cache_control()), (None, None));
        let metadata = head.metadata().expect("metadata").iter().collect::<Vec<_>>();
        assert_eq!(metadata, [(&"other".to_owned(), &"value".to_owned())]);
        assert_eq!(head.checksum_sha256(), Some(sum(b"some bytes").as_str()));
        assert_eq!(world.get(key).await.as_deref(), Some(&b"some bytes"[..]));
    }
    let itself = world.copy("copy", "copy");
    assert_eq!(refused(itself).await, answered(400, "InvalidRequest"), "nothing would change");
    let unknown = replace("other").metadata_directive(MetadataDirective::from("BOTH"));
    assert_eq!(refused(unknown).await, answered(400, "InvalidArgument"));
    let much = replace("other").metadata("much", "x".repeat(17 << 10));
    assert_eq!(refused(much).await, answered(400, "MetadataTooLarge"));
    assert_eq!(world.get("other").await, None);
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn a_copy_goes_from_bucket_to_bucket() {
    let world = World::new().await;
    world.client.create_bucket().bucket("second").send().await.expect("creates");
    world.put("dir/a", b"1").await;
    world.copy("dir/a", "b").bucket("second").send().await.expect("copies");
    // The same key in another bucket is no copy onto itself; a slash may lead the source.
    world.copy("dir/a", "dir/a").copy_source("/cache/dir/a").bucket("second").send().await.expect("copies");
    world.copy("b", "back").copy_source("second/b?versionId=null").send().await.expect("copies");
    assert_eq!(world.get("back").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(world.get("b").await, None);
    let listed = world.client.list_objects_v2().bucket("second").send().await.expect("lists");
    assert_eq!(listed.contents().iter().filter_map(|object| object.key()).collect::<Vec<_>>(), ["b", "dir/a"]);

    let third = || world.copy("dir/a", "c");
    assert_eq!(refused(third().bucket("third")).await, answered(404, "NoSuchBucket"));
    assert_eq!(refused(third().copy_source("third/a")).await, answered(404, "NoSuchBucket"));
    assert_eq!(refused(third().copy_source("cache/none")).await, answered(404, "NoSuchKey"));
    assert_eq!(refused(third().copy_source("cache/dir")).await, answered(404, "NoSuchKey"), "a directory is no object");
    assert_eq!(refused(third().copy_source("cache/")).await, answered(404, "NoSuchKey"));
    assert_eq!(refused(third().copy_source("cache/dir/a?versionId=7")).await, answered(404, "NoSuchVersion"));
    for odd in ["cache", "../cache/dir/a", "%2e%2e/tmp/x", "cache/%ff", "cache%2"] {
        assert_eq!(refused(third().copy_source(odd)).await.0, 400, "{odd:?}");
    }
    let point = third().copy_source("arn:aws:s3:us-east-1:123456789012:accesspoint/point/object/dir/a");
    assert_eq!(refused(point).await, answered(400, "InvalidArgument"));
    assert_eq!(world.get("c").await, None);
}

#[tokio::test]
async fn odd_keys_are_copied() {
    let world = World::new().await;
    let long = "long/".repeat(200);
    let keys = [
        "log/0000-a+b?c=d.drv.1",
        "é ü/日本 %41%2F&x=y#z",
        "?versionId=7",
        "..",
        "../../lock",
        "/leading",
        "a//b/",
        "tab\tand\"quotes\"<&>",
        long.as_str(),
    ];
    for key in keys {
        world.put(key, key.as_bytes()).await;
    }
    for key in keys {
        world.copy(key, "plain").send().await.expect(key);
        assert_eq!(world.get("plain").await.as_deref(), Some(key.as_bytes()), "from {key:?}");
        world.client.delete_object().bucket(BUCKET).key(key).send().await.expect("deletes");
        world.copy("plain", key).send().await.expect(key);
        assert_eq!(world.get(key).await.as_deref(), Some(key.as_bytes()), "to {key:?}");
    }
    world.put("empty", b"").await;
    world.copy("empty", "plain").send().await.expect("copies");
    assert_eq!(world.get("plain").await, Some(Vec::new()));
    assert_eq!(refused(world.copy("plain", &"x".repeat(1025))).await.0, 400);
}

#[tokio::test]
async fn conditions_on_the_source() {
    let world = World::new().await;
    world.put("source", b"bytes").await;
    let head = world.head("source").await;
    let (tag, modified) = (head.e_tag().expect("a tag"), head.last_modified().expect("a time").secs());
    let (earlier, same) = (DateTime::from_secs(modified - 60), DateTime::from_secs(modified));
    let copy = || world.copy("source", "copy");
    let fail = [
        copy().copy_source_if_match("\"0-1\""),
        copy().copy_source_if_none_match(tag),
        copy().copy_source_if_none_match("*"),
        copy().copy_source_if_modified_since(same),
        copy().copy_source_if_unmodified_since(earlier),
        copy().copy_source_if_none_match(tag).copy_source_if_modified_since(earlier),
    ];
    for request in fail {
        let shown = format!("{request:?}");
        assert_eq!(refused(request).await, answered(412, "PreconditionFailed"), "{shown}");
    }
    assert_eq!(world.get("copy").await, None);
    let hold = [
        copy().copy_source_if_match(tag),
        copy().copy_source_if_match("*"),
        copy().copy_source_if_none_match("\"0-1\""),
        copy().copy_source_if_modified_since(earlier),
        copy().copy_source_if_unmodified_since(same),
        copy().copy_source_if_match(tag).copy_source_if_unmodified_since(earlier),
    ];
    for request in hold {
        let shown = format!("{request:?}");
        request.send().await.unwrap_or_else(|error| panic!("{shown}: {error:?}"));
        assert_eq!(world.get("copy").await.as_deref(), Some(&b"bytes"[..]));
        world.client.delete_object().bucket(BUCKET).key("copy").send().await.expect("deletes");
    }
}

#[tokio::test]
async fn a_copy_may_be_write_once() {
    let world = Arc::new(World::new().await);
    world.put("new", b"new").await;
    world.put("old", b"old").await;
    let once = world.copy("new", "old").if_none_match("*");
    assert_eq!(refused(once).await, answered(412, "PreconditionFailed"));
    assert_eq!(world.get("old").await.as_deref(), Some(&b"old"[..]));
    let stale = world.copy("new", "old").if_match("\"0-1\"");
    assert_eq!(refused(stale).await, answered(412, "PreconditionFailed"));
    assert_eq!(refused(world.copy("new", "old").if_match("no tag")).await, answered(400, "InvalidArgument"));
    assert_eq!(world.get("old").await.as_deref(), Some(&b"old"[..]));
    let tag = get_tag(world.head("old").await.e_tag.as_ref());
    world.copy("new", "old").if_match(tag).send().await.expect("the expected one is there");
    assert_eq!(world.get("old").await.as_deref(), Some(&b"new"[..]));

    let mut writers = JoinSet::new();
    for number in 0..16u8 {
        let world = Arc::clone(&world);
        writers.spawn(async move {
            let source = format!("source/{number}");
            world.put(&source, &vec![number; 300_000]).await;
            match world.copy(&source, "once").if_none_match("*").send().await {
                Ok(_) => Some(number),
                Err(error) => {
                    assert_eq!(error.code(), Some("PreconditionFailed"));
                    None
                }
            }
        });
    }
    let winners: Vec<u8> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(world.get("once").await, Some(vec![winners[0]; 300_000]));
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn readers_see_the_old_object_or_the_new_one() {
    let world = Arc::new(World::new().await);
    let bodies = [vec![1u8; 1 << 20], vec![2u8; (2 << 20) + 1]];
    for (body, name) in bodies.iter().zip(["a", "b"]) {
        world.put(name, body).await;
    }
    world.put("target", &bodies[0]).await;
    let (stop, stopping) = watch::channel(false);
    let copier = Arc::clone(&world);
    let copies = tokio::spawn(async move {
        for source in ["b", "a"].into_iter().cycle() {
            copier.copy(source, "target").send().await.expect("copies");
            if *stopping.borrow() {
                break;
            }
        }
    });
    let (mut seen, mut reads) = (BTreeSet::new(), 0);
    while seen.len() < bodies.len() || reads < 10 {
        assert!(!copies.is_finished() && reads < 1000, "after {reads} reads only {seen:?}");
        let get = world.client.get_object().bucket(BUCKET).key("target").checksum_mode(ChecksumMode::Enabled);
        let get = get.send().await.expect("always there");
        let promised = get.checksum_sha256().expect("a checksum").to_owned();
        // The client compares as well, and fails when they differ.
        let body = get.body.collect().await.expect("a body").to_vec();
        assert_eq!(promised, sum(&body));
        assert!(bodies.contains(&body), "{} bytes", body.len());
        seen.insert(body[0]);
        reads += 1;
    }
    stop.send_replace(true);
    copies.await.expect("no panic");
    assert_eq!(world.temporary_files(), 0);
}

#[tokio::test]
async fn a_copy_of_an_upload_in_parts_has_a_checksum_of_the_whole() {
    let world = World::new().await;
    let parts = [vec![1u8; 5 << 20], vec![2u8; 7]];
    let new = world.client.create_multipart_upload().bucket(BUCKET).key("big").content_type("x/y").send().await;
    let id = get_tag(new.expect("begins").upload_id.as_ref());
    let mut named = CompletedMultipartUpload::builder();
    for (part, number) in parts.iter().zip(1..) {
        let sent = world.client.upload_part().bucket(BUCKET).key("big").upload_id(&id).part_number(number);
        let sent = sent.body(ByteStream::from(part.clone())).send().await.expect("uploads");
        named = named.parts(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
    }
    let complete = world.client.complete_multipart_upload().bucket(BUCKET).key("big").upload_id(&id);
    complete.multipart_upload(named.build()).send().await.expect("completes");
    let source = world.head("big").await;
    assert!(source.checksum_sha256().expect("a checksum").ends_with("-2"));

    world.copy("big", "whole").send().await.expect("copies");
    let copy = world.head("whole").await;
    assert_eq!(copy.checksum_sha256(), Some(sum(&parts.concat()).as_str()));
    assert_eq!(copy.content_type(), Some("x/y"));
    assert_ne!(copy.e_tag(), source.e_tag());
    assert_eq!(world.get("whole").await, Some(parts.concat()));
    world.put("put", &parts.concat()).await;
    assert_eq!(world.head("put").await.e_tag(), copy.e_tag(), "the same bytes, put at once");
}

#[tokio::test]
async fn strangers_copy_nothing() {
    let world = World::new().await;
    world.put("secret", b"x").await;
    let url = format!("{}/{BUCKET}/stolen", world.endpoint.url());
    let unsigned = world.http.put(&url).header("x-amz-copy-source", "cache/secret");
    assert_eq!(answer(unsigned).await, answered(403, "AccessDenied"), "unsigned");
    let wrong = client(&world.endpoint.url(), "another secret", RequestChecksumCalculation::WhenRequired);
    let foreign = wrong.copy_object().copy_source("cache/secret").bucket(BUCKET).key("stolen");
    assert_eq!(refused(foreign).await, answered(403, "SignatureDoesNotMatch"), "another key");
    // Who may put some bytes may not have others copied in their stead.
    let request = world.presigned("stolen", b"promised", 60).await;
    let smuggled = request.headers().filter(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
    let smuggled = smuggled
        .fold(world.http.put(request.uri()).body(b"promised".to_vec()), |sent, (name, value)| sent.header(name, value));
    let smuggled = smuggled.header("x-amz-copy-source", "cache/secret");
    assert_eq!(answer(smuggled).await, answered(403, "AccessDenied"), "an unsigned source");
    assert_eq!(world.get("stolen").await, None);
}

#[tokio::test]
async fn copies_outlive_the_endpoint_that_is_durable() {
    let folder = tempfile::tempdir().expect("temporary directory");
    for round in 0..2 {
        let options = S3Options { durable: true, ..options(folder.path()) };
        let endpoint = S3Endpoint::start(options, Arc::new(SystemClock)).await.expect("starts");
        let client = client(&endpoint.url(), SECRET_KEY, RequestChecksumCalculation::WhenRequired);
        if round == 0 {
            let body = ByteStream::from_static(b"value");
            client.put_object().bucket(BUCKET).key("kept").body(body).send().await.expect("puts");
            let copy = client.copy_object().copy_source("cache/kept").bucket(BUCKET).key("new/directory/copy");
            copy.send().await.expect("copies");
        }
        let got = client.get_object().bucket(BUCKET).key("new/directory/copy").send().await.expect("gets");
        assert_eq!(got.body.collect().await.expect("a body").to_vec(), b"value");
        endpoint.stop().await;
    }
}
