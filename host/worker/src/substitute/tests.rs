//! Real binary caches made by stock Nix, served over HTTP, into the store of a stock daemon.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use harmonia_nix::PublicKey;

use super::*;
use crate::test_parts::{Answer, Request, TestDaemon, TestServer, TestStore};

/// `top` refers to `middle`, which refers to `base`; `base` has a file that does not compress.
const EXPRESSION: &str = r#"let
    make = name: script: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ]; };
    base = make "base" "i=0; while [ $i -lt 20000 ]; do echo $i $((i * 7919 % 10007)) $((i * i % 9973)); i=$((i + 1)); done > $out";
    middle = make "middle" "echo ${base} > $out; echo $out >> $out";
    top = make "top" "echo ${middle} > $out";
  in top"#;

struct World {
    source: TestStore,
    cache: PathBuf,
    key: PublicKey,
    top: StorePath,
    /// All three, by name.
    closure: BTreeMap<String, StorePath>,
}

impl World {
    fn new(compression: &str) -> Self {
        let source = TestStore::new();
        let top = source.build(EXPRESSION);
        let cache = source.dir.path().join("cache");
        let key = source.copy_to_cache(&cache, compression, "test-1", &[&top]).trim().parse().expect("key");
        let closure = source.run("nix-store", &["-qR", top.as_str()]);
        let closure = closure.lines().map(|line| StorePath::parse(line).expect("path"));
        let closure = closure.map(|path| (path.name().to_owned(), path)).collect();
        Self { source, cache, key, top, closure }
    }

    fn narinfo(&self, name: &str) -> PathBuf {
        self.cache.join(format!("{}.narinfo", self.closure[name].hash_part()))
    }

    fn edit_narinfo(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.narinfo(name)).expect("narinfo");
        let edited = edit(text.clone());
        assert_ne!(text, edited, "the edit must change something");
        std::fs::write(self.narinfo(name), edited).expect("narinfo");
    }

    fn nar(&self, name: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.narinfo(name)).expect("narinfo");
        self.cache.join(NarInfo::parse(&text).expect("narinfo").url)
    }

    async fn serve(&self) -> TestServer {
        TestServer::of_folder(&self.cache, |_, answer| answer).await
    }

    fn substituter(&self, daemon: &TestDaemon, caches: &[&TestServer]) -> Substituter {
        let caches = caches.iter().map(|server| server.cache(std::slice::from_ref(&self.key))).collect();
        let mut options = SubstituterOptions::new(caches);
        options.retries = 1;
        Substituter::new(reqwest::Client::new(), daemon.client(), options)
    }

    async fn fetch_top(&self, daemon: &TestDaemon, caches: &[&TestServer]) -> Result<(), SubstituteError> {
        self.substituter(daemon, caches).substitute(&BTreeSet::from([self.top.clone()])).await
    }
}

