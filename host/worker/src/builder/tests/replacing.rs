//! Local inputs that differ from the published ones: replaced, with what was built from them, when nobody uses them.

use harmonia_core::ports::LogSpool as _;
use harmonia_core::{JobId, JobStatus, Timestamp};
use harmonia_nix::{PublicKey, StorePath};

use super::super::BuilderOptions;
use super::whole::{RANDOM, Running, user_of};
use super::world::World;
use super::*;
use crate::pack::physical_path;
use crate::test_parts::TestStore;

#[tokio::test]
async fn a_local_input_that_differs_from_the_published_one_is_replaced() {
    let world = World::new().await;
    let expression = derivation("random", RANDOM);
    let canonical = TestStore::new();
    let path = canonical.build(&expression);
    let key: PublicKey =
        canonical.copy_to_cache(world.cache_dir.path(), "zstd", "test-1", &[&path]).trim().parse().expect("key");
    assert_eq!(world.daemon.store.build(&expression), path);
    let read = |root: &std::path::Path| std::fs::read_to_string(physical_path(Some(root), &path)).expect("file");
    let published = read(&canonical.root());
    assert_ne!(read(&world.daemon.store.root()), published);

    let (input, user) = world.instantiate_pair(&user_of(&expression));
    world.publish(&input, &canonical, &path).await;
    world.queue_above(&[&user]).await;
    let running = Running::start_with(&world, |options| options.cache = world.options(vec![key]).cache).await;
    until("it is complete", || !world.recorded().completed.is_empty()).await;
    running.drain().await.expect("drains");
    assert_eq!(read(&world.daemon.store.root()), published);
    let complete = world.recorded().completed[0].clone();
    let nar = world.object(&complete.outputs[0].info.file_hash);
    assert!(String::from_utf8_lossy(&nar).contains(published.trim()), "built from the published input");
    let log = String::from_utf8(world.object(&complete.log.expect("log").file_hash)).expect("text");
    assert!(log.contains("differs from the published one"), "{log}");
}

