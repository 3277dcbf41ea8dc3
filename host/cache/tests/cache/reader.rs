//! The reading side when things go wrong: outages, broken connections, private paths, questions that make no sense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use harmonia_cache::{ByteRange, ObjectStore, ObjectStoreOptions, PutOptions, ReadError, Reader, ReaderOptions, keys};
use harmonia_core::Viewer;
use harmonia_core::signer_api::{Holder, SourcesComplete};
use harmonia_nix::{Sha256Hash, StorePath};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::support::{BUCKET, options};
use crate::world::{Nar, World, poll_once};

async fn publish_source(world: &World, name: &str, nar: &Nar) -> StorePath {
    let (path, info) = nar.source(name, &[]);
    world.upload(&world.eval_token, Holder::Evaluation(world.evaluation), &[(&info, nar)], None).await;
    let call = SourcesComplete { evaluation: world.evaluation, paths: vec![info] };
    world.signer.sources_complete(&world.eval_token, &call).await.expect("published");
    path
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(size)
    .collect()
}

#[tokio::test]
async fn questions_that_make_no_sense_have_no_answer() {
    let world = World::start().await;
    let reader = &world.reader;
    assert_eq!(reader.nix_cache_info(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    let odd = "/../e";
    for hash_part in ["", "x", "00000000000000000000000000000000x", "E0000000000000000000000000000000", odd] {
        assert_eq!(reader.narinfo(Viewer::Token, hash_part).await.expect("known"), None);
        assert_eq!(reader.listing(Viewer::Token, hash_part).await.expect("known"), None);
    }
    for file in ["", "x.nar.zst", "../../x", "0.nar.xz"] {
        assert!(reader.nar(Viewer::Token, file, None).await.expect("known").is_none());
        assert!(reader.nar_head(Viewer::Token, file).await.expect("known").is_none());
    }
    for name in ["", "x", "../x.drv", "00000000000000000000000000000000-a", "00000000000000000000000000000000-.drv"] {
        assert!(reader.log(Viewer::Token, name).await.expect("known").is_none());
        assert!(reader.drv(Viewer::Token, name).await.expect("known").is_none());
    }
    assert!(reader.log_at("nar/x").await.expect("known").is_none());
}

#[tokio::test]
async fn bodies_come_whole_and_in_parts() {
    let world = World::start().await;
    let nar = Nar::of_noise(2 << 20);
    publish_source(&world, "large", &nar).await;
    let file = format!("{}.nar.zst", Sha256Hash::of(&nar.compressed).to_base32());
    let total = nar.compressed.len() as u64;
    let head = world.reader.nar_head(Viewer::Token, &file).await.expect("known").expect("there");
    assert_eq!(head.total, total);
    for (range, from, to) in [
        (None, 0, total),
        (Some(ByteRange::From(100)), 100, total),
        (Some(ByteRange::Between(7, 1_000_000)), 7, 1_000_001),
        (Some(ByteRange::Last(1)), total - 1, total),
    ] {
        let body = world.reader.nar(Viewer::Token, &file, range).await.expect("known").expect("there");
        assert_eq!((body.offset, body.length, body.total), (from, to - from, total));
        assert_eq!((body.is_partial, body.etag.clone()), (range.is_some(), head.etag.clone()));
        let pieces: Vec<Bytes> = body.into_stream().try_collect().await.expect("complete");
        assert!(pieces.concat() == nar.compressed[from as usize..to as usize], "{range:?}");
    }
    let error = world.reader.nar(Viewer::Token, &file, Some(ByteRange::From(total))).await.expect_err("beyond the end");
    assert!(error.is_range(), "{error:?}");
}

/// What is hidden from the public is hidden everywhere; who has a token sees it.
#[tokio::test]
async fn private_paths_answer_nobody_without_a_token() {
    let world = World::start().await;
    let public = publish_source(&world, "public", &Nar::file("public")).await;
    let text = world.reader.narinfo(Viewer::Public, public.hash_part()).await.expect("known").expect("public");
    // A path in the bucket that no public project reaches: the database does not know it at all.
    let hidden = StorePath::parse("/nix/store/00000000000000000000000000000000-hidden").expect("valid");
    let hidden_text = String::from_utf8(text.to_vec()).expect("UTF-8").replace(public.base_name(), hidden.base_name());
    let put = async |key: String, bytes: Bytes| {
        let options = PutOptions { content_type: "text/plain", ..PutOptions::default() };
        world.bucket.store.put(&key, bytes, options).await.expect("stored");
    };
    put(keys::narinfo(&hidden), hidden_text.clone().into()).await;
    put(keys::listing(&hidden), "{}".into()).await;
    let drv = StorePath::parse("/nix/store/00000000000000000000000000000000-hidden.drv").expect("valid");
    put(keys::log(&drv), "secret".into()).await;
    put(keys::derivation(&drv), "secret".into()).await;

    let reader = &world.reader;
    for (viewer, sees) in [(Viewer::Public, false), (Viewer::Token, true), (Viewer::Public, false)] {
        assert_eq!(reader.narinfo(viewer, hidden.hash_part()).await.expect("known").is_some(), sees);
        assert_eq!(reader.listing(viewer, hidden.hash_part()).await.expect("known").is_some(), sees);
        assert_eq!(reader.log(viewer, drv.base_name()).await.expect("known").is_some(), sees);
        assert_eq!(reader.drv(viewer, drv.base_name()).await.expect("known").is_some(), sees);
    }
}

#[tokio::test]
async fn a_damaged_narinfo_is_not_absent() {
    let world = World::start().await;
    let put = async |key: &str, text: &'static str| {
        let options = PutOptions { content_type: "text/plain", ..PutOptions::default() };
        world.bucket.store.put(key, text.into(), options).await.expect("stored");
    };
    let hash_part = "00000000000000000000000000000000";
    put(&format!("{hash_part}.narinfo"), "StorePath: x").await;
    let error = world.reader.narinfo(Viewer::Token, hash_part).await.expect_err("damaged");
    assert!(matches!(&error, ReadError::Shared(error) if matches!(**error, ReadError::Damaged { .. })), "{error:?}");
}

/// While the bucket is away: what is remembered is served, everything else is unknown, and nothing is absent.
#[tokio::test]
async fn an_outage_is_not_absence() {
    let world = World::start().await;
    let nar = Nar::file("known");
    let known = publish_source(&world, "known", &nar).await;
    let other = publish_source(&world, "other", &Nar::file("other")).await;
    let reader = &world.reader;
    assert!(reader.narinfo(Viewer::Public, known.hash_part()).await.expect("known").is_some());
    world.bucket.endpoint.stop().await;
    assert!(reader.narinfo(Viewer::Public, known.hash_part()).await.expect("remembered").is_some());
    let file = format!("{}.nar.zst", Sha256Hash::of(&nar.compressed).to_base32());
    let (narinfo, body, head, log) = tokio::join!(
        reader.narinfo(Viewer::Public, other.hash_part()),
        reader.nar(Viewer::Token, &file, None),
        reader.nar_head(Viewer::Token, &file),
        reader.log_at("log/x"),
    );
    for error in [
        narinfo.map(drop).expect_err("unknown"),
        body.map(drop).expect_err("unknown"),
        head.map(drop).expect_err("unknown"),
        log.map(drop).expect_err("unknown"),
    ] {
        assert!(!error.is_range(), "{error:?}");
    }
}

/// A hundred clients at once that ask for what is not there, then for what is just published.
#[tokio::test]
async fn a_publication_is_seen_at_once() {
    let world = World::start().await;
    let nar = Nar::file("new");
    let (path, _) = nar.source("new", &[]);
    // Another node: nobody tells its reader.
    let elsewhere = Reader::new(world.bucket.store.clone(), world.db().clone(), ReaderOptions::default());
    for reader in [&world.reader, &elsewhere] {
        let asked = (0..100).map(|_| reader.narinfo(Viewer::Public, path.hash_part()));
        let answers = futures_util::future::try_join_all(asked).await.expect("known");
        assert!(answers.iter().all(Option::is_none));
    }
    publish_source(&world, "new", &nar).await;
    for reader in [&world.reader, &elsewhere] {
        let asked = (0..100).map(|_| reader.narinfo(Viewer::Public, path.hash_part()));
        let answers = futures_util::future::try_join_all(asked).await.expect("known");
        assert!(answers.iter().all(Option::is_some));
    }
}

/// How a proxy misbehaves.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// Cuts the first answers off, each after so many bytes.
    Cuts { answers: usize, bytes: usize },
    /// Passes so many bytes in all, then nothing more.
    Dies { bytes: usize },
}