async fn valid(daemon: &TestDaemon) -> Vec<String> {
    let mut connection = daemon.client().connect().await.expect("connects");
    let paths = connection.query_all_valid_paths().await.expect("paths");
    let mut names: Vec<String> = paths.iter().map(|path| path.name().to_owned()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_closure_arrives_byte_for_byte_whatever_the_compression() {
    for compression in ["zstd", "xz", "none", "gzip", "bzip2", "br", "lz4"] {
        let world = World::new(compression);
        let daemon = TestDaemon::start().await;
        let server = world.serve().await;
        world.fetch_top(&daemon, &[&server]).await.expect("substitutes");
        assert_eq!(valid(&daemon).await, ["base", "middle", "top"], "{compression}");
        // Stock Nix is the judge: it compares all files with the hashes in its database, and these with the source's.
        daemon.store.run("nix-store", &["--verify", "--check-contents"]);
        for path in world.closure.values() {
            for query in ["--hash", "--references", "--size"] {
                let args = ["-q", query, path.as_str()];
                assert_eq!(daemon.store.run("nix-store", &args), world.source.run("nix-store", &args));
            }
        }
        let info = daemon.client().connect().await.expect("connects").query_path_info(&world.top).await.expect("info");
        assert!(info.expect("valid").signatures.iter().any(|signature| signature.starts_with("test-1:")));
    }
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again_and_no_not_found_is_remembered() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counter, is_open) = (Arc::clone(&asked), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let gate = Arc::clone(&is_open);
    let server = TestServer::of_folder(&world.cache, move |request: &Request, answer| {
        counter.fetch_add(1, Ordering::SeqCst);
        assert!(!request.path.ends_with(".narinfo") || request.header("cache-control") == Some("no-cache"));
        if gate.load(Ordering::SeqCst) { answer } else { Answer::new(404, "") }
    })
    .await;
    let substituter = world.substituter(&daemon, &[&server]);
    let wanted = BTreeSet::from([world.top.clone()]);
    let error = substituter.substitute(&wanted).await.expect_err("not there yet");
    assert!(
        matches!(&error, SubstituteError::Missing { paths, caches: 1 } if *paths == [world.top.clone()]),
        "{error:?}"
    );

    is_open.store(true, Ordering::SeqCst);
    let plan = substituter.plan(&wanted).await.expect("plan");
    assert_eq!(plan.missing().count(), 3);
    // Two builds that need the same path at the same time fetch it once.
    let before = asked.load(Ordering::SeqCst);
    let other = substituter.plan(&wanted).await.expect("plan");
    let narinfos = asked.load(Ordering::SeqCst) - before;
    let (first, second) = tokio::join!(substituter.import(plan), substituter.import(other));
    first.and(second).expect("substitutes");
    assert_eq!(asked.load(Ordering::SeqCst) - before - narinfos, 3, "one NAR each");

    let before = asked.load(Ordering::SeqCst);
    assert!(substituter.plan(&wanted).await.expect("plan").is_empty());
    substituter.substitute(&wanted).await.expect("nothing to do");
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn signatures_of_strangers_do_not_count() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let server = world.serve().await;
    world.edit_narinfo("middle", |text| text.replace("Sig: test-1:", "Sig: test-2:"));
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("not signed");
    assert!(matches!(&error, SubstituteError::BadSignature { path, .. } if path.name() == "middle"), "{error:?}");
    assert!(valid(&daemon).await.is_empty(), "nothing of it was imported");

    // Another reference than what was signed.
    let world = World::new("zstd");
    let server = world.serve().await;
    let base = world.closure["base"].base_name().to_owned();
    world.edit_narinfo("top", |text| text.replace("References: ", &format!("References: {base} ")));
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("changed after signing");
    assert!(matches!(error, SubstituteError::BadSignature { .. }), "{error:?}");
}

#[tokio::test]
async fn a_path_addressed_by_its_content_needs_no_signature_but_the_right_content() {
    let source = TestStore::new();
    let file = source.dir.path().join("source");
    std::fs::create_dir(&file).expect("folder");
    std::fs::write(file.join("a"), "text").expect("file");
    let path = source.run("nix-store", &["--add", file.to_str().expect("text")]);
    let path = StorePath::parse(&path).expect("path");
    let other = source.dir.path().join("other");
    std::fs::write(&other, "something else").expect("file");
    let other = StorePath::parse(&source.run("nix-store", &["--add", other.to_str().expect("text")])).expect("path");
    let cache = source.dir.path().join("cache");
    source.copy_to_cache(&cache, "zstd", "unknown-1", &[&path, &other]);
    let server = TestServer::of_folder(&cache, |_, answer| answer).await;
    let daemon = TestDaemon::start().await;
    let options = SubstituterOptions::new(vec![server.cache(&[])]);
    let substituter = Substituter::new(reqwest::Client::new(), daemon.client(), options);
    substituter.substitute(&BTreeSet::from([path.clone()])).await.expect("proves itself");
    assert_eq!(valid(&daemon).await, [path.name()]);
    drop(daemon);

    // The same claim with the content of another path.
    let daemon = TestDaemon::start().await;
    let narinfo = |path: &StorePath| cache.join(format!("{}.narinfo", path.hash_part()));
    let mut info = NarInfo::parse(&std::fs::read_to_string(narinfo(&path)).expect("text")).expect("narinfo");
    let lie = NarInfo::parse(&std::fs::read_to_string(narinfo(&other)).expect("text")).expect("narinfo");
    (info.url, info.nar_hash, info.nar_size) = (lie.url, lie.nar_hash, lie.nar_size);
    (info.file_hash, info.file_size) = (lie.file_hash, lie.file_size);
    std::fs::write(narinfo(&path), info.to_string()).expect("file");
    let options = SubstituterOptions::new(vec![server.cache(&[])]);
    let substituter = Substituter::new(reqwest::Client::new(), daemon.client(), options);
    let error = substituter.substitute(&BTreeSet::from([path])).await.expect_err("a lie");
    assert!(matches!(error, SubstituteError::BadSignature { .. }), "{error:?}");
}

#[tokio::test]
async fn tampered_and_cut_archives_are_refused_and_name_what_is_wrong() {
    type Case = (&'static str, fn(&World), fn(&FetchError) -> bool);
    let cases: [Case; 4] = [
        (
            "other bytes of the same size",
            |world| {
                let file = world.nar("base");
                let mut bytes = std::fs::read(&file).expect("NAR");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(file, bytes).expect("NAR");
            },
            |error| matches!(error, FetchError::Hash { what: "archive", .. }),
        ),
        (
            "a shorter file",
            |world| {
                let file = world.nar("base");
                let bytes = std::fs::read(&file).expect("NAR");
                std::fs::write(file, &bytes[..bytes.len() - 8]).expect("NAR");
            },
            |error| matches!(error, FetchError::Size { .. }),
        ),
        (
            "a longer file",
            |world| {
                let file = world.nar("base");
                let mut bytes = std::fs::read(&file).expect("NAR");
                bytes.extend_from_slice(&[0; 8]);
                std::fs::write(file, bytes).expect("NAR");
            },
            |error| matches!(error, FetchError::Size { .. }),
        ),
        (
            "no file",
            |world| std::fs::remove_file(world.nar("base")).expect("removed"),
            |error| matches!(error, FetchError::NoArchive(_)),
        ),
    ];
    let world = World::new("none");
    let nar = std::fs::read(world.nar("base")).expect("NAR");
    let daemon = TestDaemon::start().await;
    let server = world.serve().await;
    for (name, harm, expected) in cases {
        harm(&world);
        let error = world.fetch_top(&daemon, &[&server]).await.expect_err(name);
        let SubstituteError::Corrupt { path, cause, .. } = &error else { panic!("{name}: {error:?}") };
        assert!(path.name() == "base" && expected(cause), "{name}: {error:?}");
        assert!(valid(&daemon).await.is_empty(), "{name}");
        std::fs::write(world.nar("base"), &nar).expect("NAR");
    }
    // The store is not left in a state that keeps the sound archive out.
    world.fetch_top(&daemon, &[&server]).await.expect("substitutes");
}

#[tokio::test]
async fn a_damaged_compressed_file_is_refused() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let server = world.serve().await;
    let file = world.nar("base");
    let bytes = std::fs::read(&file).expect("NAR");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("NAR");
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("half");
    assert!(matches!(&error, SubstituteError::Corrupt { cause: FetchError::Unpack(_), .. }), "{error:?}");

    // The same NAR, compressed anew: what was signed is right, what the file's name says is not.
    let plain = zstd::decode_all(&bytes[..]).expect("zstd");
    std::fs::write(&file, zstd::encode_all(&plain[..], 1).expect("zstd")).expect("NAR");
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("another file");
    assert!(
        matches!(&error, SubstituteError::Corrupt { cause: FetchError::Hash { what: "compressed file", .. }, .. }),
        "{error:?}"
    );
    world.edit_narinfo("base", |text| text.replace("Compression: zstd", "Compression: lzip"));
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("unknown compression");
    let SubstituteError::Corrupt { cause, .. } = &error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("'lzip'"), "{cause}");
}

#[tokio::test]
async fn a_cache_that_breaks_off_is_asked_again_and_then_called_unavailable() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let cuts = Arc::new(AtomicUsize::new(1));
    let left = Arc::clone(&cuts);
    let server = TestServer::of_folder(&world.cache, move |request: &Request, answer| {
        let cut = request.path.starts_with("/nar/")
            && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        Answer { cut_at: cut.then_some(100), ..answer }
    })
    .await;
    cuts.store(1_000, Ordering::SeqCst);
    let error = world.fetch_top(&daemon, &[&server]).await.expect_err("always cut");
    assert!(matches!(&error, SubstituteError::Unavailable { cause: FetchError::Http(_), .. }), "{error:?}");
    cuts.store(1, Ordering::SeqCst);
    world.fetch_top(&daemon, &[&server]).await.expect("the second try succeeds");
}

