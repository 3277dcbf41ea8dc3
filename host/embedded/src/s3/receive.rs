//! Takes a body into a temporary file and verifies all that its sender promised, before any key leads to it.

use std::io::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Result, TrailingHeaders, s3_error};
use tempfile::NamedTempFile;

use super::errors::disk;

/// A sender that is silent for longer has gone.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// S3's bound for one PUT.
pub(crate) const BODY_BYTES_MAX: u64 = 5 << 30;
/// Enough for the disk to be busy while the next piece arrives.
const BUFFER_BYTES: usize = 1 << 20;

/// What the sender promised about the body. Absent promises are not checked, but the SHA-256 is always computed.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    pub(crate) length: Option<i64>,
    pub(crate) content_md5: Option<String>,
    pub(crate) checksum: Checksum,
    pub(crate) trailers: Option<TrailingHeaders>,
}

/// A verified body.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) file: NamedTempFile,
    pub(crate) sha256: [u8; 32],
    pub(crate) checksum: Checksum,
}

impl Received {
    /// An entity tag that nobody takes for an MD5, as some clients do with 32 bare digits.
    pub(crate) fn etag(&self) -> String {
        etag_of(&self.sha256, 1)
    }
}

pub(crate) fn etag_of(sha256: &[u8; 32], parts: usize) -> String {
    let digits = sha256[..16].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    format!("{digits}-{parts}")
}

/// Reads the body to its end.
pub(crate) async fn receive(file: NamedTempFile, body: Option<StreamingBlob>, promise: Promise) -> S3Result<Received> {
    let Some(length) = promise.length.and_then(|length| u64::try_from(length).ok()) else {
        return Err(s3_error!(MissingContentLength, "a body needs a Content-Length"));
    };
    if length > BODY_BYTES_MAX {
        return Err(s3_error!(EntityTooLarge, "at most 5 GiB go into one request: upload in parts"));
    }
    let has_trailers = promise.trailers.is_some();
    let mut writer = Writer::new(file, &promise.checksum, has_trailers, promise.content_md5.is_some());
    let mut received = 0u64;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES.min(length as usize));
    if let Some(mut body) = body {
        loop {
            let piece = match tokio::time::timeout(SILENCE_MAX, body.next()).await {
                Err(_) => return Err(s3_error!(RequestTimeout, "the sender was silent for a minute")),
                Ok(None) => break,
                Ok(Some(Err(cause))) => return Err(interrupted(cause)),
                Ok(Some(Ok(piece))) => piece,
            };
            received += piece.len() as u64;
            if received > length {
                return Err(s3_error!(IncompleteBody, "the body is longer than its Content-Length"));
            }
            buffer.extend_from_slice(&piece);
            if buffer.len() >= BUFFER_BYTES {
                (writer, buffer) = write_out(writer, buffer).await?;
            }
        }
    }
    if received != length {
        return Err(s3_error!(IncompleteBody, "the body ended after {received} of {length} bytes"));
    }
    (writer, _) = write_out(writer, buffer).await?;
    writer.verify(&promise)
}

/// Reads and forgets the rest of a body, so that its sender gets to see the answer instead of a broken connection.
pub(crate) async fn forget(body: Option<StreamingBlob>) {
    let Some(mut body) = body else { return };
    while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE_MAX, body.next()).await {}
}

async fn write_out(mut writer: Writer, mut buffer: Vec<u8>) -> S3Result<(Writer, Vec<u8>)> {
    tokio::task::spawn_blocking(move || {
        writer.write(&buffer).map_err(disk)?;
        buffer.clear();
        Ok((writer, buffer))
    })
    .await
    .map_err(|cause| s3_error!(cause, InternalError))?
}

/// Errors of the body's stream are the sender's: a broken connection, or bytes that do not fit a signed digest.
fn interrupted(cause: s3s::StdError) -> s3s::S3Error {
    let text = cause.to_string();
    let mut error = if text.to_ascii_lowercase().contains("checksum") {
        s3_error!(BadDigest, "the body does not have the digest in x-amz-content-sha256")
    } else {
        s3_error!(IncompleteBody, "the body broke off")
    };
    error.set_source(cause);
    error
}

/// The file and the digests that grow with it.
struct Writer {
    file: NamedTempFile,
    sha256: Sha256,
    md5: Option<Md5>,
    sha1: Option<Sha1>,
    crc32: Option<Crc32>,
    crc32c: Option<Crc32c>,
    crc64nvme: Option<Crc64Nvme>,
}

impl Writer {
    /// Which digest a trailer will hold is known at the end only, so with trailers all but the old ones are computed.
    fn new(file: NamedTempFile, wanted: &Checksum, trailers: bool, md5: bool) -> Self {
        Self {
            file,
            sha256: Sha256::new(),
            md5: md5.then(Md5::new),
            sha1: (trailers || wanted.checksum_sha1.is_some()).then(Sha1::new),
            crc32: (trailers || wanted.checksum_crc32.is_some()).then(Crc32::new),
            crc32c: (trailers || wanted.checksum_crc32c.is_some()).then(Crc32c::new),
            crc64nvme: (trailers || wanted.checksum_crc64nvme.is_some()).then(Crc64Nvme::new),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.sha256.update(bytes);
        if let Some(digest) = &mut self.md5 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.sha1 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.crc32 {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.crc32c {
            digest.update(bytes);
        }
        if let Some(digest) = &mut self.crc64nvme {
            digest.update(bytes);
        }
        self.file.write_all(bytes)
    }

    fn verify(self, promise: &Promise) -> S3Result<Received> {
        let trailers = promise.trailers.as_ref().and_then(TrailingHeaders::take).unwrap_or_default();
        let promised = |header: &Option<String>, name: &str| {
            let trailer = trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            header.clone().or(trailer)
        };
        let sha256: [u8; 32] = self.sha256.finalize();
        let mut checksum = Checksum { checksum_sha256: Some(STANDARD.encode(sha256)), ..Checksum::default() };
        checksum.checksum_sha1 = self.sha1.map(|digest| STANDARD.encode(digest.finalize()));
        checksum.checksum_crc32 = self.crc32.map(|digest| STANDARD.encode(digest.finalize()));
        checksum.checksum_crc32c = self.crc32c.map(|digest| STANDARD.encode(digest.finalize()));
        checksum.checksum_crc64nvme = self.crc64nvme.map(|digest| STANDARD.encode(digest.finalize()));
        let given = &promise.checksum;
        let pairs = [
            (promise.content_md5.clone(), self.md5.map(|digest| STANDARD.encode(digest.finalize())), "Content-MD5"),
            (promised(&given.checksum_sha256, "x-amz-checksum-sha256"), checksum.checksum_sha256.clone(), "SHA-256"),
            (promised(&given.checksum_sha1, "x-amz-checksum-sha1"), checksum.checksum_sha1.clone(), "SHA-1"),
            (promised(&given.checksum_crc32, "x-amz-checksum-crc32"), checksum.checksum_crc32.clone(), "CRC-32"),
            (promised(&given.checksum_crc32c, "x-amz-checksum-crc32c"), checksum.checksum_crc32c.clone(), "CRC-32C"),
            (
                promised(&given.checksum_crc64nvme, "x-amz-checksum-crc64nvme"),
                checksum.checksum_crc64nvme.clone(),
                "CRC-64/NVME",
            ),
        ];
        for (promised, actual, name) in pairs {
            if let Some(promised) = promised
                && Some(&promised) != actual.as_ref()
            {
                return Err(s3_error!(BadDigest, "the {name} of the body is not the promised one"));
            }
        }
        Ok(Received { file: self.file, sha256, checksum })
    }
}