/// Passes bytes on to `to` as well as `trouble` allows. Counts what it cut off.
async fn flaky_proxy(to: SocketAddr, trouble: Trouble) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let cuts = Arc::new(AtomicUsize::new(0));
    let passed_in_all = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&cuts);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_on(client, to, trouble, Arc::clone(&counter), Arc::clone(&passed_in_all)));
        }
    });
    (address, cuts)
}

async fn pass_on(
    client: TcpStream,
    to: SocketAddr,
    trouble: Trouble,
    cuts: Arc<AtomicUsize>,
    passed_in_all: Arc<AtomicUsize>,
) {
    let server = TcpStream::connect(to).await.expect("the endpoint listens");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut passed = 0;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
        let before = passed_in_all.fetch_add(count, Ordering::SeqCst);
        passed += count;
        let is_cut = match trouble {
            Trouble::Dies { bytes } => before + count > bytes,
            Trouble::Cuts { answers, bytes } => {
                passed > bytes
                    && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < answers).then_some(n + 1)).is_ok()
            }
        };
        if is_cut || to_client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    requests.abort();
}

/// Whoever asks after a publication sees it, even when somebody else's look, begun before it, is still under way.
#[tokio::test]
async fn an_answer_is_never_older_than_its_question() {
    let world = World::start().await;
    let nar = Nar::file("new");
    let (path, _) = nar.source("new", &[]);
    let (gate, held) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let proxy = holding_proxy(world.bucket.endpoint.address(), Arc::clone(&gate), Arc::clone(&held)).await;
    let reader = through(&world, proxy);

    let mut early = Box::pin(reader.narinfo(Viewer::Public, path.hash_part()));
    while held.load(Ordering::SeqCst) == 0 {
        assert!(poll_once(&mut early).await.is_none());
        tokio::task::yield_now().await;
    }
    // The store has said that it is not there; nobody has heard it yet.
    publish_source(&world, "new", &nar).await;
    let mut late = Box::pin(reader.narinfo(Viewer::Public, path.hash_part()));
    assert!(poll_once(&mut late).await.is_none(), "it waits with the other one");
    gate.add_permits(Semaphore::MAX_PERMITS);
    let (early, late) = tokio::join!(early, late);
    assert_eq!(early.expect("known"), None, "it was true when it was asked");
    assert!(late.expect("known").is_some(), "it asked after the publication");
}

