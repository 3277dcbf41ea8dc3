//! The whole loop: jobs in PostgreSQL, claimed, built by the daemon, uploaded, handed to the signer.

use std::collections::BTreeSet;
use std::sync::Arc;

use harmonia_core::policy::{AskingNode, Candidate, Policy, PolicyError, ProjectLoad};
use harmonia_core::ports::LogSpool as _;
use harmonia_core::signer_api::BuildCompleteAnswer;
use harmonia_core::{FailureKind, JobId, JobStatus};
use harmonia_nix::Sha256Hash;
use harmonia_nix::worker_protocol::types::GcRequest;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::{Builder, BuilderError, Slot, Spool};
use super::world::World;
use super::*;
use crate::pack::physical_path;
use crate::test_parts::{Answer, TestStore};

/// A builder at work. Dropping it aborts.
pub(crate) struct Running {
    task: JoinHandle<Result<(), BuilderError>>,
    pub(crate) spool: Arc<Spool>,
    paused: tokio::sync::watch::Receiver<Option<String>>,
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Running {
    pub(crate) async fn start(world: &World) -> Self {
        Self::start_with(world, |_| {}).await
    }

    pub(crate) async fn start_with(world: &World, change: impl FnOnce(&mut super::super::BuilderOptions)) -> Self {
        let mut options = world.options(Vec::new());
        change(&mut options);
        world.register(&options).await;
        let builder = Builder::new(options).expect("builder");
        let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
        let (spool, paused) = (builder.spool(), builder.paused());
        let task = tokio::spawn(builder.run(drain.clone(), abort.clone()));
        Self { task, spool, paused, drain, abort }
    }

    /// Lets it finish what it has.
    pub(crate) async fn drain(self) -> Result<(), BuilderError> {
        self.drain.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("drains").expect("no panic")
    }

    pub(crate) async fn abort(self) {
        self.abort.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task)
            .await
            .expect("stops within 5 s")
            .expect("no panic")
            .expect("stops");
    }
}

fn no_files(dir: &std::path::Path) -> bool {
    std::fs::read_dir(dir).expect("folder").next().is_none()
}

#[tokio::test]
async fn a_job_is_built_and_uploaded_with_its_log_and_nothing_is_left_over() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation_with(
        "two",
        "echo building; echo main $dev > $out; echo headers > $dev",
        "outputs = [ \"out\" \"dev\" ];",
    ));
    let jobs = world.queue(&[&drv]).await;
    let running = Running::start(&world).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    assert_eq!(world.status(jobs[0]).await, JobStatus::Building, "what follows is the signer's");
    running.drain().await.expect("drains");

    let complete = world.recorded().completed[0].clone();
    let derivation = world.read_derivation(&drv);
    let declared: Vec<(&str, String)> =
        derivation.output_paths().map(|(name, path)| (name, path.expect("known").to_string())).collect();
    let found: Vec<(&str, String)> =
        complete.outputs.iter().map(|output| (output.name.as_str(), output.info.path.clone())).collect();
    assert_eq!(found, declared);
    for output in &complete.outputs {
        let nar = world.object(&output.info.file_hash);
        assert_eq!(Sha256Hash::of(&nar).to_string(), output.info.nar_hash);
        assert_eq!(nar.len() as u64, output.info.nar_size);
        assert_eq!(output.info.deriver.as_deref(), Some(drv.as_str()));
        assert!(output.info.listing.is_some());
        let physical = physical_path(Some(&world.daemon.store.root()), &output.info.path.parse().expect("path"));
        let mut dumped = Vec::new();
        harmonia_nix::nar::pack_path(&physical, &mut dumped).expect("packs");
        assert_eq!(nar, dumped);
    }
    let dev = &complete.outputs.iter().find(|output| output.name == "dev").expect("dev").info;
    let out = &complete.outputs.iter().find(|output| output.name == "out").expect("out").info;
    assert_eq!((out.references.as_slice(), dev.references.len()), (&[dev.path.clone()][..], 0));
    assert_eq!(world.object(&complete.log.expect("log").file_hash), b"building\n");
    assert_eq!(complete.usage.output_bytes, out.nar_size + dev.nar_size);
    assert!(complete.usage.build_seconds > 0.0);
    assert!(no_files(world.spool_dir.path()) && no_files(&world.roots_dir()));
}

