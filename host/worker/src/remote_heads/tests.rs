use std::path::Path;
use std::process::Command as Program;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use super::*;
use crate::test_parts::{GitServer, Mood};

fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Program::new("git")
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .args(["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=trunk"])
        .args(arguments)
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// A repository with the branches `trunk` (its HEAD) and `release/1`.
fn repository() -> (TempDir, String, String, String) {
    let dir = tempfile::tempdir().expect("temporary directory");
    git(dir.path(), &["init", "--quiet"]);
    git(dir.path(), &["commit", "--quiet", "--allow-empty", "-m", "one"]);
    git(dir.path(), &["branch", "release/1"]);
    let one = git(dir.path(), &["rev-parse", "HEAD"]);
    git(dir.path(), &["commit", "--quiet", "--allow-empty", "-m", "two"]);
    let two = git(dir.path(), &["rev-parse", "HEAD"]);
    let url = format!("file://{}", dir.path().display());
    (dir, url, one, two)
}

fn heads(allow_file_urls: bool) -> GitRemoteHeads {
    GitRemoteHeads::new(PathBuf::from("git"), allow_file_urls, Vec::new(), Duration::from_mins(1))
}

fn head(branch: &str, commit: &str) -> RemoteHead {
    RemoteHead { branch: branch.to_owned(), commit: commit.to_owned() }
}

#[tokio::test]
async fn branches_are_where_git_says() {
    let (dir, url, one, two) = repository();
    let heads = heads(true);
    assert_eq!(heads.head(url.clone(), None).await, Ok(head("trunk", &two)));
    assert_eq!(heads.head(url.clone(), Some("release/1".to_owned())).await, Ok(head("release/1", &one)));
    // Not one that only ends so.
    git(dir.path(), &["branch", "a/refs/heads/x"]);
    let missing = heads.head(url.clone(), Some("x".to_owned())).await.expect_err("there is none");
    assert!(missing.contains("has no branch x"), "{missing}");
    git(dir.path(), &["checkout", "--quiet", "--detach"]);
    let detached = heads.head(url, None).await.expect_err("HEAD names no branch");
    assert!(detached.contains("default"), "{detached}");
}

#[tokio::test]
async fn what_git_must_not_see_is_refused() {
    let (_dir, url, ..) = repository();
    let refused = heads(false).head(url.clone(), None).await.expect_err("not allowed");
    assert!(refused.contains("allow_file_urls"), "{refused}");
    for bad in ["ext::sh -c id", "--upload-pack=id", "/etc", "https://-oProxyCommand=id/x", "file:///x\ny", "fd::3"] {
        heads(true).head(bad.to_owned(), None).await.expect_err(bad);
    }
    for bad in ["", "-x", "a..b", "a b", "x\0", "*", &"x".repeat(1025)] {
        heads(true).head(url.clone(), Some(bad.to_owned())).await.expect_err(bad);
    }
    let absent = heads(true).head("file:///no/such/repository".to_owned(), None).await.expect_err("nothing there");
    assert!(absent.starts_with("git could not ask file:///no/such/repository: "), "{absent}");
}

#[tokio::test]
async fn a_server_that_says_nothing_or_nonsense_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("git://{}/x", listener.local_addr().expect("address"));
    // Takes the connection and never answers.
    let silent = tokio::spawn(async move {
        let connection = listener.accept().await.expect("connected");
        std::future::pending::<()>().await;
        drop(connection);
    });
    let heads = GitRemoteHeads::new(PathBuf::from("git"), false, Vec::new(), Duration::from_millis(300));
    let error = heads.head(url, None).await.expect_err("too slow");
    assert!(error.contains("did not answer within 300ms"), "{error}");
    silent.abort();

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/x", listener.local_addr().expect("address"));
    let garbage = tokio::spawn(async move {
        loop {
            let Ok((mut connection, _)) = listener.accept().await else { return };
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ngarbage").await;
        }
    });
    // Git takes it for an old-style list of refs, in which there is none.
    let error = self::heads(false).head(url.clone(), None).await.expect_err("no repository");
    assert!(error.contains("does not say which branch is its default"), "{error}");
    let error = self::heads(false).head(url, Some("main".to_owned())).await.expect_err("no repository");
    assert!(error.contains("has no branch main"), "{error}");
    garbage.abort();
}

#[tokio::test]
async fn a_server_leads_to_what_evaluations_may_reach_and_nowhere_else() {
    let (dir, _, _, two) = repository();
    let (served, name) = (dir.path().parent().expect("a parent"), dir.path().file_name().expect("a name"));
    let name = name.to_str().expect("text");
    let inner = GitServer::start(served, None).await;
    let outer = GitServer::start(served, None).await;
    let url = format!("http://{}/{name}", outer.address);
    assert_eq!(heads(false).head(url.clone(), None).await, Ok(head("trunk", &two)), "a project's own server");

    let refs = format!("Location: http://{}/{name}/info/refs?service=git-upload-pack\r\n", inner.address);
    outer.be(Mood::Says(302, refs.leak()));
    let refused = heads(false).head(url.clone(), None).await.expect_err("another server of this machine");
    assert!(refused.contains("may not be reached") && refused.contains("eval.allow_hosts"), "{refused}");
    assert_eq!(inner.seen(), [], "nothing was asked of it");

    let allowed = vec!["127.0.0.0/8".parse().expect("a grant")];
    let heads = GitRemoteHeads::new(PathBuf::from("git"), false, allowed, Duration::from_mins(1));
    assert_eq!(heads.head(url, None).await, Ok(head("trunk", &two)), "listed");
}

#[test]
fn hostile_answers_are_no_heads() {
    let commit = "a".repeat(40);
    assert_eq!(head_of(&format!("ref: refs/heads/m\tHEAD\n{commit}\tHEAD\n")), Some(head("m", &commit)));
    for output in [
        String::new(),
        format!("{commit}\tHEAD\n"),
        "ref: refs/heads/m\tHEAD\n".to_owned(),
        format!("ref: refs/heads/-x\tHEAD\n{commit}\tHEAD\n"),
        "ref: refs/heads/m\tHEAD\nzzzz\tHEAD\n".to_owned(),
        format!("ref: refs/tags/m\tHEAD\n{commit}\tHEAD\n"),
    ] {
        assert_eq!(head_of(&output), None, "{output}");
    }
}
