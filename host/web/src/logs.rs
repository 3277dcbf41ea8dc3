//! Logs as text: stored ones decoded, running ones as far as they are known. Start at [`text`] (all of it, as a stream)
//! and [`excerpt`] (the end, for a page).

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::ZstdDecoder;
use async_compression::zstd::DParameter;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use harmonia_core::ports::LogSpool;
use harmonia_core::{AttemptId, JobId, Viewer};
use harmonia_db::views::{LogMark, LogState, LogTailView};
use tokio::io::{AsyncBufRead, AsyncReadExt as _, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::error::WebError;
use crate::live::cursor::Position;
use crate::state::AppState;

mod end;

/// No log decodes to more than this, whatever its compressed bytes claim.
const DECODED_BYTES_MAX: u64 = 1 << 30;
/// Logs whose decoder would need more memory than 8 MiB for what came before are refused: ours need a quarter of it.
const WINDOW_LOG_MAX: u32 = 23;
/// Most bytes asked of a spool at once.
const SPOOL_BYTES: usize = 64 << 10;

/// Decoded bytes of a log.
pub(crate) type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A decoder of what builders sent, whom nobody need trust.
fn decoder<R: AsyncBufRead>(packed: R) -> ZstdDecoder<R> {
    let mut decoder = ZstdDecoder::with_params(packed, &[DParameter::window_log_max(WINDOW_LOG_MAX)]);
    decoder.multiple_members(true);
    decoder
}

/// Decodes a stored log, after its first bytes were seen to be good.
pub(crate) async fn decode(body: harmonia_cache::Body) -> Result<LogStream, WebError> {
    let is_zstd = body.content_encoding.as_deref() == Some("zstd");
    let raw = body.into_stream().map_err(io::Error::other);
    let mut decoded: LogStream = if is_zstd {
        let decoder = decoder(BufReader::new(StreamReader::new(Box::pin(raw))));
        Box::pin(ReaderStream::with_capacity(decoder.take(DECODED_BYTES_MAX), 32 << 10))
    } else {
        Box::pin(raw)
    };
    match decoded.next().await {
        None => Ok(Box::pin(stream::empty())),
        Some(Ok(first)) => Ok(Box::pin(stream::once(async move { Ok(first) }).chain(decoded))),
        Some(Err(error)) => Err(WebError::unreadable_log(error)),
    }
}

/// The stored log at a key that the database gave; `None` when there is none (or this node has no bucket).
pub(crate) async fn open_stored(state: &AppState, key: &str) -> Result<Option<LogStream>, WebError> {
    let Some(reader) = &state.options().reader else { return Ok(None) };
    match reader.log_at(key).await? {
        Some(body) => decode(body).await.map(Some),
        None => Ok(None),
    }
}

async fn state_of(state: &AppState, viewer: Viewer, job: JobId) -> Result<Option<LogState>, WebError> {
    Ok(state.db_for(viewer).log_states(&[LogMark::unread(job)]).await?.pop())
}

/// The whole log of a job's newest attempt, or of the one asked for; `None` when there is no such job or attempt.
pub(crate) async fn text(
    state: &AppState,
    viewer: Viewer,
    job: JobId,
    attempt: Option<AttemptId>,
) -> Result<Option<LogStream>, WebError> {
    let Some(now) = state_of(state, viewer, job).await? else { return Ok(None) };
    let newest = now.attempt.as_ref().map(|newest| newest.id);
    let key = match attempt.filter(|asked| Some(*asked) != newest) {
        Some(asked) => {
            let (db, now) = (state.db_for(viewer), state.options().clock.now());
            let Some(build) = db.view_build(job, now).await? else { return Ok(None) };
            let Some(found) = build.attempts.into_iter().find(|known| known.id == asked) else { return Ok(None) };
            Some(found.log_key)
        }
        None => None,
    };
    let key = match key {
        Some(older) => older,
        None => now.attempt.as_ref().filter(|newest| !newest.is_running).and_then(|newest| newest.log_key.clone()),
    };
    if let Some(key) = key {
        return match open_stored(state, &key).await? {
            Some(stored) => Ok(Some(stored)),
            None => Err(WebError::not_found("the log of this attempt is no longer stored")),
        };
    }
    let is_older = attempt.is_some() && attempt != newest;
    Ok(Some(match (newest, now.tail) {
        (Some(id), Some(tail)) if !is_older => unfinished(state.options().spool.clone(), id, tail),
        _ => Box::pin(stream::empty()),
    }))
}

/// What is known of a running log: the spool's older part where this node has it, then the tail.
fn unfinished(spool: Option<Arc<dyn LogSpool>>, attempt: AttemptId, tail: LogTailView) -> LogStream {
    let start = tail.start_offset;
    let older = stream::unfold((spool, 0_u64), move |(spool, offset)| async move {
        if offset >= start {
            return None;
        }
        let wanted = usize::try_from(start - offset).unwrap_or(usize::MAX).min(SPOOL_BYTES);
        let read = match &spool {
            Some(spool) => spool.read(attempt, offset, wanted).await,
            None => None,
        };
        match read {
            Some(mut bytes) if !bytes.is_empty() => {
                bytes.truncate(wanted);
                let next = offset + bytes.len() as u64;
                Some((Ok(Bytes::from(bytes)), (spool, next)))
            }
            _ => {
                let note = format!("[{} bytes come with the stored log when the build has ended]\n", start - offset);
                Some((Ok(Bytes::from(note)), (spool, start)))
            }
        }
    });
    Box::pin(older.chain(stream::once(async move { Ok(Bytes::from(tail.bytes)) })))
}

/// The end of a log.
#[derive(Debug, Default)]
pub(crate) struct Excerpt {
    pub(crate) text: String,
    /// Something came before.
    pub(crate) is_cut: bool,
    /// How far it reaches, so that a live stream can go on from there.
    pub(crate) position: Option<Position>,
}

/// The end of the newest attempt's log; `None` when there is no such job.
pub(crate) async fn excerpt(state: &AppState, viewer: Viewer, job: JobId) -> Result<Option<Excerpt>, WebError> {
    let Some(now) = state_of(state, viewer, job).await? else { return Ok(None) };
    let Some(attempt) = now.attempt else { return Ok(Some(Excerpt::default())) };
    if let (Some(key), Some(reader)) = (attempt.log_key.filter(|_| !attempt.is_running), &state.options().reader) {
        match state.costly(viewer, Box::pin(end::of_stored(reader, &key, attempt.id))).await? {
            None => {}
            excerpt => return Ok(excerpt),
        }
    }
    let Some(tail) = now.tail else { return Ok(Some(Excerpt::default())) };
    let end = tail.start_offset + tail.bytes.len() as u64;
    Ok(Some(Excerpt {
        text: String::from_utf8_lossy(&tail.bytes).into_owned(),
        is_cut: tail.start_offset > 0,
        position: Some(Position { attempt: attempt.id, offset: end }),
    }))
}
