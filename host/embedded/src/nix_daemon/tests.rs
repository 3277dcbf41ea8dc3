//! A real daemon, real builds through the stock client, and every way of ending.

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;

fn options(directory: &TempDir) -> NixDaemonOptions {
    NixDaemonOptions {
        program: DaemonProgram::Nix,
        root: directory.path().join("root"),
        state_dir: directory.path().join("state"),
        socket: directory.path().join("run/socket"),
        sandbox: true,
        shell: None,
        max_jobs: 2,
        cores: 1,
        settings: Vec::new(),
    }
}

fn derivation(name: &str, script: &str) -> String {
    format!(
        r#"derivation {{ name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ''{script}'' ]; }}"#
    )
}

fn nix(daemon: &NixDaemon, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    settings::isolate(&mut command, daemon.conf_dir());
    command.env("NIX_REMOTE", daemon.store_url()).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> (bool, String, String) {
    let output = command.output().await.expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Has the daemon build something. Returns the output if it is in the store afterwards, and what the client said.
///
/// Not how the client ended: newer ones read the `.drv` file when all is built, and look for it in the machine's own store.
async fn build(daemon: &NixDaemon, name: &str, script: &str) -> (Option<PathBuf>, String) {
    let expression = derivation(name, script);
    let evaluate = ["--eval", "--expr", &format!("({expression}).outPath")];
    let (_, path, errors) = output(nix(daemon, "nix-instantiate", &evaluate)).await;
    let path = path.trim_matches('"').to_owned();
    assert!(path.starts_with("/nix/store/"), "{path} {errors}");
    let (_, _, errors) = output(nix(daemon, "nix-build", &["--no-out-link", "--expr", &expression])).await;
    let (is_valid, ..) = output(nix(daemon, "nix-store", &["--check-validity", &path])).await;
    (is_valid.then(|| path.into()), errors)
}

#[tokio::test]
async fn it_builds_in_a_sandbox_and_keeps_its_store() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let daemon = NixDaemon::start(options(&directory)).await.expect("starts");
    let (path, errors) = build(&daemon, "t", "ls / > $out; test ! -e /etc/shadow; test ! -e /usr; echo built").await;
    let path = path.expect(&errors);
    let file = directory.path().join("root").join(path.strip_prefix("/").expect("absolute"));
    let seen = std::fs::read_to_string(&file).expect("in the store's own root");
    assert!(!seen.contains("home") && !seen.contains("usr"), "{seen}");
    let (nothing, errors) = build(&daemon, "f", "echo words; exit 3").await;
    assert!(nothing.is_none() && errors.contains("exit code 3"), "{errors}");

    let second = NixDaemon::start(options(&directory)).await.expect_err("one at a time");
    assert!(matches!(second, NixDaemonError::InUse { .. }), "{second}");
    daemon.stop().await;
    assert!(!options(&directory).socket.exists());
    let daemon = NixDaemon::start(options(&directory)).await.expect("starts again");
    let path = path.display().to_string();
    let (worked, ..) = output(nix(&daemon, "nix-store", &["--check-validity", &path])).await;
    assert!(worked, "what was built is still there");
    daemon.stop().await;
}

/// Starts a build that does not end by itself, and waits until it runs.
async fn endless_build(daemon: &NixDaemon) -> Child {
    let expression = derivation("endless", "echo begun; while :; do sleep 1; done");
    let mut client = nix(daemon, "nix-build", &["--no-out-link", "--expr", &expression])
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawns");
    let mut lines = BufReader::new(client.stderr.take().expect("piped")).lines();
    while lines.next_line().await.expect("reads").expect("the build begins") != "begun" {}
    client
}

fn builds_running(directory: &TempDir) -> usize {
    let needle = directory.path().join("root").display().to_string();
    std::fs::read_dir("/proc")
        .expect("there")
        .flatten()
        .filter(|entry| {
            // A build in its sandbox has its root below the store's.
            std::fs::read_link(entry.path().join("root")).is_ok_and(|root| root.to_string_lossy().contains(&needle))
                || std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
        })
        .count()
}

#[tokio::test]
async fn stopping_ends_builds_too() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let daemon = NixDaemon::start(options(&directory)).await.expect("starts");
    let mut client = endless_build(&daemon).await;
    assert!(builds_running(&directory) > 0);
    daemon.stop().await;
    assert!(!client.wait().await.expect("ends").success());
    assert_eq!(builds_running(&directory), 0);
}

