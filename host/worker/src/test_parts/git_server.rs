//! A forge as git sees it: git's own server program over HTTP, in the moods that servers have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As it should.
    Well,
    /// To everything with this status code and, after it, these header lines.
    Says(u16, &'static str),
    /// It tells of its refs, and hangs up when it is to send objects.
    HangsUp,
}

/// A running server; dropping it stops it.
pub(crate) struct GitServer {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    repositories: PathBuf,
    /// `Basic …`, when a password is needed.
    authorization: Option<String>,
    mood: Mutex<Mood>,
    /// Request lines, each with whether it had a password.
    seen: Mutex<Vec<(String, bool)>>,
}

impl GitServer {
    /// Serves the repositories below a folder, to everybody or to who has the user's password.
    pub(crate) async fn start(repositories: &Path, login: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let state = Arc::new(State {
            repositories: repositories.to_owned(),
            authorization: login
                .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))),
            mood: Mutex::new(Mood::Well),
            seen: Mutex::default(),
        });
        let served = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                // A client that goes away ends its own connection.
                connections.spawn(async move { drop(answer(stream, &state).await) });
            }
        });
        Self { address, state, task }
    }

    /// From now on.
    pub(crate) fn be(&self, mood: Mood) {
        *self.state.mood.lock().expect("unpoisoned") = mood;
    }

    /// What was asked so far.
    pub(crate) fn seen(&self) -> Vec<(String, bool)> {
        self.state.seen.lock().expect("unpoisoned").clone()
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request, handed to `git http-backend` (gitprotocol-http(5), RFC 3875).
async fn answer(stream: TcpStream, state: &State) -> std::io::Result<()> {
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
    let seen = (format!("{method} {target}"), headers.contains_key("authorization"));
    state.seen.lock().expect("unpoisoned").push(seen);
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let refusal = |status: u16, lines: &str| {
        format!("HTTP/1.1 {status} -\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let mood = *state.mood.lock().expect("unpoisoned");
    match mood {
        Mood::Says(status, lines) => return stream.write_all(refusal(status, lines).as_bytes()).await,
        // The refs come by POST, too; objects are asked for by what one wants.
        Mood::HangsUp if String::from_utf8_lossy(&body).contains("command=fetch") => return Ok(()),
        Mood::HangsUp | Mood::Well => {}
    }
    if state.authorization.as_ref().is_some_and(|expected| headers.get("authorization") != Some(expected)) {
        return stream.write_all(refusal(401, "WWW-Authenticate: Basic realm=\"x\"\r\n").as_bytes()).await;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut backend = Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("PATH"))
        .env("GIT_PROJECT_ROOT", &state.repositories)
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
        .kill_on_drop(true)
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
