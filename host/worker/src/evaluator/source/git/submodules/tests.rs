//! Submodules that cannot be fetched, and some that can.

use super::*;
use crate::evaluator::source::tests::{Repositories, egress};
use crate::evaluator::source::{Checkout, MergeWanted, Origin, Wanted, checkout};
use crate::test_parts::{GitServer, Mood};

const NOWHERE: &str = "1111111111111111111111111111111111111111";

/// A repository with these gitlinks and this `.gitmodules`.
fn repository(world: &Repositories, name: &str, links: &[(&str, &str)], modules: Option<&str>) -> String {
    let dir = world.create(name);
    std::fs::write(dir.join("flake.nix"), "{ }").expect("file");
    if let Some(modules) = modules {
        std::fs::write(dir.join(".gitmodules"), modules).expect("file");
    }
    world.git(name, &["add", "--all"]);
    for (path, commit) in links {
        world.git(name, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
    }
    world.git(name, &["commit", "--quiet", "-m", "title"]);
    world.git(name, &["rev-parse", "HEAD"])
}

fn module(name: &str, path: &str, url: &str) -> String {
    format!("[submodule \"{name}\"]\n\tpath = {path}\n\turl = {url}\n")
}

fn bundle(world: &Repositories, name: &str) -> Origin {
    let file = world.dir.path().join(format!("{name}.bundle"));
    std::fs::write(&file, world.bundle(name)).expect("file");
    Origin::Bundle(file)
}

#[tokio::test]
async fn what_nobody_can_fetch_stays_empty_with_a_warning() {
    let world = Repositories::new();
    let docs = module("docs", "docs", "https://127.0.0.1:1/docs.git");
    for (name, links, modules, warning) in [
        (
            "stray",
            &[("vendored/zsh", NOWHERE)][..],
            None,
            Some("'vendored/zsh' is a submodule that .gitmodules does not name"),
        ),
        ("mixed", &[("vendored/zsh", NOWHERE)], Some(docs.as_str()), Some("'vendored/zsh' is a submodule that")),
        // Nobody is asked for what the commit does not have.
        ("leftover", &[], Some(docs.as_str()), None),
        ("broken", &[], Some("<<<<<<< HEAD\nnot a config\n"), Some(".gitmodules cannot be read (bad config line 1)")),
        (
            "odd",
            &[("x", NOWHERE)],
            Some(&module("x", "x/", "ext::sh -c id")),
            Some("the submodule 'x' (ext::sh -c id) stays empty"),
        ),
        (
            "host",
            &[("x", NOWHERE)],
            Some(&module("x", "x", "git@127.0.0.1:a/x.git")),
            Some("stays empty: it is no URL"),
        ),
    ] {
        let commit = repository(&world, name, links, modules);
        let wanted = Wanted { commit: Some(&commit), branch: "main", waits_for_submodules: true, ..Wanted::default() };
        for origin in [bundle(&world, name), world.url(name)] {
            let found = checkout(&world.sources(true), &origin, &wanted).await;
            let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found.dir.path().join("flake.nix").exists());
            match warning {
                None => assert_eq!(found.warnings, Vec::<String>::new(), "{name}"),
                Some(words) => {
                    assert_eq!(found.warnings.len(), 1, "{name}: {:?}", found.warnings);
                    assert!(found.warnings[0].contains(words), "{name}: {:?}", found.warnings);
                }
            }
        }
    }
}

#[tokio::test]
async fn what_must_not_or_cannot_be_fetched_is_said() {
    let world = Repositories::new();
    let inner = world.create("lib");
    std::fs::write(inner.join("a"), "x").expect("file");
    let inside = world.commit("lib", "lib");
    let here = world.dir.path().join("lib").display().to_string();
    for (name, url, from_bundle, from_url) in [
        (
            "relative",
            "../lib",
            Some("sent from a local repository; evaluate the git URL"),
            "must not come from this machine",
        ),
        ("file", &format!("file://{here}"), Some("must not come from this machine"), "must not come from this machine"),
        ("path", &here, Some("must not come from this machine"), "must not come from this machine"),
    ] {
        let commit = repository(&world, name, &[("lib", &inside)], Some(&module("lib", "lib", url)));
        let wanted = Wanted { commit: Some(&commit), branch: "main", ..Wanted::default() };
        for (origin, words) in [(bundle(&world, name), from_bundle), (world.url(name), Some(from_url))] {
            let error = checkout(&world.sources(true), &origin, &wanted).await.expect_err(name).to_string();
            let expected = words.unwrap_or_default();
            assert!(error.contains(expected), "{name}: {error}");
            assert!(error.starts_with(&format!("the submodule 'lib' ({url}) cannot be fetched: ")), "{error}");
            assert!(!error.contains("scratch") && !error.contains("mirrors"), "{error}");
        }
    }
}