/// Passes answers on once the gate is open, and counts those that wait.
async fn holding_proxy(to: SocketAddr, gate: Arc<Semaphore>, held: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
            tokio::spawn(async move {
                let server = TcpStream::connect(to).await.expect("the endpoint listens");
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let requests = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut buffer = vec![0; 16 << 10];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    held.fetch_add(1, Ordering::SeqCst);
                    let _permit = gate.acquire().await.expect("open");
                    if to_client.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
                requests.abort();
            });
        }
    });
    address
}

fn through(world: &World, proxy: SocketAddr) -> Reader {
    let options = ObjectStoreOptions { bucket: BUCKET.to_owned(), ..options(&format!("http://{proxy}")) };
    Reader::new(ObjectStore::new(options), world.db().clone(), ReaderOptions::default())
}

#[tokio::test]
async fn a_body_that_breaks_off_is_taken_up_again() {
    let world = World::start().await;
    let nar = Nar::of_noise(4 << 20);
    publish_source(&world, "large", &nar).await;
    let file = format!("{}.nar.zst", Sha256Hash::of(&nar.compressed).to_base32());

    let trouble = Trouble::Cuts { answers: 3, bytes: 500_000 };
    let (proxy, cuts) = flaky_proxy(world.bucket.endpoint.address(), trouble).await;
    let range = Some(ByteRange::From(1_000));
    let body = through(&world, proxy).nar(Viewer::Token, &file, range).await.expect("known").expect("there");
    let pieces: Vec<Bytes> = body.into_stream().try_collect().await.expect("complete in spite of it");
    assert!(pieces.concat() == nar.compressed[1_000..]);
    assert_eq!(cuts.load(Ordering::SeqCst), 3);
}

/// A store that delivers nothing is found out before the first byte is promised; one that stops for good half-way ends
/// the stream with an error, never early.
#[tokio::test]
async fn a_body_that_cannot_be_completed_is_an_error() {
    let world = World::start().await;
    let nar = Nar::of_noise(4 << 20);
    publish_source(&world, "large", &nar).await;
    let file = format!("{}.nar.zst", Sha256Hash::of(&nar.compressed).to_base32());

    let (proxy, _) = flaky_proxy(world.bucket.endpoint.address(), Trouble::Dies { bytes: 0 }).await;
    let error = through(&world, proxy).nar(Viewer::Token, &file, None).await.expect_err("nothing can be promised");
    assert!(!error.is_range(), "{error:?}");

    let (proxy, _) = flaky_proxy(world.bucket.endpoint.address(), Trouble::Dies { bytes: 1 << 20 }).await;
    let body = through(&world, proxy).nar(Viewer::Token, &file, None).await.expect("it began well").expect("there");
    assert_eq!(body.length, nar.compressed.len() as u64);
    let mut stream = Box::pin(body.into_stream());
    let mut received = 0;
    let error = loop {
        match stream.try_next().await {
            Ok(Some(piece)) => received += piece.len(),
            Ok(None) => panic!("{received} bytes without an error"),
            Err(error) => break error,
        }
    };
    assert!(received > 0 && received < nar.compressed.len(), "{received}");
    assert!(error.is_transient(), "{error:?}");
}

impl Nar {
    /// A file that does not compress.
    fn of_noise(size: usize) -> Self {
        let mut writer = harmonia_nix::nar::NarWriter::new(Vec::new()).expect("in memory");
        writer.regular(false, size as u64, &*noise(size), &mut [0; 4096], "noise").expect("in memory");
        Self::of(writer.into_inner())
    }
}
