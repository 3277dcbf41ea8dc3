//! What becomes of a fetch when the server has a bad day, with git's own server.

use super::*;
use crate::evaluator::source::tests::Repositories;
use crate::evaluator::source::{Origin, Wanted, checkout};
use crate::test_parts::{GitServer, Mood};

#[test]
fn the_last_status_code_is_found_and_nothing_else_taken_for_one() {
    for (message, expected) in [
        ("fatal: unable to access 'http://x/': The requested URL returned error: 503", Some(503)),
        (
            "error: RPC failed; HTTP 429 curl 22 The requested URL returned error: 429\nfatal: expected 'packfile'",
            Some(429),
        ),
        ("The requested URL returned error: 401\nThe requested URL returned error: 502 Bad Gateway", Some(502)),
        ("The requested URL returned error: ", None),
        ("The requested URL returned error: 99999999", None),
        ("fatal: couldn't find remote ref refs/heads/503", None),
    ] {
        assert_eq!(http_code(message), expected, "{message}");
    }
}

struct Served {
    world: Repositories,
    server: GitServer,
    commit: String,
}

impl Served {
    async fn start() -> Self {
        let world = Repositories::new();
        let dir = world.create("repo");
        std::fs::write(dir.join("a"), "text").expect("file");
        let commit = world.commit("repo", "one");
        let server = GitServer::start(world.dir.path(), None).await;
        Self { world, server, commit }
    }

    async fn fetch(&self, commit: Option<&str>, branch: &str) -> Result<String, GitError> {
        self.fetch_from(&format!("http://{}/repo/.git", self.server.address), commit, branch).await
    }

    async fn fetch_from(&self, url: &str, commit: Option<&str>, branch: &str) -> Result<String, GitError> {
        let wanted = Wanted { commit, branch, ..Wanted::default() };
        checkout(&self.world.sources(false), &Origin::Url(url.to_owned()), &wanted).await.map(|found| found.commit)
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_and_then_fetched_from() {
    let served = Served::start().await;
    let commit = Some(served.commit.as_str());
    for (mood, pause, words) in [
        (Mood::Says(503, "Retry-After: 77\r\n"), Some(77), "HTTP 503"),
        (Mood::Says(429, "Retry-After: 5\r\n"), Some(5), "HTTP 429"),
        (Mood::Says(502, ""), None, "HTTP 502"),
        (Mood::HangsUp, None, "the repository is there"),
    ] {
        served.server.be(mood);
        for commit in [commit, None] {
            match served.fetch(commit, "main").await {
                Err(GitError::Unavailable { server, message, retry_after }) => {
                    assert_eq!(server, served.server.address);
                    assert_eq!(retry_after, pause.map(Duration::from_secs), "{mood:?}: {message}");
                    assert!(message.contains(words), "{mood:?}: {message}");
                }
                other => panic!("{mood:?}: {other:?}"),
            }
        }
    }
    served.server.be(Mood::Well);
    assert_eq!(served.fetch(commit, "main").await.expect("it is back"), served.commit);

    // Nobody listens, by any way of fetching.
    let address = served.server.address.clone();
    let Served { world, server, commit } = served;
    drop(server);
    let served = Served { server: GitServer::start(world.dir.path(), None).await, world, commit };
    for scheme in ["http", "git", "ssh"] {
        let url = format!("{scheme}://{address}/other/.git");
        let error = served.fetch_from(&url, Some(&served.commit), "main").await.expect_err("gone");
        assert!(matches!(&error, GitError::Unavailable { server, .. } if *server == address), "{scheme}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_says_no_is_not_asked_again() {
    let served = Served::start().await;
    for (url, branch, commit) in [
        ("nosuch/.git", "main", Some(served.commit.as_str())), // 404
        ("nosuch/.git", "main", None),
    ] {
        let url = format!("http://{}/{url}", served.server.address);
        let error = served.fetch_from(&url, commit, branch).await.expect_err("there is none");
        assert!(matches!(&error, GitError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("Is it there, and public?"), "{error}");
    }
    served.server.be(Mood::Says(403, ""));
    let error = served.fetch(Some(&served.commit), "main").await.expect_err("forbidden");
    assert!(matches!(&error, GitError::Refused { message, .. } if message.contains("HTTP 403")), "{error:?}");
    served.server.be(Mood::Well);
    // The repository is there, and has no such thing.
    for (commit, branch) in [(Some("0".repeat(40)), "main"), (None, "nosuch"), (Some("1".repeat(40)), "nosuch")] {
        let error = served.fetch(commit.as_deref(), branch).await.expect_err("there is none");
        assert!(matches!(&error, GitError::NoCommit { .. }), "{commit:?} {branch}: {error:?}");
    }
}

// Git clones from the server while the test waits for it, so the server needs a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submodule_of_a_server_that_is_away_is_waited_for() {
    let world = Repositories::new();
    let inner = world.create("inner");
    std::fs::write(inner.join("a"), "inner").expect("file");
    world.commit("inner", "inner");
    let other = GitServer::start(world.dir.path(), None).await;
    world.create("outer");
    let url = format!("http://{}/inner/.git", other.address);
    world.git("outer", &["submodule", "--quiet", "add", &url, "sub"]);
    let commit = world.commit("outer", "outer");
    let server = GitServer::start(world.dir.path(), None).await;
    let origin = Origin::Url(format!("http://{}/outer/.git", server.address));
    let wanted = Wanted { commit: Some(&commit), branch: "main", waits_for_submodules: true, ..Wanted::default() };
    let sources = world.sources(false);
    other.be(Mood::Says(503, "Retry-After: 9\r\n"));
    let error = checkout(&sources, &origin, &wanted).await.expect_err("its submodule is away");
    let GitError::Unavailable { server: away, message, retry_after } = error else { panic!("{error:?}") };
    assert_eq!((away.as_str(), retry_after), (other.address.as_str(), Some(Duration::from_secs(9))), "{message}");
    assert!(message.contains("submodule"), "{message}");
    other.be(Mood::Says(404, ""));
    let without = checkout(&sources, &origin, &wanted).await.expect("a flake may not need what is gone");
    assert!(without.warnings[0].contains("the submodule 'sub'"), "{:?}", without.warnings);
    assert!(std::fs::read_dir(without.dir.path().join("sub")).expect("empty").next().is_none());
    other.be(Mood::Says(503, ""));
    let patient = Wanted { waits_for_submodules: false, ..wanted };
    let without = checkout(&sources, &origin, &patient).await.expect("it has waited long enough");
    assert!(without.warnings[0].contains("HTTP 503"), "{:?}", without.warnings);
    other.be(Mood::Well);
    let found = checkout(&sources, &origin, &wanted).await.expect("it is back");
    assert_eq!(std::fs::read_to_string(found.dir.path().join("sub/a")).expect("file"), "inner");
}
