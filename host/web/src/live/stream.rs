//! One client's live log as Server-Sent Events. Start at [`open`].

use std::convert::Infallible;
use std::time::Duration;

use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::StreamExt as _;
use futures_util::stream;
use harmonia_core::api::LogEvent;
use harmonia_core::{AttemptId, JobId, Viewer};
use harmonia_db::views::LogState;
use tokio::sync::mpsc;

use super::cursor::{Cursor, Position, Step, Tail};
use super::hub::Watcher;
use crate::client::Client;
use crate::error::WebError;
use crate::logs;
use crate::state::AppState;

/// Largest text of one event, in bytes.
const EVENT_BYTES: usize = 16 << 10;
/// Most bytes asked of a spool at once.
const SPOOL_BYTES: usize = 64 << 10;
/// Events that wait for a client. With [`EVENT_BYTES`] this bounds what a slow one costs.
const QUEUED_EVENTS: usize = 8;
/// A client that takes nothing for this long is dropped; it reconnects where it stood.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// The stream of a job's log, from `resume` on.
pub(crate) async fn open(
    state: &AppState,
    viewer: Viewer,
    client: Client,
    job: JobId,
    resume: Option<Position>,
) -> Result<Response, WebError> {
    let watcher = state
        .hub()
        .watch(viewer, client, job)
        .await?
        .ok_or_else(|| WebError::not_found(format!("there is no build {job}")))?;
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
    let follower = Follower { state: state.clone(), viewer, sender, cursor: resume.map(Cursor::new), archived: None };
    let shutdown = state.options().shutdown.clone();
    // Boxed: the future is large and the task lives long.
    tokio::spawn(async move { shutdown.run_until_cancelled(Box::pin(follower.run(watcher))).await });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let event: Event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

struct Follower {
    state: AppState,
    viewer: Viewer,
    sender: mpsc::Sender<Event>,
    cursor: Option<Cursor>,
    /// The attempt whose stored log was sent to its end.
    archived: Option<AttemptId>,
}

/// The client is gone or too slow.
struct Gone;

impl Follower {
    async fn run(mut self, watcher: Watcher) {
        let mut states = watcher.states.clone();
        loop {
            let now = states.borrow_and_update().clone();
            if !now.public && !self.viewer.sees_all() {
                // It was public when they came. Who asks again is told that there is no such build.
                return;
            }
            let ended = match self.catch_up(&now).await {
                Ok(ended) => ended,
                Err(Gone) => return,
            };
            if ended {
                return;
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
            }
        }
    }

    /// Sends what `now` has and the client lacks; `true` when the job has ended and all was sent.
    async fn catch_up(&mut self, now: &LogState) -> Result<bool, Gone> {
        if let Some(attempt) = &now.attempt {
            self.enter_attempt(attempt.id).await?;
            if attempt.is_running || attempt.log_key.is_none() {
                self.send_tail(now, attempt.id).await?;
            } else if let Some(key) = attempt.log_key.as_ref().filter(|_| self.archived != Some(attempt.id)) {
                self.send_archive(now, attempt.id, key).await?;
                self.archived = Some(attempt.id);
            }
        }
        if now.status.is_terminal() {
            if let Some(cursor) = &mut self.cursor {
                let rest = cursor.flush();
                self.send_text(&rest).await?;
            }
            self.send(&LogEvent::End { status: now.status }).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn enter_attempt(&mut self, attempt: AttemptId) -> Result<(), Gone> {
        if self.cursor.as_ref().map(Cursor::attempt) == Some(attempt) {
            return Ok(());
        }
        if let Some(cursor) = &mut self.cursor {
            let rest = cursor.flush();
            self.send_text(&rest).await?;
        }
        self.cursor = Some(Cursor::new(Position { attempt, offset: 0 }));
        self.send(&LogEvent::Attempt { attempt }).await
    }

    async fn send_tail(&mut self, now: &LogState, attempt: AttemptId) -> Result<(), Gone> {
        let Some(tail) = &now.tail else { return Ok(()) };
        let tail = Tail { start: tail.start_offset, bytes: &tail.bytes };
        while let Some(cursor) = &self.cursor {
            match cursor.step(tail) {
                Step::Wait => break,
                Step::Send(bytes) => self.send_bytes(bytes).await?,
                Step::Older { end } => {
                    let offset = cursor.offset();
                    let bytes_max = usize::try_from(end - offset).unwrap_or(usize::MAX).min(SPOOL_BYTES);
                    let older = match &self.state.options().spool {
                        Some(spool) => spool.read(attempt, offset, bytes_max).await,
                        None => None,
                    };
                    match older {
                        Some(bytes) if !bytes.is_empty() => {
                            self.send_bytes(&bytes[..bytes.len().min(bytes_max)]).await?;
                        }
                        _ => self.send_gap(end).await?,
                    }
                }
            }
        }
        Ok(())
    }

    /// From where the client stands to the end of the stored log. When the store cannot be read now, what the database
    /// still has of it.
    async fn send_archive(&mut self, now: &LogState, attempt: AttemptId, key: &str) -> Result<(), Gone> {
        let Ok(Some(mut stored)) = logs::open_stored(&self.state, key).await else {
            return self.send_tail(now, attempt).await;
        };
        let mut skip = self.cursor.as_ref().map_or(0, Cursor::offset);
        while let Some(Ok(bytes)) = stored.next().await {
            let left_out = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= left_out as u64;
            self.send_bytes(&bytes[left_out..]).await?;
        }
        Ok(())
    }

    async fn send_gap(&mut self, end: u64) -> Result<(), Gone> {
        let Some(cursor) = &mut self.cursor else { return Ok(()) };
        let bytes = end - cursor.position().offset;
        cursor.skip_to(end);
        self.send(&LogEvent::Gap { bytes }).await
    }

    async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        for piece in bytes.chunks(EVENT_BYTES) {
            let Some(cursor) = &mut self.cursor else { return Ok(()) };
            let text = cursor.take(piece);
            self.send_text(&text).await?;
        }
        Ok(())
    }

    async fn send_text(&self, text: &str) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        self.send(&LogEvent::Log { text: text.to_owned() }).await
    }

    async fn send(&self, event: &LogEvent) -> Result<(), Gone> {
        let name = match event {
            LogEvent::Log { .. } => "log",
            LogEvent::Gap { .. } => "gap",
            LogEvent::Attempt { .. } => "attempt",
            LogEvent::End { .. } => "end",
        };
        let mut message = Event::default().event(name).data(serde_json::to_string(event).unwrap_or_default());
        if let Some(cursor) = &self.cursor {
            message = message.id(cursor.position().to_string());
        }
        match tokio::time::timeout(CLIENT_PATIENCE, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}
