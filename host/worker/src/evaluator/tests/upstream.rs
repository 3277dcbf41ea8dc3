//! Whole evaluations beside an upstream cache that has a narinfo, and perhaps not the archive.

use std::sync::atomic::{AtomicUsize, Ordering};

use harmonia_db::testing::random_token;
use harmonia_db::{ClaimedJob, UpstreamFault};
use harmonia_nix::{NarInfo, SecretKey, Sha256Hash};

use super::*;
use crate::binary_cache::BinaryCache;
use crate::test_parts::TestStore;

/// A cache with the narinfo of `dep`, and an answer for who asks for its archive.
struct Upstream {
    server: TestServer,
    cache: BinaryCache,
    dep: StorePath,
    archive: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    async fn start(archive: Answer) -> Self {
        let expression = format!("let {MAKE} in (mk \"dep\" {{ low = mk \"low\" {{ }}; }}).outPath");
        let dep = TestStore::new().run("nix-instantiate", &["--eval", "--json", "-E", &expression]);
        let dep = StorePath::parse(dep.trim().trim_matches('"')).expect("a path");
        let key = SecretKey::from_seed("up-1", &[7; 32]).expect("a key");
        let mut info = NarInfo {
            path: dep.clone(),
            url: "nar/dep.nar".to_owned(),
            compression: "none".to_owned(),
            file_hash: None,
            file_size: None,
            nar_hash: Sha256Hash::of(b"nar"),
            nar_size: 3,
            references: BTreeSet::new(),
            deriver: None,
            content_address: None,
            signatures: Vec::new(),
        };
        info.sign(&key);
        let (narinfo, text) = (format!("/{}.narinfo", dep.hash_part()), info.to_string());
        let (archive, asked) = (Arc::new(Mutex::new(archive)), Arc::new(AtomicUsize::new(0)));
        let (answer, counter) = (Arc::clone(&archive), Arc::clone(&asked));
        let server = TestServer::start(move |request| match request.path.as_str() {
            path if path == narinfo => Answer::new(200, text.clone()),
            "/nar/dep.nar" => {
                counter.fetch_add(1, Ordering::SeqCst);
                answer.lock().expect("lock").clone()
            }
            _ => Answer::new(404, ""),
        })
        .await;
        let cache = server.cache(&[key.public_key()]);
        Self { server, cache, dep, archive, asked }
    }

    fn archive_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// An evaluator that asks it, and an evaluation that wants `top`, which needs `dep`, which the cache has.
    async fn evaluated(&self) -> (World, EvalId) {
        let cache = self.cache.clone();
        let world =
            World::start_as(async |database| database.db.clone(), |options| options.substituters = vec![cache]).await;
        let flake = format!(
            "{{ outputs = {{ self }}: let {MAKE} dep = mk \"dep\" {{ low = mk \"low\" {{ }}; }}; in {{
                checks.x86_64-linux.top = mk \"top\" {{ inherit dep; }}; }}; }}"
        );
        let id = world.queue("main", &[("flake.nix", &flake)], None).await;
        let view = world.ended(id).await;
        assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
        (world, id)
    }

    /// What a builder says that could not get the archive.
    fn fault(&self) -> UpstreamFault {
        UpstreamFault {
            path: self.dep.clone(),
            cache: self.server.url.to_string(),
            roots: vec![self.dep.clone()],
            reason: "the archive nar/dep.nar is not there".to_owned(),
        }
    }
}

fn names(jobs: &[ClaimedJob]) -> Vec<String> {
    jobs.iter().map(|job| job.name.clone()).collect()
}

impl World {
    /// Claims what is ready, as a builder.
    async fn claim(&self) -> Vec<ClaimedJob> {
        let db = &self.database.db;
        let classes = db.resolve_classes(&["x86_64-linux".to_owned()], &[]).await.expect("classes");
        let heads = db.queue_heads(&classes, 100).await.expect("heads");
        let jobs: Vec<_> = heads.candidates.iter().map(|candidate| candidate.job).collect();
        let tokens: Vec<_> = jobs.iter().map(|_| random_token()).collect();
        db.claim_jobs(&NodeId("here".to_owned()), Incarnation(1), &jobs, &tokens).await.expect("claims")
    }
}

