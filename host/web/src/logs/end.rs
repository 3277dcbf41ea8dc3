//! The end of a stored log, for a page, without unpacking what comes before it. Start at [`of_stored`].

use harmonia_cache::Reader;
use harmonia_core::AttemptId;
use harmonia_core::log_end::{self, LOG_END_BYTES, LOG_END_OBJECT_BYTES};
use tokio::io::AsyncReadExt as _;

use super::{Excerpt, decoder};
use crate::error::WebError;
use crate::live::cursor::Position;

/// How much is unpacked of a log without its end behind it, which nobody of ours stores.
const FOREIGN_BYTES_MAX: u64 = 4 << 20;

/// `None`: no log is stored there.
pub(super) async fn of_stored(reader: &Reader, key: &str, attempt: AttemptId) -> Result<Option<Excerpt>, WebError> {
    let Some(object_end) = reader.log_end_at(key, LOG_END_OBJECT_BYTES).await? else { return Ok(None) };
    if let Some((packed, total)) = log_end::parse(&object_end) {
        let mut text = Vec::new();
        let mut end = decoder(packed).take(LOG_END_BYTES as u64);
        end.read_to_end(&mut text).await.map_err(WebError::unreadable_log)?;
        return Ok(Some(excerpt(&text, total, attempt)));
    }
    let Some(body) = reader.log_at(key).await? else { return Ok(None) };
    let stream = super::decode(body).await?;
    let mut text = Vec::new();
    let mut beginning = tokio_util::io::StreamReader::new(stream).take(FOREIGN_BYTES_MAX);
    beginning.read_to_end(&mut text).await.map_err(WebError::unreadable_log)?;
    let total = text.len() as u64;
    let kept = text.len().saturating_sub(LOG_END_BYTES);
    let mut excerpt = excerpt(&text[kept..], total, attempt);
    if total == FOREIGN_BYTES_MAX {
        excerpt.text.push_str("\n[what follows is only in the whole log]\n");
    }
    Ok(Some(excerpt))
}

fn excerpt(text: &[u8], total: u64, attempt: AttemptId) -> Excerpt {
    Excerpt {
        is_cut: total > text.len() as u64,
        text: String::from_utf8_lossy(text).into_owned(),
        position: Some(Position { attempt, offset: total }),
    }
}
