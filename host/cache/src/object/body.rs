//! Reading objects piece by piece, with constant memory, and taking up a stream that broke off.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;

use super::{ObjectError, ObjectStore};

/// How long the store may take for the next piece of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a body that broke off is asked for again without a byte of progress in between.
const RESUMES_MAX: u32 = 3;

/// Part of an object, as a `Range` header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From an offset to the end.
    From(u64),
    /// From the first offset to the last, both included.
    Between(u64, u64),
    /// This many bytes at the end.
    Last(u64),
}

impl ByteRange {
    /// Reads a `Range` header with one range; `None` for anything else, which a server may ignore (RFC 9110, 14.2).
    pub fn parse(header: &str) -> Option<Self> {
        let (first, last) = header.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // No object has so many bytes, and stores count in signed numbers: what is larger means the same.
            is_number.then(|| text.parse().unwrap_or(u64::MAX).min(i64::MAX as u64))
        };
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    fn header(self) -> String {
        match self {
            Self::From(first) => format!("bytes={first}-"),
            Self::Between(first, last) => format!("bytes={first}-{last}"),
            Self::Last(count) => format!("bytes=-{count}"),
        }
    }
}

/// An object or a part of it, to be read piece by piece.
#[derive(Debug)]
pub struct ObjectBody {
    store: ObjectStore,
    key: String,
    stream: ByteStream,
    /// Read ahead by [`ObjectBody::prime`].
    first_piece: Option<Bytes>,
    /// Offset in the object of the next byte of `stream`.
    position: u64,
    resumes: u32,
    /// Offset of the first byte of this body in the object.
    pub offset: u64,
    /// Bytes of this body.
    pub length: u64,
    /// Bytes of the whole object.
    pub total: u64,
    /// Whether this is the answer to a range (206) and not the whole object.
    pub is_partial: bool,
    /// Entity tag, with its quotes.
    pub etag: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
}

pub(super) async fn open(
    store: &ObjectStore,
    key: &str,
    range: Option<ByteRange>,
) -> Result<Option<ObjectBody>, ObjectError> {
    ask(store, key, range, None).await
}

async fn ask(
    store: &ObjectStore,
    key: &str,
    range: Option<ByteRange>,
    same: Option<&str>,
) -> Result<Option<ObjectBody>, ObjectError> {
    let request = store.inner.client.get_object().bucket(store.bucket()).key(key);
    let request = request.set_range(range.map(ByteRange::header)).set_if_match(same.map(str::to_owned));
    let found = match request.send().await {
        Ok(found) => found,
        Err(error) => {
            return match ObjectError::classify(format!("read the object '{key}'"), store.bucket(), error) {
                ObjectError::NotFound { .. } => store.believe_in_bucket().await.map(|()| None),
                error => Err(error),
            };
        }
    };
    let length = super::length(found.content_length);
    let content_range = found.content_range.as_deref().and_then(parse_content_range);
    let (offset, total) = content_range.unwrap_or((0, length));
    Ok(Some(ObjectBody {
        store: store.clone(),
        key: key.to_owned(),
        stream: found.body,
        first_piece: None,
        position: offset,
        resumes: 0,
        offset,
        length,
        total,
        is_partial: content_range.is_some(),
        etag: found.e_tag,
        content_type: found.content_type,
        content_encoding: found.content_encoding,
    }))
}

/// First offset and total size in `bytes 0-9/100`.
fn parse_content_range(header: &str) -> Option<(u64, u64)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

impl ObjectBody {
    /// What stands for an object of the bucket, and is at hand.
    pub(crate) fn small(store: &ObjectStore, key: &str, bytes: Bytes, content_encoding: &str) -> Self {
        let length = bytes.len() as u64;
        Self {
            store: store.clone(),
            key: key.to_owned(),
            stream: ByteStream::from(bytes),
            first_piece: None,
            position: 0,
            resumes: 0,
            offset: 0,
            length,
            total: length,
            is_partial: false,
            etag: None,
            content_type: None,
            content_encoding: Some(content_encoding.to_owned()),
        }
    }

    /// Reads the first piece now, so that a store that cannot deliver is found out before anything is promised to others.
    pub async fn prime(&mut self) -> Result<(), ObjectError> {
        if self.first_piece.is_none() {
            self.first_piece = self.next().await?;
        }
        Ok(())
    }

    /// The next piece; `None` after exactly [`ObjectBody::length`] bytes. Never ends early without an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ObjectError> {
        if let Some(piece) = self.first_piece.take() {
            return Ok(Some(piece));
        }
        loop {
            let left = self.offset + self.length - self.position;
            if left == 0 {
                return Ok(None);
            }
            let cause: aws_sdk_s3::error::BoxError =
                match tokio::time::timeout(PIECE_TIMEOUT, self.stream.try_next()).await {
                    Ok(Ok(Some(piece))) if piece.is_empty() => continue,
                    Ok(Ok(Some(mut piece))) => {
                        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                        self.position += piece.len() as u64;
                        self.resumes = 0;
                        return Ok(Some(piece));
                    }
                    Ok(Ok(None)) => "the body ended early".into(),
                    Ok(Err(error)) => error.into(),
                    Err(elapsed) => elapsed.into(),
                };
            self.resume(cause).await?;
        }
    }

    async fn resume(&mut self, cause: aws_sdk_s3::error::BoxError) -> Result<(), ObjectError> {
        let action = format!("read the object '{}' beyond byte {}", self.key, self.position);
        if self.resumes >= RESUMES_MAX {
            return Err(ObjectError::unavailable(action, "broken body", cause));
        }
        self.resumes += 1;
        tracing::debug!(key = self.key, position = self.position, cause, "taking up a body that broke off");
        let range = ByteRange::Between(self.position, self.offset + self.length - 1);
        match ask(&self.store, &self.key, Some(range), self.etag.as_deref()).await? {
            Some(body) if body.offset == self.position && body.total == self.total => {
                self.stream = body.stream;
                Ok(())
            }
            _ => Err(ObjectError::unavailable(action, "object changed", cause)),
        }
    }

    /// The rest as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ObjectError>> + Send + 'static {
        futures_util::stream::try_unfold(
            self,
            |mut body| async move { Ok(body.next().await?.map(|piece| (piece, body))) },
        )
    }

    /// All of it, if it has at most `bytes_max`.
    pub async fn read_all(mut self, key: &str, bytes_max: usize) -> Result<Bytes, ObjectError> {
        let too_large = || ObjectError::TooLarge { key: key.to_owned(), bytes_max };
        let length = usize::try_from(self.length).ok().filter(|length| *length <= bytes_max).ok_or_else(too_large)?;
        let mut bytes = BytesMut::with_capacity(length);
        while let Some(piece) = self.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, range) in [
            ("bytes=0-", Some(ByteRange::From(0))),
            ("bytes=5-9", Some(ByteRange::Between(5, 9))),
            (" bytes=-7", Some(ByteRange::Last(7))),
            ("bytes=9-5", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(ByteRange::parse(header), range, "{header}");
            if let Some(range) = range {
                assert_eq!(range.header(), header.trim());
            }
        }
        let most = i64::MAX as u64;
        for (header, range) in [
            ("bytes=9223372036854775808-", ByteRange::From(most)),
            ("bytes=99999999999999999999-", ByteRange::From(most)),
            ("bytes=5-18446744073709551615", ByteRange::Between(5, most)),
            ("bytes=-99999999999999999999999", ByteRange::Last(most)),
        ] {
            assert_eq!(ByteRange::parse(header), Some(range), "{header}");
        }
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10)));
        assert_eq!(parse_content_range("bytes */10"), None);
    }
}
