//! Real clusters of the installed server: started, killed in every way, and started again.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::*;
use crate::process::Incarnation;

/// A directory that the server's account can pass, as the temporary ones of tests are closed.
fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    directory
}

fn options(directory: &TempDir) -> PostgresOptions {
    PostgresOptions::new(directory.path().join("postgres"))
}

async fn psql(url: &str, statement: &str) -> String {
    let server = discover::discover(None, None).await.expect("installed");
    let output = Command::new(server.bin_dir.join("psql"))
        .args(["-X", "-A", "-t", "-q", "-d", url, "-c", statement])
        .output()
        .await;
    let output = output.expect("psql runs");
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

async fn gone(pid: i32) {
    if let Some(server) = Incarnation::of(Pid::from_raw(pid).expect("not zero")) {
        assert!(server.ended_within(Duration::from_secs(30)).await, "the server still runs");
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("not zero"), Signal::KILL).expect("ours to kill");
}

#[tokio::test]
async fn it_is_durable_private_and_keeps_its_data() {
    let directory = open_directory();
    let postgres = PrivatePostgres::start(options(&directory)).await.expect("starts");
    let url = postgres.url("harmonia");
    for (setting, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("idle_in_transaction_session_timeout", "5min"),
        ("logging_collector", "on"),
    ] {
        assert_eq!(psql(&url, &format!("SHOW {setting}")).await, value, "{setting}");
    }
    // From the machine's memory, as bytes: PostgreSQL shows 2048 MB as 2 GB.
    let sized = super::sizing::settings(super::sizing::machine_memory().expect("known"));
    let (_, buffers) = sized.lines().next().and_then(|line| line.split_once(" = ")).expect("shared_buffers");
    let same = format!("SELECT pg_size_bytes(current_setting('shared_buffers')) = pg_size_bytes('{buffers}')");
    assert_eq!(psql(&url, &same).await, "t", "{sized}");
    let collation = "SELECT datcollate FROM pg_database WHERE datname = current_database()";
    assert_eq!(psql(&url, collation).await, "C");
    let mode = std::fs::metadata(postgres.socket_dir()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "nobody else comes in");
    psql(&url, "CREATE TABLE kept AS SELECT 42 AS answer").await;
    let second = PrivatePostgres::start(options(&directory)).await.expect_err("one at a time");
    assert!(matches!(second, PostgresError::InUse { .. }), "{second}");
    let pid = postgres.pid().expect("runs");
    postgres.stop().await;
    assert!(Incarnation::of(Pid::from_raw(pid).expect("not zero")).is_none(), "stop waits for the end");

    let postgres = PrivatePostgres::start(options(&directory)).await.expect("starts again");
    assert_eq!(psql(&url, "SELECT answer FROM kept").await, "42");
    postgres.stop().await;
}

#[tokio::test]
async fn a_killed_server_is_started_again() {
    let directory = open_directory();
    let postgres = PrivatePostgres::start(options(&directory)).await.expect("starts");
    let url = postgres.url("harmonia");
    psql(&url, "CREATE TABLE kept AS SELECT 1 AS one").await;
    let pid = postgres.pid().expect("runs");
    kill(pid);
    let new = postgres.restarted_since(pid).await.expect("is supervised");
    assert_ne!(new, pid);
    assert_eq!(psql(&url, "SELECT one FROM kept").await, "1");
    postgres.stop().await;
    gone(new).await;
}

/// Not a test of its own: the process that `it_ends_with_its_parent_…` starts and kills.
#[tokio::test]
async fn parent_process() {
    let Some(data_dir) = std::env::var_os("HARMONIA_TEST_POSTGRES_DIR") else { return };
    let postgres = PrivatePostgres::start(PostgresOptions::new(data_dir)).await.expect("starts");
    println!("server={} {}", postgres.pid().expect("runs"), postgres.url("harmonia"));
    tokio::task::spawn_blocking(|| drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink())))
        .await
        .expect("reads");
}

