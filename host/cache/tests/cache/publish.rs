//! Paths that get into the cache as they should.

use harmonia_cache::{SignErrorKind, SignerOptions, keys};
use harmonia_core::FailureKind;
use harmonia_core::Viewer;
use harmonia_core::signer_api::{
    AttemptUsage, BuildCompleteAnswer, BuildFailed, BuildFailedAnswer, Failure, Holder, PathInfo, Slot, SlotsRequest,
    SourcesComplete,
};
use harmonia_nix::{ContentAddress, Hash, HashAlgorithm, NarInfo, Sha256Hash, StorePath};

use crate::support::put;
use crate::world::{Drv, Log, Nar, World, secret_key};

async fn narinfo(world: &World, path: &StorePath) -> Option<NarInfo> {
    let text = world.reader.narinfo(Viewer::Public, path.hash_part()).await.expect("known")?;
    Some(NarInfo::parse(std::str::from_utf8(&text).expect("UTF-8")).expect("a narinfo"))
}

async fn read(body: Option<harmonia_cache::Body>) -> Vec<u8> {
    use futures_util::TryStreamExt as _;
    let body = body.expect("there");
    let length = body.length;
    let pieces: Vec<bytes::Bytes> = body.into_stream().try_collect().await.expect("complete");
    let bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

#[tokio::test]
async fn a_build_is_published_with_everything_about_it() {
    let world = World::start().await;
    let lib = Drv::new("lib", &["out", "dev"], &[]);
    let app = Drv::new("app", &["out"], &[&lib]);
    world.insert(&[&lib, &app], &[]).await;
    let again = world.signer.drv_upload(&world.eval_token, world.drv_upload(&[&lib, &app])).await.expect("again");
    assert_eq!(again.stored, 0);

    let attempt = world.claim(&lib).await;
    let (out, dev) = (Nar::file("lib"), Nar::file("headers"));
    let mut call = lib.complete(&attempt, &[("out", &out, &[lib.output("out")]), ("dev", &dev, &[lib.output("out")])]);
    let listing = r#"{"root":{"narOffset":96,"size":3,"type":"regular"},"version":1}"#;
    call.outputs[0].info.listing = Some(listing.to_owned());
    let log = Log::of("building lib\n");
    call.log = Some(log.blob());
    let holder = Holder::Attempt(attempt.id);
    let paths = [(&call.outputs[0].info, &out), (&call.outputs[1].info, &dev)];
    assert_eq!(world.upload(&attempt.token, holder, &paths, Some(&log)).await, 3);
    assert_eq!(world.upload(&attempt.token, holder, &paths, Some(&log)).await, 0, "all are present now");

    assert!(narinfo(&world, lib.output("out")).await.is_none(), "uploaded is not published");
    let answer = world.signer.build_complete(&attempt.token, call.clone()).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);

    for (name, nar) in [("out", &out), ("dev", &dev)] {
        let narinfo = narinfo(&world, lib.output(name)).await.expect("published");
        assert!(narinfo.is_signed_by(&[secret_key().public_key()]));
        assert_eq!(narinfo.path, *lib.output(name));
        assert_eq!((narinfo.nar_hash, narinfo.nar_size), (nar.hash(), nar.bytes.len() as u64));
        assert_eq!(narinfo.references, [lib.output("out").clone()].into());
        assert_eq!(narinfo.deriver, Some(lib.path.clone()));
        let file = narinfo.url.strip_prefix("nar/").expect("below nar/");
        assert_eq!(read(world.reader.nar(Viewer::Token, file, None).await.expect("known")).await, nar.compressed);
    }
    let hash_part = lib.output("out").hash_part();
    let found = world.reader.listing(Viewer::Public, hash_part).await.expect("known").expect("there");
    assert_eq!(found, listing);
    let body = world.reader.log(Viewer::Public, lib.path.base_name()).await.expect("known");
    assert_eq!(body.as_ref().and_then(|body| body.content_encoding.as_deref()), Some("zstd"));
    assert_eq!(read(body).await, log.compressed);
    let file = read(world.reader.drv(Viewer::Public, lib.path.base_name()).await.expect("known")).await;
    assert_eq!(zstd::decode_all(file.as_slice()).expect("zstd"), lib.text);

    // The job succeeded: what depends on it is ready, and its token is worth nothing any more.
    world.claim(&app).await;
    let again = world.signer.build_complete(&attempt.token, call.clone()).await.expect("the answer was lost");
    assert_eq!(again, BuildCompleteAnswer::Published);
    let error = world.second_signer().build_complete(&attempt.token, call).await.expect_err("ended");
    assert_eq!(error.kind(), SignErrorKind::StaleClaim);
}

