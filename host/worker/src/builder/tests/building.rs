//! What one build does to daemon, log and processes; the claim loop is not involved.

use std::sync::Arc;
use std::time::Instant;

use harmonia_core::signer_api::Failure;
use harmonia_core::{AttemptId, FailureKind};
use harmonia_db::JobLimits;

use super::super::build::{build, options};
use super::super::failure::Trouble;
use super::super::failure::transient_error;
use super::super::spool::{AttemptLog, OpenLog};
use super::super::{Builder, Node};
use super::world::{World, claimed};
use super::*;

const LIMITS: JobLimits =
    JobLimits { timeout_s: 600, max_silent_s: 600, output_bytes_max: 1 << 30, log_bytes_max: 1 << 20 };

/// A world, a builder in it, and the log of one attempt.
struct Bench {
    world: World,
    node: Arc<Node>,
    log: OpenLog,
}

impl Bench {
    async fn new(limits: JobLimits) -> Self {
        let world = World::new().await;
        let Builder { node, .. } = world.builder();
        let log = node.spool.start(AttemptId(1), limits.log_bytes_max).expect("log");
        Self { world, node, log }
    }

    async fn build(&self, expression: &str, limits: JobLimits) -> Result<(), Trouble> {
        run(&self.world, &self.node, self.log.shared(), expression, limits).await
    }

