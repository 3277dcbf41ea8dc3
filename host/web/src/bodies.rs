//! Bodies of requests: how many bytes of them this node holds at once, and how long one may take as a whole. Start at
//! [`Bodies`].
//!
//! Memory is reserved before it is filled, from one budget of the node. Who showed a token reserves what the request
//! declares; who did not (forges sign what they send, so it must be read first) reserves what has come, and all of them
//! together only a part: declaring much costs them nothing of it, and takes nothing from others.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::WebError;

/// What one permit stands for.
const UNIT_BYTES: usize = 1 << 10;

/// Bounds on bodies.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Bytes of bodies that the node holds at once.
    pub held_bytes_max: usize,
    /// Bytes of them from senders that showed no token.
    pub strangers_bytes_max: usize,
    /// How long a body waits for its turn.
    pub patience: Duration,
    /// Time for the whole body of an API call.
    pub call: Duration,
    /// Time for the whole body of a webhook.
    pub webhook: Duration,
    /// Time for the whole body of a signer call, which may be large.
    pub signer_call: Duration,
    /// Time for a whole git bundle.
    pub bundle: Duration,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            held_bytes_max: 256 << 20,
            strangers_bytes_max: 64 << 20,
            patience: Duration::from_secs(10),
            call: Duration::from_secs(30),
            webhook: Duration::from_secs(15),
            signer_call: Duration::from_mins(5),
            bundle: Duration::from_mins(30),
        }
    }
}

/// What a handler is willing to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) bytes_max: usize,
    /// For the whole of it.
    pub(crate) time: Duration,
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WebError> {
    serde_json::from_slice(bytes)
        .map_err(|error| WebError::bad_request(format!("the body is not the JSON expected here: {error}")))
}

/// The node's budget.
#[derive(Clone)]
pub(crate) struct Bodies {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    limits: BodyLimits,
}

/// What is reserved for one body; given back when dropped.
#[must_use]
pub(crate) struct Room {
    from: Vec<Arc<Semaphore>>,
    held: Vec<OwnedSemaphorePermit>,
    units: usize,
    patience: Duration,
}

impl Bodies {
    pub(crate) fn new(limits: BodyLimits) -> Self {
        let units = |bytes: usize| Arc::new(Semaphore::new(bytes.div_ceil(UNIT_BYTES)));
        Self { all: units(limits.held_bytes_max), strangers: units(limits.strangers_bytes_max), limits }
    }

    pub(crate) fn limits(&self) -> &BodyLimits {
        &self.limits
    }

    /// A JSON body of somebody who showed a token. The room is given back when the handler drops it: what was read is in
    /// memory until then.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
        allowed: Allowed,
    ) -> Result<(T, Room), WebError> {
        let (bytes, room) = self.bytes(headers, body, allowed).await?;
        Ok((parse(&bytes)?, room))
    }

    /// As [`Bodies::json`], of a sender who is known only when it was read.
    pub(crate) async fn strangers_json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
        allowed: Allowed,
    ) -> Result<(T, Room), WebError> {
        let (bytes, room) = self.strangers_bytes(headers, body, allowed).await?;
        Ok((parse(&bytes)?, room))
    }

    async fn bytes(&self, headers: &HeaderMap, body: Body, allowed: Allowed) -> Result<(Bytes, Room), WebError> {
        let declared = declared(headers, allowed.bytes_max as u64)?;
        let mut room = self.room(vec![self.all.clone()]);
        if let Some(length) = declared {
            room.grow_to(usize::try_from(length).unwrap_or(usize::MAX)).await?;
        }
        collect(body, allowed, room).await
    }

    /// The body of a sender who is known only when it was read.
    pub(crate) async fn strangers_bytes(
        &self,
        headers: &HeaderMap,
        body: Body,
        allowed: Allowed,
    ) -> Result<(Bytes, Room), WebError> {
        declared(headers, allowed.bytes_max as u64)?;
        let room = self.room(vec![self.strangers.clone(), self.all.clone()]);
        collect(body, allowed, room).await
    }

    /// Room for a part of a body that goes on to somewhere else.
    pub(crate) async fn buffer(&self, bytes: usize) -> Result<Room, WebError> {
        let mut room = self.room(vec![self.all.clone()]);
        room.grow_to(bytes).await?;
        Ok(room)
    }

    fn room(&self, from: Vec<Arc<Semaphore>>) -> Room {
        Room { from, held: Vec::new(), units: 0, patience: self.limits.patience }
    }
}

impl Room {
    /// Reserves until `bytes` fit.
    async fn grow_to(&mut self, bytes: usize) -> Result<(), WebError> {
        let more = bytes.div_ceil(UNIT_BYTES).saturating_sub(self.units);
        if more == 0 {
            return Ok(());
        }
        let permits = u32::try_from(more).unwrap_or(u32::MAX);
        for budget in &self.from {
            match timeout(self.patience, budget.clone().acquire_many_owned(permits)).await {
                Ok(Ok(permit)) => self.held.push(permit),
                Ok(Err(_)) | Err(_) => return Err(WebError::no_room_for_bodies()),
            }
        }
        self.units += more;
        Ok(())
    }
}

