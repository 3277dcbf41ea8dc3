//! Real HTTP servers that play caches of every kind.

use harmonia_db::GraphOutput;
use harmonia_nix::store_path::References;
use harmonia_nix::{ContentAddress, Hash, HashAlgorithm, NarInfo, PublicKey, SecretKey, Sha256Hash};

use super::*;
use crate::test_parts::{Answer, TestServer};

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{:0>32}-{name}", name.len())).expect("a store path")
}

fn derivation(output: &StorePath) -> GraphDerivation {
    GraphDerivation {
        drv_path: StorePath::from_base_name("00000000000000000000000000000000-x.drv").expect("a store path"),
        name: "x".to_owned(),
        system: "x86_64-linux".to_owned(),
        required_features: Vec::new(),
        outputs: vec![GraphOutput { name: "out".to_owned(), path: Some(output.clone()), fixed_hash: None }],
        inputs: Vec::new(),
        sources: Vec::new(),
        available: false,
        path_length: 1,
    }
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
    upstream.available(std::iter::once(&derivation(output))).await == [true]
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
