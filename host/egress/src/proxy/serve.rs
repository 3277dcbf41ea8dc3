//! One connection to the proxy. Start at [`connection`].

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::Way;
use super::head::{self, Head, HeadError, Parsed, Request};
use super::reach::TargetError;

const USER: &str = "egress";
/// What is read at once, in bytes.
const PIECE_BYTES: usize = 16 << 10;
/// After a refusal, what a client still sends is read for so long and thrown away, or it would never see the refusal.
const LINGER: Duration = Duration::from_secs(2);
/// Longest reason phrase, in characters.
const REASON_CHARS_MAX: usize = 300;

/// Keeps others of this machine out.
pub(super) struct Password {
    password: String,
    /// The whole header value.
    expected: String,
}

impl Password {
    pub(super) fn random() -> Self {
        let [high, low]: [u128; 2] = rand::random();
        let password = format!("{high:032x}{low:032x}");
        let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
        Self { password, expected }
    }

    /// As it stands in a URL.
    pub(super) fn user_info(&self) -> String {
        format!("{USER}:{}", self.password)
    }

    fn is(&self, said: Option<&[u8]>) -> bool {
        let (said, expected) = (said.unwrap_or_default(), self.expected.as_bytes());
        // As long as it takes, however much of it is right.
        said.len() == expected.len() && said.iter().zip(expected).fold(0, |found, (a, b)| found | (a ^ b)) == 0
    }
}

/// What the proxy itself answers.
struct Answer {
    status: u16,
    /// On the first line: some clients show nothing else.
    reason: String,
    header: &'static str,
    body: String,
}

impl Answer {
    fn new(status: u16, text: impl Into<String>) -> Self {
        let body = text.into();
        Self { status, reason: body.clone(), header: "", body }
    }

    fn bytes(&self) -> Vec<u8> {
        // Whatever a resolver or an operating system says stays one line of ASCII.
        let reason: String = self
            .reason
            .chars()
            .map(|character| if character.is_ascii_graphic() { character } else { ' ' })
            .take(REASON_CHARS_MAX)
            .collect();
        let (status, header, length) = (self.status, self.header, self.body.len() + 1);
        format!(
            "HTTP/1.1 {status} {reason}\r\n{header}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{}\n",
            self.body
        )
        .into_bytes()
    }
}

/// One request of a client: a tunnel, a request that is passed on, or a refusal. Then the connection ends.
pub(super) async fn connection(way: &Way, mut client: TcpStream, password: Option<&Password>) -> io::Result<()> {
    let limits = way.limits;
    let reading = head::read(&mut client, Vec::new(), limits.head_bytes_max);
    let Head { head, rest } = match tokio::time::timeout(limits.head_time_max, reading).await {
        Err(_) => {
            let text = format!("no request within {} s", limits.head_time_max.as_secs());
            return refuse(client, &Answer::new(408, text)).await;
        }
        Ok(read) => match read? {
            Ok(head) => head,
            Err(HeadError::Ended) => return Ok(()),
            Err(HeadError::TooLong) => {
                let text = format!("the request's head has more than {} bytes", limits.head_bytes_max);
                return refuse(client, &Answer::new(431, text)).await;
            }
        },
    };
    let Some(Parsed { request, authorization }) = head::parse(&head) else {
        return refuse(client, &Answer::new(400, "this is no HTTP request")).await;
    };
    if password.is_some_and(|password| !password.is(authorization.as_deref())) {
        let header = "Proxy-Authenticate: Basic realm=\"egress\"\r\n";
        return refuse(client, &Answer { header, ..Answer::new(407, "this proxy is for somebody else") }).await;
    }
    let request = match request {
        Ok(request) => request,
        Err(problem) => return refuse(client, &Answer::new(400, problem)).await,
    };
    let (Request::Connect(target) | Request::Forward(target, _)) = &request;
    let server = match way.reach(target).await {
        Ok(server) => server,
        Err(error) => return refuse(client, &unreached(&error)).await,
    };
    drop(client.set_nodelay(true));
    match request {
        Request::Connect(_) => tunnel(client, server, &rest, limits.idle_time_max).await,
        Request::Forward(_, head) => forward(way, client, server, [head, rest].concat()).await,
    }
}

fn unreached(error: &TargetError) -> Answer {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = format!("{error}{cause}");
    match error {
        TargetError::Refused(_) => Answer::new(403, text),
        TargetError::Name { .. } | TargetError::Connect { .. } => Answer::new(502, text),
        TargetError::Timeout { .. } => Answer::new(504, text),
    }
}

async fn refuse(mut client: TcpStream, answer: &Answer) -> io::Result<()> {
    client.write_all(&answer.bytes()).await?;
    client.shutdown().await?;
    let mut nowhere = tokio::io::sink();
    drop(tokio::time::timeout(LINGER, tokio::io::copy(&mut client, &mut nowhere)).await);
    Ok(())
}

async fn tunnel(mut client: TcpStream, mut server: TcpStream, early: &[u8], idle_max: Duration) -> io::Result<()> {
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    server.write_all(early).await?;
    let activity = Notify::new();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::join!(pump(from_client, to_server, &activity), pump(from_server, to_client, &activity));
    };
    tokio::select! {
        () = both => {}
        () = idle(&activity, idle_max) => {}
    }
    Ok(())
}

async fn forward(way: &Way, mut client: TcpStream, mut server: TcpStream, request: Vec<u8>) -> io::Result<()> {
    let limits = way.limits;
    let activity = Notify::new();
    let (from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let sending = async {
        if to_server.write_all(&request).await.is_ok() {
            pump(from_client, to_server, &activity).await;
        }
        // What ends this connection is the answer's end.
        std::future::pending::<()>().await;
    };
    let answering = async {
        let mut bytes = Vec::new();
        loop {
            let Head { head, rest } = match head::read(&mut from_server, bytes, limits.head_bytes_max).await? {
                Ok(head) => head,
                // Then so do we: the client knows what it makes of that.
                Err(HeadError::Ended) => return Ok(None),
                Err(HeadError::TooLong) => return Ok(Some("the head of the server's answer is too long")),
            };
            activity.notify_one();
            let Some((head, is_before)) = head::answer(&head) else {
                return Ok(Some("what the server answers is no HTTP"));
            };
            to_client.write_all(&head).await?;
            bytes = rest;
            if !is_before {
                break;
            }
        }
        to_client.write_all(&bytes).await?;
        pump(from_server, to_client, &activity).await;
        io::Result::Ok(None)
    };
    let problem = tokio::select! {
        () = sending => None,
        answered = answering => answered.unwrap_or(None),
        () = idle(&activity, limits.idle_time_max) => Some("nothing came from the server in time"),
    };
    match problem {
        None => Ok(()),
        // Of an answer that has begun this is not understood, but its end is.
        Some(problem) => refuse(client, &Answer::new(502, problem)).await,
    }
}

/// Carries bytes until one side ends.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, activity: &Notify) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        activity.notify_one();
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
    drop(to.shutdown().await);
}

/// Returns when nothing has happened for so long.
async fn idle(activity: &Notify, most: Duration) {
    while tokio::time::timeout(most, activity.notified()).await.is_ok() {}
}
