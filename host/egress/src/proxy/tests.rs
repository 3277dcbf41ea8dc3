//! The proxy with real connections, on the loopback interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::resolver::ResolverFuture;

/// Names with scripted addresses; each question may have another answer than the one before.
#[derive(Default)]
struct Names(Mutex<BTreeMap<&'static str, Vec<Vec<&'static str>>>>);

impl Names {
    fn of(names: &[(&'static str, &[&[&'static str]])]) -> Arc<Self> {
        let answers = |answers: &[&[&'static str]]| answers.iter().map(|answer| answer.to_vec()).collect();
        Arc::new(Self(Mutex::new(names.iter().map(|(name, all)| (*name, answers(all))).collect())))
    }
}

impl Resolver for Names {
    fn resolve(&self, name: String) -> ResolverFuture<'_> {
        let mut names = self.0.lock().expect("unpoisoned");
        let found = names.get_mut(name.as_str()).filter(|answers| !answers.is_empty()).map(|answers| answers.remove(0));
        let addresses: Option<Vec<IpAddr>> =
            found.map(|addresses| addresses.iter().map(|address| address.parse().expect("an address")).collect());
        Box::pin(async move { addresses.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name")) })
    }
}

/// A server that keeps the heads of requests and gives everybody the same answer.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
        let address = listener.local_addr().expect("address");
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                connections.spawn(async move {
                    let mut bytes = Vec::new();
                    while !bytes.ends_with(b"\r\n\r\n")
                        && stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0)
                    {}
                    kept.lock().expect("unpoisoned").push(String::from_utf8(bytes).expect("text"));
                    drop(stream.write_all(answer.as_bytes()).await);
                });
            }
        });
        Self { address, heads, task }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("unpoisoned").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello";

fn egress(allowed: &[String], resolver: Arc<dyn Resolver>, limits: EgressLimits) -> Egress {
    let allowed = allowed.iter().map(|text| text.parse().expect("a grant")).collect();
    Egress::new(EgressRules { allowed, setting: "eval.allow_hosts" }, resolver, limits)
}

/// A session that listens to everybody, as in a namespace of its own, and its address.
fn open(egress: &Egress) -> (Session, SocketAddr) {
    let mut session = egress.session(Vec::new());
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
    let address = listener.local_addr().expect("address");
    session.serve(listener).expect("serves");
    (session, address)
}

/// All that the proxy says to this.
async fn say(proxy: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(proxy).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("writes");
    let mut said = String::new();
    stream.read_to_string(&mut said).await.expect("reads");
    said
}

