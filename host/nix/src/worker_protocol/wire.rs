//! The primitives of the protocol: 64-bit little-endian integers, strings padded to 8 bytes, lists with a count in front.
//!
//! Readers are asynchronous and bounded; writers append to a buffer, which is sent in one piece.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::store_path::StorePath;

/// Longest ordinary string in bytes: paths, names, signatures, content addresses.
pub const STRING_BYTES_MAX: u64 = 64 << 10;

/// Longest text in bytes: error messages, log lines, environment variables, realisations.
pub const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Most items of one list or map. A store with more valid paths cannot be listed.
pub const ITEMS_MAX: u64 = 8_000_000;

/// Longest single frame of framed data in bytes that is accepted. Frames are passed on in pieces, so this costs no memory.
pub const FRAME_BYTES_MAX: u64 = 1 << 32;

/// Why bytes from the other end are not what the protocol has there.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The stream ended inside or before a message.
    #[error("the connection was closed before the answer was complete")]
    Closed,
    /// A declared length or count is above its bound.
    #[error("{what} of {length} is larger than the allowed {max}")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// Declared, in bytes or items.
        length: u64,
        /// The bound.
        max: u64,
    },
    /// The fill bytes behind a string are not zero.
    #[error("padding behind a string is not zero")]
    BadPadding,
    /// A string that must be text is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
    },
    /// A value that the protocol does not have at this place.
    #[error("{what} cannot be \"{found}\"")]
    BadValue {
        /// What was being read.
        what: &'static str,
        /// The value, shortened.
        found: String,
    },
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Io(error) }
    }
}

impl WireError {
    pub(crate) fn bad_value(what: &'static str, found: impl ToString) -> Self {
        Self::BadValue { what, found: found.to_string().chars().take(200).collect() }
    }
}

/// Reads an integer.
pub async fn read_u64<R: AsyncRead + Unpin>(reader: &mut R) -> Result<u64, WireError> {
    Ok(reader.read_u64_le().await?)
}

/// Reads a truth value; anything but 0 is true.
pub async fn read_bool<R: AsyncRead + Unpin>(reader: &mut R) -> Result<bool, WireError> {
    Ok(read_u64(reader).await? != 0)
}

/// Reads a string of at most `max` bytes. Memory grows with what arrives, not with what is declared.
pub async fn read_bytes<R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
    max: u64,
) -> Result<Vec<u8>, WireError> {
    let length = read_u64(reader).await?;
    read_bytes_of(reader, what, length, max).await
}

/// The same when the length was read already.
pub(crate) async fn read_bytes_of<R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
    length: u64,
    max: u64,
) -> Result<Vec<u8>, WireError> {
    if length > max {
        return Err(WireError::TooLong { what, length, max });
    }
    let mut bytes = Vec::with_capacity(length.min(4096) as usize);
    let read = AsyncReadExt::take(&mut *reader, length).read_to_end(&mut bytes).await?;
    if (read as u64) < length {
        return Err(WireError::Closed);
    }
    let mut padding = [0; 8];
    let padding = &mut padding[..padding_of(length)];
    reader.read_exact(padding).await?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(WireError::BadPadding);
    }
    Ok(bytes)
}

/// Reads an ordinary string that must be UTF-8.
pub async fn read_string<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<String, WireError> {
    let bytes = read_bytes(reader, what, STRING_BYTES_MAX).await?;
    String::from_utf8(bytes).map_err(|_| WireError::NotUtf8 { what })
}

/// Reads a text for people, replacing bytes that are not UTF-8.
pub async fn read_text<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<String, WireError> {
    let bytes = read_bytes(reader, what, TEXT_BYTES_MAX).await?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Reads the number of items of a list.
pub async fn read_count<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<u64, WireError> {
    let length = read_u64(reader).await?;
    if length > ITEMS_MAX {
        return Err(WireError::TooLong { what, length, max: ITEMS_MAX });
    }
    Ok(length)
}

/// Reads a list of ordinary strings.
pub async fn read_strings<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<Vec<String>, WireError> {
    let mut strings = Vec::new();
    for _ in 0..read_count(reader, what).await? {
        strings.push(read_string(reader, what).await?);
    }
    Ok(strings)
}

/// Reads a list of pairs of a key and a text.
pub async fn read_map<R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
) -> Result<BTreeMap<String, String>, WireError> {
    let mut map = BTreeMap::new();
    for _ in 0..read_count(reader, what).await? {
        let key = read_string(reader, what).await?;
        map.insert(key, read_text(reader, what).await?);
    }
    Ok(map)
}

/// Reads a full store path.
pub async fn read_store_path<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<StorePath, WireError> {
    let text = read_string(reader, what).await?;
    parse_store_path(what, &text)
}

/// Reads a full store path, or nothing where the string is empty.
pub async fn read_optional_store_path<R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
) -> Result<Option<StorePath>, WireError> {
    let text = read_string(reader, what).await?;
    if text.is_empty() { Ok(None) } else { parse_store_path(what, &text).map(Some) }
}

/// Reads a list of full store paths.
pub async fn read_store_paths<R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
) -> Result<BTreeSet<StorePath>, WireError> {
    let mut paths = BTreeSet::new();
    for _ in 0..read_count(reader, what).await? {
        paths.insert(read_store_path(reader, what).await?);
    }
    Ok(paths)
}

fn parse_store_path(what: &'static str, text: &str) -> Result<StorePath, WireError> {
    text.parse().map_err(|_| WireError::bad_value(what, text))
}

/// Appends an integer.
pub fn put_u64(buffer: &mut Vec<u8>, value: u64) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

/// Appends a truth value.
pub fn put_bool(buffer: &mut Vec<u8>, value: bool) {
    put_u64(buffer, u64::from(value));
}

/// Appends a string.
pub fn put_bytes(buffer: &mut Vec<u8>, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    put_u64(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
    buffer.extend_from_slice(&[0; 8][..padding_of(bytes.len() as u64)]);
}

/// Appends a list of strings.
pub fn put_list<I>(buffer: &mut Vec<u8>, items: I)
where
    I: IntoIterator<Item: AsRef<[u8]>, IntoIter: ExactSizeIterator>,
{
    let items = items.into_iter();
    put_u64(buffer, items.len() as u64);
    for item in items {
        put_bytes(buffer, item);
    }
}

/// Appends a full store path.
pub fn put_store_path(buffer: &mut Vec<u8>, path: &StorePath) {
    put_bytes(buffer, path.to_string());
}

/// Appends a full store path, or an empty string for none.
pub fn put_optional_store_path(buffer: &mut Vec<u8>, path: Option<&StorePath>) {
    put_bytes(buffer, path.map(ToString::to_string).unwrap_or_default());
}

/// Appends a list of full store paths.
pub fn put_store_paths<'a, I>(buffer: &mut Vec<u8>, paths: I)
where
    I: IntoIterator<Item = &'a StorePath, IntoIter: ExactSizeIterator>,
{
    put_list(buffer, paths.into_iter().map(ToString::to_string));
}

fn padding_of(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}
