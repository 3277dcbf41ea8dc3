//! The listener's life: open from the first moment, `starting` until the router exists, and at the end no request that
//! was taken goes unanswered. Start at [`Gate`] and [`serve`].

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use harmonia_listener::Limits;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::client::Peer;
use crate::error;

/// How long new connections are still taken after the end was asked for, while older answers are under way.
const ACCEPT_LIMIT: Duration = Duration::from_secs(5);

/// Stands before the router: answers 503 with Retry-After until the router is put in, so that the port can be bound
/// (and a taken one reported) before anything else is started.
#[derive(Clone, Default)]
pub struct Gate {
    router: Arc<OnceLock<Router>>,
}

impl Gate {
    /// A gate that is still shut.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets requests through to `router` from now on. A second call changes nothing.
    pub fn open(&self, router: Router) {
        let _ = self.router.set(router);
    }

    /// What to hand to [`serve`].
    pub fn router(&self) -> Router {
        Router::new().fallback(pass).with_state(self.clone())
    }
}

async fn pass(State(gate): State<Gate>, request: Request<Body>) -> Response {
    match gate.router.get() {
        Some(router) => match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        None if request.uri().path() == "/health" => "{\"status\":\"starting\"}\n".into_response(),
        None => error::starting(),
    }
}

/// Serves until `shutdown` is cancelled, then takes new connections only as long as older answers are under way (a
/// restart refuses nobody whom it could still serve), and returns when the last one ended, or after 30 seconds.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: CancellationToken) {
    let in_flight = Arc::new(InFlight::default());
    let counted = in_flight.clone();
    let quiet = CancellationToken::new();
    let service_for = move |peer: SocketAddr| {
        let (router, in_flight) = (router.clone(), counted.clone());
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer.ip().to_canonical()));
            let guard = in_flight.enter();
            let answer = router.clone().oneshot(request.map(Body::new));
            async move { answer.await.map(|response| response.map(|body| Counted { body, _guard: guard })) }
        })
    };
    let mut serving = pin!(harmonia_listener::serve("this node", listener, limits, quiet.clone(), service_for));
    tokio::select! {
        _ = &mut serving => return,
        () = shutdown.cancelled() => {}
    }
    tokio::select! {
        _ = &mut serving => return,
        _ = tokio::time::timeout(ACCEPT_LIMIT, in_flight.none()) => {}
    }
    // Accepts no more and closes idle keep-alive connections; what is under way goes on.
    quiet.cancel();
    serving.await;
}

/// Requests whose answer has not been read to its end.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    left: Notify,
}

impl InFlight {
    fn enter(self: &Arc<Self>) -> Guard {
        self.count.fetch_add(1, Ordering::SeqCst);
        Guard(self.clone())
    }

    async fn none(&self) {
        loop {
            let left = self.left.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }
}

struct Guard(Arc<InFlight>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.left.notify_waiters();
    }
}

/// A body that keeps its request counted until it was sent or given up.
struct Counted {
    body: Body,
    _guard: Guard,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