#[tokio::test]
async fn caches_are_asked_in_order_and_one_makes_up_for_the_other() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let good = world.serve().await;
    let empty = TestServer::start(|_| Answer::new(404, "")).await;
    let broken = TestServer::start(|_| Answer::new(503, "")).await;
    // Has every narinfo and no archive.
    let hollow = TestServer::of_folder(&world.cache, |request: &Request, answer| {
        if request.path.starts_with("/nar/") { Answer::new(404, "") } else { answer }
    })
    .await;

    let error = world.fetch_top(&daemon, &[&empty, &broken]).await.expect_err("who knows");
    assert!(matches!(&error, SubstituteError::Unavailable { cause: FetchError::Status(503), .. }), "{error:?}");
    let error = world.fetch_top(&daemon, &[&empty, &empty]).await.expect_err("nowhere");
    assert!(matches!(&error, SubstituteError::Missing { caches: 2, .. }), "{error:?}");
    assert!(
        error.to_string().contains("none of the 2 configured caches, as far as they show it to this builder"),
        "{error}"
    );
    world.fetch_top(&daemon, &[&empty, &broken, &hollow, &good]).await.expect("the last one has it");
    assert_eq!(valid(&daemon).await, ["base", "middle", "top"]);
}

#[tokio::test]
async fn all_paths_that_are_nowhere_are_named_at_once() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let server = world.serve().await;
    let wanted: BTreeSet<StorePath> = world.closure.values().cloned().collect();
    std::fs::remove_file(world.narinfo("base")).expect("removed");
    std::fs::remove_file(world.narinfo("top")).expect("removed");
    let error = world.substituter(&daemon, &[&server]).substitute(&wanted).await.expect_err("two are nowhere");
    assert!(error.to_string().contains("(and 1 more) is in none of the 1 configured caches"), "{error}");
    let SubstituteError::Missing { paths, .. } = error else { panic!("{error:?}") };
    assert_eq!(paths.iter().map(StorePath::name).collect::<BTreeSet<_>>(), BTreeSet::from(["base", "top"]));
}

#[tokio::test]
async fn a_daemon_that_is_away_is_named() {
    let world = World::new("zstd");
    let daemon = TestDaemon::start().await;
    let server = world.serve().await;
    let substituter = world.substituter(&daemon, &[&server]);
    let plan = substituter.plan(&BTreeSet::from([world.top.clone()])).await.expect("plan");
    let socket = daemon.socket();
    drop(daemon);
    let error = substituter.import(plan).await.expect_err("no daemon");
    let SubstituteError::Connect(cause) = &error.cause else { panic!("{error:?}") };
    assert!(cause.to_string().contains(&socket.display().to_string()), "{cause}");
}
