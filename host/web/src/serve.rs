//! The listener's life: open from the first moment, `starting` until the router exists, and at the end no request that
//! was taken goes unanswered. Start at [`Gate`] and [`serve`].

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::error;

/// How long new connections are still taken after the end was asked for, while older answers are under way.
const ACCEPT_LIMIT: Duration = Duration::from_secs(5);

/// How long answers may then still take. A client that reads nothing must not hold a restart for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

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

async fn pass(State(gate): State<Gate>, request: Request) -> Response {
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
///
/// Errors: accepting failed for good.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> std::io::Result<()> {
    let in_flight = Arc::new(InFlight::default());
    let counted = Router::new().fallback(count).with_state((router, in_flight.clone()));
    let quiet = CancellationToken::new();
    let server = axum::serve(listener, counted).with_graceful_shutdown(quiet.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    let mut server = AbortOnDrop(server);
    tokio::select! {
        ended = &mut server.0 => return flatten(ended),
        () = shutdown.cancelled() => {}
    }
    let _ = tokio::time::timeout(ACCEPT_LIMIT, in_flight.none()).await;
    // Accepts no more and closes idle keep-alive connections; what is under way goes on.
    quiet.cancel();
    if let Ok(ended) = tokio::time::timeout(DRAIN_LIMIT, &mut server.0).await {
        return flatten(ended);
    }
    let left = in_flight.count.load(Ordering::SeqCst);
    tracing::warn!(left, "Giving up connections whose clients do not read");
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<std::io::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn flatten(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> std::io::Result<()> {
    ended.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

async fn count(State((router, in_flight)): State<(Router, Arc<InFlight>)>, request: Request) -> Response {
    let guard = in_flight.enter();
    match router.oneshot(request).await {
        Ok(response) => response.map(|body| Body::new(Counted { body, _guard: guard })),
        Err(never) => match never {},
    }
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