async fn collect(body: Body, allowed: Allowed, mut room: Room) -> Result<(Bytes, Room), WebError> {
    let mut pieces = Pieces::new(body, allowed.time);
    let mut all = BytesMut::new();
    while let Some(piece) = pieces.next().await? {
        let length = all.len() + piece.len();
        if length > allowed.bytes_max {
            return Err(WebError::too_large(allowed.bytes_max as u64, "the body"));
        }
        room.grow_to(length).await?;
        all.extend_from_slice(&piece);
    }
    Ok((all.freeze(), room))
}

/// The length that the head declares. A body that says beforehand that it is too large is not read at all.
pub(crate) fn declared(headers: &HeaderMap, bytes_max: u64) -> Result<Option<u64>, WebError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match declared {
        Some(length) if length > bytes_max => Err(WebError::too_large(bytes_max, "the body")),
        declared => Ok(declared),
    }
}

/// A body, piece by piece.
pub(crate) struct Pieces {
    stream: BodyDataStream,
    time: Duration,
    until: Instant,
}

impl Pieces {
    /// All of it may take `time`, from now on.
    pub(crate) fn new(body: Body, time: Duration) -> Self {
        Self { stream: body.into_data_stream(), time, until: Instant::now() + time }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, WebError> {
        match timeout_at(self.until, self.stream.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) => Err(WebError::bad_request("the body broke off")),
            Err(_) => Err(WebError::too_slow(self.time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn bodies() -> Bodies {
        Bodies::new(BodyLimits {
            held_bytes_max: 1 << 20,
            strangers_bytes_max: 256 << 10,
            patience: Duration::from_millis(20),
            ..BodyLimits::default()
        })
    }

    fn of(pieces: usize) -> Body {
        let pieces = (0..pieces).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![0; 64 << 10])));
        Body::from_stream(stream::iter(pieces))
    }

    fn allowed() -> Allowed {
        Allowed { bytes_max: 1 << 20, time: Duration::from_secs(10) }
    }

    fn length(bytes: usize) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_LENGTH, bytes.into())])
    }

    fn refusal<T>(result: Result<T, WebError>) -> (u16, &'static str) {
        result.map(|_| ()).expect_err("refused").status_and_code()
    }

    #[tokio::test]
    async fn what_is_held_is_bounded_and_comes_back() {
        let bodies = bodies();
        let first = bodies.bytes(&length(768 << 10), of(12), allowed()).await.expect("fits");
        assert_eq!(refusal(bodies.bytes(&length(512 << 10), of(8), allowed()).await), (503, "too-many-bodies"));
        assert_eq!(refusal(bodies.bytes(&HeaderMap::new(), of(8), allowed()).await), (503, "too-many-bodies"));
        let second = bodies.bytes(&HeaderMap::new(), of(4), allowed()).await.expect("fits beside it");
        drop((first, second));
        drop(bodies.bytes(&length(1 << 20), of(16), allowed()).await.expect("all of it is free again"));
    }

    #[tokio::test]
    async fn strangers_have_a_part_and_pay_for_what_they_send() {
        let bodies = bodies();
        let declared = length(1 << 20);
        let one = bodies.strangers_bytes(&declared, of(1), allowed()).await.expect("it sent little");
        let two = bodies.strangers_bytes(&declared, of(3), allowed()).await.expect("they fit both");
        assert_eq!(refusal(bodies.strangers_bytes(&declared, of(1), allowed()).await), (503, "too-many-bodies"));
        let known = bodies.bytes(&length(768 << 10), of(12), allowed()).await.expect("tokens have the rest");
        drop((one, two, known));
    }

    #[tokio::test]
    async fn a_body_has_a_time_as_a_whole() {
        let drip = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let allowed = Allowed { bytes_max: 1 << 20, time: Duration::from_millis(60) };
        let result = bodies().bytes(&HeaderMap::new(), Body::from_stream(drip), allowed).await;
        assert_eq!(refusal(result), (408, "too-slow"));
    }

    #[tokio::test]
    async fn a_body_has_a_size() {
        let bodies = bodies();
        assert_eq!(refusal(bodies.bytes(&length(2 << 20), of(1), allowed()).await), (413, "too-large"));
        assert_eq!(refusal(bodies.strangers_bytes(&length(2 << 20), of(1), allowed()).await), (413, "too-large"));
        let small = Allowed { bytes_max: 100 << 10, ..allowed() };
        assert_eq!(refusal(bodies.bytes(&HeaderMap::new(), of(2), small).await), (413, "too-large"));
    }
}
