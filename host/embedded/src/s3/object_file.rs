//! One object in one file: its bytes, then what is known about them, then a footer that says where that begins.
//!
//! Body and metadata become visible, and go, in one step, because they are one file. The body begins at the file's
//! first byte, so a range of it is a range of the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

/// Ends every object file. The digit is the version of the layout.
const MAGIC: [u8; 8] = *b"HCIobj01";
/// Length of the metadata (64 bits, little endian), then the magic bytes.
const FOOTER_BYTES: u64 = 16;
/// S3 allows 2 KiB of user metadata; the rest are headers of sane length.
pub(crate) const METADATA_BYTES_MAX: usize = 16 << 10;

/// What is stored with an object and given back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    pub(crate) key: String,
    pub(crate) etag: String,
    /// Nanoseconds since the epoch, by the endpoint's clock.
    pub(crate) modified_ns: i64,
    /// Base64; with `-N` behind it when it is the checksum of N parts' checksums.
    pub(crate) checksum_sha256: String,
    /// 0 for an object that was not uploaded in parts.
    pub(crate) parts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache_control: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) user: BTreeMap<String, String>,
}

impl Metadata {
    /// What is appended to the body.
    pub(crate) fn to_trailer(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        if bytes.len() > METADATA_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much metadata"));
        }
        let length = bytes.len() as u64;
        bytes.extend(length.to_le_bytes());
        bytes.extend(MAGIC);
        Ok(bytes)
    }
}

/// An open object: later changes to its key do not touch it.
#[derive(Debug)]
pub(crate) struct OpenObject {
    pub(crate) file: File,
    pub(crate) body_bytes: u64,
    pub(crate) metadata: Metadata,
}

impl OpenObject {
    pub(crate) fn read(file: File) -> io::Result<Self> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the object's file is damaged");
        let file_bytes = file.metadata()?.len();
        let mut footer = [0; FOOTER_BYTES as usize];
        file.read_exact_at(&mut footer, file_bytes.checked_sub(FOOTER_BYTES).ok_or_else(damaged)?)?;
        let (length, magic) = footer.split_at(8);
        let length = u64::from_le_bytes(length.try_into().map_err(|_| damaged())?);
        if magic != MAGIC || length > METADATA_BYTES_MAX as u64 {
            return Err(damaged());
        }
        let body_bytes = file_bytes.checked_sub(FOOTER_BYTES + length).ok_or_else(damaged)?;
        let mut metadata = vec![0; length as usize];
        file.read_exact_at(&mut metadata, body_bytes)?;
        let metadata = serde_json::from_slice(&metadata).map_err(|_| damaged())?;
        Ok(Self { file, body_bytes, metadata })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(bytes).expect("writes");
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let metadata =
            Metadata { key: "k".to_owned(), content_type: Some("text/plain".to_owned()), ..Metadata::default() };
        let mut bytes = b"the body".to_vec();
        bytes.extend(metadata.to_trailer().expect("small"));
        let object = OpenObject::read(file_of(&bytes)).expect("reads");
        assert_eq!((object.body_bytes, object.metadata), (8, metadata));
    }

    #[test]
    fn damage_is_noticed() {
        for bytes in
            [&b""[..], b"short", &[0; 16], b"\xff\xff\xff\xff\xff\xff\xff\xffHCIobj01", b"\x05\0\0\0\0\0\0\0HCIobj01"]
        {
            assert!(OpenObject::read(file_of(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn metadata_is_bounded() {
        let metadata = Metadata { key: "k".repeat(METADATA_BYTES_MAX), ..Metadata::default() };
        assert!(metadata.to_trailer().is_err());
    }
}
