//! Bad clients over real sockets, and a good one that is served meanwhile.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;

/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Large enough to fill every buffer between server and client.
const LARGE_BYTES: usize = 64 << 20;

/// Half a second for everything that a client may let us wait for.
fn short() -> Limits {
    let moment = Duration::from_millis(500);
    Limits {
        head_timeout: moment,
        write_timeout: moment,
        linger: Duration::from_secs(10),
        drain: moment,
        ..Limits::default()
    }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<usize>,
}

/// `/` says hello, `/large` sends much, `/refuse` answers without reading, `/echo` reads, `/never` takes for ever.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path() {
        "/large" => Bytes::from(vec![b'x'; LARGE_BYTES]),
        "/refuse" => Bytes::from_static(b"refused"),
        "/never" => std::future::pending().await,
        "/echo" => request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default(),
        _ => Bytes::from_static(b"hello"),
    };
    Ok(Response::new(Full::new(body)))
}

async fn start(limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve("the test", listener, limits, stop.clone(), |_| service_fn(answer)));
    Server { address, stop, task }
}

async fn in_time<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

impl Server {
    async fn connect(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream
    }

    async fn good_client(&self) {
        let mut stream = self.connect("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut text = String::new();
        in_time(stream.read_to_string(&mut text)).await.expect("answered");
        assert!(text.ends_with("hello"), "{text}");
    }

    async fn end(self) -> usize {
        self.stop.cancel();
        in_time(self.task).await.expect("no panic")
    }
}

/// Reads until the other side closes; what came.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = in_time(stream.read_to_end(&mut bytes)).await;
    bytes
}

#[tokio::test]
async fn half_requests_and_idle_connections_are_ended_and_others_are_served_meanwhile() {
    let server = start(short()).await;
    let mut bad = Vec::new();
    for _ in 0..50 {
        bad.push(server.connect("").await);
        bad.push(server.connect("GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").await);
        bad.push(server.connect("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await);
    }
    server.good_client().await;
    for mut stream in bad {
        rest(&mut stream).await;
    }
    assert_eq!(server.end().await, 0);
}

#[tokio::test]
async fn a_head_that_drips_is_ended_however_often_it_drips() {
    let server = start(short()).await;
    let mut stream = server.connect("GET / HTTP/1.1\r\nhost: x\r\n").await;
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            _ = ticks.tick() => { let _ = stream.write_all(b"x: y\r\n").await; }
            read = stream.read(&mut buffer) => { assert!(matches!(read, Ok(0) | Err(_)), "no answer"); break; }
        }
        assert!(begun.elapsed() < PATIENCE, "it goes on for ever");
    }
    server.end().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_ended() {
    let server = start(Limits { drain: PATIENCE, ..short() }).await;
    let _deaf = server.connect("GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.good_client().await;
    // With all of its patience the listener ends only because the client was given up.
    assert_eq!(server.end().await, 0);
}

#[tokio::test]
async fn a_slow_reader_gets_everything() {
    let server = start(short()).await;
    let mut stream = server.connect("GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let mut got = 0;
    let mut buffer = vec![0; 4 << 20];
    loop {
        match in_time(stream.read(&mut buffer)).await.expect("not cut off") {
            0 => break,
            read => got += read,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(got > LARGE_BYTES, "{got}");
    server.end().await;
}

/// The answer is given before the body was sent: the client must see it, not a reset.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let server = start(short()).await;
    let head = format!("POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGE_BYTES}\r\n\r\n");
    let mut stream = server.connect(&head).await;
    let piece = vec![0; 1 << 20];
    let mut sent = 0;
    // First all of it, only then is the answer read: as simple clients do.
    while sent < LARGE_BYTES && in_time(stream.write_all(&piece)).await.is_ok() {
        sent += piece.len();
    }
    let text = String::from_utf8(rest(&mut stream).await).expect("text");
    assert!(text.ends_with("refused"), "{text:?} after {sent} bytes");
    server.end().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let server = start(Limits { connections_max: 2, head_timeout: PATIENCE * 2, ..short() }).await;
    let first = server.connect("GET / HTTP/1.1\r\n").await;
    let _second = server.connect("GET / HTTP/1.1\r\n").await;
    let mut third = server.connect("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(200), third.read(&mut [0; 1])).await;
    assert!(early.is_err(), "two are there already");
    drop(first);
    assert!(rest(&mut third).await.ends_with(b"hello"));
    server.end().await;
}

#[tokio::test]
async fn requests_without_waiting_are_answered_in_order() {
    let server = start(short()).await;
    let echo = |text: &str, more: &str| {
        format!("POST /echo HTTP/1.1\r\nhost: x\r\n{more}content-length: {}\r\n\r\n{text}", text.len())
    };
    let all = [echo("one", ""), echo("two", ""), echo("three", "connection: close\r\n")].concat();
    let mut stream = server.connect(&all).await;
    let text = String::from_utf8(rest(&mut stream).await).expect("text");
    let bodies: Vec<&str> =
        text.split("\r\n\r\n").skip(1).map(|body| body.split("HTTP/1.1").next().unwrap_or("")).collect();
    assert_eq!(bodies, ["one", "two", "three"]);
    server.end().await;
}

#[tokio::test]
async fn the_end_waits_for_answers_but_not_for_ever() {
    let server = start(short()).await;
    let _never = server.connect("GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.good_client().await;
    let address = server.address;
    assert_eq!(server.end().await, 1);
    assert!(TcpStream::connect(address).await.is_err(), "it is closed");
}
