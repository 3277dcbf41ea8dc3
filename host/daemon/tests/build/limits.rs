//! What stops a build, and what it leaves then.

use std::time::{Duration, Instant};

use harmonia_nix::worker_protocol::BuildStatus;
use tokio_util::sync::CancellationToken;

use crate::world::{Build, World, as_ordinary_user, as_ordinary_user_after, build, processes_with};

fn run(world: &World, script: &str, change: impl FnOnce(&mut harmonia_daemon::build::BuildOptions)) -> Build {
    let mut request = world.request(&world.instantiate(&format!("shell {{ }} \"{script}\"")));
    change(&mut request.options);
    world.run(request)
}

#[test]
fn a_builder_is_stopped_at_its_limits() {
    let world = World::new();
    let long = |seconds| Some(Duration::from_secs(seconds));
    let began = Instant::now();
    let build = run(&world, "echo begun; sleep 1000", |options| options.timeout = long(1));
    assert_eq!(build.failure().status, BuildStatus::TimedOut);
    assert!(build.failure().message.ends_with("timed out after 1 seconds"), "{}", build.failure().message);
    assert_eq!(build.lines, ["begun"]);

    let build = run(&world, "sleep 1; echo said; sleep 1000", |options| options.max_silent = long(2));
    assert_eq!(build.failure().status, BuildStatus::TimedOut);
    assert!(build.failure().message.ends_with("timed out after 2 seconds of silence"), "{}", build.failure().message);
    assert_eq!(build.lines, ["said"]);

    let build = run(&world, "while true; do echo line; done", |options| options.max_log_bytes = Some(100_000));
    assert_eq!(build.failure().status, BuildStatus::LogLimitExceeded);
    assert!(
        build.failure().message.ends_with("killed after writing more than 100000 bytes of log output"),
        "{}",
        build.failure().message
    );
    assert!(began.elapsed() < Duration::from_mins(1));

    let build = run(&world, "dd if=/dev/zero of=/dev/null bs=200M count=1", |options| {
        options.max_memory_bytes = Some(100 << 20);
    });
    assert_eq!(build.failure().status, BuildStatus::PermanentFailure);
}

#[test]
fn how_a_builder_ended_is_told() {
    let world = World::new();
    let build = run(&world, "kill -SEGV $$", |_| {});
    assert_eq!(build.failure().signal, Some(11));
    assert!(build.failure().message.contains("failed due to signal 11 (Segmentation fault)"));

    let expression = "derivation { name = \"test\"; system = \"x86_64-linux\"; builder = \"/no/such\"; }";
    let build = world.build(expression);
    assert_eq!(build.failure().status, BuildStatus::PermanentFailure);
    assert_eq!(build.lines, ["error: executing '/no/such': No such file or directory"]);

    let build = run(&world, "sleep 0.2; dd if=/dev/zero of=/dev/null bs=100M count=3; echo >$out", |_| {});
    let usage = build.outcome.usage;
    assert!(usage.wall >= Duration::from_millis(200), "{usage:?}");
    assert!(usage.cpu_system + usage.cpu_user > Duration::from_millis(10), "{usage:?}");
    assert!(usage.memory_peak_bytes.is_some_and(|bytes| bytes > 100 << 20), "{usage:?}");

    let build = run(&world, "exit 1", |options| options.keep_failed = false);
    assert_eq!(build.notes, Vec::<String>::new());
    let mut request = world.request(&world.instantiate("shell { } \"echo kept >file; exit 1\""));
    request.options.keep_failed = true;
    let build_dir = world.path("kept");
    std::fs::create_dir(&build_dir).expect("made");
    request.options.build_dir = build_dir.clone();
    let name = request.drv_path.name().to_owned();
    let build = world.run(request);
    let kept = build_dir.join(format!("nix-build-{name}-0"));
    assert_eq!(build.notes, [format!("note: keeping build directory '{}'", kept.display())]);
    assert_eq!(std::fs::read_to_string(kept.join("file")).expect("kept"), "kept\n");
}

#[test]
fn cancelling_kills_every_process_of_a_build() {
    cancels(&World::new());
}

#[test]
fn cancelling_kills_every_process_of_a_build_without_a_sandbox() {
    if as_ordinary_user("limits::cancelling_kills_every_process_of_a_build_without_a_sandbox") {
        cancels(&World::without_sandbox());
    }
}

fn cancels(world: &World) {
    let mark = format!("10{:05}", std::process::id());
    let script = format!(
        "(trap '' TERM HUP; setsid sh -c 'trap : TERM; (setsid sleep {mark} &) ; sleep {mark}' &) ; echo begun; sleep {mark}"
    );
    let request = world.request(&world.instantiate(&format!("shell {{ }} \"{script}\"")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cancel = CancellationToken::new();
    let outcome = runtime.block_on(async {
        let when_begun = cancel.clone();
        let running = build(request, cancel.clone());
        let watching = async {
            let deadline = Instant::now() + Duration::from_secs(20);
            while processes_with(&mark).len() < 3 {
                assert!(Instant::now() < deadline, "it begins");
                tokio::task::yield_now().await;
            }
            when_begun.cancel();
        };
        tokio::join!(running, watching).0
    });
    assert!(outcome.failure().message.ends_with("was cancelled"), "{}", outcome.failure().message);
    assert_eq!(processes_with(&mark), Vec::<String>::new());
}

#[test]
fn every_wall_is_tried_and_stands() {
    walls(&World::new());
}

#[test]
fn every_wall_is_tried_and_stands_for_an_ordinary_user() {
    if as_ordinary_user("limits::every_wall_is_tried_and_stands_for_an_ordinary_user") {
        walls(&World::new());
    }
}

fn walls(world: &World) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let walls = runtime.block_on(harmonia_daemon::build::check(&world.options()));
    let missing: Vec<&str> =
        walls.iter().filter(|wall| wall.missing.is_some()).map(|wall| wall.name.as_str()).collect();
    assert_eq!(missing, ["memory and processes of a whole build"], "{walls:?}");
    assert_eq!(walls.len(), 16, "{walls:?}");
}

#[test]
fn where_the_kernel_gives_no_walls_nothing_is_built() {
    // Its own limit of namespaces, in a namespace that has all users.
    let test = "limits::where_the_kernel_gives_no_walls_nothing_is_built";
    if !as_ordinary_user_after(test, "echo 0 >/proc/sys/user/max_user_namespaces") {
        return;
    }
    let world = World::new();
    let drv_path = world.instantiate("shell { } \"echo ran; echo >$out\"");
    let build = world.run(world.request(&drv_path));
    let failure = build.failure();
    assert_eq!(failure.status, BuildStatus::MiscFailure);
    assert!(
        failure.message.contains("in a sandbox: could not make a user namespace (are unprivileged ones allowed"),
        "{}",
        failure.message
    );
    assert_eq!(build.lines, Vec::<String>::new());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let walls = runtime.block_on(harmonia_daemon::build::check(&world.options()));
    assert!(walls[0].missing.as_ref().is_some_and(|reason| reason.contains("make a user namespace")), "{walls:?}");
}
