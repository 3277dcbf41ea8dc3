use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_compression::Level;
use async_compression::tokio::write::{BrotliEncoder, BzEncoder, GzipEncoder, XzEncoder, ZstdEncoder};
use harmonia_nix::store_path::hash_part_elsewhere;
use harmonia_nix::{ContentAddress, Hash, SecretKey, Sha256Hash, StorePath};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const PATH: &str = "/nix/store/00000000000000000000000000000000-hello";

/// Bytes that stand for an archive: nothing here looks into it.
fn nar() -> Vec<u8> {
    (0..60_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
}

fn key() -> SecretKey {
    SecretKey::from_seed("test-1", &[7; 32]).expect("a key")
}

async fn packed(compression: &str) -> Vec<u8> {
    async fn finish<W: AsyncWrite + Unpin>(mut encoder: W) -> W {
        encoder.write_all(&nar()).await.expect("compressed");
        encoder.shutdown().await.expect("finished");
        encoder
    }
    match compression {
        "none" => nar(),
        "xz" => finish(XzEncoder::new(Vec::new())).await.into_inner(),
        "bzip2" => finish(BzEncoder::new(Vec::new())).await.into_inner(),
        "gzip" => finish(GzipEncoder::new(Vec::new())).await.into_inner(),
        "zstd" => finish(ZstdEncoder::new(Vec::new())).await.into_inner(),
        "br" => finish(BrotliEncoder::with_quality(Vec::new(), Level::Fastest)).await.into_inner(),
        other => panic!("{other}"),
    }
}

fn info_of(compression: &str, file: &[u8]) -> NarInfo {
    NarInfo {
        path: PATH.parse().expect("a path"),
        url: "nar/hello.nar".to_owned(),
        compression: compression.to_owned(),
        file_hash: Some(Sha256Hash::of(file)),
        file_size: Some(file.len() as u64),
        nar_hash: Sha256Hash::of(&nar()),
        nar_size: nar().len() as u64,
        references: BTreeSet::new(),
        deriver: None,
        content_address: None,
        signatures: Vec::new(),
    }
}

fn lay_out(folder: &Path, info: &NarInfo, file: &[u8]) {
    std::fs::create_dir_all(folder.join("nar")).expect("a folder");
    std::fs::write(folder.join("nix-cache-info"), "StoreDir: /nix/store\nPriority: 30\n").expect("its info");
    std::fs::write(folder.join(format!("{}.narinfo", info.path.hash_part())), info.to_string()).expect("a narinfo");
    std::fs::write(folder.join("nar/hello.nar"), file).expect("an archive");
}

async fn one(caches: &Caches, uri: &str) -> Arc<Cache> {
    let (mut found, warnings) = caches.of(&[uri.to_owned()]).await;
    assert_eq!(warnings, Vec::<String>::new());
    found.pop().expect("a cache")
}

async fn fetch(cache: &Cache) -> Result<Vec<u8>, FetchError> {
    let info = cache.narinfo(&PATH.parse().expect("a path"), None).await?.expect("it is there");
    let mut archive = cache.archive(&info).await?;
    let mut bytes = Vec::new();
    match archive.read_to_end(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(error) => {
            assert!(Archive::cause(&error).is_some(), "{error}");
            Err(*error.into_inner().expect("a cause").downcast::<FetchError>().expect("ours"))
        }
    }
}

/// Serves a folder over HTTP. `cut_at` ends the first answers for archives after as many bytes.
struct Server {
    uri: String,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn of(folder: &Path, cuts: usize, cut_at: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("http://{}", listener.local_addr().expect("an address"));
        let (requests, cuts, folder) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(cuts)), folder.to_owned());
        let counted = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (counted, cuts, folder) = (Arc::clone(&counted), Arc::clone(&cuts), folder.clone());
                tokio::spawn(async move { answer(stream, &counted, &cuts, cut_at, &folder).await });
            }
        });
        Self { uri, requests, task }
    }
}

