//! Logs as text: stored ones decoded, running ones as far as they are known. Start at [`text`] (all of it, as a stream)
//! and [`excerpt`] (the end, for a page).

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::ZstdDecoder;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use harmonia_core::ports::LogSpool;
use harmonia_core::{AttemptId, JobId};
use harmonia_db::views::{LogMark, LogState, LogTailView};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::error::WebError;
use crate::live::cursor::Position;
use crate::state::AppState;

/// No log decodes to more than this, whatever its compressed bytes claim.
const DECODED_BYTES_MAX: u64 = 1 << 30;
/// What a page is made from: the end of the log, in bytes.
const EXCERPT_BYTES: usize = 128 << 10;
/// Most bytes asked of a spool at once.
const SPOOL_BYTES: usize = 64 << 10;

/// Decoded bytes of a log.
pub(crate) type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Decodes a stored log, after its first bytes were seen to be good.
pub(crate) async fn decode(body: harmonia_cache::Body) -> Result<LogStream, WebError> {
    let is_zstd = body.content_encoding.as_deref() == Some("zstd");
    let raw = body.into_stream().map_err(io::Error::other);
    let mut decoded: LogStream = if is_zstd {
        let mut decoder = ZstdDecoder::new(BufReader::new(StreamReader::new(Box::pin(raw))));
        decoder.multiple_members(true);
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

async fn state_of(state: &AppState, job: JobId) -> Result<Option<LogState>, WebError> {
    Ok(state.db().log_states(&[LogMark::unread(job)]).await?.pop())
}

/// The whole log of a job's newest attempt, or of the one asked for; `None` when there is no such job or attempt.
pub(crate) async fn text(
    state: &AppState,
    job: JobId,
    attempt: Option<AttemptId>,
) -> Result<Option<LogStream>, WebError> {
    let Some(now) = state_of(state, job).await? else { return Ok(None) };
    let newest = now.attempt.as_ref().map(|newest| newest.id);
    let key = match attempt.filter(|asked| Some(*asked) != newest) {
        Some(asked) => {
            let Some(build) = state.db().view_build(job, state.options().clock.now()).await? else { return Ok(None) };
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
pub(crate) async fn excerpt(state: &AppState, job: JobId) -> Result<Option<Excerpt>, WebError> {
    let Some(now) = state_of(state, job).await? else { return Ok(None) };
    let Some(attempt) = now.attempt else { return Ok(Some(Excerpt::default())) };
    let stored = match attempt.log_key.filter(|_| !attempt.is_running) {
        Some(key) => open_stored(state, &key).await?,
        None => None,
    };
    if let Some(stored) = stored {
        return end_of(stored, attempt.id).await.map(Some);
    }
    let Some(tail) = now.tail else { return Ok(Some(Excerpt::default())) };
    let end = tail.start_offset + tail.bytes.len() as u64;
    Ok(Some(Excerpt {
        text: String::from_utf8_lossy(&tail.bytes).into_owned(),
        is_cut: tail.start_offset > 0,
        position: Some(Position { attempt: attempt.id, offset: end }),
    }))
}

async fn end_of(mut stored: LogStream, attempt: AttemptId) -> Result<Excerpt, WebError> {
    let mut kept: Vec<u8> = Vec::with_capacity(2 * EXCERPT_BYTES);
    let mut total = 0_u64;
    while let Some(bytes) = stored.next().await {
        let bytes = bytes.map_err(WebError::unreadable_log)?;
        total += bytes.len() as u64;
        kept.extend_from_slice(&bytes);
        if kept.len() >= 2 * EXCERPT_BYTES {
            kept.drain(..kept.len() - EXCERPT_BYTES);
        }
    }
    kept.drain(..kept.len().saturating_sub(EXCERPT_BYTES));
    Ok(Excerpt {
        is_cut: total > kept.len() as u64,
        text: String::from_utf8_lossy(&kept).into_owned(),
        position: Some(Position { attempt, offset: total }),
    })
}