// Git fetches from the server while the test waits for it, so the server needs a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submodules_of_submodules_are_filled_in_wherever_they_are_relative_to() {
    let world = Repositories::new();
    let server = GitServer::start(world.dir.path(), None).await;
    std::fs::create_dir(world.dir.path().join("acme")).expect("folder");
    let publish = |name: &str| {
        let target = world.dir.path().join(format!("acme/{name}.git"));
        std::os::unix::fs::symlink(world.dir.path().join(name).join(".git"), target).expect("link");
    };
    let leaf = world.create("leaf");
    std::fs::write(leaf.join("a"), "leaf").expect("file");
    let leaf = world.commit("leaf", "leaf");
    publish("leaf");
    let middle = repository(&world, "middle", &[("deep/leaf", &leaf)], Some(&module("l", "deep/leaf", "../leaf.git")));
    publish("middle");
    // As people clone it with a key, from the server that we ask without one.
    let own = module("m", "lib", &format!("git@127.0.0.1:acme/{}.git", "middle"));
    let top = repository(&world, "top", &[("lib", &middle)], Some(&own));
    publish("top");
    let origin = Origin::Url(format!("http://{}/acme/top.git", server.address));
    let sources = world.sources(false);
    let wanted = Wanted { commit: Some(&top), branch: "main", ..Wanted::default() };
    let look = |found: &Checkout| {
        assert_eq!(found.warnings, Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(found.dir.path().join("lib/deep/leaf/a")).expect("file"), "leaf");
        assert!(!found.dir.path().join("lib/.git").exists() && !found.dir.path().join("lib/deep/leaf/.git").exists());
    };
    look(&checkout(&sources, &origin, &wanted).await.expect("checks out"));
    let asked = server.seen().len();
    look(&checkout(&sources, &origin, &wanted).await.expect("checks out"));
    assert_eq!(server.seen().len(), asked, "the second time everything is in mirrors");

    // A commit of it that is not there any more.
    let gone = repository(&world, "gone", &[("lib", NOWHERE)], Some(&module("m", "lib", "../middle.git")));
    publish("gone");
    let origin = Origin::Url(format!("http://{}/acme/gone.git", server.address));
    let wanted = Wanted { commit: Some(&gone), ..wanted };
    let found = checkout(&sources, &origin, &wanted).await.expect("the flake may not need it");
    assert!(found.warnings[0].contains("has no commit 1111"), "{:?}", found.warnings);
}

#[tokio::test]
async fn strangers_submodules_come_over_http_only() {
    let world = Repositories::new();
    let dir = world.create("repo");
    std::fs::write(dir.join("a"), "x").expect("file");
    let base = world.commit("repo", "base");
    world.git("repo", &["checkout", "--quiet", "-b", "topic"]);
    std::fs::write(dir.join(".gitmodules"), module("x", "x", "ssh://git@127.0.0.1:1/x")).expect("file");
    world.git("repo", &["add", ".gitmodules"]);
    world.git("repo", &["update-index", "--add", "--cacheinfo", &format!("160000,{NOWHERE},x")]);
    world.git("repo", &["commit", "--quiet", "-m", "topic"]);
    let head = world.git("repo", &["rev-parse", "HEAD"]);
    let merge = MergeWanted { head_ref: None, base_branch: "main", base_commit: Some(&base) };
    let wanted = Wanted {
        commit: Some(&head),
        branch: "topic",
        merge: Some(merge),
        waits_for_submodules: true,
        ..Wanted::default()
    };
    let found = checkout(&world.sources(true), &world.url("repo"), &wanted).await.expect("merges");
    assert!(found.warnings[0].contains("its scheme"), "{:?}", found.warnings);
    // Also one that we trust: no proxy carries it.
    let trusted = Wanted { merge: None, ..wanted };
    let found = checkout(&world.sources(true), &world.url("repo"), &trusted).await.expect("checks out");
    assert!(found.warnings[0].contains("servers other than the project's own"), "{:?}", found.warnings);
}