#[tokio::test]
async fn it_ends_with_its_parent_and_recovers() {
    let directory = open_directory();
    let data_dir = options(&directory).data_dir;
    let mut parent = Command::new(std::env::current_exe().expect("our path"))
        .args(["--exact", "postgres::tests::parent_process", "--nocapture"])
        .env("HARMONIA_TEST_POSTGRES_DIR", &data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("spawns");
    let mut lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
    let (pid, url) = loop {
        let line = lines.next_line().await.expect("reads").expect("says where it is");
        if let Some((_, rest)) = line.split_once("server=") {
            let (pid, url) = rest.split_once(' ').expect("two words");
            break (pid.parse().expect("a number"), url.to_owned());
        }
    };
    psql(&url, "CREATE TABLE kept AS SELECT 7 AS seven").await;
    parent.kill().await.expect("kills");
    gone(pid).await;

    let postgres = PrivatePostgres::start(options(&directory)).await.expect("starts again");
    assert_eq!(psql(&postgres.url("harmonia"), "SELECT seven FROM kept").await, "7");
    postgres.stop().await;
}

#[tokio::test]
async fn a_server_that_outlived_its_parent_is_stopped_first() {
    let directory = open_directory();
    let postgres = PrivatePostgres::start(options(&directory)).await.expect("starts");
    let socket_dir = postgres.socket_dir().to_owned();
    postgres.stop().await;
    // As if the kernel had not been asked to end it with its parent.
    let server = discover::discover(None, None).await.expect("installed");
    let mut command = Command::new(server.bin_dir.join("postgres"));
    if let Some(account) = account::choose(None).expect("an account") {
        account.apply(&mut command);
    }
    let data = std::fs::canonicalize(options(&directory).data_dir).expect("there").join("cluster");
    command.current_dir("/").arg("-D").arg(&data).arg("-k").arg(&socket_dir).args(["-c", "listen_addresses="]);
    let mut left_over = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("spawns");
    let id = left_over.id().expect("runs").cast_signed();
    let is_up = || {
        std::fs::read_to_string(data.join("postmaster.pid"))
            .is_ok_and(|text| text.starts_with(&id.to_string()) && text.contains("ready"))
    };
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while !is_up() {
        assert!(std::time::Instant::now() < deadline, "the left-over never came up");
        tokio::task::yield_now().await;
    }

    let (started, ended) = tokio::join!(PrivatePostgres::start(options(&directory)), left_over.wait());
    assert!(ended.expect("ends").success(), "asked to end, not killed");
    let postgres = started.expect("starts");
    assert_ne!(postgres.pid(), Some(id));
    assert_eq!(psql(&postgres.url("harmonia"), "SELECT 1").await, "1");
    postgres.stop().await;
}

#[tokio::test]
async fn a_deep_data_directory_has_its_socket_elsewhere() {
    let directory = open_directory();
    let deep = directory.path().join("d".repeat(60)).join("with space, and comma").join("e".repeat(60));
    let postgres = PrivatePostgres::start(PostgresOptions { durable: false, ..PostgresOptions::new(&deep) })
        .await
        .expect("starts");
    let socket_dir = postgres.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(&deep), "{}", socket_dir.display());
    assert_eq!(psql(&postgres.url("harmonia"), "SHOW fsync").await, "off");
    postgres.stop().await;
    std::fs::remove_dir(&socket_dir).expect("nothing is left in it");

    let odd = directory.path().join("q?a&b=%20");
    let postgres =
        PrivatePostgres::start(PostgresOptions { durable: false, ..PostgresOptions::new(&odd) }).await.expect("starts");
    assert_eq!(psql(&postgres.url("harmonia"), "SELECT 2").await, "2", "the URL names odd directories");
    postgres.stop().await;
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let directory = open_directory();
    let refuse =
        async |options: PostgresOptions| PrivatePostgres::start(options).await.expect_err("refused").to_string();

    let text = refuse(PostgresOptions { bin_dir: Some("/nowhere/bin".into()), ..options(&directory) }).await;
    assert!(text.contains("/nowhere/bin") && text.contains("install"), "{text}");
    let text = refuse(PostgresOptions { databases: vec!["Robert'); --".into()], ..options(&directory) }).await;
    assert!(text.contains("no usable database name"), "{text}");
    assert!(refuse(PostgresOptions::new("relative")).await.contains("not absolute"));

    let data = options(&directory).data_dir.join("cluster");
    std::fs::create_dir_all(&data).expect("directory");
    std::fs::write(data.join("PG_VERSION"), "9\n").expect("writes");
    let text = refuse(options(&directory)).await;
    assert!(text.contains("version 9") && text.contains("pg_upgrade"), "{text}");
}

#[tokio::test]
async fn a_closed_way_to_the_data_is_named() {
    let directory = open_directory();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).expect("mode");
    let started = PrivatePostgres::start(options(&directory)).await;
    if rustix::process::geteuid().is_root() {
        let text = started.expect_err("another account cannot pass").to_string();
        assert!(text.contains("chmod o+x") && text.contains(&directory.path().display().to_string()), "{text}");
    } else {
        // The server is us, and our own directories are open to us.
        started.expect("starts").stop().await;
    }
}