#[tokio::test]
async fn a_derivation_that_is_not_in_the_store_comes_from_the_cache_and_must_be_the_right_one() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("cached", "echo cached > $out"));
    let file = physical_path(Some(&world.daemon.store.root()), &drv);
    let text = std::fs::read(&file).expect("a .drv");
    let jobs = world.queue(&[&drv]).await;
    let mut daemon = world.daemon.client().connect().await.expect("connects");
    daemon.collect_garbage(&GcRequest::delete(BTreeSet::from([drv.clone()]))).await.expect("deletes");
    assert!(!file.exists());
    let object = world.cache_dir.path().join(format!("drv/{}.zst", drv.base_name()));
    std::fs::create_dir(object.parent().expect("folder")).expect("folder");
    let forged = String::from_utf8(text.clone()).expect("text").replace("echo cached", "echo forged");
    std::fs::write(&object, zstd::encode_all(forged.as_bytes(), 3).expect("zstd")).expect("file");

    let options = world.options(Vec::new());
    world.register(&options).await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let job = world.claim(&node).await;
    let slot = Slot::take(&node.slots);
    super::super::job::run(Arc::clone(&node), job.clone(), slot, CancellationToken::new()).await;
    let failure = world.recorded().failed[0].failure.clone();
    assert_eq!(failure.kind, None);
    assert!(failure.message.contains("its text was changed"), "{failure:?}");

    std::fs::write(&object, zstd::encode_all(&text[..], 3).expect("zstd")).expect("file");
    let slot = Slot::take(&node.slots);
    super::super::job::run(Arc::clone(&node), job, slot, CancellationToken::new()).await;
    let complete = world.recorded().completed[0].clone();
    assert!(String::from_utf8_lossy(&world.object(&complete.outputs[0].info.file_hash)).contains("cached\n"));
    assert_eq!(world.status(jobs[0]).await, JobStatus::Building, "what follows is the signer's");
}

#[tokio::test]
async fn a_failed_build_is_told_to_the_signer_with_its_log() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("fails", "echo what went wrong; exit 7"));
    world.queue(&[&drv]).await;
    let running = Running::start(&world).await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let failed = world.recorded().failed[0].clone();
    assert_eq!((failed.failure.kind, failed.failure.exit_code), (Some(FailureKind::Build), Some(7)));
    let log = String::from_utf8(world.object(&failed.log.expect("log").file_hash)).expect("text");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((lines[0], lines.len()), ("what went wrong", 2), "{log}");
    assert!(lines[1].contains("failed with exit code 7"), "{log}");
    assert!(world.recorded().completed.is_empty() && no_files(world.spool_dir.path()));
}

#[tokio::test]
async fn without_a_signer_the_failure_goes_to_the_database() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("fails", "exit 1"));
    let jobs = world.queue(&[&drv]).await;
    world.script(|_, _| Some(Answer::new(503, "")));
    let running = Running::start_with(&world, |options| options.signer = world.impatient_signer()).await;
    world.until_status(jobs[0], JobStatus::Failed).await;
    running.drain().await.expect("drains");
}

#[tokio::test]
async fn an_upload_takes_no_build_slot() {
    let world = World::new().await;
    let first = world.daemon.store.instantiate(&derivation("first", ": > $out"));
    let second = world.daemon.store.instantiate(&derivation("second", "echo 2 > $out"));
    world.queue(&[&first, &second]).await;
    // Nobody gets slots before both have asked: with one build slot that needs the second to build meanwhile.
    let seen = std::sync::Mutex::new(BTreeSet::new());
    world.script(move |request, _| {
        if request.path != "/api/upload-slots" {
            return None;
        }
        let mut seen = seen.lock().expect("not poisoned");
        seen.insert(request.header("authorization").expect("token").to_owned());
        (seen.len() < 2).then(|| Answer::new(503, ""))
    });
    let running = Running::start(&world).await;
    until("both are complete", || world.recorded().completed.len() == 2).await;
    running.drain().await.expect("drains");
}

#[tokio::test]
async fn a_cancelled_job_stops_building_and_is_not_reported() {
    let world = World::new().await;
    let marker = unique();
    let drv = world.daemon.store.instantiate(&derivation("endless", &format!("echo go; while :; do : {marker}; done")));
    let jobs = world.queue(&[&drv]).await;
    let running = Running::start(&world).await;
    until("it runs", || !processes_with(&marker).is_empty()).await;
    let started = std::time::Instant::now();
    world.database.db.cancel_job(jobs[0], "test").await.expect("cancelled");
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    running.drain().await.expect("drains");
    assert_eq!(world.status(jobs[0]).await, JobStatus::Cancelled);
    assert!(world.recorded().failed.is_empty() && no_files(world.spool_dir.path()) && no_files(&world.roots_dir()));
}

