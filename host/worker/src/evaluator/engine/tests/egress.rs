//! What evaluated code reaches of the network: real Nix and git in the real sandbox, through the real proxy.

use std::sync::{Arc, Mutex};

use harmonia_nix::Sha256Hash;

use super::*;
use crate::evaluator::source::tests::{Repositories, egress};
use crate::test_parts::{Answer, GitServer, Mood, TestServer};

const TEXT: &str = "from the server";

/// A server with one file for everybody, and what it was asked for.
async fn server() -> (TestServer, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&asked);
    let server = TestServer::start(move |request| {
        kept.lock().expect("unpoisoned").push(request.path);
        Answer::new(200, TEXT)
    })
    .await;
    (server, asked)
}

fn fetch(name: &str, url: &str) -> String {
    let hash = Sha256Hash::of(TEXT.as_bytes()).to_sri();
    // Its name is part of what is fetched, so that nothing is taken for what another attribute fetched.
    format!(
        r#"{name} = mk "is-${{toString (builtins.stringLength (builtins.readFile (builtins.fetchurl {{
             url = "{url}"; sha256 = "{hash}"; name = "{name}"; }})))}}";"#
    )
}

fn assert_is_told(seen: &Seen, name: &str, words: &[&str]) {
    let error = seen.errors.get(name).unwrap_or_else(|| panic!("{name}: {seen:?}"));
    for word in words {
        assert!(error.contains(word), "{name}: {error}");
    }
}

// The proxy and the servers answer while a process is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_comes_from_public_addresses_and_from_what_is_listed() {
    let (served, asked) = server().await;
    let address = format!("127.0.0.1:{}", served.url.port().expect("a port"));
    let redirecting = GitServer::start(std::path::Path::new("/nonexistent"), None).await;
    redirecting.be(Mood::Says(302, format!("Location: http://{address}/led\r\n").leak()));
    let names = [
        ("address", format!("http://{address}/address")),
        ("localhost", format!("http://localhost:{}/localhost", served.url.port().expect("a port"))),
        ("number", format!("http://{}/number", address.replace("127.0.0.1", "2130706433"))),
        ("mapped", format!("http://{}/mapped", address.replace("127.0.0.1", "[::ffff:127.0.0.1]"))),
        ("tls", format!("https://{address}/tls")),
        ("metadata", "http://169.254.169.254/latest/meta-data".to_owned()),
        ("redirect", format!("http://{}/x", redirecting.address)),
    ];
    let body: String =
        names.iter().map(|(name, url)| fetch(name, url)).chain([r#"ok = mk "ok";"#.to_owned()]).collect();
    let mut world = World::new(&checks(&body)).await;
    let all: Vec<&str> = names.iter().map(|(name, _)| *name).chain(["ok"]).collect();

    // One may be asked, and it leads to one that may not.
    world.engine.confinement.egress = Some(egress(&[&format!("http://{}", redirecting.address)]));
    let seen = world.evaluate(&all).await.expect("evaluates");
    assert_eq!(seen.results.keys().collect::<Vec<_>>(), ["ok"].iter().collect::<Vec<_>>(), "{seen:?}");
    for (name, place) in [
        ("address", "127.0.0.1"),
        ("localhost", "localhost is at "),
        ("number", "127.0.0.1"),
        ("mapped", "::ffff:127.0.0.1"),
        ("tls", "https://127.0.0.1"),
        ("metadata", "169.254.169.254 is no public address (link-local)"),
        ("redirect", &address),
    ] {
        assert_is_told(&seen, name, &["may not be reached", place, "`eval.allow_hosts`"]);
    }
    // What was refused to one is said of that one.
    for (name, error) in seen.errors.iter().filter(|(name, _)| *name != "metadata") {
        assert!(!error.contains("169.254.169.254 is no public address"), "{name}: {error}");
    }
    assert_eq!(*asked.lock().expect("unpoisoned"), Vec::<String>::new(), "nobody reached it");
    assert!(redirecting.seen().iter().any(|(line, _)| line == "GET /x"), "{:?}", redirecting.seen());

    world.engine.confinement.egress =
        Some(egress(&[&format!("http://{address}"), &format!("http://{}", redirecting.address)]));
    let seen = world.evaluate(&["address", "number", "redirect", "localhost"]).await.expect("evaluates");
    assert_eq!(seen.errors.keys().collect::<Vec<_>>(), ["localhost"].iter().collect::<Vec<_>>(), "{seen:?}");
    assert!(seen.results.values().all(|drv| drv.ends_with("-is-15.drv")), "{seen:?}");
    let mut asked = asked.lock().expect("unpoisoned").clone();
    asked.sort();
    assert_eq!(asked, ["/address", "/led", "/number"]);

    // Switched off, there is nobody to ask.
    world.engine.confinement.egress = None;
    let seen = world.evaluate(&["tls", "metadata"]).await.expect("evaluates");
    assert!(seen.errors.len() == 2 && seen.errors.values().all(|error| !error.contains("allow_hosts")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_in_the_engine_goes_the_same_way() {
    let repositories = Repositories::new();
    let dir = repositories.create("repo");
    std::fs::write(dir.join("a"), TEXT).expect("file");
    let rev = repositories.commit("repo", "one");
    let served = GitServer::start(repositories.dir.path(), None).await;
    let git = format!(
        r#"git = mk "is-${{toString (builtins.stringLength (builtins.readFile "${{builtins.fetchGit {{
             url = "http://{}/repo/.git"; rev = "{rev}"; ref = "{}"; }}}}/a"))}}";"#,
        served.address,
        repositories.git("repo", &["branch", "--show-current"]),
    );
    let mut world = World::new(&checks(&git)).await;
    world.engine.confinement.egress = Some(egress(&[]));
    let seen = world.evaluate(&["git"]).await.expect("evaluates");
    assert_is_told(&seen, "git", &["may not be reached", &served.address, "`eval.allow_hosts`"]);
    assert_eq!(served.seen(), []);
    world.engine.confinement.egress = Some(egress(&["127.0.0.0/8"]));
    let seen = world.evaluate(&["git"]).await.expect("evaluates");
    assert!(seen.results["git"].ends_with("-is-15.drv"), "{seen:?}");
}

