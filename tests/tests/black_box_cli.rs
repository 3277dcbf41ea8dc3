//! Commands against a running server: follow a log, ask why, rebuild, cancel, git URLs, dirty trees.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use harmonia_tests::repository::{commit, flake, git};
use harmonia_tests::server::{Server, folder, lines_of, parse, text, wait_for};

/// `harmonia-ci plugin list | head -n 1` and the like: whoever reads goes away before all is written.
#[test]
fn a_reader_that_goes_away_ends_a_command_in_order() {
    use std::os::fd::OwnedFd;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = std::process::Command::new(harmonia_tests::server::binary())
        .args(["config", "check"])
        .env_remove("HARMONIA_CI_CONFIG")
        .stdout(Stdio::from(OwnedFd::from(writer)))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.as_ref()), (Some(141), ""), "as if SIGPIPE had ended it");
}

#[test]
fn a_build_can_be_followed_explained_cancelled_and_rebuilt() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[("HARMONIA_CI__BUILDER__MAX_JOBS", "1")]);
    let repository = data.path().join("repository");
    // It prints, then works on for a while, unless it is told to stop.
    let slow = flake(
        r#"rec {
      slow = sh "slow" "echo first line; n=0; while [ $n -lt 600 ]; do n=$((n+1)); sleep 0.1; done; echo done > $out" {};
      after = sh "after" "cat $slow > $out" { inherit slow; };
      other = sh "other" "echo other > $out" {};
    }"#,
    );
    commit(&repository, &[("flake.nix", &slow)]);
    let path = repository.to_str().expect("UTF-8");
    let created = server.json(&["eval", path, "--json"]);
    let eval = created["id"].as_u64().expect("an id").to_string();

    let building = wait_for(Duration::from_mins(1), || {
        let queue = server.json(&["queue", "--json"]);
        let running = queue["running"].as_array()?.iter().find(|job| job["name"] == "slow")?.clone();
        running["id"].as_u64()
    });
    let job = building.expect("the slow build starts").to_string();

    // Following shows the first line while it builds.
    let mut follow =
        server.command(&["log", "-f", &job]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let lines = lines_of(follow.stdout.take().expect("piped"));
    let mut end = follow.stderr.take().expect("piped");
    assert_eq!(lines.recv_timeout(Duration::from_secs(30)).as_deref(), Ok("first line"));

    // What waits says why: one for its input, the other for a slot.
    let why = |name: &str| {
        let output = server.run(&["queue", "--why", &format!("checks.{}-linux.{name}", std::env::consts::ARCH)]);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(why("after").contains("slow"), "{}", why("after"));
    assert!(why("other").contains("waits:"), "{}", why("other"));

    let cancelled = server.json(&["cancel", &job, "--json"]);
    assert!(cancelled["changed"].as_u64().is_some_and(|n| n >= 1), "{cancelled}");
    let status = wait_for(Duration::from_secs(20), || follow.try_wait().expect("waited for"));
    assert!(status.is_some_and(|s| s.success()), "following ends with the build");
    let mut said = String::new();
    end.read_to_string(&mut said).expect("read");
    assert!(said.contains("cancelled"), "{said}");

    // The slot is free again, so the other one gets built.
    let other = wait_for(Duration::from_mins(1), || {
        let output =
            server.run(&["queue", "--json", "--why", &format!("checks.{}-linux.other", std::env::consts::ARCH)]);
        (parse(&output)["status"] == "succeeded").then_some(())
    });
    assert!(other.is_some(), "a cancelled build frees its slot");

    let rebuilt = server.json(&["rebuild", &job, "--json"]);
    assert!(rebuilt["changed"].as_u64().is_some_and(|n| n >= 1), "{rebuilt}");
    let output = server.run(&["queue", "--json", "--why", &job]);
    assert_eq!(parse(&output)["priority"].as_u64(), Some(100), "{}", text(&output));
    let ended = server.json(&["cancel", "--eval", &eval, "--json"]);
    assert!(ended["changed"].as_u64().is_some(), "{ended}");
    let over = wait_for(Duration::from_secs(30), || {
        let queue = server.json(&["queue", "--json"]);
        (queue["running"].as_array().is_some_and(Vec::is_empty)
            && queue["waiting"].as_array().is_some_and(Vec::is_empty))
        .then_some(())
    });
    assert!(over.is_some(), "cancelling the evaluation leaves nothing behind: {}", server.json(&["queue", "--json"]));
}

#[test]
fn git_urls_and_dirty_trees_are_evaluated() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let repository = data.path().join("repository");
    commit(&repository, &[("flake.nix", &flake(r#"{ a = sh "a" "echo a > $out" {}; }"#))]);

    let url = format!("file://{}#main", repository.display());
    let output = server.run(&["eval", &url, "--wait", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let detail = parse(&output);
    assert_eq!(detail["commit"].as_str(), Some(git(&repository, &["rev-parse", "HEAD"]).as_str()));
    // Without a branch it is the one that the remote's HEAD names, and nothing else is taken for one.
    let plain = format!("file://{}", repository.display());
    let detail = parse(&server.run(&["eval", &plain, "--wait", "--json"]));
    assert_eq!((detail["verdict"].as_str(), detail["branch"].as_str()), (Some("succeeded"), Some("main")), "{detail}");
    for (branch, words, code) in [
        ("#nosuch", "(branch nosuch)", 1),
        ("#-x", "is not a name that git allows", 2),
        ("#a..b", "is not a name that git allows", 2),
        ("#", "no branch", 2),
    ] {
        let output = server.run(&["eval", &format!("{plain}{branch}"), "--wait"]);
        assert_eq!(output.status.code(), Some(code), "{branch}: {}", text(&output));
        assert!(text(&output).contains(words), "{branch}: {}", text(&output));
    }

    std::fs::write(
        repository.join("flake.nix"),
        flake(r#"{ a = sh "a" "echo dirty > $out" {}; b = sh "b" "echo b > $out" {}; }"#),
    )
    .expect("written");
    let path = repository.to_str().expect("UTF-8");
    let output = server.run(&["eval", path, "--wait", "--json", "--dirty"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let detail = parse(&output);
    assert_eq!((detail["attrs"].as_array().map(Vec::len), detail["dirty"].as_bool()), (Some(2), Some(true)));
    assert_eq!(git(&repository, &["status", "--porcelain"]).trim(), "M flake.nix", "the repository is as it was");

    // A folder of it that has a flake of its own means that, and a repository called the same is another project.
    let other = data.path().join("other/repository");
    let inner = flake(r#"{ inner = sh "inner" "echo inner > $out" {}; }"#);
    commit(&other, &[("flake.nix", &flake("{ }")), ("sub/flake.nix", &inner), ("sub/deep/file", "")]);
    let deep = other.join("sub/deep");
    let detail = parse(&server.run(&["eval", deep.to_str().expect("UTF-8"), "--wait", "--json"]));
    assert_eq!(detail["attrs"][0]["attr"].as_str(), Some("checks.x86_64-linux.inner"), "{detail}");
    let project = detail["project"].as_str().unwrap_or_default();
    assert_eq!(project, "local/repository/sub");
    std::fs::remove_file(other.join("sub/flake.nix")).expect("removed");
    commit(&other, &[("flake.nix", &inner)]);
    let detail = parse(&server.run(&["eval", other.to_str().expect("UTF-8"), "--wait", "--json"]));
    let project = detail["project"].as_str().unwrap_or_default();
    assert!(project.starts_with("local/repository-"), "{project}");

    // A table for people is printed without a terminal, too.
    let output = server.run(&["eval", path, "--wait"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 of 1 attributes succeeded"), "{}", text(&output));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("uncommitted changes are not evaluated"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_silent_build_ends_at_the_configured_silence() {
    let build = build_under(("HARMONIA_CI__BUILD__MAX_SILENT", "2s"), "silent");
    assert_eq!(
        (build["status"].as_str(), build["failure_kind"].as_str()),
        (Some("failed"), Some("timeout")),
        "{build}"
    );
    assert!(build["message"].as_str().is_some_and(|m| m.contains("limit of 2 s (max_silent)")), "{build}");
}

#[test]
fn a_long_build_ends_at_the_configured_time() {
    let build = build_under(("HARMONIA_CI__BUILD__TIMEOUT", "3s"), "long");
    assert_eq!(
        (build["status"].as_str(), build["failure_kind"].as_str()),
        (Some("failed"), Some("timeout")),
        "{build}"
    );
    assert!(build["message"].as_str().is_some_and(|m| m.contains("limit of 3 s (timeout)")), "{build}");
}

/// What becomes of a build that sleeps for ten minutes under one configured limit.
fn build_under(limit: (&str, &str), name: &str) -> serde_json::Value {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[limit]);
    let repository = data.path().join("repository");
    let sleeper = flake(&format!(r#"{{ {name} = sh "{name}" "sleep 600; echo done > $out" {{}}; }}"#));
    commit(&repository, &[("flake.nix", &sleeper)]);
    server.json(&["eval", repository.to_str().expect("UTF-8"), "--json"]);
    let attr = format!("checks.{}-linux.{name}", std::env::consts::ARCH);
    // Not there before it is evaluated.
    let build = || {
        let output = server.run(&["queue", "--json", "--why", &attr]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
    };
    let ended = |build: &serde_json::Value| {
        !matches!(build["status"].as_str(), None | Some("pending" | "building" | "uploading"))
    };
    let failed = wait_for(Duration::from_mins(1), || build().filter(ended));
    failed.unwrap_or_else(|| panic!("{limit:?} stops nothing: {:?}", build()))
}

/// A job that nobody can build, and one that fails in colours.
#[test]
fn waiting_says_why_and_colours_are_for_terminals() {
    let data = folder();
    let server = Server::up(&data.path().join("up"), &[], &[]);
    let repository = data.path().join("repository");
    let body = r#"{
      nowhere = sh "nowhere" "echo x > $out" { requiredSystemFeatures = [ "unheard-of" ]; };
      red = sh "red" "printf '\\033[1;31mit is red\\033[0m\\033[2J\\n'; exit 1" {};
    }"#;
    commit(&repository, &[("flake.nix", &flake(body)), (".harmonia-ci.toml", "colour = \"blue\"\n")]);
    let path = repository.to_str().expect("UTF-8");

    let mut waiting = server
        .command(&["eval", path, "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let progress = lines_of(waiting.stderr.take().expect("piped"));
    let mut seen = Vec::new();
    let wanted = format!("nowhere waits: no node offers {}-linux with unheard-of", std::env::consts::ARCH);
    while !seen.iter().any(|line: &String| line.ends_with(&wanted)) {
        seen.push(progress.recv_timeout(Duration::from_mins(1)).unwrap_or_else(|_| panic!("never said: {seen:#?}")));
    }
    let eval = seen[0].trim_start_matches("evaluation ").split(':').next().expect("an id").to_owned();
    let cancelled = server.json(&["cancel", "--eval", &eval, "--json"]);
    assert!(cancelled["changed"].as_u64() >= Some(1), "{cancelled}");
    let output = waiting.wait_with_output().expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("    │ it is red\n"), "{stdout}");
    let said: Vec<String> = progress.iter().collect();
    let warning = said.iter().position(|line| line.starts_with("warning: ") && line.contains("colour"));
    assert!(warning.is_some_and(|at| at + 2 >= said.len()), "warnings come at the end: {said:#?}");

    // What failed has failed: the next one ends by itself. On a terminal the log has its colours, and moves no cursor.
    let attr = format!("checks.{}-linux.red", std::env::consts::ARCH);
    let command = server.command(&["eval", path, "--wait", "--attrs", &attr]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
        .collect();
    let run = |no_color: &str| {
        let mut terminal = std::process::Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).stdin(Stdio::null());
        terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("NO_COLOR", no_color);
        String::from_utf8_lossy(&terminal.output().expect("script(1) runs").stdout).into_owned()
    };
    let colored = run("");
    assert!(colored.contains("│ \u{1b}[1;31mit is red\u{1b}[0m"), "{colored:?}");
    assert!(!colored.contains("\u{1b}[2J"), "{colored:?}");
    let plain = run("1");
    assert!(plain.contains("│ it is red"), "{plain:?}");
}