    fn log_text(&self) -> String {
        let tail = self.log.changed_tail().map(|tail| tail.bytes).unwrap_or_default();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

async fn run(
    world: &World,
    node: &Node,
    log: Arc<AttemptLog>,
    expression: &str,
    limits: JobLimits,
) -> Result<(), Trouble> {
    let drv_path = world.daemon.store.instantiate(expression);
    let derivation = world.read_derivation(&drv_path).resolve(|_, _| None).expect("no inputs");
    let job = claimed(&drv_path, limits);
    let connection = node.connections.take(&options(&job, 1)).await.map_err(|error| transient_error(&error))?;
    let (_, connection) = build(node, &job, &derivation, connection, log).await?;
    connection.give_back();
    Ok(())
}

fn failure(result: Result<(), Trouble>) -> Failure {
    match result {
        Err(Trouble::Failed(failure)) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn what_a_build_prints_is_logged_line_by_line() {
    let bench = Bench::new(LIMITS).await;
    bench
        .build(&derivation("prints", "echo one; echo two >&2; printf three; echo > $out"), LIMITS)
        .await
        .expect("builds");
    assert_eq!(bench.log_text(), "one\ntwo\nthree\n");
}

#[tokio::test]
async fn a_builder_that_fails_is_a_permanent_failure_with_its_exit_code() {
    let bench = Bench::new(LIMITS).await;
    let failure = failure(bench.build(&derivation("fails", "echo before the end; exit 3"), LIMITS).await);
    assert_eq!((failure.kind, failure.exit_code), (Some(FailureKind::Build), Some(3)), "{failure:?}");
    assert!(failure.message.contains("failed with exit code 3"), "{failure:?}");
    assert_eq!(bench.log_text(), "before the end\n");
}

#[tokio::test]
async fn a_builder_that_is_killed_from_outside_is_tried_again_whatever_it_printed() {
    let bench = Bench::new(LIMITS).await;
    let marker = unique();
    let expression = derivation("killed", &format!("while :; do : {marker}; done"));
    let build = bench.build(&expression, LIMITS);
    // As the kernel does when memory is short: from outside.
    let kill = async {
        until("it runs", || !processes_with(&marker).is_empty()).await;
        kill_all(&marker);
    };
    let (killed, ()) = tokio::join!(build, kill);
    let killed = failure(killed);
    assert_eq!((killed.kind, killed.exit_code), (None, None), "{killed:?}");
    let within = failure(bench.build(&derivation("within", "kill -9 $$; exit 3"), LIMITS).await);
    assert_eq!((within.kind, within.exit_code), (Some(FailureKind::Build), Some(3)), "{within:?}");
    let lies =
        "echo \"builder for '/nix/store/x.drv' failed due to signal 9 (Killed)\"; echo No space left on device; exit 1";
    let liar = failure(bench.build(&derivation("lies", lies), LIMITS).await);
    assert_eq!((liar.kind, liar.exit_code), (Some(FailureKind::Build), Some(1)), "{liar:?}");
}

/// What the daemon refuses for what a derivation says or made is refused once: again it would be the same.
#[tokio::test]
async fn what_the_store_refuses_for_its_content_fails_once() {
    let bench = Bench::new(LIMITS).await;
    for (name, script, more, words) in [
        ("pipe-left", "mkdir $out; busybox mkfifo $out/pipe; echo made", "", "unsupported type"),
        ("pipe-as-output", "busybox mkfifo $out", "", "unsupported type"),
        ("nothing", "echo nothing made", "", "failed to produce output"),
        ("half", "echo > $out", r#"outputs = [ "out" "doc" ];"#, "failed to produce output"),
        ("circle", "echo $b > $a; echo $a > $b", r#"outputs = [ "a" "b" ];"#, "cycle"),
        ("no-sandbox", "echo > $out", "__noChroot = true;", "__noChroot"),
        ("forbidden", "echo $out > $out", r#"disallowedReferences = [ "out" ];"#, "not allowed to refer"),
    ] {
        let failure = failure(bench.build(&derivation_with(name, script, more), LIMITS).await);
        assert_eq!(failure.kind, Some(FailureKind::Build), "{name}: {failure:?}");
        assert!(failure.message.contains(words), "{name}: {failure:?}");
    }
}

#[tokio::test]
async fn fixed_outputs_fail_for_good_only_by_their_hash() {
    let bench = Bench::new(LIMITS).await;
    let fixed = r#"outputHashMode = "flat"; outputHashAlgo = "sha256";
        outputHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";"#;
    let fetch = failure(bench.build(&derivation_with("fetch", "echo no network; exit 1", fixed), LIMITS).await);
    assert_eq!(fetch.kind, None, "{fetch:?}");
    let wrong = failure(bench.build(&derivation_with("wrong", "echo not empty > $out", fixed), LIMITS).await);
    assert_eq!(wrong.kind, Some(FailureKind::Build), "{wrong:?}");
    assert!(wrong.message.contains("hash mismatch"), "{wrong:?}");
    bench.build(&derivation_with("right", ": > $out", fixed), LIMITS).await.expect("the empty file has that hash");
}

#[tokio::test]
async fn an_output_that_refers_to_what_it_may_not_is_a_permanent_failure() {
    let bench = Bench::new(LIMITS).await;
    let more = "allowedReferences = [ ];";
    let failure = failure(bench.build(&derivation_with("refers", "echo $out > $out", more), LIMITS).await);
    assert_eq!(failure.kind, Some(FailureKind::Build), "{failure:?}");
}

#[tokio::test]
async fn silence_is_a_timeout_that_kills_the_process_tree() {
    let limits = JobLimits { max_silent_s: 1, ..LIMITS };
    let bench = Bench::new(limits).await;
    let marker = unique();
    let script = format!("echo a word; (while :; do : {marker}; done) & while :; do : {marker}; done");
    let started = Instant::now();
    let failure = failure(bench.build(&derivation("silent", &script), limits).await);
    assert_eq!(failure.kind, Some(FailureKind::Timeout), "{failure:?}");
    assert!(failure.message.contains("limit of 1 s (max_silent)"), "{failure:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
    assert_eq!(bench.log_text(), "a word\n");
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_a_timeout_that_kills_the_process_tree_within_5_s() {
    let limits = JobLimits { timeout_s: 2, ..LIMITS };
    let bench = Bench::new(limits).await;
    let marker = unique();
    // Not silent, and it does not listen to gentle signals.
    let script =
        format!("trap : TERM INT HUP; (while :; do : {marker}; done) & while :; do echo {marker}; read -t 1 x; done");
    let failure = failure(bench.build(&derivation("endless", &script), limits).await);
    let over = Instant::now();
    assert_eq!(failure.kind, Some(FailureKind::Timeout), "{failure:?}");
    assert!(failure.message.contains("limit of 2 s"), "{failure:?}");
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
    assert!(over.elapsed() < Duration::from_secs(5), "{:?}", over.elapsed());
    assert!(bench.log_text().contains(&marker));
}

#[tokio::test]
async fn dropping_a_build_kills_its_process_tree_within_5_s() {
    let bench = Bench::new(LIMITS).await;
    let marker = unique();
    let script = format!("(while :; do : {marker}; done) & echo started; while :; do : {marker}; done");
    let expression = derivation("dropped", &script);
    let build = bench.build(&expression, LIMITS);
    tokio::select! {
        result = build => panic!("it never ends: {result:?}"),
        () = until("it runs", || bench.log.size() > 0 && processes_with(&marker).len() >= 2) => {}
    }
    let dropped = Instant::now();
    until("its processes are gone", || processes_with(&marker).is_empty()).await;
    assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", dropped.elapsed());
}

#[tokio::test]
async fn a_log_beyond_its_bound_is_cut_and_the_build_goes_on() {
    let limits = JobLimits { log_bytes_max: 100_000, ..LIMITS };
    let bench = Bench::new(limits).await;
    let script = "i=0; while [ $i -lt 30000 ]; do echo line number $i; i=$((i + 1)); done; echo done > $out";
    bench.build(&derivation("loud", script), limits).await.expect("builds");
    assert!(bench.log.size() <= 100_100, "{}", bench.log.size());
    assert!(bench.log_text().ends_with("longer than 100000 bytes; the rest was not kept]\n"));
}

#[tokio::test]
async fn a_daemon_that_dies_or_is_away_is_a_transient_failure() {
    let bench = Bench::new(LIMITS).await;
    let marker = unique();
    let expression = derivation("orphan", &format!("echo started; while :; do : {marker}; done"));
    let drv_path = bench.world.daemon.store.instantiate(&expression);
    let derivation = bench.world.read_derivation(&drv_path).resolve(|_, _| None).expect("no inputs");
    let job = claimed(&drv_path, LIMITS);
    let connection = bench.node.connections.take(&options(&job, 1)).await.expect("connection");
    let mut build = Box::pin(build(&bench.node, &job, &derivation, connection, bench.log.shared()));
    tokio::select! {
        result = &mut build => panic!("it never ends: {result:?}"),
        () = until("it runs", || bench.log.size() > 0) => {}
    }
    // The daemon answers each connection from a process of its own.
    bench.world.daemon.kill_connections();
    let gone = failure(build.as_mut().await.map(drop));
    drop(build);
    assert_eq!(gone.kind, None, "{gone:?}");
    assert!(gone.message.contains("the store daemon did not build it"), "{gone:?}");
    // Nobody is left to do it: a stock daemon's builds outlive its crash.
    kill_all(&marker);
    until("its processes are gone", || processes_with(&marker).is_empty()).await;

    let Bench { world, node, .. } = bench;
    let expression = super::derivation("never", ": > $out");
    let job = claimed(&world.daemon.store.instantiate(&expression), LIMITS);
    drop(world);
    let away = node.connections.take(&options(&job, 1)).await.map(drop);
    let away = failure(away.map_err(|error| transient_error(&error).into()));
    assert_eq!(away.kind, None, "{away:?}");
    assert!(away.message.contains("is it running?"), "{away:?}");
}