#[tokio::test]
async fn abort_gives_jobs_back_within_5_s_and_drain_finishes_them() {
    let world = World::new().await;
    let marker = unique();
    let gate = format!("while ! [ -e /gate-{marker} ]; do : {marker}; done; echo > $out");
    let drv = world.daemon.store.instantiate(&derivation("long", &gate));
    let jobs = world.queue(&[&drv]).await;
    let running = Running::start(&world).await;
    until("it runs", || !processes_with(&marker).is_empty()).await;
    running.abort().await;
    assert_eq!(world.status(jobs[0]).await, JobStatus::Pending);
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
    assert!(no_files(world.spool_dir.path()) && no_files(&world.roots_dir()));

    // Claimed again by the next process, which is told to drain while it builds.
    let slow = world
        .daemon
        .store
        .instantiate(&derivation("slow", "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; echo > $out"));
    world.database.db.cancel_job(jobs[0], "test").await.expect("cancelled");
    world.queue(&[&slow]).await;
    let running = Running::start_with(&world, |options| options.incarnation = harmonia_core::Incarnation(2)).await;
    until("it builds", || running.spool.open_logs().len() == 1).await;
    running.drain().await.expect("drains");
    assert_eq!(world.recorded().completed.len(), 1);
}

#[tokio::test]
async fn inputs_are_kept_from_the_garbage_collector_while_a_build_runs() {
    let world = World::new().await;
    let marker = unique();
    let input = derivation("input", "echo input > $out");
    let expression = format!(
        "let input = {input}; in derivation {{ name = \"user\"; system = builtins.currentSystem; builder = \"/bin/sh\";
         args = [ \"-c\" \"echo go; while :; do : {marker}; done; echo ${{input}} > $out\" ]; }}"
    );
    let built = world.daemon.store.build(&input);
    let (input, user) = world.instantiate_pair(&expression);
    let jobs = world.queue_available(&[&input], &[&user]).await;
    let running = Running::start(&world).await;
    until("it runs", || !processes_with(&marker).is_empty()).await;
    until("it printed", || running.spool.open_logs()[0].size() > 0).await;
    assert_eq!(running.spool.read(running.spool.open_logs()[0].attempt(), 0, 100).await.as_deref(), Some(&b"go\n"[..]));
    world.until_tail(jobs[0], b"go\n").await;

    let mut daemon = world.daemon.client().connect().await.expect("connects");
    daemon.collect_garbage(&GcRequest::delete_dead()).await.expect("collects");
    assert!(daemon.is_valid_path(&built).await.expect("answers"), "the input of a running build is alive");
    running.abort().await;
    daemon.collect_garbage(&GcRequest::delete_dead()).await.expect("collects");
    assert!(!daemon.is_valid_path(&built).await.expect("answers"), "and afterwards it is not");
}

/// An input whose content differs with each build.
pub(super) const RANDOM: &str = "read x < /proc/sys/kernel/random/uuid; echo $x > $out";

pub(super) fn user_of(input: &str) -> String {
    format!(
        "let input = {input}; in derivation {{ name = \"user\"; system = builtins.currentSystem; builder = \"/bin/sh\";
         args = [ \"-c\" \"while read x; do echo $x; done < ${{input}} > $out\" ]; }}"
    )
}

#[tokio::test]
async fn an_input_that_no_cache_has_is_reported_and_the_job_tried_again() {
    let world = World::new().await;
    let expression = derivation("random", RANDOM);
    let source = TestStore::new();
    let path = source.build(&expression);
    let (input, user) = world.instantiate_pair(&user_of(&expression));
    world.publish(&input, &source, &path).await;
    world.queue_above(&[&user]).await;
    let running = Running::start(&world).await;
    until("it is reported", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let failure = world.recorded().failed[0].failure.clone();
    assert_eq!(failure.kind, None);
    assert!(failure.message.contains("none of the 1 configured caches"), "{failure:?}");
    let missing = world.database.db.missing_paths(10).await.expect("reports");
    assert_eq!(missing, [harmonia_db::MissingPath { path, damaged: false }]);
}

#[tokio::test]
async fn outputs_that_lost_against_published_ones_are_deleted() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("loser", RANDOM));
    let output = world.read_derivation(&drv).output_paths().next().and_then(|(_, path)| path.cloned()).expect("path");
    world.queue(&[&drv]).await;
    let differs = output.to_string();
    world.script(move |request, _| {
        let answer = BuildCompleteAnswer::Canonical { differs: vec![differs.clone()] };
        (request.path == "/api/build-complete").then(|| Answer::json(&answer))
    });
    let running = Running::start(&world).await;
    until("it was built", || !world.recorded().slots.is_empty()).await;
    running.drain().await.expect("drains");
    let mut daemon = world.daemon.client().connect().await.expect("connects");
    assert!(!daemon.is_valid_path(&output).await.expect("answers"));
}

#[tokio::test]
async fn references_that_no_cache_has_are_uploaded_along() {
    let world = World::new().await;
    let extra = world.daemon.store.build(&derivation("extra", "echo extra > $out"));
    let drv = world.daemon.store.instantiate(&derivation("main", "echo main > $out"));
    world.queue(&[&drv]).await;
    let asks = extra.to_string();
    world.script(move |request, _| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
        let is_first = request.path == "/api/build-complete" && body["extra_paths"].as_array()?.is_empty();
        is_first.then(|| Answer::json(&BuildCompleteAnswer::MissingReferences { paths: vec![asks.clone()] }))
    });
    let running = Running::start(&world).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    running.drain().await.expect("drains");
    let complete = world.recorded().completed[0].clone();
    assert_eq!(complete.extra_paths.iter().map(|info| info.path.as_str()).collect::<Vec<_>>(), [extra.as_str()]);
    assert!(String::from_utf8_lossy(&world.object(&complete.extra_paths[0].file_hash)).contains("extra\n"));
}