#[tokio::test]
async fn what_an_upstream_cache_does_not_give_is_queued_in_the_evaluation_that_wants_it() {
    let upstream = Upstream::start(Answer::new(404, "")).await;
    let (world, id) = upstream.evaluated().await;
    let top = world.claim().await;
    assert_eq!(names(&top), ["top"], "the cache has dep");

    // The builder cannot get it; the evaluator looks itself, and queues dep with what it needs, though it ended long ago.
    let db = &world.database.db;
    db.report_upstream_fault(top[0].attempt, &top[0].token, &upstream.fault()).await.expect("reported");
    db.release_attempt(top[0].attempt, &top[0].token, "an input could not be had").await.expect("released");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ready = world.claim().await;
        match names(&ready).as_slice() {
            [name] if name == "low" => break,
            // Before anybody looked, it may be tried again.
            [name] if name == "top" => {
                let top = &ready[0];
                db.release_attempt(top.attempt, &top.token, "an input could not be had").await.expect("released");
            }
            [] => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "low is never ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(upstream.archive_asked(), 1, "the evaluator asked itself, once");
    let view = world.view(id).await;
    assert_eq!((view.jobs.pending, view.jobs.building), (2, 1), "dep waits for low, top for dep: {:?}", view.jobs);
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded);
    assert!(db.sweep_invariants().await.expect("swept").is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_report_stays_while_the_cache_cannot_say_and_goes_when_it_gives_the_path() {
    let upstream = Upstream::start(Answer::new(503, "")).await;
    let (world, id) = upstream.evaluated().await;
    let top = world.claim().await;
    assert_eq!(names(&top), ["top"], "the cache has dep");
    let (attempt, token) = (top[0].attempt, &top[0].token);
    let db = &world.database.db;
    let report = (upstream.dep.clone(), upstream.server.url.to_string());
    let caches = [report.1.clone()];
    // Of our own cache, which is for signers; evaluators look after theirs at that, too.
    let look_again = || db.report_missing_path(attempt, token, &upstream.dep, false);

    db.report_upstream_fault(attempt, token, &upstream.fault()).await.expect("reported");
    let until_asked = async |times: usize| {
        let deadline = Instant::now() + PATIENCE;
        while upstream.archive_asked() < times {
            assert!(Instant::now() < deadline, "asked {} times", upstream.archive_asked());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until_asked(1).await;
    look_again().await.expect("reported");
    until_asked(2).await;
    assert_eq!(db.upstream_reports(&caches, 10).await.expect("reports"), [report], "it is asked until it answers");

    *upstream.archive.lock().expect("lock") = Answer::new(200, "nar");
    look_again().await.expect("reported");
    let deadline = Instant::now() + PATIENCE;
    while !db.upstream_reports(&caches, 10).await.expect("reports").is_empty() {
        assert!(Instant::now() < deadline, "the report stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let view = world.view(id).await;
    assert_eq!((view.jobs.pending, view.jobs.building), (0, 1), "nothing is built in its place: {:?}", view.jobs);
    db.release_attempt(attempt, token, "an input could not be had").await.expect("released");
    assert_eq!(names(&world.claim().await), ["top"], "which is ready as before");
    assert!(db.sweep_invariants().await.expect("swept").is_empty());
    world.stop().await;
}

#[tokio::test]
async fn people_are_told_of_a_cache_that_fails_without_its_password() {
    let mut upstream = Upstream::start(Answer::new(404, "")).await;
    let mut url = upstream.server.url.clone();
    let name = url.to_string();
    url.set_username("ci").expect("a user");
    url.set_password(Some("hunter2")).expect("a password");
    url.set_query(Some("sas=hunter2"));
    upstream.cache = BinaryCache::new(&url.into(), Vec::new()).expect("a cache");
    // Nobody answers there.
    upstream.server = TestServer::start(|_| Answer::new(404, "")).await;
    let (world, id) = upstream.evaluated().await;
    let warnings = world.view(id).await.warnings;
    assert!(warnings.iter().any(|warning| warning.contains(&format!("{name} does not answer"))), "{warnings:?}");
    assert!(!format!("{warnings:?}").contains("hunter2"), "{warnings:?}");
    let deadline = Instant::now() + PATIENCE;
    let troubles = loop {
        let troubles = world.database.db.upstream_troubles().await.expect("troubles");
        if !troubles.is_empty() {
            break troubles;
        }
        assert!(Instant::now() < deadline, "nobody is told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(troubles[0].cache, name);
    assert!(troubles[0].trouble.contains("does not answer (the connection failed"), "{troubles:?}");
    assert!(!format!("{troubles:?}").contains("hunter2"), "{troubles:?}");
    world.stop().await;
}