#[tokio::test]
async fn a_killed_daemon_is_started_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let daemon = NixDaemon::start(options(&directory)).await.expect("starts");
    let pid = daemon.pid().expect("runs");
    kill_process(Pid::from_raw(pid).expect("not zero"), Signal::KILL).expect("ours to kill");
    assert_ne!(daemon.restarted_since(pid).await, None);
    let (path, errors) = build(&daemon, "after", "echo > $out").await;
    assert!(path.is_some(), "{errors}");
    daemon.stop().await;
}

/// Not a test of its own: the process that `what_a_killed_parent_leaves_…` starts and kills.
#[tokio::test]
async fn parent_process() {
    let Some(directory) = std::env::var_os("HARMONIA_TEST_NIX_DIR").map(PathBuf::from) else { return };
    let daemon = NixDaemon::start(NixDaemonOptions {
        program: DaemonProgram::Nix,
        root: directory.join("root"),
        state_dir: directory.join("state"),
        socket: directory.join("run/socket"),
        sandbox: true,
        shell: None,
        max_jobs: 2,
        cores: 1,
        settings: Vec::new(),
    })
    .await
    .expect("starts");
    println!("ready={}", daemon.store_url());
    tokio::task::spawn_blocking(|| drop(io::copy(&mut io::stdin(), &mut io::sink()))).await.expect("reads");
}

#[tokio::test]
async fn what_a_killed_parent_leaves_is_cleared_away() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut parent = Command::new(std::env::current_exe().expect("our path"))
        .args(["--exact", "nix_daemon::tests::parent_process", "--nocapture"])
        .env("HARMONIA_TEST_NIX_DIR", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("spawns");
    let mut lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
    while !lines.next_line().await.expect("reads").expect("says that it is ready").contains("ready=") {}
    // A client that outlives the parent keeps its connection, and with it the daemon's fork and the build, alive.
    let stand_in = NixDaemon {
        socket: options(&directory).socket,
        root: options(&directory).root,
        builds: options(&directory).state_dir.join("builds"),
        conf_dir: options(&directory).state_dir.join("conf"),
        stop: None,
        supervisor: tokio::spawn(async {}),
        running: watch::channel(None).1,
    };
    let mut client = endless_build(&stand_in).await;
    parent.kill().await.expect("kills");
    assert!(builds_running(&directory) > 0, "the build goes on without us");

    let daemon = NixDaemon::start(options(&directory)).await.expect("starts again");
    assert!(!client.wait().await.expect("ends").success());
    let (path, errors) = build(&daemon, "next", "echo > $out").await;
    assert!(path.is_some(), "{errors}");
    daemon.stop().await;
    assert_eq!(builds_running(&directory), 0);
}

#[tokio::test]
async fn a_sandbox_that_does_not_work_is_said() {
    let directory = tempfile::tempdir().expect("temporary directory");
    // A program that is static but no shell: the trial build cannot run in there.
    let not_a_shell = directory.path().join("not-a-shell");
    let mut image = std::fs::read("/bin/busybox").expect("installed");
    image.truncate(4096);
    std::fs::write(&not_a_shell, image).expect("writes");
    std::fs::set_permissions(&not_a_shell, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let error = NixDaemon::start(NixDaemonOptions { shell: Some(not_a_shell), ..options(&directory) })
        .await
        .expect_err("refused");
    assert!(matches!(error, NixDaemonError::SandboxDoesNotWork { .. }), "{error}");
    assert_eq!(builds_running(&directory), 0, "nothing runs on");
}
