//! A private repository over HTTP: git's own server program behind a password.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::SecretText;
use harmonia_core::forge::CloneCredential;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::evaluator::source::tests::Repositories;
use crate::evaluator::source::{GitError, Origin, Wanted, checkout};

const USER: &str = "x-access-token";
const PASSWORD: &str = "correct horse battery";

/// What came: request lines, each with whether it had the password.
type Seen = Arc<Mutex<Vec<(String, bool)>>>;

async fn serve(repositories: PathBuf) -> (String, Seen) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("port");
    let address = listener.local_addr().expect("address").to_string();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (repositories, log) = (repositories.clone(), Arc::clone(&log));
            // A client that goes away ends its own connection.
            tokio::spawn(async move { drop(answer(stream, &repositories, &log).await) });
        }
    });
    (address, seen)
}

/// One request, handed to `git http-backend` (gitprotocol-http(5), RFC 3875).
async fn answer(stream: TcpStream, repositories: &Path, log: &Seen) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let allowed = headers.get("authorization") == Some(&expected);
    log.lock().expect("unpoisoned").push((format!("{method} {target}"), headers.contains_key("authorization")));
    if !allowed {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.write_all(refusal.as_bytes()).await;
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut backend = Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("PATH"))
        .env("GIT_PROJECT_ROOT", repositories)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", headers.get("content-type").map_or("", String::as_str))
        .env("HTTP_CONTENT_ENCODING", headers.get("content-encoding").map_or("", String::as_str))
        .env("GIT_PROTOCOL", headers.get("git-protocol").map_or("", String::as_str))
        .env("CONTENT_LENGTH", length.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut input = backend.stdin.take().expect("piped");
    input.write_all(&body).await?;
    drop(input);
    let output = backend.wait_with_output().await?.stdout;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(output.len());
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n{head}\r\n\r\n").as_bytes()).await?;
    stream.write_all(&output[(end + 4).min(output.len())..]).await
}

#[tokio::test]
async fn a_private_repository_is_fetched_with_its_credential_and_not_without() {
    let world = Repositories::new();
    let dir = world.create("private");
    std::fs::write(dir.join("a"), "secret sauce").expect("file");
    let commit = world.commit("private", "one");
    let (address, seen) = serve(world.dir.path().to_owned()).await;
    let origin = Origin::Url(format!("http://{address}/private/.git"));
    let sources = world.sources(false);
    let without = Wanted { commit: Some(&commit), branch: "main", ..Wanted::default() };
    let error = checkout(&sources, &origin, &without).await.expect_err("needs a password");
    assert!(matches!(error, GitError::Failed { .. }), "{error}");

    let mut credential = CloneCredential {
        user: USER.to_owned(),
        password: SecretText::new(PASSWORD.to_owned()),
        hosts: vec!["elsewhere.example.org".to_owned()],
    };
    let elsewhere = credential.clone();
    let error = checkout(&sources, &origin, &Wanted { credential: Some(&elsewhere), ..without }).await;
    assert!(error.is_err(), "a password for another server");
    assert!(seen.lock().expect("unpoisoned").iter().all(|(_, with_password)| !with_password), "it was sent there");

    credential.hosts = vec![address];
    let found =
        checkout(&sources, &origin, &Wanted { credential: Some(&credential), ..without }).await.expect("fetches");
    assert_eq!(std::fs::read_to_string(found.dir.path().join("a")).expect("file"), "secret sauce");
    // Nothing of it stays on disk.
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let kept = std::process::Command::new("grep")
        .args(["-rlE", &format!("{PASSWORD}|{encoded}")])
        .arg(world.dir.path())
        .output()
        .expect("grep");
    assert!(kept.stdout.is_empty(), "{}", String::from_utf8_lossy(&kept.stdout));
}