#[tokio::test]
async fn what_no_proxy_carries_is_fetched_from_the_projects_own_server_alone() {
    let world = Repositories::new();
    let sources = world.sources(false);
    for (own, written, transports, expected) in [
        ("ssh://git@h.example/a/x", "../lib", Transports::Servers, Some("ssh://git@h.example/a/lib")),
        (
            "ssh://git@h.example:22022/a/x",
            "ssh://h.example:22022/b",
            Transports::Servers,
            Some("ssh://h.example:22022/b"),
        ),
        ("git://h.example/a/x", "git://h.example/b", Transports::Servers, Some("git://h.example/b")),
        ("git://h.example/a/x", "ssh://h.example/b", Transports::Servers, None),
        ("git://h.example/a/x", "git://other.example/b", Transports::Servers, None),
        ("git://h.example/a/x", "git://h.example:1/b", Transports::Servers, None),
        ("git://h.example/a/x", "git://h.example/b", Transports::Http, None),
        ("https://h.example/a/x", "git://other.example/b", Transports::Servers, None),
        ("https://h.example/a/x", "https://other.example/b", Transports::Servers, Some("https://other.example/b")),
    ] {
        let own = Url::parse(own).expect("a URL");
        let way = Way::open(&sources.egress, Some(&own)).await.expect("listens");
        let submodules = Submodules { sources: &sources, way: &way, transports, of_owner: None, waits: false };
        let place = Place {
            dir: world.dir.path().to_owned(),
            shown: String::new(),
            repository: world.dir.path().to_owned(),
            _in_use: None,
            commit: NOWHERE.to_owned(),
            origin: Some(own.clone()),
            depth: 0,
        };
        let address = submodules.address(&place, written, "x").ok();
        assert_eq!(address.as_ref().map(Url::as_str), expected, "{own} {written}");
    }
}

// Git fetches from the server while the test waits for it, so the server needs a thread of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submodule_comes_from_public_addresses_the_projects_own_server_and_what_is_listed() {
    let world = Repositories::new();
    let inner = world.create("inner");
    std::fs::write(inner.join("a"), "inner").expect("file");
    let commit = world.commit("inner", "inner");
    let (own, other) = (GitServer::start(world.dir.path(), None).await, GitServer::start(world.dir.path(), None).await);
    let elsewhere = format!("http://{}/inner/.git", other.address);
    let named = format!("http://localhost:{}/inner/.git", other.address.rsplit(':').next().expect("a port"));
    let beside = format!("http://{}/inner/.git", own.address);
    for (name, url, listed, is_filled) in [
        ("elsewhere", &elsewhere, vec![], false),
        ("named", &named, vec![], false),
        ("neighbour", &elsewhere, vec![format!("http://{}", own.address)], false),
        ("beside", &beside, vec![], true),
        ("listed", &elsewhere, vec![format!("http://{}", other.address)], true),
    ] {
        let top = repository(&world, name, &[("sub", &commit)], Some(&module("sub", "sub", url)));
        let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
        let mut sources = world.sources(false);
        sources.egress = egress(&listed);
        let wanted = Wanted { commit: Some(&top), branch: "main", waits_for_submodules: true, ..Wanted::default() };
        let origin = Origin::Url(format!("http://{}/{name}/.git", own.address));
        let found = checkout(&sources, &origin, &wanted).await.expect("checks out with or without");
        assert_eq!(found.dir.path().join("sub/a").exists(), is_filled, "{name}: {:?}", found.warnings);
        if is_filled {
            assert_eq!(found.warnings, Vec::<String>::new(), "{name}");
        } else {
            assert_eq!(other.seen(), [], "{name}: it was called");
            let warning = &found.warnings[0];
            assert!(warning.starts_with("the submodule 'sub' (http://"), "{warning}");
            assert!(warning.contains("(this machine)") && warning.contains("`eval.allow_hosts`"), "{warning}");
        }
    }
    assert!(!other.seen().is_empty(), "it is asked when it is listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_cannot_lead_git_to_where_it_must_not_go() {
    let world = Repositories::new();
    let dir = world.create("repo");
    std::fs::write(dir.join("a"), "x").expect("file");
    let commit = world.commit("repo", "one");
    let (own, hidden) =
        (GitServer::start(world.dir.path(), None).await, GitServer::start(world.dir.path(), None).await);
    let to = format!("http://{}/repo/.git/info/refs?service=git-upload-pack", hidden.address);
    own.be(Mood::Says(302, format!("Location: {to}\r\n").leak()));
    let mut sources = world.sources(false);
    sources.egress = egress(&[]);
    let origin = Origin::Url(format!("http://{}/repo/.git", own.address));
    let wanted = Wanted { commit: Some(&commit), branch: "main", ..Wanted::default() };
    let error = checkout(&sources, &origin, &wanted).await.expect_err("refused");
    assert!(
        matches!(&error, GitError::Forbidden(refusal) if refusal.to_string().contains(&hidden.address)),
        "{error:?}"
    );
    assert_eq!(hidden.seen(), []);
    sources.egress = egress(&[&format!("http://{}", hidden.address)]);
    checkout(&sources, &origin, &wanted).await.expect("the operator allows it");
}

#[test]
fn what_config_says_is_read() {
    let said = "submodule.a.b.path\nlib/\0submodule.a.b.url\n../x\ny\0submodule.c.path\nc\0submodule.d.url\nd\0junk\0";
    assert_eq!(addresses(said), BTreeMap::from([("lib".to_owned(), "../x\ny".to_owned())]));
}
