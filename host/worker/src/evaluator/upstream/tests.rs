//! Real HTTP servers that play caches of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harmonia_nix::store_path::References;
use harmonia_nix::{ContentAddress, Hash, HashAlgorithm, NarInfo, PublicKey, SecretKey, Sha256Hash};

use super::*;
use crate::test_parts::{Answer, TestServer};

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{:0>32}-{name}", name.len())).expect("a store path")
}

fn key(name: &str) -> SecretKey {
    SecretKey::from_seed(name, &[7; 32]).expect("a key")
}

fn narinfo(path: &StorePath, compression: &str, signed_by: &[&SecretKey]) -> NarInfo {
    let mut info = NarInfo {
        path: path.clone(),
        url: "nar/x".to_owned(),
        compression: compression.to_owned(),
        file_hash: None,
        file_size: None,
        nar_hash: Sha256Hash::of(b"nar"),
        nar_size: 3,
        references: [path.clone()].into(),
        deriver: None,
        content_address: None,
        signatures: Vec::new(),
    };
    for key in signed_by {
        info.sign(key);
    }
    info
}

async fn is_available(server: &TestServer, keys: &[PublicKey], output: &StorePath) -> bool {
    let upstream = Upstream::new(reqwest::Client::new(), vec![server.cache(keys)]);
    upstream.find(std::slice::from_ref(output), &[]).await.present.contains(output)
}

#[tokio::test]
async fn only_a_narinfo_that_is_to_be_believed_makes_a_path_available() {
    let (trusted, stranger) = (key("up-1"), key("stranger-1"));
    let output = path("a");
    let mut content = narinfo(&output, "zstd", &[]);
    content.references.clear();
    content.nar_hash = Sha256Hash::of(b"nar");
    content.content_address = Some(ContentAddress::recursive(Hash::of(HashAlgorithm::Sha256, b"nar")));
    let fixed = StorePath::make_fixed_output("a", content.content_address.expect("set"), &References::default())
        .expect("a path");
    content.path = fixed.clone();
    let mut lie = content.clone();
    lie.nar_hash = Sha256Hash::of(b"another");
    let other = narinfo(&path("other"), "zstd", &[&trusted]);
    for (what, output, status, body, expected) in [
        ("a page for every path", &output, 200, "<html>please log in</html>".to_owned(), false),
        ("nothing", &output, 200, String::new(), false),
        ("signed", &output, 200, narinfo(&output, "zstd", &[&trusted]).to_string(), true),
        ("also signed", &output, 200, narinfo(&output, "zstd", &[&stranger, &trusted]).to_string(), true),
        ("not signed", &output, 200, narinfo(&output, "zstd", &[]).to_string(), false),
        ("signed by a stranger", &output, 200, narinfo(&output, "zstd", &[&stranger]).to_string(), false),
        ("of another path", &output, 200, other.to_string(), false),
        (
            "of another store",
            &output,
            200,
            narinfo(&output, "zstd", &[&trusted]).to_string().replace("/nix/store", "/gnu/store"),
            false,
        ),
        ("in no compression of ours", &output, 200, narinfo(&output, "lzip", &[&trusted]).to_string(), false),
        ("in an old compression", &output, 200, narinfo(&output, "bzip2", &[&trusted]).to_string(), true),
        ("proven by its content", &fixed, 200, content.to_string(), true),
        ("with the wrong content", &fixed, 200, lie.to_string(), false),
        ("not there", &output, 404, "no".to_owned(), false),
        ("a login that is wanted", &output, 401, narinfo(&output, "zstd", &[&trusted]).to_string(), false),
        ("a bucket that is not to be listed", &output, 403, "no".to_owned(), false),
        ("a server in trouble", &output, 503, narinfo(&output, "zstd", &[&trusted]).to_string(), false),
    ] {
        let server = TestServer::start(move |request| {
            assert_eq!(request.method, "GET");
            Answer::new(status, body.clone())
        })
        .await;
        assert_eq!(is_available(&server, &[trusted.public_key()], output).await, expected, "{what}");
    }
}

#[tokio::test]
async fn the_key_of_one_cache_does_not_count_for_another() {
    let (one, two) = (key("one-1"), key("two-1"));
    let output = path("a");
    let text = narinfo(&output, "zstd", &[&one]).to_string();
    let server = TestServer::start(move |_| Answer::new(200, text.clone())).await;
    assert!(is_available(&server, &[one.public_key()], &output).await);
    assert!(!is_available(&server, &[two.public_key()], &output).await);
}

fn answer(path: &StorePath, server: &TestServer, present: bool) -> UpstreamAnswer {
    UpstreamAnswer { path: path.clone(), cache: server.url.to_string(), present }
}

#[tokio::test]
async fn what_is_remembered_is_not_asked_and_what_is_asked_is_an_answer() {
    let trusted = key("up-1");
    let (here, gone, new) = (path("here"), path("gone-1"), path("new-path"));
    let text = narinfo(&new, "zstd", &[&trusted]).to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let empty = TestServer::start(|_| Answer::new(404, "")).await;
    let server = TestServer::start(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Answer::new(200, text.clone())
    })
    .await;
    let keys = [trusted.public_key()];
    let upstream = Upstream::new(reqwest::Client::new(), vec![empty.cache(&keys), server.cache(&keys)]);
    let memo = [
        answer(&here, &server, true),
        answer(&gone, &server, false),
        answer(&gone, &empty, false),
        // Of a cache that is not asked any more.
        UpstreamAnswer { path: gone.clone(), cache: "https://removed.example/".to_owned(), present: true },
    ];
    let found = upstream.find(&[here.clone(), gone, new.clone()], &memo).await;
    assert_eq!(found.present, HashSet::from([here, new.clone()]));
    assert_eq!(found.answers, [answer(&new, &empty, false), answer(&new, &server, true)]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// A port that takes connections and never answers costs one time-out, whatever the number of paths.
#[tokio::test]
async fn a_black_hole_is_not_waited_for_again_and_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.push(stream);
        }
    });
    let cache = BinaryCache::new(&url.parse().expect("URL"), Vec::new()).expect("a cache");
    let upstream = Upstream::new(reqwest::Client::new(), vec![cache]);
    let many: Vec<StorePath> =
        (0..500).map(|number| StorePath::from_base_name(&format!("{number:0>32}-x")).expect("a store path")).collect();
    let begun = std::time::Instant::now();
    let found = upstream.find(&many, &[]).await;
    let waited = begun.elapsed();
    assert!(found.present.is_empty() && found.answers.is_empty(), "what is not known is neither there nor absent");
    assert_eq!(found.silent, BTreeSet::from([url]));
    assert!(waited < 2 * TIMEOUT, "500 paths took {waited:?}");
    held.abort();
}

#[tokio::test]
async fn a_cache_that_refuses_is_noted_for_people() {
    let server = TestServer::start(|_| Answer::new(403, "")).await;
    let upstream = Upstream::new(reqwest::Client::new(), vec![server.cache(&[])]);
    let found = upstream.find(&[path("a")], &[]).await;
    assert_eq!(found.answers, [answer(&path("a"), &server, false)]);
    let news = upstream.caches[0].1.news();
    assert!(news.and_then(|news| news.0).is_some_and(|news| news.contains("HTTP 403")));
}
