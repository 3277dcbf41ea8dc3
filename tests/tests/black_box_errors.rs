//! Bad input of every kind: one clear error with what to do, the documented exit code, nothing half-done.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use harmonia_tests::repository::{commit, flake};
use harmonia_tests::server::{Server, binary, folder, parse, text, wait_for};

/// Runs the binary without any server.
fn alone(args: &[&str]) -> Output {
    let nowhere = folder();
    Command::new(binary())
        .args(args)
        .env("HARMONIA_CI_DATA_DIR", nowhere.path().join("none"))
        .output()
        .expect("the binary starts")
}

/// Exit code, and every one of `words` on standard error.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    for word in words {
        assert!(stderr.contains(word), "'{word}' is missing in: {}", text(output));
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn bad_evaluations_fail_with_the_cause() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let good = flake(r#"{ ok = sh "ok" "echo ok > $out" {}; }"#);
    // What it is, files of the repository, further arguments, what the error must say.
    let cases = [
        ("no flake", vec![("README", "nothing")], vec![], "flake.nix"),
        ("syntax error", vec![("flake.nix", "{ outputs = { self }: { checks = ; }; }")], vec![], "syntax error"),
        ("no attributes", vec![("flake.nix", "{ outputs = { self }: { checks = {}; }; }")], vec![], "allow-empty"),
        ("unknown attribute", vec![("flake.nix", &good)], vec!["--attrs", "nonsense"], "nonsense"),
        (
            "malformed toml",
            vec![("flake.nix", &good), (".harmonia-ci.toml", "attrs = [\n")],
            vec![],
            ".harmonia-ci.toml",
        ),
        (
            "root throws",
            vec![("flake.nix", r#"{ outputs = { self }: throw "no outputs today"; }"#)],
            vec![],
            "no outputs today",
        ),
    ];
    for (name, files, args, wanted) in cases {
        let repository = data.path().join(name.replace(' ', "-"));
        commit(&repository, &files);
        let path = repository.to_str().expect("UTF-8");
        let output = server.run(&[&["eval", path, "--wait", "--json"], &args[..]].concat());
        refused(&output, 1, &["error: evaluation", wanted]);
        let detail = parse(&output);
        assert_eq!(detail["attrs"].as_array().map(Vec::len), Some(0), "{name}: no partial results");
        assert_eq!(detail["verdict"], "failed", "{name}");
    }
    // For people: the error, and no count of nothing.
    let path = data.path().join("root-throws");
    let output = server.run(&["eval", path.to_str().expect("UTF-8"), "--wait"]);
    refused(&output, 1, &["error: evaluation", "no outputs today"]);
    assert!(!text(&output).contains("attributes succeeded"), "{}", text(&output));

    let status = server.json(&["status", "--json"]);
    assert_eq!(status["jobs"]["pending"].as_u64(), Some(0), "nothing half-done");

    refused(&server.run(&["eval", "/does/not/exist"]), 2, &["/does/not/exist", "try:"]);
    let plain = folder();
    refused(&server.run(&["eval", plain.path().to_str().expect("UTF-8")]), 2, &["not in a git repository", "git init"]);
    refused(&server.run(&["queue", "--why", "999999"]), 2, &["999999"]);
    refused(&server.run(&["rebuild", "no-such-attribute"]), 2, &["no-such-attribute"]);
    let wrong = server.command(&["cancel", "--eval", "1", "--token", "wrong"]).output().expect("starts");
    refused(&wrong, 2, &["token"]);

    // The port and the data directory are taken.
    let address = server.url.trim_start_matches("http://").to_owned();
    let other = data.path().join("other");
    let output = alone(&["up", "--data-dir", other.to_str().expect("UTF-8"), "--listen", &address]);
    refused(&output, 1, &["in use", "--listen"]);
    let output = alone(&["up", "--data-dir", server.data_dir().to_str().expect("UTF-8"), "--listen", "127.0.0.1:0"]);
    refused(&output, 1, &["another", "--data-dir"]);
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let data = folder();
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &flake(r#"{ ok = sh "ok" "echo ok > $out" {}; }"#))]);
    let path = repository.to_str().expect("UTF-8");

    // More free space is asked for than any disk has: nothing is claimed, and the reason is there to be read.
    let up = data.path().join("up");
    let server = Server::up(&up, &[], &[("HARMONIA_CI__BUILDER__MIN_FREE", "100000TiB")]);
    server.json(&["eval", path, "--json"]);
    let attr = format!("checks.{}-linux.ok", std::env::consts::ARCH);
    let why = wait_for(Duration::from_mins(1), || {
        let output = server.run(&["queue", "--why", &attr]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success() && said.contains("free")).then_some(said)
    });
    assert!(why.is_some(), "{}", text(&server.run(&["queue", "--why", &attr])));
    let nodes = server.json(&["nodes", "--json"]);
    assert!(nodes[0]["paused"].as_str().is_some_and(|reason| reason.contains("free")), "{nodes}");
    assert!(server.stop().success());

    // With room again, the same job is built.
    let server = Server::up(&up, &[], &[]);
    let output = server.run(&["eval", path, "--wait", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    drop(server);

    // A file system that is really full: `up` cannot start and says which part of it could not, and why.
    let small = folder();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs"]).arg(small.path()).output();
    assert!(mounted.is_ok_and(|output| output.status.success()), "a small file system can be mounted (run as root)");
    let data_dir = small.path().join("up");
    let output = alone(&["up", "--data-dir", data_dir.to_str().expect("UTF-8"), "--listen", "127.0.0.1:0"]);
    let unmounted = Command::new("umount").arg(small.path()).output().expect("umount starts");
    assert!(unmounted.status.success(), "nothing runs there any more: {}", text(&unmounted));
    refused(&output, 1, &["could not start", "No space left on device"]);
}

#[test]
fn a_missing_bucket_and_wrong_keys_are_named() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let config = std::fs::read_to_string(server.data_dir().join("config.toml")).expect("up wrote its configuration");
    let serve = |name: &str, from: &str, to: &str| {
        assert!(config.contains(from), "{from} is in {config}");
        let path = data.path().join(name);
        let listen = format!("listen = \"{}\"", server.url.trim_start_matches("http://"));
        let config = config.replace(from, to).replace("name = \"local\"", "name = \"other\"");
        let config = config.replace(&listen, "listen = \"127.0.0.1:0\"");
        std::fs::write(&path, config).expect("written");
        alone(&["serve", "--config", path.to_str().expect("UTF-8")])
    };
    refused(&serve("bucket.toml", "bucket = \"harmonia-ci\"", "bucket = \"no-such-bucket\""), 3, &["no-such-bucket"]);
    std::fs::write(data.path().join("wrong"), "wrong").expect("written");
    let keys = server.data_dir().join("keys/object-store-secret-key");
    let wrong = data.path().join("wrong");
    let denied = serve("keys.toml", keys.to_str().expect("UTF-8"), wrong.to_str().expect("UTF-8"));
    refused(&denied, 3, &["harmonia-ci", "key"]);
    let database = serve("database.toml", "localhost/harmonia?", "localhost/nonesuch?");
    refused(&database, 3, &["nonesuch"]);
    // With what `up` wrote, the configuration is usable and the schema is the newest.
    let written = server.data_dir().join("config.toml");
    let written = written.to_str().expect("UTF-8");
    let checked = alone(&["config", "check", "--config", written]);
    assert!(
        checked.status.success() && String::from_utf8_lossy(&checked.stdout).contains("usable"),
        "{}",
        text(&checked)
    );
    let migrated = alone(&["migrate", "--config", written]);
    assert!(String::from_utf8_lossy(&migrated.stdout).contains("up to date"), "{}", text(&migrated));
    // The server next to it noticed nothing.
    assert_eq!(server.json(&["nodes", "--json"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn commands_without_a_server_say_so() {
    refused(&alone(&["status"]), 3, &["no server", "harmonia-ci up"]);
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("an address").port();
    let url = format!("http://127.0.0.1:{port}");
    refused(&alone(&["status", "--server", &url]), 3, &["does not answer", &url]);
    refused(&alone(&["status", "--server", "ftp://x"]), 2, &["http"]);
    refused(&alone(&["eval", "--frobnicate"]), 2, &["--frobnicate"]);
}

#[test]
fn a_machine_without_certificates_is_told_what_to_install() {
    let data = folder();
    let none = data.path().join("none.pem");
    std::fs::write(&none, "").expect("written");
    for args in [&["status", "--server", "http://127.0.0.1:1"][..], &["up", "--listen", "127.0.0.1:0"]] {
        let output = Command::new(binary())
            .args(args)
            .env("HARMONIA_CI_DATA_DIR", data.path().join("up"))
            .env("SSL_CERT_FILE", &none)
            .env("SSL_CERT_DIR", data.path())
            .output()
            .expect("the binary starts");
        refused(&output, 1, &["could not set up HTTP", "try:", "ca-certificates", "SSL_CERT_FILE"]);
    }
}

#[test]
fn bad_configurations_name_the_key_and_what_to_do() {
    let folder = folder();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let typo = file("typo.toml", "[build]\ntime_out = \"2h\"\n");
    refused(&alone(&["config", "check", "--config", &typo]), 2, &["build.time_out", "build.timeout"]);
    refused(&alone(&["serve", "--config", "/does/not/exist.toml"]), 2, &["/does/not/exist.toml"]);
    let nothing = file("nothing.toml", "");
    refused(&alone(&["serve", "--config", &nothing]), 2, &["node.capabilities"]);
    let no_database = file("db.toml", "[node]\ncapabilities = [\"frontend\"]\nlisten = \"127.0.0.1:0\"\n");
    refused(&alone(&["serve", "--config", &no_database]), 2, &["database.url"]);
    let wrong = "[node]\ncapabilities = [\"frontend\"]\nlisten = \"127.0.0.1:0\"\n[database]\n";
    let unreachable = file("away.toml", &format!("{wrong}url = \"postgres://x@127.0.0.1:1/x\"\n"));
    refused(&alone(&["serve", "--config", &unreachable]), 3, &["PostgreSQL", "127.0.0.1:1"]);
    refused(&alone(&["migrate", "--config", &unreachable]), 3, &["PostgreSQL"]);
    let nonsense = file("nonsense.toml", &format!("{wrong}url = \"mysql://x\"\n"));
    refused(&alone(&["serve", "--config", &nonsense]), 2, &["postgres://"]);

    // A key that is missing, and one that is no key.
    let missing = file(
        "key.toml",
        "[node]\ncapabilities = [\"signer\"]\n[database]\nurl = \"postgres://x@127.0.0.1:1/x\"\n[signer]\nkey_files = [\"/does/not/exist.key\"]\n",
    );
    refused(&alone(&["config", "check", "--config", &missing]), 2, &["/does/not/exist.key"]);
    let garbage = file("garbage.key", "this is no key");
    let bad = file(
        "bad.toml",
        &format!(
            "[node]\ncapabilities = [\"signer\"]\n[database]\nurl = \"postgres://x@127.0.0.1:1/x\"\n[signer]\nkey_files = [\"{garbage}\"]\n"
        ),
    );
    refused(&alone(&["config", "check", "--config", &bad]), 2, &["garbage.key"]);
}

#[test]
fn keygen_never_overwrites_and_keeps_the_secret_private() {
    let folder = folder();
    let path = folder.path().join("cache.key");
    let out = path.to_str().expect("UTF-8");
    let output = alone(&["keygen", "cache.example.org-1", "--out", out]);
    assert!(output.status.success(), "{}", text(&output));
    let public = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(public.starts_with("cache.example.org-1:"), "{public}");
    assert_eq!(std::fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
    // Stock Nix derives the same public key from the secret.
    let converted = Command::new("nix")
        .args(["--extra-experimental-features", "nix-command", "key", "convert-secret-to-public"])
        .stdin(std::fs::File::open(&path).expect("readable"))
        .output()
        .expect("nix starts");
    assert_eq!(String::from_utf8_lossy(&converted.stdout).trim(), public, "{}", text(&converted));
    let before = std::fs::read(&path).expect("readable");
    refused(&alone(&["keygen", "cache.example.org-1", "--out", out]), 1, &["cache.key"]);
    assert_eq!(std::fs::read(&path).expect("readable"), before);
    refused(&alone(&["keygen", "no spaces", "--out", "/tmp/never-made"]), 2, &["name"]);
}
