//! The HTTP server below both fakes: one thread with its own runtime, so that it lives as long as its fake and no longer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::faults::{Effect, Faults};

/// Larger requests are cut short.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A request as it arrived.
pub(crate) struct Request {
    pub(crate) method: String,
    /// As sent, still encoded, without the query.
    pub(crate) path: String,
    /// As sent.
    pub(crate) query: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn query_pairs(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(self.query.as_bytes()).into_owned().collect()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(status: u16, text: &str) -> Self {
        let headers = vec![("content-type".to_owned(), "text/html; charset=utf-8".to_owned())];
        Self { status, headers, body: text.as_bytes().to_vec() }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Self { status, headers, body: body.to_string().into_bytes() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// Who answers.
pub(crate) trait Site: Send + Sync + 'static {
    /// Applies the request to the world.
    fn answer(&self, request: &Request) -> Response;
    /// What a fault answers with instead.
    fn refusal(&self, effect: &Effect) -> Option<Response>;
    /// Notes what became of a request; `status` is none when no answer was sent.
    fn note(&self, request: &Request, status: Option<u16>);
    fn faults(&self) -> &Faults;
}

/// Listens until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// On an ephemeral port of the loopback interface; `site` is told the address before the first request.
    pub(crate) fn start<S: Site>(site: impl FnOnce(SocketAddr) -> Arc<S>) -> (Self, Arc<S>) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port of the loopback interface is free");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        let address = listener.local_addr().expect("a listener has an address");
        let site = site(address);
        let (stop, stopped) = oneshot::channel();
        let served = site.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, served) => {}
                }
            });
        });
        (Self { address, stop: Some(stop), thread: Some(thread) }, site)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn accept<S: Site>(listener: TcpListener, site: Arc<S>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, site.clone()));
    }
}

async fn serve<S: Site>(stream: TcpStream, site: Arc<S>) {
    let service = service_fn(move |request| handle(request, site.clone()));
    // A connection that ends early is either a fault or the client's business.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// The connection closes without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

async fn handle<S: Site>(request: hyper::Request<Incoming>, site: Arc<S>) -> Result<hyper::Response<Answer>, Dropped> {
    let (head, body) = request.into_parts();
    let effect = site.faults().take(head.method.as_str(), head.uri.path());
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let mut request = Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or("").to_owned(),
        headers: headers.collect(),
        body: Vec::new(),
    };
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    request.body = body.map_err(|_| Dropped)?.to_bytes().to_vec();
    if matches!(effect, Some(Effect::DropBefore)) {
        site.note(&request, None);
        return Err(Dropped);
    }
    if let Some(refusal) = effect.as_ref().and_then(|effect| site.refusal(effect)) {
        site.note(&request, Some(refusal.status));
        return Ok(hyper_response(refusal, false));
    }
    let response = site.answer(&request);
    match effect {
        Some(Effect::DropAfter) => {
            site.note(&request, None);
            return Err(Dropped);
        }
        Some(Effect::Slow(duration)) => {
            site.note(&request, Some(response.status));
            tokio::time::sleep(duration).await;
        }
        Some(Effect::Hold(gate)) => {
            site.note(&request, Some(response.status));
            gate.pass().await;
        }
        Some(Effect::CutOff) => {
            site.note(&request, None);
            return Ok(hyper_response(response, true));
        }
        Some(Effect::Gibberish) => {
            site.note(&request, Some(200));
            return Ok(hyper_response(
                Response::text(200, "<html><body>Please log in to the network.</body></html>"),
                false,
            ));
        }
        _ => site.note(&request, Some(response.status)),
    }
    Ok(hyper_response(response, false))
}

fn hyper_response(response: Response, cut_off: bool) -> hyper::Response<Answer> {
    let mut builder = hyper::Response::builder().status(response.status);
    for (name, value) in &response.headers {
        builder = builder.header(name, value);
    }
    let body = Bytes::from(response.body);
    let announced = body.len() as u64;
    let rest = if cut_off { body.slice(..body.len() / 2) } else { body };
    builder
        .body(Answer { rest: Some(rest), announced, cut_off, flushed: false })
        .expect("headers of answers are well formed")
}

/// A body of which, for a fault, half is missing.
struct Answer {
    rest: Option<Bytes>,
    announced: u64,
    cut_off: bool,
    flushed: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match this.rest.take() {
            Some(rest) if !rest.is_empty() => Poll::Ready(Some(Ok(Frame::data(rest)))),
            // What is there is sent before the rest is missing.
            _ if this.cut_off && !this.flushed => {
                this.flushed = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            _ if this.cut_off => Poll::Ready(Some(Err(std::io::Error::other("cut off on purpose")))),
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.cut_off && self.rest.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}
