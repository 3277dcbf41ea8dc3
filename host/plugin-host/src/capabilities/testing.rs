//! What the tests here share: a clock that is set, a store in memory of what is stored, keys, and real servers on loopback
//! that answer what a test tells them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harmonia_core::ports::{PluginStore, PluginStoreError, PortFuture, StoredValue, WriteCondition};
use harmonia_core::{Clock, Timestamp};
use harmonia_egress::{Resolver, ResolverFuture};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{
    CallState, Capture, Grants, Header, HttpClient, HttpClientOptions, HttpRequest, Method, SecretGrant, Shared,
};

/// A clock that stands until it is moved.
pub(super) struct SetClock(Mutex<Timestamp>);

impl SetClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(time::macros::datetime!(2026-11-22 01:00:00 UTC))))
    }

    pub(super) fn advance(&self, by: Duration) {
        *self.0.lock().expect("not poisoned") += by;
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("not poisoned")
    }
}

/// A store that counts: the database's own is tested where it is.
#[derive(Default)]
pub(super) struct MemoryStore(Mutex<BTreeMap<(String, String), StoredValue>>);

impl PluginStore for MemoryStore {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        Box::pin(async move { Ok(self.0.lock().expect("not poisoned").get(&(plugin, key)).cloned()) })
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        _: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        Box::pin(async move {
            let mut rows = self.0.lock().expect("not poisoned");
            let version = rows.get(&(plugin.clone(), key.clone())).map(|stored| stored.version);
            match condition {
                WriteCondition::Absent if version.is_some() => return Err(PluginStoreError::Conflict),
                WriteCondition::Version(wanted) if version != Some(wanted) => return Err(PluginStoreError::Conflict),
                _ => {}
            }
            let version = version.unwrap_or_default() + 1;
            rows.insert((plugin, key), StoredValue { value, version });
            Ok(version)
        })
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        Box::pin(async move {
            self.0.lock().expect("not poisoned").remove(&(plugin, key));
            Ok(())
        })
    }
}

/// Names with scripted addresses; every other name does not exist.
#[derive(Default)]
pub(super) struct Names(pub(super) BTreeMap<&'static str, Vec<&'static str>>);

impl Resolver for Names {
    fn resolve(&self, name: String) -> ResolverFuture<'_> {
        let addresses = self.0.get(name.as_str()).map(|addresses| {
            addresses.iter().map(|address| address.parse().expect("an address")).collect::<Vec<IpAddr>>()
        });
        Box::pin(async move { addresses.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name")) })
    }
}

/// A plugin with its grants, and the folder of its secrets.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<SetClock>,
    pub(super) folder: tempfile::TempDir,
}

/// Name, contents, hosts.
type PlannedSecret = (&'static str, Vec<u8>, Option<Vec<String>>);

/// What a test grants.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) hosts: Vec<String>,
    pub(super) secrets: Vec<PlannedSecret>,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) limits: super::CapabilityLimits,
    pub(super) names: Names,
    pub(super) roots_pem: Vec<u8>,
}

impl Plan {
    pub(super) fn hosts(hosts: &[&str]) -> Self {
        Self { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Self::default() }
    }

    pub(super) fn secret(mut self, name: &'static str, contents: impl AsRef<[u8]>) -> Self {
        self.secrets.push((name, contents.as_ref().to_vec(), None));
        self
    }

    pub(super) fn bound_secret(mut self, name: &'static str, contents: impl AsRef<[u8]>, hosts: &[&str]) -> Self {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.secrets.push((name, contents.as_ref().to_vec(), Some(hosts)));
        self
    }

    pub(super) fn name(mut self, name: &'static str, addresses: &[&'static str]) -> Self {
        self.names.0.insert(name, addresses.to_vec());
        self
    }

    pub(super) fn limits(mut self, change: impl FnOnce(&mut super::CapabilityLimits)) -> Self {
        change(&mut self.limits);
        self
    }

    pub(super) fn world(self) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let mut grants = Grants::none("test-forge");
        grants.allow_hosts = self.hosts.iter().map(|host| host.parse().expect("a grant")).collect();
        grants.settings = self.settings;
        grants.limits = self.limits;
        for (name, contents, hosts) in self.secrets {
            let file: PathBuf = folder.path().join(name);
            std::fs::write(&file, contents).expect("write a secret");
            grants.secrets.insert(name.to_owned(), SecretGrant { file, hosts });
        }
        let options = HttpClientOptions { resolver: Arc::new(self.names), extra_roots_pem: self.roots_pem };
        let client = HttpClient::new(&options).expect("a client");
        let clock = SetClock::new();
        let shared =
            Shared::new(grants, Arc::new(MemoryStore::default()), Arc::clone(&clock) as Arc<dyn Clock>, client);
        World { shared, clock, folder }
    }
}

