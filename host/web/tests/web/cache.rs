//! The binary cache: stock Nix as a client, ranges, HEAD, hostile paths, an object store that is away.

use std::path::Path;
use std::process::{Command, Output};

use reqwest::{Method, StatusCode};
use tempfile::TempDir;

use crate::world::{Drv, Nar, Parts, World, secret_key};

/// Nix with a store of its own, trusting one key.
pub(crate) struct Client {
    folder: TempDir,
}

impl Client {
    pub(crate) fn new(trusted_key: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let conf = format!(
            "experimental-features = nix-command\nbuild-users-group =\nsubstituters =\nrequire-sigs = true\n\
             trusted-public-keys = {trusted_key}\nnarinfo-cache-negative-ttl = 0\n"
        );
        let conf = format!("{conf}netrc-file = {}\n", folder.path().join("netrc").display());
        std::fs::write(folder.path().join("nix.conf"), conf).expect("written");
        Self { folder }
    }

    pub(crate) async fn nix(&self, args: &[&str]) -> Output {
        let mut command = Command::new("nix");
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").expect("PATH"));
        let home = self.folder.path();
        command
            .env("HOME", home)
            .env("NIX_CONF_DIR", home)
            .env("NIX_REMOTE", format!("local?root={}", home.join("store").display()));
        tokio::task::spawn_blocking(move || command.output().expect("nix runs")).await.expect("joined")
    }

    /// What Nix sends with its requests.
    pub(crate) fn netrc(&self, text: &str) {
        std::fs::write(self.folder.path().join("netrc"), text).expect("written");
    }

    pub(crate) fn file(&self, store_path: &str) -> Option<Vec<u8>> {
        let relative = Path::new(store_path).strip_prefix("/").expect("absolute");
        std::fs::read(self.folder.path().join("store").join(relative)).ok()
    }
}

pub(crate) fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_nix_copies_what_was_uploaded() {
    let world = World::start().await;
    let below = Drv::new("below", &[]);
    let above = Drv::new("above", &[&below]);
    world.evaluate(&[&below, &above]).await;
    world.build(&below, &Nar::file(b"I am below\n"), &[], "building below\n").await;
    let text = format!("I need {}\n", below.output("out"));
    let log = format!("building above\n{}", "a line of output\n".repeat(2_000));
    world.build(&above, &Nar::file(text.as_bytes()), &[below.output("out")], &log).await;

    let nix = Client::new(&secret_key().public_key().to_string());
    let target = above.output("out").to_string();
    assert_success(&nix.nix(&["copy", "--from", &world.url, &target]).await);
    assert_eq!(nix.file(&target).expect("copied"), text.as_bytes());
    let closure = nix.file(below.output("out").as_str()).expect("its closure as well");
    assert_eq!(closure, b"I am below\n");

    let logged = nix.nix(&["log", "--store", &world.url, &target]).await;
    assert_success(&logged);
    assert_eq!(String::from_utf8_lossy(&logged.stdout), log);
    let listed = nix.nix(&["store", "ls", "--store", &world.url, "--json", &target]).await;
    assert_success(&listed);

    let stranger = Client::new("other-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let refused = stranger.nix(&["copy", "--from", &world.url, &target]).await;
    assert!(!refused.status.success(), "without our key trusted it must be refused");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("signature"), "{said}");
    assert_eq!(stranger.file(&target), None);
    world.stop().await;
}