/// Answers one request and closes.
async fn answer(mut stream: TcpStream, requests: &AtomicUsize, cuts: &AtomicUsize, cut_at: usize, folder: &Path) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    requests.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let path = head.split(' ').nth(1).expect("a path");
    let Ok(body) = std::fs::read(folder.join(path.trim_start_matches('/'))) else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.ok();
        return;
    };
    let from: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="))
        .map_or(0, |range| range.trim_end_matches('-').parse().expect("a range to the end"));
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\naccept-ranges: bytes\r\n\
         etag: \"1\"\r\nconnection: close\r\n\r\n",
        body.len() - from,
        body.len() - 1,
        body.len()
    );
    let mut sent = &body[from..];
    if path.starts_with("/nar/")
        && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    {
        sent = &sent[..cut_at];
    }
    stream.write_all(answer.as_bytes()).await.ok();
    stream.write_all(sent).await.ok();
}

#[tokio::test]
async fn every_compression_is_undone_from_a_folder_and_from_a_server() {
    for compression in ["none", "xz", "bzip2", "gzip", "zstd", "br"] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = packed(compression).await;
        lay_out(folder.path(), &info_of(compression, &file), &file);
        let caches = Caches::default();
        let cache = one(&caches, &format!("file://{}", folder.path().display())).await;
        assert!(fetch(&cache).await.expect(compression) == nar(), "{compression}");
        let server = Server::of(folder.path(), 0, 0).await;
        let cache = one(&caches, &server.uri).await;
        assert!(fetch(&cache).await.expect(compression) == nar(), "{compression}");
    }
}

#[tokio::test]
async fn an_archive_that_is_not_what_was_promised_never_ends_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = packed("none").await;
    lay_out(folder.path(), &info_of("none", &file), &file);
    let cache = one(&Caches::default(), &format!("file://{}", folder.path().display())).await;
    let place = folder.path().join("nar/hello.nar");
    let with = |bytes: &[u8]| std::fs::write(&place, bytes).expect("written");

    with(&file[..file.len() - 1]);
    assert!(matches!(fetch(&cache).await, Err(FetchError::Size { .. })));
    with(&[&file[..], &[0]].concat());
    assert!(matches!(fetch(&cache).await, Err(FetchError::Size { .. })));
    let mut other = file.clone();
    other[1_000] ^= 1;
    with(&other);
    assert!(matches!(fetch(&cache).await, Err(FetchError::Hash { what: "archive", .. })));
    std::fs::remove_file(&place).expect("removed");
    assert!(fetch(&cache).await.is_err_and(|error| error.is_gone()));

    // Another file with the same archive in it is not the one that was promised either; half a file is none.
    let file = packed("zstd").await;
    let mut info = info_of("zstd", &file);
    info.file_hash = Some(Sha256Hash::of(b"other"));
    lay_out(folder.path(), &info, &file);
    assert!(matches!(fetch(&cache).await, Err(FetchError::Hash { what: "compressed file", .. })));
    with(&file[..file.len() / 2]);
    assert!(matches!(fetch(&cache).await, Err(FetchError::Unpack(_))));
    lay_out(folder.path(), &info_of("lzip", &file), &file);
    assert!(matches!(fetch(&cache).await, Err(FetchError::Compression(name)) if name == "lzip"));
}

#[tokio::test]
async fn a_server_that_breaks_off_is_asked_for_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = packed("none").await;
    lay_out(folder.path(), &info_of("none", &file), &file);
    let server = Server::of(folder.path(), 2, 80_000).await;
    let cache = one(&Caches::default(), &server.uri).await;
    assert!(fetch(&cache).await.expect("in three pieces") == nar());
    // Its info, the narinfo, and three pieces.
    assert_eq!(server.requests.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_black_hole_costs_one_time_out() {
    // A listener whose queue is full drops what comes, as a firewall does.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("an address");
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        held.push(stream);
    }
    let caches = Caches::new(Some(Duration::from_millis(500)));
    let begun = std::time::Instant::now();
    let (usable, warnings) = caches.of(&[format!("http://{address}")]).await;
    assert!(usable.is_empty() && warnings[0].contains("the connection failed"), "{warnings:?}");
    let first = begun.elapsed();
    let (usable, warnings) = caches.of(&[format!("http://{address}")]).await;
    assert!(usable.is_empty() && warnings[0].contains("a short while ago"), "{warnings:?}");
    assert!(begun.elapsed() < first + Duration::from_millis(400), "the second question has waited, too");
}