/// What was built here from a path that goes would keep it: dead, and an output of the job itself.
#[tokio::test]
async fn what_was_built_from_a_wrong_path_goes_with_it() {
    let world = World::new().await;
    let expression = derivation("random", RANDOM);
    let canonical = TestStore::new();
    let path = canonical.build(&expression);
    let key: PublicKey =
        canonical.copy_to_cache(world.cache_dir.path(), "zstd", "test-1", &[&path]).trim().parse().expect("key");
    let user = format!(
        "let input = {expression}; in derivation {{ name = \"user\"; system = builtins.currentSystem; builder = \"/bin/sh\";
         args = [ \"-c\" \"read x < ${{input}}; echo $x ${{input}} > $out\" ]; }}"
    );
    let built = world.daemon.store.build(&user);
    let read = |root: &std::path::Path, path| std::fs::read_to_string(physical_path(Some(root), path)).expect("file");
    let published = read(&canonical.root(), &path);
    let wrong = read(&world.daemon.store.root(), &built);
    assert!(!wrong.contains(published.trim()));

    let (input, user) = world.instantiate_pair(&user);
    world.publish(&input, &canonical, &path).await;
    world.queue_above(&[&user]).await;
    let running = Running::start_with(&world, |options| options.cache = world.options(vec![key]).cache).await;
    until("it ended", || !world.recorded().completed.is_empty() || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    assert!(world.recorded().failed.is_empty(), "{:?}", world.recorded().failed);
    assert!(read(&world.daemon.store.root(), &built).contains(published.trim()), "built once more");
}

/// A job that uses a local path before another node publishes it, and one that wants the published one.
struct Used {
    world: World,
    running: Running,
    /// What is published.
    content: String,
    path: StorePath,
    holder: JobId,
    job: JobId,
    marker: String,
}

impl Used {
    async fn new(change: impl FnOnce(&mut BuilderOptions)) -> Self {
        let world = World::new().await;
        let marker = unique();
        let expression = derivation("random", RANDOM);
        let canonical = TestStore::new();
        let path = canonical.build(&expression);
        let key: PublicKey =
            canonical.copy_to_cache(world.cache_dir.path(), "zstd", "test-1", &[&path]).trim().parse().expect("key");
        let content = std::fs::read_to_string(physical_path(Some(&canonical.root()), &path)).expect("file");
        assert_eq!(world.daemon.store.build(&expression), path);
        // It names the path itself, as what it was evaluated with can have been built here.
        let holder = world.daemon.store.instantiate(&format!(
            "derivation {{ name = \"holder\"; system = builtins.currentSystem; builder = \"/bin/sh\";
             args = [ \"-c\" \"while ! [ -e ${{builtins.storePath {path}}}-{marker} ]; do : {marker}; done\" ]; }}"
        ));
        let (input, user) = world.instantiate_pair(&user_of(&expression));
        let elsewhere = world.claim_elsewhere(&input).await;
        let holder = world.queue(&[&holder]).await[0];
        let running = Running::start_with(&world, |options| {
            options.cache = world.options(vec![key]).cache;
            options.max_jobs = 2;
            change(options);
        })
        .await;
        until("it uses the input", || !processes_with(&marker).is_empty()).await;
        world.publish_from(&elsewhere, &canonical, &path).await;
        let job = world.queue_above(&[&user]).await[0];
        Self { world, running, content, path, holder, job, marker }
    }

    /// What the store has at the path now.
    fn local(&self) -> String {
        std::fs::read_to_string(physical_path(Some(&self.world.daemon.store.root()), &self.path)).expect("file")
    }

    /// The log of the job while it runs.
    async fn log(&self) -> String {
        let logs = self.running.spool.open_logs();
        let mut all = String::new();
        for log in logs {
            let bytes = self.running.spool.read(log.attempt(), 0, 10_000).await.unwrap_or_default();
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
        all
    }

    async fn until_it_waits(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let log = self.log().await;
            if log.contains("is in use; waiting for attempt ") {
                return;
            }
            assert!(self.world.recorded().failed.is_empty(), "{:?}", self.world.recorded().failed);
            assert!(tokio::time::Instant::now() < deadline, "it does not wait: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_path_that_another_build_uses_is_replaced_when_that_ended() {
    let used = Used::new(|_| {}).await;
    used.until_it_waits().await;
    assert_ne!(used.local(), used.content);
    assert_eq!(used.world.status(used.job).await, JobStatus::Building);
    assert!(!processes_with(&used.marker).is_empty(), "the other one goes on");

    used.world.database.db.cancel_job(used.holder, "test").await.expect("cancelled");
    until("it is complete", || !used.world.recorded().completed.is_empty()).await;
    assert_eq!(used.local(), used.content);
    let Used { world, running, content, .. } = used;
    running.drain().await.expect("drains");
    let complete = world.recorded().completed[0].clone();
    let nar = world.object(&complete.outputs[0].info.file_hash);
    assert!(String::from_utf8_lossy(&nar).contains(content.trim()), "built from the published input");
    assert!(world.recorded().failed.is_empty(), "no try was spent: {:?}", world.recorded().failed);
}

#[tokio::test]
async fn a_path_that_is_used_for_too_long_costs_no_try() {
    let used = Used::new(|options| options.prepare_timeout = Duration::from_secs(8)).await;
    used.until_it_waits().await;
    // It is claimed again at once, and waits again.
    let db = &used.world.database.db;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let attempts = loop {
        let build = db.view_build(used.job, Timestamp::now_utc()).await.expect("reads").expect("a job");
        if build.attempts.len() > 1 {
            break build.attempts;
        }
        assert!(tokio::time::Instant::now() < deadline, "it was not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let given_back = attempts.last().expect("the first");
    assert_eq!(given_back.outcome.as_str(), "aborted", "{given_back:?}");
    let message = given_back.message.clone().unwrap_or_default();
    assert!(message.contains("used it for too long") && message.contains(used.path.as_str()), "{message}");
    assert!(used.world.recorded().failed.is_empty(), "{:?}", used.world.recorded().failed);
    used.running.abort().await;
}

#[tokio::test]
async fn a_root_that_stays_is_named() {
    let world = World::new().await;
    let expression = derivation("random", RANDOM);
    let canonical = TestStore::new();
    let path = canonical.build(&expression);
    world.daemon.store.build(&expression);
    let (input, user) = world.instantiate_pair(&user_of(&expression));
    let link = world.daemon.store.root().join("nix/var/nix/gcroots/mine");
    std::fs::create_dir_all(link.parent().expect("folder")).expect("folder");
    std::os::unix::fs::symlink(path.as_str(), &link).expect("symlink");
    world.publish(&input, &canonical, &path).await;
    world.queue_above(&[&user]).await;
    let running = Running::start(&world).await;
    until("it failed", || !world.recorded().failed.is_empty()).await;
    running.drain().await.expect("drains");
    let failure = world.recorded().failed[0].failure.clone();
    assert_eq!(failure.kind, None);
    let words = format!("cannot be replaced, since {} keeps it", link.display());
    assert!(failure.message.contains(&words), "{failure:?}");
}