impl World {
    pub(super) fn call(&self) -> CallState {
        CallState::new(Arc::clone(&self.shared), true)
    }
}

/// A request with nothing special.
pub(super) fn get(url: impl Into<String>) -> HttpRequest {
    HttpRequest {
        method: Method::Get,
        url: url.into(),
        headers: Vec::new(),
        body: None,
        auth: Vec::new(),
        capture: Vec::new(),
    }
}

pub(super) fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}

pub(super) fn capture(pointer: &str, hosts: &[&str]) -> Capture {
    Capture { pointer: pointer.to_owned(), hosts: hosts.iter().map(|host| (*host).to_owned()).collect() }
}

/// A request as a server received it.
#[derive(Debug, Clone)]
pub(super) struct Received {
    /// Request line and headers.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(super) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

type Answer = dyn Fn(&Received) -> Vec<u8> + Send + Sync;

/// A server on loopback that answers each request with the bytes that a function gives and then closes.
pub(super) struct Server {
    pub(super) port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn new(answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(answer), None).await
    }

    /// The same behind TLS.
    pub(super) async fn tls(
        config: Arc<tokio_rustls::rustls::ServerConfig>,
        answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Arc::new(answer), Some(tokio_rustls::TlsAcceptor::from(config))).await
    }

    async fn start(answer: Arc<Answer>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &log, &*answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &log, &*answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, received, task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What grants it.
    pub(super) fn grant(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("not poisoned").clone()
    }
}

/// Ends an answer that is never finished.
pub(super) const STALL: &[u8] = b"<stall>";

async fn serve(
    mut stream: impl tokio::io::AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Received>>,
    answer: &Answer,
) {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut received = Received { head, body: Vec::new() };
    let length = received.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0_usize);
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
            return;
        }
    }
    received.body = bytes[head_end..].to_vec();
    log.lock().expect("not poisoned").push(received.clone());
    let answer = answer(&received);
    match answer.strip_suffix(STALL) {
        None => {
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
        Some(begin) => {
            // A byte every now and then until the other side has enough.
            let _ = stream.write_all(begin).await;
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
                tick.tick().await;
            }
        }
    }
}

/// An answer with these headers (each ending in CR LF) and this body.
pub(super) fn answer(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut text =
        format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len())
            .into_bytes();
    text.extend_from_slice(body);
    text
}

/// An RSA key pair: private key as PKCS#8 and as PKCS#1, both PEM, and the public one as DER.
pub(super) struct RsaKey {
    pub(super) pkcs8_pem: String,
    pub(super) pkcs1_pem: String,
    pub(super) public_der: Vec<u8>,
}

/// A new key.
pub(super) fn rsa_key() -> RsaKey {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;

    let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: Pkcs8V1Der<'static> = key.as_der().expect("PKCS#8");
    let pkcs8 = der.as_ref();
    RsaKey {
        pkcs8_pem: pem("PRIVATE KEY", pkcs8),
        pkcs1_pem: pem("RSA PRIVATE KEY", inner_pkcs1(pkcs8)),
        public_der: key.public_key().as_ref().to_vec(),
    }
}

/// PKCS#8 of an RSA key ends in an OCTET STRING (of more than 255 bytes) with the PKCS#1 structure.
fn inner_pkcs1(pkcs8: &[u8]) -> &[u8] {
    let at = pkcs8.windows(2).enumerate().find(|(at, window)| {
        *window == [0x04, 0x82] && {
            let length = usize::from(pkcs8[at + 2]) << 8 | usize::from(pkcs8[at + 3]);
            at + 4 + length == pkcs8.len()
        }
    });
    &pkcs8[at.expect("an octet string").0 + 4..]
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    use std::fmt::Write as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        let _ = writeln!(pem, "{}", std::str::from_utf8(line).expect("ASCII"));
    }
    pem + &format!("-----END {label}-----\n")
}