#[tokio::test]
async fn narinfo_nar_listing_log_and_drv() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let nar = Nar::file(&content);
    world.build(&drv, &nar, &[], "first line\nsecond line\n").await;

    let info = world.text("/nix-cache-info").await;
    assert!(info.contains("StoreDir: /nix/store\n"), "{info}");
    let hash = drv.output("out").hash_part().to_owned();
    let narinfo = world.get(&format!("/{hash}.narinfo")).await;
    assert_eq!(narinfo.headers()["content-type"], "text/x-nix-narinfo");
    let length: usize = narinfo.headers()["content-length"].to_str().expect("text").parse().expect("number");
    let narinfo = narinfo.text().await.expect("text");
    assert_eq!(length, narinfo.len());
    assert!(narinfo.contains(&format!("URL: nar/{}\n", nar.file_name())), "{narinfo}");
    assert!(narinfo.contains("\nSig: web-test-1:"), "{narinfo}");
    let head = world.request(Method::HEAD, &format!("/{hash}.narinfo")).send().await.expect("answered");
    assert_eq!((head.status(), head.headers()["content-length"].clone()), (StatusCode::OK, length.into()));
    assert_eq!(head.bytes().await.expect("body").len(), 0);

    let path = format!("/nar/{}", nar.file_name());
    let whole = world.get(&path).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert!(whole.headers()["cache-control"].to_str().expect("text").contains("immutable"));
    let etag = whole.headers()["etag"].clone();
    assert_eq!(whole.bytes().await.expect("body"), nar.compressed);
    let head = world.request(Method::HEAD, &path).send().await.expect("answered");
    assert_eq!(head.headers()["content-length"], nar.compressed.len().to_string());
    assert_eq!(head.headers()["etag"], etag);
    let known = world.request(Method::GET, &path).header("if-none-match", &etag).send().await.expect("answered");
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);

    let total = nar.compressed.len();
    for (range, expected, shown) in [
        ("bytes=0-9".to_owned(), &nar.compressed[..10], format!("bytes 0-9/{total}")),
        ("bytes=100-".to_owned(), &nar.compressed[100..], format!("bytes 100-{}/{total}", total - 1)),
        ("bytes=-7".to_owned(), &nar.compressed[total - 7..], format!("bytes {}-{}/{total}", total - 7, total - 1)),
    ] {
        let part = world.request(Method::GET, &path).header("range", &range).send().await.expect("answered");
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(part.headers()["content-range"], shown);
        assert_eq!(part.bytes().await.expect("body"), expected, "{range}");
    }
    for beyond in [
        format!("bytes={total}-"),
        "bytes=9223372036854775807-".to_owned(),
        "bytes=9223372036854775808-".to_owned(),
        "bytes=18446744073709551615-18446744073709551616".to_owned(),
        "bytes=99999999999999999999999-".to_owned(),
        "bytes=-0".to_owned(),
    ] {
        let answer = world.request(Method::GET, &path).header("range", &beyond).send().await.expect("answered");
        assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{beyond}");
        assert_eq!(answer.headers()["content-range"], format!("bytes */{total}"), "{beyond}");
    }
    for (more, expected) in [
        ("bytes=100-18446744073709551615", &nar.compressed[100..]),
        ("bytes=-18446744073709551616", &nar.compressed[..]),
    ] {
        let part = world.request(Method::GET, &path).header("range", more).send().await.expect("answered");
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{more}");
        assert_eq!(part.bytes().await.expect("body"), expected, "{more}");
    }
    let tag = etag.to_str().expect("text").to_owned();
    for (name, value, status) in [
        ("if-none-match", format!("W/{tag}"), 304),
        ("if-none-match", format!("\"other\", {tag}"), 304),
        ("if-none-match", "*".to_owned(), 304),
        ("if-none-match", "\"other\"".to_owned(), 200),
        ("if-none-match", format!("{}x\"", &tag[..tag.len() - 1]), 200),
        ("if-match", tag.clone(), 200),
        ("if-match", "\"other\"".to_owned(), 412),
        ("if-modified-since", "Thu, 01 Jan 1970 00:00:01 GMT".to_owned(), 200),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = world.request(method, &path).header(name, &value).send().await.expect("answered");
            assert_eq!(answer.status().as_u16(), status, "{name}: {value}");
        }
    }
    for odd in ["bytes=9-5", "lines=1-2", "bytes=0-1,3-4"] {
        let whole = world.request(Method::GET, &path).header("range", odd).send().await.expect("answered");
        assert_eq!(whole.status(), StatusCode::OK, "{odd} may be ignored");
    }
    let stale = world.request(Method::GET, &path).header("range", "bytes=0-9").header("if-range", "\"other\"");
    assert_eq!(stale.send().await.expect("answered").status(), StatusCode::OK);

    let listing: serde_json::Value = world.json(&format!("/{hash}.ls")).await;
    assert_eq!(listing["version"], 1);
    let plain = world.request(Method::GET, &format!("/log/{}", drv.path.base_name())).send().await.expect("answered");
    assert!(plain.headers().get("content-encoding").is_none());
    assert_eq!(plain.text().await.expect("text"), "first line\nsecond line\n");
    let packed =
        world.request(Method::GET, &format!("/log/{}", drv.path.base_name())).header("accept-encoding", "gzip, zstd");
    let packed = packed.send().await.expect("answered");
    assert_eq!(packed.headers()["content-encoding"], "zstd");
    let bytes = packed.bytes().await.expect("body");
    assert_eq!(zstd::decode_all(bytes.as_ref()).expect("zstd"), b"first line\nsecond line\n");
    let file = world.get(&format!("/drv/{}.zst", drv.path.base_name())).await.bytes().await.expect("body");
    assert_eq!(zstd::decode_all(file.as_ref()).expect("zstd"), drv.derivation.to_aterm());
    world.stop().await;
}