#[tokio::test]
async fn outputs_above_the_limit_fail_the_job_for_good() {
    let world = World::new().await;
    let script = "i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i + 1)); done > $out";
    let drv = world.daemon.store.instantiate(&derivation("large", script));
    world.queue(&[&drv]).await;
    let options = world.options(Vec::new());
    world.register(&options).await;
    let Builder { node, .. } = Builder::new(options).expect("builder");
    let mut job = world.claim(&node).await;
    job.limits.output_bytes_max = 20_000;
    let slot = Slot::take(&node.slots);
    super::super::job::run(Arc::clone(&node), job, slot, CancellationToken::new()).await;
    let failure = world.recorded().failed[0].failure.clone();
    assert_eq!(failure.kind, Some(FailureKind::Limit), "{failure:?}");
    assert!(failure.message.contains("limit of 20000"), "{failure:?}");
}

struct Panics;
impl Policy for Panics {
    fn rank(&self, _: &AskingNode, _: &[ProjectLoad], _: &[Candidate]) -> Result<Vec<JobId>, PolicyError> {
        panic!("a policy that panics")
    }
    fn charge(&self, _: &[(ProjectLoad, f64)]) -> Result<Vec<f64>, PolicyError> {
        panic!("a policy that panics")
    }
    fn decay(&self, _: &[f64], _: f64) -> Result<Vec<f64>, PolicyError> {
        panic!("a policy that panics")
    }
}

#[tokio::test]
async fn a_policy_that_panics_does_not_stop_work() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("any", ": > $out"));
    world.queue(&[&drv]).await;
    let running = Running::start_with(&world, |options| options.policy = Arc::new(Panics)).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    let nodes = world.database.db.nodes(PATIENCE).await.expect("nodes");
    assert!(nodes.iter().any(|node| node.policy_error.as_deref() == Some("it panicked")), "{nodes:?}");
    running.drain().await.expect("drains");
}

#[tokio::test]
async fn a_full_disk_pauses_claims_and_says_so() {
    let world = World::new().await;
    let drv = world.daemon.store.instantiate(&derivation("any", ": > $out"));
    let jobs = world.queue(&[&drv]).await;
    let mut running = Running::start_with(&world, |options| options.min_free_bytes = u64::MAX).await;
    let reason = tokio::time::timeout(PATIENCE, running.paused.wait_for(Option::is_some)).await;
    let reason = reason.expect("pauses").expect("the builder runs").clone();
    assert!(reason.as_deref().is_some_and(|reason| reason.contains("min_free")), "{reason:?}");
    assert_eq!(world.status(jobs[0]).await, JobStatus::Pending);
    running.drain().await.expect("drains");
}

#[tokio::test]
async fn a_process_whose_name_was_taken_stops() {
    let world = World::new().await;
    let marker = unique();
    let drv = world.daemon.store.instantiate(&derivation("endless", &format!("while :; do : {marker}; done")));
    let jobs = world.queue(&[&drv]).await;
    let running = Running::start_with(&world, |options| options.max_jobs = 2).await;
    until("it runs", || !processes_with(&marker).is_empty()).await;
    let mut other = world.options(Vec::new());
    other.incarnation = harmonia_core::Incarnation(2);
    world.register(&other).await;
    assert_eq!(world.status(jobs[0]).await, JobStatus::Pending, "its job was taken back");
    let ended = tokio::time::timeout(PATIENCE, running.task).await.expect("stops by itself").expect("no panic");
    assert!(matches!(ended, Err(BuilderError::Refused(_))), "{ended:?}");
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
}
