use super::*;

/// What ssh would do, by ssh itself: `ssh -G` prints what follows from options and configuration.
#[tokio::test]
async fn ssh_has_no_identity_of_this_machine() {
    let output = Command::new("sh").args(["-c", &format!("{SSH_NOBODY} -G git@example.org")]).output().await;
    let output = output.expect("ssh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = said.lines().collect();
    for wanted in [
        "identityfile none",
        "identityagent none",
        "identitiesonly yes",
        "pubkeyauthentication false",
        "hostbasedauthentication no",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "batchmode yes",
        "forwardagent no",
        "userknownhostsfile /dev/null",
    ] {
        assert!(lines.contains(&wanted) || lines.contains(&wanted.replace("false", "no").as_str()), "{wanted}: {said}");
    }
    // An ssh that knows nothing of it, as Debian's newest, says nothing of it.
    assert!(!lines.contains(&"gssapiauthentication yes"), "{said}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("identityfile ")).count(), 1, "{said}");
}

/// A program that says what it got, in the place of ssh.
#[tokio::test]
async fn a_server_s_git_gets_nothing_of_our_environment() {
    let dir = tempfile::tempdir().expect("directory");
    let git = dir.path().join("git");
    std::fs::write(&git, "#!/bin/sh\nexport\n").expect("script");
    std::fs::set_permissions(&git, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let said = GitCommand::server(&git, dir.path(), "x", Transports::Http).text().await.expect("runs");
    for line in said.lines() {
        let name = line.trim_start_matches("export ").split('=').next().unwrap_or_default();
        assert!(
            name.starts_with("GIT_") || ["PATH", "HOME", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name),
            "{line}"
        );
    }
    for wanted in ["HOME='/nonexistent'", "GIT_ALLOW_PROTOCOL='https:http'", "GIT_CONFIG_GLOBAL='/dev/null'"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(!said.contains("SSH_AUTH_SOCK"), "{said}");
}

#[tokio::test]
async fn what_takes_too_long_ends_with_everything_that_it_started() {
    let dir = tempfile::tempdir().expect("directory");
    let git = dir.path().join("git");
    let pids = dir.path().join("pids");
    std::fs::write(&git, format!("#!/bin/sh\nsleep 600 &\necho $! $$ >{}\nwait\n", pids.display())).expect("script");
    std::fs::set_permissions(&git, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let command = GitCommand::server(&git, dir.path(), "x", Transports::None).time_max(Duration::from_millis(500));
    let failure = command.output().await.expect_err("too slow");
    assert!(matches!(failure, GitFailure::Timeout { command: "x", .. }), "{failure}");
    let pids = std::fs::read_to_string(pids).expect("it had started");
    for pid in pids.split_whitespace() {
        // Gone, or dead and not reaped yet.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_dead = || stat().rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !is_dead() {
            assert!(std::time::Instant::now() < until, "{pid} runs on: {}", stat());
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn long_outputs_are_read_record_by_record() {
    let dir = tempfile::tempdir().expect("directory");
    let git = dir.path().join("git");
    let script = "#!/bin/sh\ni=0\nwhile [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done\ncat\nexit ${FAIL:-0}\n";
    std::fs::write(&git, script).expect("script");
    std::fs::set_permissions(&git, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let command = || GitCommand::server(&git, dir.path(), "x", Transports::None).input(b"last\n".to_vec());
    let keep = |line: &[u8]| (line.ends_with(b"00") || line == b"last").then_some(line.len());
    assert_eq!(command().records(b'\n', 100, keep).await.expect("runs").len(), 29 + 1);
    assert_eq!(command().records(b'\n', 3, keep).await.expect("runs").len(), 3);
    let failure = command().env("FAIL", "7").records(b'\n', 3, keep).await.expect_err("fails");
    assert!(matches!(failure, GitFailure::Failed { status: Some(7), .. }), "{failure}");
}
