//! Whole evaluations beside an upstream cache that has a narinfo and not the archive.

use harmonia_db::testing::random_token;
use harmonia_db::{ClaimedJob, UpstreamFault};
use harmonia_nix::{NarInfo, SecretKey, Sha256Hash};

use super::*;
use crate::test_parts::TestStore;

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
    let expression = format!("let {MAKE} in (mk \"dep\" {{ low = mk \"low\" {{ }}; }}).outPath");
    let dep = TestStore::new().run("nix-instantiate", &["--eval", "--json", "-E", &expression]);
    let dep = StorePath::parse(dep.trim().trim_matches('"')).expect("a path");
    let key = SecretKey::from_seed("up-1", &[7; 32]).expect("a key");
    let mut info = NarInfo {
        path: dep.clone(),
        url: "nar/gone.nar".to_owned(),
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
    let archive_asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&archive_asked);
    let cache = TestServer::start(move |request| match request.path.as_str() {
        path if path == narinfo => Answer::new(200, text.clone()),
        "/nar/gone.nar" => {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Answer::new(404, "")
        }
        _ => Answer::new(404, ""),
    })
    .await;
    let upstream = cache.cache(&[key.public_key()]);
    let world =
        World::start_as(async |database| database.db.clone(), |options| options.substituters = vec![upstream]).await;
    let flake = format!(
        "{{ outputs = {{ self }}: let {MAKE} dep = mk \"dep\" {{ low = mk \"low\" {{ }}; }}; in {{
            checks.x86_64-linux.top = mk \"top\" {{ inherit dep; }}; }}; }}"
    );
    let id = world.queue("main", &[("flake.nix", &flake)], None).await;
    let view = world.ended(id).await;
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded, "{:?}", view.evaluation.error);
    let names = |jobs: &[ClaimedJob]| jobs.iter().map(|job| job.name.clone()).collect::<Vec<_>>();
    let top = world.claim().await;
    assert_eq!(names(&top), ["top"], "the cache has dep");

    // The builder cannot get it; the evaluator looks itself, and queues dep with what it needs, though it ended long ago.
    let fault = UpstreamFault {
        path: dep.clone(),
        cache: cache.url.to_string(),
        roots: vec![dep.clone()],
        reason: "the archive nar/gone.nar is not there".to_owned(),
    };
    let db = &world.database.db;
    db.report_upstream_fault(top[0].attempt, &top[0].token, &fault).await.expect("reported");
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
    assert_eq!(archive_asked.load(std::sync::atomic::Ordering::SeqCst), 1, "the evaluator asked itself, once");
    let view = world.view(id).await;
    assert_eq!((view.jobs.pending, view.jobs.building), (2, 1), "dep waits for low, top for dep: {:?}", view.jobs);
    assert_eq!(view.evaluation.status, EvalStatus::Succeeded);
    assert!(db.sweep_invariants().await.expect("swept").is_empty());
    world.stop().await;
}