/// Whatever the answer is, HEAD tells as much as GET would send, and nothing of it follows.
#[tokio::test]
async fn head_has_the_length_of_get_and_old_and_hasty_clients_are_answered() {
    let world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let nar = Nar::file(b"some content");
    world.build(&drv, &nar, &[], "").await;
    let (hash, base) = (drv.output("out").hash_part().to_owned(), drv.path.base_name().to_owned());
    let narinfo = format!("/{hash}.narinfo");
    for path in [
        "/",
        "/nix-cache-info",
        "/health",
        &narinfo,
        &format!("/{hash}.ls"),
        &format!("/nar/{}", nar.file_name()),
        &format!("/log/{base}"),
        &format!("/drv/{base}.zst"),
        &format!("/{}.narinfo", "0".repeat(32)),
        "/ci/",
        "/ci/nothing",
        "/api/v1/queue",
        "/api/v1/nothing",
    ] {
        let length = |text: &str| {
            let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with("content-length:"));
            line.map(|line| line["content-length:".len()..].trim().to_owned())
        };
        let (head, get) = (world.raw("HEAD", path, "1.1").await, world.raw("GET", path, "1.1").await);
        assert_eq!(head.lines().next(), get.lines().next(), "{path}");
        let (told, sent) = (length(&head), length(&get));
        assert!(told.is_none() || sent.is_none() || told == sent, "{path}: HEAD {told:?}, GET {sent:?}");
        assert!(head.ends_with("\r\n\r\n"), "{path}: a body follows\n{head}");
        let old = world.raw("GET", path, "1.0").await;
        assert!(!old.to_ascii_lowercase().contains("transfer-encoding"), "{path}: {old}");
    }
    // An empty log is a log.
    let log = world.get(&format!("/log/{base}")).await;
    assert_eq!((log.status(), log.bytes().await.expect("body").len()), (StatusCode::OK, 0));
    // As proxies write it.
    let absolute = world.raw("GET", &format!("{}{narinfo}", world.url), "1.1").await;
    assert!(absolute.starts_with("HTTP/1.1 200 ") && absolute.contains("StorePath: "), "{absolute}");
    assert_eq!(world.raw_get(&format!("{narinfo}?x=1")).await, 200);
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_a_404_and_hostile_paths_are_too() {
    let world = World::start().await;
    let zeros = "0".repeat(32);
    let long = "a".repeat(5_000);
    for path in [
        &format!("/{zeros}.narinfo"),
        &format!("/{zeros}.ls"),
        &format!("/nar/{}.nar.zst", "0".repeat(52)),
        &format!("/log/{zeros}-x.drv"),
        &format!("/drv/{zeros}-x.drv.zst"),
        "/favicon.ico",
        "/nar/",
        "/nar/..%2f..%2fetc%2fpasswd",
        "/nar/x.nar.zst",
        "/log/..%2f..%2fnix-cache-info",
        "/drv/%00.drv.zst",
        "/%ff%fe.narinfo",
        "/%3Cscript%3E.narinfo",
        "/nix-cache-info/x",
        &format!("/{long}"),
        &format!("/nar/{long}"),
    ] {
        let response = world.get(path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8", "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let text = response.text().await.expect("text");
        assert!(text.len() < 200 && !text.contains('<'), "{text}");
    }
    for path in
        ["/nar/../nix-cache-info", "/log/%2e%2e", "/ci/%2e%2e/", "/ci/../etc/passwd", "//nix-cache-info", "/nar//x"]
    {
        let status = world.raw_get(path).await;
        assert_eq!(status, 404, "{path}");
    }
    let posted = world.request(Method::POST, "/nix-cache-info").send().await.expect("answered");
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(posted.headers().contains_key("allow"));
    world.stop().await;
}

#[tokio::test]
async fn an_object_store_that_is_away_is_a_503_and_never_a_404() {
    let mut world = World::start().await;
    let drv = Drv::new("thing", &[]);
    world.evaluate(&[&drv]).await;
    let nar = Nar::file(b"x");
    world.build(&drv, &nar, &[], "log\n").await;
    world.s3.take().expect("running").stop().await;
    let base = drv.path.base_name().to_owned();
    let paths = [
        format!("/{}.narinfo", "1".repeat(32)),
        format!("/nar/{}", nar.file_name()),
        format!("/log/{base}"),
        format!("/drv/{base}.zst"),
    ];
    for path in &paths {
        let response = world.get(path).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(response.headers().contains_key("retry-after"), "{path}");
        let id = response.headers()["x-request-id"].to_str().expect("text").to_owned();
        let text = response.text().await.expect("text");
        assert!(text.contains(&id), "{text}");
        assert!(!text.contains("127.0.0.1"), "nothing of the inside: {text}");
    }
    let counted: u64 = world.state.error_counts().snapshot().values().sum();
    assert_eq!(counted, paths.len() as u64);
    let ready = world.get("/ready").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = ready.text().await.expect("text");
    assert!(text.contains("object-store") && text.contains("\"ok\":false"), "{text}");
    world.stop().await;
}

#[tokio::test]
async fn a_node_without_a_bucket_says_so() {
    let world = World::with(Parts { signer: false, reader: false }).await;
    let response = world.get("/nix-cache-info").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(world.text("/").await.contains("no binary cache"));
    world.stop().await;
}

#[tokio::test]
async fn the_landing_page_tells_how_to_use_the_cache() {
    let world = World::start().await;
    let page = world.text("/").await;
    let key = secret_key().public_key().to_string();
    for needle in [
        format!("extra-substituters = {}", world.url),
        format!("extra-trusted-public-keys = {key}"),
        "nix copy --from".into(),
    ] {
        assert!(page.contains(&needle), "{needle}");
    }
    world.stop().await;
}