async fn get(proxy: SocketAddr, url: &str) -> String {
    say(proxy, &format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test]
async fn what_is_not_public_is_refused_and_said_and_what_is_listed_is_reached() {
    let server = Server::start(HELLO).await;
    let url = format!("http://{}/x", server.address);
    let (session, proxy) = open(&egress(&[], Arc::new(crate::SystemResolver), EgressLimits::default()));
    for target in [url.clone(), format!("http://localhost:{}/x", server.address.port())] {
        let said = get(proxy, &target).await;
        let first = said.lines().next().expect("a line");
        assert!(first.starts_with("HTTP/1.1 403 ") && first.contains("eval.allow_hosts"), "{said}");
        assert!(said.contains("(this machine)"), "{said}");
    }
    let said = say(proxy, &format!("CONNECT {} HTTP/1.1\r\n\r\n", server.address)).await;
    assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
    // Each once, however often it is tried.
    get(proxy, &url).await;
    assert_eq!(session.refused().len(), 3, "{:?}", session.refused());
    assert_eq!(server.heads(), Vec::<String>::new(), "nobody called it");

    let (session, proxy) = open(&egress(
        &[format!("http://{}", server.address)],
        Arc::new(crate::SystemResolver),
        EgressLimits::default(),
    ));
    let said = get(proxy, &url).await;
    assert_eq!(said, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    assert_eq!(server.heads(), [format!("GET /x HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address)]);
    assert_eq!(session.refused(), []);
}

#[tokio::test]
async fn a_name_is_judged_by_its_addresses_and_called_where_it_was_judged() {
    let server = Server::start(HELLO).await;
    let port = server.address.port();
    let names = || {
        Names::of(&[
            ("evil.example", &[&["127.0.0.1"]]),
            ("both.example", &[&["1.1.1.1", "127.0.0.1"]]),
            ("mapped.example", &[&["::ffff:127.0.0.1"]]),
            ("cloud.example", &[&["169.254.169.254"]]),
            // The second answer is for whoever would ask again before connecting.
            ("rebinds.example", &[&["127.0.0.1"], &["127.0.0.2"]]),
            ("none.example", &[&[]]),
        ])
    };
    let (_session, proxy) = open(&egress(&[], names(), EgressLimits::default()));
    for name in ["evil.example", "both.example", "mapped.example", "cloud.example"] {
        let said = get(proxy, &format!("http://{name}:{port}/")).await;
        assert!(said.starts_with("HTTP/1.1 403 ") && said.contains(&format!("{name} is at ")), "{said}");
    }
    for name in ["none.example", "unknown.example"] {
        let said = get(proxy, &format!("http://{name}:{port}/")).await;
        assert!(said.starts_with("HTTP/1.1 502 ") && said.contains(&format!("the name {name} could not")), "{said}");
    }
    assert_eq!(server.heads(), Vec::<String>::new());
    let listed = [format!("private:http://rebinds.example:{port}")];
    let (_session, proxy) = open(&egress(&listed, names(), EgressLimits::default()));
    assert!(get(proxy, &format!("http://rebinds.example:{port}/")).await.ends_with("hello"));
}

#[tokio::test]
async fn a_redirect_is_judged_like_any_request() {
    let hidden = Server::start(HELLO).await;
    let answer = format!("HTTP/1.1 302 x\r\nLocation: http://{}/secret\r\nContent-Length: 0\r\n\r\n", hidden.address);
    let server = Server::start(answer.leak()).await;
    let listed = [format!("http://{}", server.address)];
    let mut session = egress(&listed, Arc::new(crate::SystemResolver), EgressLimits::default()).session(Vec::new());
    let proxy = session.serve_here().await.expect("serves");
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--location", "--proxy", &proxy, &format!("http://{}/", server.address)])
        .output()
        .await
        .expect("curl runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("may not be reached") && printed.contains("eval.allow_hosts"), "{printed}");
    assert_eq!((server.heads().len(), hidden.heads().len()), (1, 0));
}

#[tokio::test]
async fn a_tunnel_carries_both_ways_and_ends_when_it_is_idle() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
    let address = listener.local_addr().expect("address");
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await
    });
    let idle_time_max = Duration::from_millis(300);
    let limits = EgressLimits { idle_time_max, ..EgressLimits::default() };
    let (_session, proxy) = open(&egress(&[format!("{address}")], Arc::new(crate::SystemResolver), limits));
    let mut stream = TcpStream::connect(proxy).await.expect("connects");
    // What is sent behind the request without waiting belongs to the tunnel.
    stream.write_all(format!("CONNECT {address} HTTP/1.1\r\n\r\nearly").as_bytes()).await.expect("writes");
    let established = b"HTTP/1.1 200 Connection established\r\n\r\nearly";
    let mut said = vec![0; established.len()];
    stream.read_exact(&mut said).await.expect("reads");
    assert_eq!(said, established);
    let start = Instant::now();
    stream.write_all(b"late").await.expect("writes");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("it ends by itself");
    assert_eq!(said, b"late");
    assert!(start.elapsed() >= idle_time_max, "{:?}", start.elapsed());
    assert_eq!(echo.await.expect("no panic").expect("no error"), 9);
}

#[tokio::test]
async fn slow_and_large_requests_and_too_many_connections_are_bounded() {
    let server = Server::start(HELLO).await;
    let limits = EgressLimits {
        connections_max: 1,
        head_bytes_max: 200,
        head_time_max: Duration::from_millis(300),
        ..EgressLimits::default()
    };
    let (_session, proxy) =
        open(&egress(&[format!("http://{}", server.address)], Arc::new(crate::SystemResolver), limits));
    let url = format!("http://{}/", server.address);
    let start = Instant::now();
    let mut silent = TcpStream::connect(proxy).await.expect("connects");
    silent.write_all(b"GET ").await.expect("writes");
    // Waits until the silent one is hung up on: there is room for one.
    assert!(get(proxy, &url).await.ends_with("hello"));
    assert!(start.elapsed() >= limits.head_time_max, "{:?}", start.elapsed());
    let mut said = String::new();
    silent.read_to_string(&mut said).await.expect("reads");
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    drop(silent);
    let said = say(proxy, &format!("GET {url} HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300))).await;
    assert!(said.starts_with("HTTP/1.1 431 ") && said.contains("more than 200 bytes"), "{said}");
    for (text, status) in [("hello\r\n\r\n", "400"), ("GET / HTTP/1.1\r\n\r\n", "400"), ("", "")] {
        let mut stream = TcpStream::connect(proxy).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("writes");
        stream.shutdown().await.expect("ends");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.expect("reads");
        assert_eq!(said.split(' ').nth(1).unwrap_or_default(), status, "{text}: {said}");
    }
    assert_eq!(server.heads().len(), 1);
}

#[tokio::test]
async fn a_proxy_on_the_machines_own_interface_is_for_who_knows_the_password() {
    let server = Server::start(HELLO).await;
    let url = format!("http://{}/", server.address);
    let allowed = EgressGrant::of_target(&crate::Target::of(&url.parse().expect("a URL")).expect("a target"));
    let mut session = egress(&[], Arc::new(crate::SystemResolver), EgressLimits::default()).session(vec![allowed]);
    let proxy = session.serve_here().await.expect("serves");
    let address = proxy.rsplit('@').next().expect("an address").parse().expect("an address");
    for header in ["", "Proxy-Authorization: Basic ZWdyZXNzOng=\r\n"] {
        let said = say(address, &format!("GET {url} HTTP/1.1\r\n{header}\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 407 ") && said.contains("Proxy-Authenticate: Basic"), "{said}");
    }
    assert_eq!(server.heads(), Vec::<String>::new());
    let output = tokio::process::Command::new("curl").args(["--silent", "--proxy", &proxy, &url]).output().await;
    assert_eq!(output.expect("curl runs").stdout, b"hello");
    // It ends with its session.
    drop(session);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_takes_no_connection_is_said_to() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port").local_addr().expect("address");
    let (session, proxy) =
        open(&egress(&[format!("http://{nobody}")], Arc::new(crate::SystemResolver), EgressLimits::default()));
    let said = get(proxy, &format!("http://{nobody}/")).await;
    assert!(said.starts_with("HTTP/1.1 502 ") && said.contains("takes no connection: Connection refused"), "{said}");
    assert_eq!(session.refused(), []);
}