#[tokio::test]
async fn sources_are_published_once() {
    let world = World::start().await;
    let holder = Holder::Evaluation(world.evaluation);
    let inner = Nar::file("inner");
    let (inner_path, inner_info) = inner.source("inner", &[]);
    let outer = Nar::file("outer");
    let (outer_path, outer_info) = outer.source("outer", &[&inner_path]);
    let text = Nar::file("a text");
    let text_hash = Sha256Hash::of(b"a text");
    let text_path = StorePath::make_text("text", text_hash, &[outer_path.clone()].into()).expect("valid");
    let mut text_info = text.info(&text_path, &[&outer_path]);
    text_info.ca = Some(ContentAddress::text(text_hash.into()).to_string());

    let call = SourcesComplete {
        evaluation: world.evaluation,
        paths: vec![inner_info.clone(), outer_info.clone(), text_info.clone()],
    };
    let error = world.signer.sources_complete(&world.eval_token, &call).await.expect_err("nothing is up");
    assert_eq!(error.kind(), SignErrorKind::NotUploaded);

    let paths = [(&inner_info, &inner), (&outer_info, &outer), (&text_info, &text)];
    assert_eq!(world.upload(&world.eval_token, holder, &paths, None).await, 3);
    let answer = world.signer.sources_complete(&world.eval_token, &call).await.expect("published");
    assert_eq!(answer.published, 3);
    let answer = world.signer.sources_complete(&world.eval_token, &call).await.expect("again");
    assert_eq!(answer.published, 0);
    for path in [&inner_path, &outer_path, &text_path] {
        let narinfo = narinfo(&world, path).await.expect("published");
        assert!(narinfo.content_address.is_some());
        assert!(narinfo.is_signed_by(&[secret_key().public_key()]));
    }

    // Somebody else compressed the same source differently: there is nothing to upload, and the first object stays.
    let other = inner.recompressed();
    let (_, other_info) = other.source("inner", &[]);
    assert_eq!(world.upload(&world.eval_token, holder, &[(&other_info, &other)], None).await, 0);
    let call = SourcesComplete { evaluation: world.evaluation, paths: vec![other_info] };
    assert_eq!(world.signer.sources_complete(&world.eval_token, &call).await.expect("there").published, 0);
    assert_eq!(narinfo(&world, &inner_path).await.expect("there").file_size, Some(inner.compressed.len() as u64));
}

#[tokio::test]
async fn what_an_output_refers_to_comes_along_or_is_named() {
    let world = World::start().await;
    let app = Drv::new("app", &["out"], &[]);
    world.insert(&[&app], &[]).await;
    let found = Nar::file("fetched on the side");
    let (found_path, found_info) = found.source("found", &[]);
    let out = Nar::file("app");
    let (attempt, mut call) = world.built(&app, &[("out", &out, &[&found_path])]).await;
    let answer = world.signer.build_complete(&attempt.token, call.clone()).await.expect("answered");
    assert_eq!(answer, BuildCompleteAnswer::MissingReferences { paths: vec![found_path.to_string()] });
    assert!(narinfo(&world, app.output("out")).await.is_none(), "the gate is closed");

    let holder = Holder::Attempt(attempt.id);
    assert_eq!(world.upload(&attempt.token, holder, &[(&found_info, &found)], None).await, 1);
    call.extra_paths = vec![found_info];
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    assert!(narinfo(&world, app.output("out")).await.is_some());
    assert!(narinfo(&world, &found_path).await.is_some());
}