#[tokio::test]
async fn caches_are_asked_by_their_priority_and_what_cannot_be_asked_is_told() {
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    std::fs::write(folders[0].path().join("nix-cache-info"), "Priority: 40\n").expect("written");
    std::fs::write(folders[1].path().join("nix-cache-info"), "StoreDir: /nix/store\nPriority: 30\n").expect("written");
    let uri = |index: usize| format!("file://{}", folders[index].path().display());
    let caches = Caches::default();
    let (usable, warnings) = caches.of(&[uri(0), uri(1), "ssh://host".to_owned()]).await;
    assert_eq!(usable.iter().map(|cache| cache.uri()).collect::<Vec<_>>(), [uri(1), uri(0)]);
    assert!(warnings.len() == 1 && warnings[0].contains("'ssh'"), "{warnings:?}");
    let (usable, _) = caches.of(&[format!("{}?priority=10", uri(0)), uri(1)]).await;
    assert!(usable[0].uri().ends_with("priority=10"));
}

#[tokio::test]
async fn only_what_is_addressed_by_its_content_comes_from_another_store_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut info = info_of("none", &nar());
    let address = ContentAddress::recursive(Hash::from(info.nar_hash));
    let path = StorePath::make_fixed_output("hello", address, &References::default()).expect("a path");
    let hash_part = hash_part_elsewhere("/other/store", "hello", address);
    assert_ne!(hash_part, path.hash_part());
    assert_eq!(hash_part_elsewhere("/nix/store", "hello", address), path.hash_part());
    info.path = StorePath::from_base_name(&format!("{hash_part}-hello")).expect("a path");
    info.content_address = Some(address);
    lay_out(folder.path(), &info, &nar());
    let narinfo = folder.path().join(format!("{hash_part}.narinfo"));
    std::fs::write(&narinfo, info.to_string().replace("/nix/store/", "/other/store/")).expect("written");
    std::fs::write(folder.path().join("nix-cache-info"), "StoreDir: /other/store\n").expect("written");

    let cache = one(&Caches::default(), &format!("file://{}", folder.path().display())).await;
    assert!(cache.narinfo(&path, None).await.expect("asked").is_none());
    let found = cache.narinfo(&path, Some(address)).await.expect("asked").expect("it is there");
    assert!(found.path == path && is_trustworthy(&found, &[]), "{found:?}");
    let other = ContentAddress::recursive(Hash::from(Sha256Hash::of(b"other")));
    assert!(cache.narinfo(&path, Some(other)).await.expect("asked").is_none());
}

#[test]
fn only_signatures_of_trusted_keys_and_content_addresses_count() {
    let mut info = info_of("none", &nar());
    let keys = [key().public_key()];
    assert!(!is_trustworthy(&info, &keys));
    info.sign(&key());
    assert!(is_trustworthy(&info, &keys));
    assert!(!is_trustworthy(&info, &[]));
    info.nar_size += 1;
    assert!(!is_trustworthy(&info, &keys), "what was signed is another archive");

    let mut info = info_of("none", &nar());
    let address = ContentAddress::recursive(Hash::from(info.nar_hash));
    info.path = StorePath::make_fixed_output("hello", address, &References::default()).expect("a path");
    info.content_address = Some(address);
    assert!(is_trustworthy(&info, &[]));
    info.nar_hash = Sha256Hash::of(b"other");
    assert!(!is_trustworthy(&info, &[]), "its content is another");
    info.nar_hash = Sha256Hash::of(&nar());
    info.path = PATH.parse().expect("a path");
    assert!(!is_trustworthy(&info, &[]), "its path does not follow from its content");
}