/// What a shell in the engine's place prints.
async fn shell(world: &World, script: &str) -> String {
    let arguments = ["-c", script].map(OsString::from).to_vec();
    let mut process = process::Process::start(&world.engine, std::path::Path::new("/bin/sh"), arguments, String::new())
        .await
        .expect("starts");
    let mut printed = String::new();
    while let Some(line) = process.stdout.next().await.expect("reads") {
        printed.push_str(&String::from_utf8_lossy(&line));
        printed.push('\n');
    }
    process.ended("").await.expect("ends");
    printed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_way_around_the_proxy() {
    let (served, asked) = server().await;
    let url = served.url.as_str();
    let mut world = World::new(&checks("")).await;
    // Even what is listed is reached through the proxy only.
    world.engine.confinement.egress = Some(egress(&["127.0.0.0/8"]));
    let script = format!(
        "curl -sS --noproxy '*' -m 5 {url}direct 2>&1 | grep -c 'connect'; curl -sS -m 20 {url}proxied; echo; \
         curl -sS --noproxy '*' -m 5 http://localhost:3128/ 2>&1; cut -d: -f1 /proc/net/dev | tail -n +3"
    );
    let printed = shell(&world, &script).await;
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    assert_eq!(lines[..2], ["1", TEXT], "{printed}");
    assert!(lines[2].contains("this is a proxy"), "{printed}");
    assert_eq!(lines[3..], ["lo"], "{printed}");
    assert_eq!(*asked.lock().expect("unpoisoned"), ["/proxied"]);
    // Without network there is not even that.
    world.engine.confinement.egress = None;
    let printed = shell(&world, &format!("curl -sS -m 5 {url} 2>&1; env | grep -ci proxy; true")).await;
    assert!(printed.contains("onnect") && printed.ends_with("0\n"), "{printed}");
    assert_eq!(asked.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sandbox_what_asks_the_proxy_is_held_to_the_rules() {
    let (served, asked) = server().await;
    let mut world = World::new(&checks("")).await;
    world.engine.confinement.helper = None;
    for (listed, expected) in [(&[][..], "may not be reached"), (&["127.0.0.0/8"][..], TEXT)] {
        world.engine.confinement.egress = Some(egress(listed));
        let printed = shell(&world, &format!("curl -sS -m 20 {}", served.url)).await;
        assert!(printed.contains(expected), "{listed:?}: {printed}");
    }
    assert_eq!(asked.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_eval_jobs_goes_the_same_way() {
    let (served, asked) = server().await;
    let body = [fetch("fetched", served.url.as_str()), r#"ok = mk "ok";"#.to_owned()].concat();
    let mut world = World::new(&checks(&body)).await;
    let stand_in = eval_jobs::StandIn::new(false);
    world.engine.nix_eval_jobs = Some(stand_in.program());
    world.engine.confinement.egress = Some(egress(&[]));
    let seen = world.evaluate(&["fetched", "ok"]).await.expect("evaluates");
    assert!(seen.results.contains_key("ok"), "{seen:?}");
    assert_is_told(&seen, "fetched", &["may not be reached", "`eval.allow_hosts`"]);
    assert_eq!(*asked.lock().expect("unpoisoned"), Vec::<String>::new());
}