/// A path that was built on the side comes along when it is made by an input, and not when it is made by anything else.
#[tokio::test]
async fn outputs_of_inputs_may_come_along() {
    let world = World::start().await;
    let (lib, stranger) = (Drv::new("lib", &["out"], &[]), Drv::new("stranger", &["out"], &[]));
    let middle = Drv::new("middle", &["out"], &[&lib]);
    let app = Drv::new("app", &["out"], &[&middle]);
    // Below what is upstream nobody walks: the graph does not have these two, but signers have seen them.
    let below = world.drv_upload(&[&lib, &stranger]);
    world.signer.drv_upload(&world.eval_token, below).await.expect("uploaded");
    world.insert(&[&app], &[&middle]).await;
    let (out, side) = (Nar::file("app"), Nar::file("on the side"));
    let (lib_path, stranger_path) = (lib.output("out"), stranger.output("out"));
    let attempt = world.claim(&app).await;
    let holder = Holder::Attempt(attempt.id);

    let extra = |drv: &Drv| PathInfo { deriver: Some(drv.path.to_string()), ..side.info(drv.output("out"), &[]) };
    let request = SlotsRequest { holder, paths: vec![extra(&stranger)], log: None };
    let error = world.signer.slots(&attempt.token, &request).await.expect_err("no input");
    assert!(error.public_message().contains("not made by anything that this build depends on"), "{error:?}");
    let mut call = app.complete(&attempt, &[("out", &out, &[lib_path, stranger_path])]);
    call.extra_paths = vec![extra(&lib), extra(&stranger)];
    let error = world.signer.build_complete(&attempt.token, call).await.expect_err("no input");
    assert!(error.public_message().contains("not made by anything that this build depends on"), "{error:?}");
    assert!(narinfo(&world, stranger_path).await.is_none() && narinfo(&world, lib_path).await.is_none());

    let mut call = app.complete(&attempt, &[("out", &out, &[lib_path])]);
    call.extra_paths = vec![extra(&lib)];
    let paths = [(&call.outputs[0].info, &out), (&call.extra_paths[0], &side)];
    assert_eq!(world.upload(&attempt.token, holder, &paths, None).await, 2);
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    assert_eq!(narinfo(&world, lib_path).await.expect("published").deriver, Some(lib.path.clone()));
}

#[tokio::test]
async fn fixed_outputs_have_their_hash_and_a_content_address() {
    let world = World::start().await;
    let flat = ContentAddress::flat(Hash::of(HashAlgorithm::Sha512, b"a tarball"));
    let drv = Drv::fixed("tarball", flat, "");
    world.insert(&[&drv], &[]).await;
    let wrong = Nar::file("another tarball");
    let (attempt, call) = world.built(&drv, &[("out", &wrong, &[])]).await;
    let error = world.signer.build_complete(&attempt.token, call).await.expect_err("refused");
    assert_eq!(error.kind(), SignErrorKind::Refused);
    assert!(error.public_message().contains("must have the content fixed:sha512:"), "{}", error.public_message());

    let right = Nar::file("a tarball");
    let call = drv.complete(&attempt, &[("out", &right, &[])]);
    world.upload(&attempt.token, Holder::Attempt(attempt.id), &[(&call.outputs[0].info, &right)], None).await;
    let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
    assert_eq!(answer, BuildCompleteAnswer::Published);
    assert_eq!(narinfo(&world, drv.output("out")).await.expect("published").content_address, Some(flat));
}

