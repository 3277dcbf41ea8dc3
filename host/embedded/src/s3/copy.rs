//! CopyObject: the bytes of one object as another one. Start at [`copy`].
//!
//! The copy is of the object that the source's key led to when it was opened: replacing or deleting that meanwhile
//! changes nothing. Like a body that is sent, it is seen whole or not at all.

use std::io::{self, Read, Seek, SeekFrom};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETagCondition, MetadataDirective, Timestamp,
};
use s3s::{S3Request, S3Result, s3_error};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::backend::{Backend, checksum_type, etag, fits, need_key, published, timestamp, writer_condition};
use super::errors::disk;
use super::folder::{Condition, Folder, Published};
use super::object_file::{Metadata, OpenObject};
use super::receive::{BODY_BYTES_MAX, etag_of};

const READ_BUFFER_BYTES: usize = 256 << 10;

pub(crate) async fn copy(backend: &Backend, request: S3Request<CopyObjectInput>) -> S3Result<CopyObjectOutput> {
    // The protocol layer knows these two for PutObject only, and ignoring them would break the promise to write once.
    let condition = writer_condition(header(&request, "if-match")?, header(&request, "if-none-match")?)?;
    let input = request.input;
    need_key(&input.key)?;
    let replaces_metadata = replaces_metadata(input.metadata_directive.as_ref())?;
    let (source_bucket, source_key) = source(&input.copy_source)?;
    if !replaces_metadata && *source_bucket == *input.bucket && *source_key == *input.key {
        return Err(s3_error!(
            InvalidRequest,
            "a copy onto itself changes nothing: set x-amz-metadata-directive: REPLACE"
        ));
    }
    backend.need_bucket(&input.bucket).await?;
    let source = backend.open(source_bucket, source_key).await?;
    check_source(&source.metadata, &input)?;
    if source.body_bytes > BODY_BYTES_MAX {
        return Err(s3_error!(InvalidRequest, "at most 5 GiB are copied in one request: upload in parts"));
    }
    if condition == Condition::Absent && backend.open(&input.bucket, &input.key).await.is_ok() {
        // Known early, but decided again at the end.
        return published(Published::ConditionFailed).map(|()| CopyObjectOutput::default());
    }
    let bucket = input.bucket.clone();
    let described =
        if replaces_metadata { replaced(input) } else { Metadata { key: input.key, ..source.metadata.clone() } };
    let now_ns = backend.now_ns();
    let metadata = backend
        .blocking(move |folder| {
            let metadata = Metadata { modified_ns: now_ns, ..described };
            store(folder, source, &bucket, metadata, &condition)
        })
        .await?;
    Ok(CopyObjectOutput {
        copy_object_result: Some(CopyObjectResult {
            e_tag: Some(etag(&metadata)),
            last_modified: timestamp(metadata.modified_ns),
            checksum_type: Some(checksum_type(&metadata)),
            checksum_sha256: Some(metadata.checksum_sha256),
            ..CopyObjectResult::default()
        }),
        ..CopyObjectOutput::default()
    })
}

fn replaces_metadata(directive: Option<&MetadataDirective>) -> S3Result<bool> {
    match directive.map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => Ok(false),
        Some(MetadataDirective::REPLACE) => Ok(true),
        Some(_) => Err(s3_error!(InvalidArgument, "x-amz-metadata-directive is COPY or REPLACE")),
    }
}

/// Bucket and key; the protocol layer has decoded them and checked the bucket's name.
fn source(source: &CopySource) -> S3Result<(&str, &str)> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => match version_id.as_deref() {
            // What S3 calls the only version where versions are not kept.
            None | Some("null") => Ok((bucket, key)),
            Some(_) => Err(s3_error!(NoSuchVersion, "this endpoint keeps no versions")),
        },
        _ => Err(s3_error!(InvalidArgument, "x-amz-copy-source is BUCKET/KEY: this endpoint has no access points")),
    }
}

fn header(request: &S3Request<CopyObjectInput>, name: &str) -> S3Result<Option<ETagCondition>> {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => ETagCondition::parse_http_header(value.as_bytes())
            .map(Some)
            .map_err(|cause| s3_error!(cause, InvalidArgument, "the header {name} is no entity tag and no *")),
        (Some(_), Some(_)) => Err(s3_error!(InvalidArgument, "the header {name} is given twice")),
    }
}

/// A condition on the tag outweighs the one on the time that comes with it, as S3 documents for CopyObject.
fn check_source(metadata: &Metadata, input: &CopyObjectInput) -> S3Result<()> {
    // Times in headers have no fractions of a second.
    let modified = i128::from(metadata.modified_ns).div_euclid(1_000_000_000);
    let is_later = |than: &Timestamp| modified > i128::from(OffsetDateTime::from(than.clone()).unix_timestamp());
    let (if_match, if_none_match) = (&input.copy_source_if_match, &input.copy_source_if_none_match);
    let holds = match (if_match, &input.copy_source_if_unmodified_since) {
        (Some(condition), _) => fits(metadata, condition),
        (None, Some(since)) => !is_later(since),
        (None, None) => true,
    } && match (if_none_match, &input.copy_source_if_modified_since) {
        (Some(condition), _) => !fits(metadata, condition),
        (None, Some(since)) => is_later(since),
        (None, None) => true,
    };
    if holds { Ok(()) } else { Err(s3_error!(PreconditionFailed, "the source does not meet the request's condition")) }
}

/// What the request says about the copy; what it leaves out, the copy does not have.
fn replaced(input: CopyObjectInput) -> Metadata {
    Metadata {
        key: input.key,
        content_type: input.content_type,
        content_encoding: input.content_encoding,
        content_disposition: input.content_disposition,
        content_language: input.content_language,
        cache_control: input.cache_control,
        user: input.metadata.unwrap_or_default().into_iter().collect(),
        ..Metadata::default()
    }
}

/// Copies the bytes, inside the kernel where it can, and lets the key lead to them.
fn store(
    folder: &Folder,
    mut source: OpenObject,
    bucket: &str,
    described: Metadata,
    condition: &Condition,
) -> S3Result<Metadata> {
    let (etag, checksum_sha256) = if source.metadata.parts == 0 {
        (source.metadata.etag, source.metadata.checksum_sha256)
    } else {
        // The copy has no parts, so it has a checksum that can be compared with its bytes.
        let digest = sha256(body(&mut source.file, source.body_bytes).map_err(disk)?).map_err(disk)?;
        (etag_of(&digest, 1), STANDARD.encode(digest))
    };
    let metadata = Metadata { etag, checksum_sha256, parts: 0, ..described };
    // Too much of it is refused now, not after the copy.
    metadata.to_trailer().map_err(disk)?;
    let mut file = folder.temporary().map_err(disk)?;
    let mut bytes = body(&mut source.file, source.body_bytes).map_err(disk)?;
    let copied = io::copy(&mut bytes, file.as_file_mut()).map_err(disk)?;
    if copied != source.body_bytes {
        return Err(disk(io::ErrorKind::UnexpectedEof.into()));
    }
    published(folder.publish(file, bucket, &metadata, condition).map_err(disk)?)?;
    Ok(metadata)
}

fn body(file: &mut std::fs::File, bytes: u64) -> io::Result<io::Take<&mut std::fs::File>> {
    file.seek(SeekFrom::Start(0))?;
    Ok(Read::take(file, bytes))
}

fn sha256(mut body: impl Read) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().into()),
            Ok(count) => digest.update(&buffer[..count]),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}
