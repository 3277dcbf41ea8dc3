//! The demonstration is evaluated and built by the stock Nix, and ends as the table says.

use tempfile::TempDir;

use super::*;
use crate::nix_daemon::{DaemonProgram, NixDaemon, NixDaemonOptions};

/// What this crate is tested on; the server asks Nix.
const SYSTEM: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux" } else { "x86_64-linux" };

async fn daemon(directory: &TempDir) -> NixDaemon {
    let options = NixDaemonOptions {
        program: DaemonProgram::Nix,
        root: directory.path().join("root"),
        state_dir: directory.path().join("state"),
        socket: directory.path().join("run/socket"),
        sandbox: true,
        shell: None,
        max_jobs: 4,
        cores: 1,
        settings: Vec::new(),
    };
    NixDaemon::start(options).await.expect("starts")
}

/// Makes a view of the file system in which `$1/nix` is at `/nix`, which this machine may not have at all, and runs the
/// rest of the arguments in it.
const WITH_NIX: &str = r#"
mkdir -p "$1/view"
mount -t tmpfs view "$1/view"
for entry in /*; do
    if [ "$entry" = /nix ]; then continue
    elif [ -L "$entry" ]; then cp -P "$entry" "$1/view/"
    elif [ -d "$entry" ]; then mkdir "$1/view$entry"; mount --rbind "$entry" "$1/view$entry"
    fi
done
mkdir "$1/view/nix"
mount --bind "$1/root/nix" "$1/view/nix"
view="$1/view"
shift
exec chroot "$view" "$@"
"#;

/// Runs a client of the daemon. Evaluating flakes and realising derivations read files of the store, which a client looks
/// for at `/nix/store`; so it gets a view of the file system in which the daemon's store is there.
async fn nix(daemon: &NixDaemon, directory: &TempDir, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "--", "sh", "-euc", WITH_NIX, "sh"]);
    command.arg(directory.path()).args(arguments);
    command.env("NIX_REMOTE", daemon.store_url()).env("NIX_CONF_DIR", daemon.conf_dir());
    command.env("HOME", directory.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn everything_ends_as_the_table_says() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let repository = write(&directory.path().join("demo"), SYSTEM).await.expect("writes");
    let daemon = daemon(&directory).await;
    let flake = format!("git+file://{}?rev={}", repository.path.display(), repository.commit);
    let checks = format!("{flake}#checks.{SYSTEM}");

    let (worked, names, errors) =
        nix(&daemon, &directory, &["nix", "eval", "--json", "--apply", "builtins.attrNames", &checks]).await;
    assert!(worked, "{errors}");
    let names: Vec<String> = serde_json::from_str(&names).expect("a list");
    assert_eq!(
        names,
        EXPECTED.iter().map(|expected| expected.name).collect::<Vec<_>>(),
        "the table has them all, sorted"
    );

    for expected in EXPECTED {
        let attribute = format!("{checks}.{}", expected.name);
        let (evaluated, path, errors) =
            nix(&daemon, &directory, &["nix", "eval", "--raw", &format!("{attribute}.drvPath")]).await;
        assert_eq!(evaluated, expected.outcome != Outcome::EvaluationFails, "{}: {errors}", expected.name);
        if !evaluated {
            assert!(errors.contains(IMPOSSIBLE_MESSAGE), "{errors}");
            continue;
        }
        let (_, outputs, _) =
            nix(&daemon, &directory, &["nix", "eval", "--json", &format!("{attribute}.outputs")]).await;
        let outputs: Vec<String> = serde_json::from_str(&outputs).unwrap_or_else(|_| vec!["out".to_owned()]);
        assert_eq!(outputs, expected.outputs, "{}", expected.name);
        let (built, paths, log) = nix(&daemon, &directory, &["nix-store", "--realise", &path]).await;
        assert_eq!(built, expected.outcome == Outcome::Succeeds, "{}: {log}", expected.name);
        match expected.outcome {
            Outcome::Fails => assert!(log.contains(BROKEN_LOG_LINE), "{log}"),
            Outcome::DependencyFails => assert!(log.contains("broken"), "{log}"),
            _ => assert_eq!(paths.lines().count(), expected.outputs.len(), "{paths}"),
        }
        for internal in EXPECTED_INTERNAL.iter().filter(|_| expected.name == "bouquet") {
            let (_, inputs, _) = nix(&daemon, &directory, &["nix-store", "--query", "--requisites", &path]).await;
            assert!(inputs.contains(&format!("-{internal}.drv")), "{inputs}");
        }
    }
    let (_, book, _) = nix(&daemon, &directory, &["nix", "eval", "--raw", &format!("{checks}.book")]).await;
    let (_, references, _) = nix(&daemon, &directory, &["nix-store", "--query", "--references", &book]).await;
    assert!(references.contains("-poem"), "a closure of more than one path: {references}");
    daemon.stop().await;
}

#[tokio::test]
async fn it_is_the_same_commit_everywhere_and_keeps_changes() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let first = write(&directory.path().join("a/demo"), SYSTEM).await.expect("writes");
    let second = write(&directory.path().join("b/demo"), SYSTEM).await.expect("writes");
    assert_eq!(first.commit, second.commit);
    assert_eq!(first.commit.len(), 40);
    assert_eq!(write(&first.path, SYSTEM).await.expect("is there"), first);

    let git = find_program("git").expect("installed");
    fs::write(first.path.join("src/page.txt"), "changed\n").expect("writes");
    run(&git, &first.path, &["commit", "--quiet", "--all", "--message", "A change"]).await.expect("commits");
    let changed = write(&first.path, SYSTEM).await.expect("is there");
    assert_ne!(changed.commit, first.commit);
    assert_eq!(fs::read_to_string(first.path.join("src/page.txt")).expect("reads"), "changed\n");
    assert_eq!(fs::read_dir(directory.path().join("a")).expect("reads").count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn what_lies_in_the_way_stays() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("thesis.txt"), "mine").expect("writes");
    let error = write(directory.path(), SYSTEM).await.expect_err("not ours");
    assert!(matches!(error, DemoError::InTheWay { .. }), "{error}");
    assert!(directory.path().join("thesis.txt").exists());
    let error = write(&directory.path().join("demo"), "x\"; throw").await.expect_err("no system");
    assert!(matches!(error, DemoError::System { .. }), "{error}");
}

#[test]
fn the_messages_are_those_of_the_flake() {
    assert!(FLAKE.contains(BROKEN_LOG_LINE) && FLAKE.contains(IMPOSSIBLE_MESSAGE));
    let dialect = harmonia_core::project_config::Dialect::Harmonia;
    let parsed = harmonia_core::project_config::parse(dialect, PROJECT_CONFIG.as_bytes()).expect("is well-formed");
    let defaults = harmonia_core::project_config::ProjectConfig::default();
    assert_eq!(parsed.config, harmonia_core::project_config::ProjectConfig { attrs_are_named: true, ..defaults });
}