#[tokio::test]
async fn a_failed_attempt_keeps_its_log() {
    let world = World::start().await;
    let drv = Drv::new("broken", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let attempt = world.claim(&drv).await;
    let log = Log::of("make: *** [all] Error 1\n");
    world.upload(&attempt.token, Holder::Attempt(attempt.id), &[], Some(&log)).await;
    let failure = Failure { kind: Some(FailureKind::Build), message: "exit 1".to_owned(), exit_code: Some(1) };
    let call = BuildFailed { attempt: attempt.id, failure, log: Some(log.blob()), usage: AttemptUsage::default() };
    let answer = world.signer.build_failed(&attempt.token, &call).await.expect("recorded");
    assert_eq!(answer, BuildFailedAnswer { retried: false });
    assert_eq!(world.signer.build_failed(&attempt.token, &call).await.expect("the answer was lost"), answer);
    let body = world.reader.log(Viewer::Public, drv.path.base_name()).await.expect("known");
    assert_eq!(read(body).await, log.compressed);
    let key = keys::attempt_log(&drv.path, attempt.id);
    assert_eq!(read(world.reader.log_at(&key).await.expect("known")).await, log.compressed);
}

/// A failure is recorded even when its log did not arrive.
#[tokio::test]
async fn a_log_that_is_not_there_does_not_hide_a_failure() {
    let world = World::start().await;
    let drv = Drv::new("broken", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let attempt = world.claim(&drv).await;
    let failure = Failure { kind: None, message: "the disk is full".to_owned(), exit_code: None };
    let log = Some(Log::of("never uploaded").blob());
    let call = BuildFailed { attempt: attempt.id, failure, log, usage: AttemptUsage::default() };
    let answer = world.signer.build_failed(&attempt.token, &call).await.expect("recorded");
    assert_eq!(answer, BuildFailedAnswer { retried: true });
    assert!(world.reader.log(Viewer::Token, drv.path.base_name()).await.expect("known").is_none());
}

/// What a build printed is shown as its own, never as that of a later one.
#[tokio::test]
async fn a_later_attempt_takes_the_place_of_an_older_log() {
    let world = World::start().await;
    let drv = Drv::new("moody", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let first = world.claim(&drv).await;
    let log = Log::of("words of the first try\n");
    world.upload(&first.token, Holder::Attempt(first.id), &[], Some(&log)).await;
    let failure = Failure { kind: Some(FailureKind::Build), message: "exit 1".to_owned(), exit_code: Some(1) };
    let mut call = BuildFailed { attempt: first.id, failure, log: Some(log.blob()), usage: AttemptUsage::default() };
    world.signer.build_failed(&first.token, &call).await.expect("recorded");
    let latest = || async { world.reader.log(Viewer::Public, drv.path.base_name()).await.expect("known") };
    assert_eq!(read(latest().await).await, log.compressed);

    // One that printed nothing has a log of no bytes.
    world.db().rebuild_job(first.job, "somebody").await.expect("pending again");
    let second = world.claim(&drv).await;
    let silent = Log::of("");
    world.upload(&second.token, Holder::Attempt(second.id), &[], Some(&silent)).await;
    call = BuildFailed { attempt: second.id, log: Some(silent.blob()), ..call };
    world.signer.build_failed(&second.token, &call).await.expect("recorded");
    assert_eq!(read(latest().await).await, silent.compressed);

    // One whose log was lost has none.
    world.db().rebuild_job(first.job, "somebody").await.expect("pending again");
    let third = world.claim(&drv).await;
    call = BuildFailed { attempt: third.id, log: None, ..call };
    world.signer.build_failed(&third.token, &call).await.expect("recorded");
    assert!(latest().await.is_none());
}

/// What is at the key of an upload and is not the upload is replaced, although slots write once.
#[tokio::test]
async fn a_wrong_object_is_replaced() {
    let world = World::start().await;
    let nar = Nar::file("right");
    let (path, info) = nar.source("s", &[]);
    let key = keys::nar(&Sha256Hash::of(&nar.compressed));
    let options = harmonia_cache::PutOptions { content_type: "text/plain", ..harmonia_cache::PutOptions::default() };
    world.bucket.store.put(&key, "something else".into(), options).await.expect("stored");

    let call = SourcesComplete { evaluation: world.evaluation, paths: vec![info.clone()] };
    let error = world.signer.sources_complete(&world.eval_token, &call).await.expect_err("another object");
    assert_eq!(error.kind(), SignErrorKind::NotUploaded);
    assert!(error.to_string().contains("has 14 bytes instead of"), "{error}");

    let request = SlotsRequest { holder: Holder::Evaluation(world.evaluation), paths: vec![info], log: None };
    let answer = world.signer.slots(&world.eval_token, &request).await.expect("slots");
    let Slot::Put { url, headers } = &answer.paths[0] else { panic!("it is not there") };
    assert_eq!(put(url, headers, nar.compressed.clone()).await, 200);
    assert_eq!(world.signer.sources_complete(&world.eval_token, &call).await.expect("accepted").published, 1);
    assert!(narinfo(&world, &path).await.is_some());
}

/// The endpoint that `up` brings along enforces everything, and nothing is left of the probes.
#[tokio::test]
async fn the_probe_says_what_the_store_enforces() {
    let world = World::start().await;
    let report = world.signer.probe().await.expect("probed");
    assert_eq!(report.weaknesses(), Vec::<&str>::new(), "{report:?}");
    let left: Vec<_> = std::process::Command::new("find")
        .arg(world.bucket.folder.path())
        .args(["-path", "*probe*", "-type", "f"])
        .output()
        .expect("find runs")
        .stdout;
    assert_eq!(String::from_utf8_lossy(&left), "");
}

/// Handlers of a web server have to be `Send`.
#[test]
fn every_call_can_move_between_threads() {
    fn check<T: Send>(_: impl FnOnce(&'static World) -> T) {}
    check(|world| {
        world.signer.slots(
            &world.eval_token,
            Box::leak(Box::new(SlotsRequest {
                holder: Holder::Evaluation(world.evaluation),
                paths: vec![],
                log: None,
            })),
        )
    });
    check(|world| world.signer.drv_upload(&world.eval_token, world.drv_upload(&[])));
    check(|world| {
        let call = SourcesComplete { evaluation: world.evaluation, paths: vec![] };
        world.signer.sources_complete(&world.eval_token, Box::leak(Box::new(call)))
    });
    check(|world| world.signer.build_complete(&world.eval_token, unreachable_call()));
    check(|world| world.signer.finish_unfinished());
    check(|world| world.signer.probe());
    check(|world| world.reader.narinfo(Viewer::Public, "x"));
    check(|world| world.reader.nar(Viewer::Token, "x", None));
    check(|world| world.reader.log(Viewer::Public, "x"));
}

fn unreachable_call() -> harmonia_core::signer_api::BuildComplete {
    panic!("types are checked, nothing runs")
}

const LISTING: &str = r#"{"root":{"narOffset":96,"size":3,"type":"regular"},"version":1}"#;

/// Whatever becomes objects, who reads the cache sees no difference.
#[tokio::test]
async fn small_logs_and_listings_become_objects_only_where_that_is_wanted() {
    for (in_bucket, name) in [(false, "rows"), (true, "objects")] {
        let world = World::with(SignerOptions { small_in_bucket: in_bucket, ..SignerOptions::default() }).await;
        let drv = Drv::new(name, &["out"], &[]);
        world.insert(&[&drv], &[]).await;
        let (attempt, mut call) = world.built(&drv, &[("out", &Nar::file(name), &[])]).await;
        let log = Log::of("building\n");
        call.log = Some(log.along());
        call.outputs[0].info.listing = Some(LISTING.to_owned());
        let answer = world.signer.build_complete(&attempt.token, call).await.expect("accepted");
        assert_eq!(answer, BuildCompleteAnswer::Published);

        let key = keys::attempt_log(&drv.path, attempt.id);
        for object in [keys::listing(drv.output("out")), key.clone(), keys::log(&drv.path)] {
            assert_eq!(world.bucket.store.head(&object).await.expect("known").is_some(), in_bucket, "{object}");
        }
        let listing = world.reader.listing(Viewer::Public, drv.output("out").hash_part()).await.expect("known");
        assert_eq!(listing.as_deref(), Some(LISTING.as_bytes()));
        let latest = world.reader.log(Viewer::Public, drv.path.base_name()).await.expect("known");
        assert_eq!(latest.as_ref().and_then(|body| body.content_encoding.as_deref()), Some("zstd"));
        assert_eq!(read(latest).await, log.compressed);
        assert_eq!(read(world.reader.log_at(&key).await.expect("known")).await, log.compressed);
        let end = world.reader.log_end_at(&key, 5).await.expect("known").expect("there");
        assert_eq!(end, log.compressed[log.compressed.len() - 5..]);
    }
}

/// Of a failed attempt, too; and the newest log counts, wherever it is.
#[tokio::test]
async fn the_latest_log_is_the_newest_whether_it_is_small_or_large() {
    let world = World::start().await;
    let drv = Drv::new("unlucky", &["out"], &[]);
    world.insert(&[&drv], &[]).await;
    let failure = || Failure { kind: Some(FailureKind::Build), message: "exit 1".to_owned(), exit_code: Some(1) };
    let fail = |attempt, log| BuildFailed { attempt, failure: failure(), log, usage: AttemptUsage::default() };
    for (text, is_small) in [("first\n", true), ("second\n", false), ("third\n", true)] {
        let attempt = world.claim(&drv).await;
        let log = Log::of(text);
        let blob = if is_small {
            log.along()
        } else {
            world.upload(&attempt.token, Holder::Attempt(attempt.id), &[], Some(&log)).await;
            log.blob()
        };
        world.signer.build_failed(&attempt.token, &fail(attempt.id, Some(blob))).await.expect("recorded");
        let latest = world.reader.log(Viewer::Public, drv.path.base_name()).await.expect("known");
        assert_eq!(read(latest).await, log.compressed, "{text}");
        world.db().rebuild_job(attempt.job, "somebody").await.expect("pending again");
    }
}
