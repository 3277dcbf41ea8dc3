//! The operations of S3 over a [`Folder`]. What is not here answers NotImplemented.

use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::Clock;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, BucketLocationConstraint, Checksum, ChecksumMode,
    ChecksumType, CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput,
    CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, Error,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput,
    ListPartsOutput, MultipartUpload, Part, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use crate::percent::percent_encoded;

use super::copy;
use super::errors::disk;
use super::folder::{Condition, Folder, Published};
use super::keys::{self, KEY_BYTES_MAX};
use super::multipart::{self, Upload};
use super::object_file::{Metadata, OpenObject};
use super::page;
use super::receive::{self, Promise};

/// The bound of S3 for listings and bulk deletions.
pub(crate) const PAGE_MAX: i32 = 1000;
const READ_BUFFER_BYTES: usize = 256 << 10;

#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) folder: Arc<Folder>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Backend {
    /// File operations block, so they run beside the asynchronous tasks.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let folder = Arc::clone(&self.folder);
        tokio::task::spawn_blocking(move || work(&folder)).await.map_err(|cause| s3_error!(cause, InternalError))?
    }

    /// Nobody has to wait for it.
    fn tidy(&self) {
        let folder = Arc::clone(&self.folder);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = folder.tidy() {
                tracing::error!(%error, "Could not make durable what the journal of the object store has, trying again");
            }
        });
    }

    pub(crate) fn now_ns(&self) -> i64 {
        i64::try_from(self.clock.now().unix_timestamp_nanos()).unwrap_or(i64::MAX)
    }

    pub(crate) async fn need_bucket(&self, bucket: &str) -> S3Result<()> {
        let bucket = bucket.to_owned();
        self.blocking(move |folder| if folder.bucket(&bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) })
            .await
    }

    pub(crate) async fn open(&self, bucket: &str, key: &str) -> S3Result<OpenObject> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.blocking(move |folder| match folder.open_object(&bucket, &key).map_err(disk)? {
            Some(object) => Ok(object),
            None if folder.bucket(&bucket).is_dir() => Err(s3_error!(NoSuchKey)),
            None => Err(s3_error!(NoSuchBucket)),
        })
        .await
    }
}

pub(crate) fn need_key(key: &str) -> S3Result<()> {
    if keys::path_of(key).is_some() {
        return Ok(());
    }
    Err(s3_error!(KeyTooLongError, "a key has 1 to {KEY_BYTES_MAX} bytes"))
}

pub(crate) fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into()).ok().map(Timestamp::from)
}

pub(crate) fn etag(metadata: &Metadata) -> ETag {
    ETag::Strong(metadata.etag.clone())
}

pub(crate) fn length(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(crate) fn fits(metadata: &Metadata, condition: &ETagCondition) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value() == metadata.etag,
    }
}

/// Which conditions a reader may set, and what S3 answers.
fn check_reader(
    metadata: &Metadata,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    if if_match.is_some_and(|condition| !fits(metadata, condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(|condition| fits(metadata, condition)) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

pub(crate) fn writer_condition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::Any), None) => Ok(Condition::Present(None)),
        (Some(ETagCondition::ETag(tag)), None) => Ok(Condition::Present(Some(tag.into_value()))),
        _ => Err(s3_error!(NotImplemented, "of conditions, writers may set If-None-Match: * or If-Match")),
    }
}

pub(crate) fn published(outcome: Published) -> S3Result<()> {
    match outcome {
        Published::Done => Ok(()),
        Published::ConditionFailed => Err(s3_error!(PreconditionFailed, "the condition of the request does not hold")),
    }
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let trailers = request.trailing_headers;
        let input = request.input;
        need_key(&input.key)?;
        self.need_bucket(&input.bucket).await?;
        let condition = writer_condition(input.if_match, input.if_none_match)?;
        if condition == Condition::Absent && self.open(&input.bucket, &input.key).await.is_ok() {
            // Known early, but decided again at the end.
            receive::forget(input.body).await;
            return published(Published::ConditionFailed).map(|()| S3Response::new(PutObjectOutput::default()));
        }
        let promise = Promise {
            length: input.content_length,
            content_md5: input.content_md5,
            checksum: Checksum {
                checksum_crc32: input.checksum_crc32,
                checksum_crc32c: input.checksum_crc32c,
                checksum_crc64nvme: input.checksum_crc64nvme,
                checksum_sha1: input.checksum_sha1,
                checksum_sha256: input.checksum_sha256,
                ..Checksum::default()
            },
            trailers,
        };
        let temporary = self.blocking(|folder| folder.temporary().map_err(disk)).await?;
        let received = receive::receive(temporary, input.body, promise).await?;
        let metadata = Metadata {
            key: input.key,
            etag: received.etag(),
            modified_ns: self.now_ns(),
            checksum_sha256: STANDARD.encode(received.sha256),
            parts: 0,
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
            cache_control: input.cache_control,
            user: input.metadata.unwrap_or_default().into_iter().collect(),
        };
        let tag = etag(&metadata);
        let bucket = input.bucket;
        let checksum = received.checksum;
        let outcome = self
            .blocking(move |folder| folder.publish(received.file, &bucket, &metadata, &condition).map_err(disk))
            .await?;
        published(outcome)?;
        self.tidy();
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(tag),
            checksum_sha256: checksum.checksum_sha256,
            checksum_sha1: checksum.checksum_sha1,
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            ..PutObjectOutput::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let mut object = self.open(&input.bucket, &input.key).await?;
        check_reader(&object.metadata, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let mut range = 0..object.body_bytes;
        let mut content_range = None;
        if let Some(wanted) = &input.range {
            range = wanted.check(object.body_bytes).map_err(|cause| s3_error!(cause, InvalidRange))?;
            content_range =
                Some(format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), object.body_bytes));
        }
        let sums = wants_checksum(input.checksum_mode.as_ref()).then_some(&object.metadata);
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(range.end - range.start)),
            content_range,
            e_tag: Some(etag(&object.metadata)),
            last_modified: timestamp(object.metadata.modified_ns),
            content_type: object.metadata.content_type.clone(),
            content_encoding: object.metadata.content_encoding.clone(),
            content_disposition: object.metadata.content_disposition.clone(),
            content_language: object.metadata.content_language.clone(),
            cache_control: object.metadata.cache_control.clone(),
            // The sum is of the whole: a client would compare it with the sum of the range.
            checksum_sha256: sums.filter(|_| input.range.is_none()).map(|metadata| metadata.checksum_sha256.clone()),
            checksum_type: sums.filter(|_| input.range.is_none()).map(checksum_type),
            metadata: Some(object.metadata.user.clone().into_iter().collect())
                .filter(|map: &s3s::dto::Metadata| !map.is_empty()),
            ..GetObjectOutput::default()
        };
        object.file.seek(SeekFrom::Start(range.start)).map_err(disk)?;
        let body = tokio::fs::File::from_std(object.file).take(range.end - range.start);
        let body = StreamingBlob::wrap(ReaderStream::with_capacity(body, READ_BUFFER_BYTES));
        Ok(S3Response::new(GetObjectOutput { body: Some(body), ..output }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.open(&input.bucket, &input.key).await?;
        check_reader(&object.metadata, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let sums = wants_checksum(input.checksum_mode.as_ref());
        let metadata = object.metadata;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(object.body_bytes)),
            e_tag: Some(etag(&metadata)),
            last_modified: timestamp(metadata.modified_ns),
            checksum_sha256: sums.then(|| metadata.checksum_sha256.clone()),
            checksum_type: sums.then(|| checksum_type(&metadata)),
            content_type: metadata.content_type,
            content_encoding: metadata.content_encoding,
            content_disposition: metadata.content_disposition,
            content_language: metadata.content_language,
            cache_control: metadata.cache_control,
            metadata: Some(metadata.user.into_iter().collect()).filter(|map: &s3s::dto::Metadata| !map.is_empty()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        copy::copy(self, request).await.map(S3Response::new)
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        self.need_bucket(&input.bucket).await?;
        self.blocking(move |folder| folder.delete(&input.bucket, &input.key).map_err(disk)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        self.need_bucket(&input.bucket).await?;
        let objects = input.delete.objects;
        if objects.len() > PAGE_MAX as usize {
            return Err(s3_error!(MalformedXML, "at most {PAGE_MAX} keys in one request"));
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let (deleted, errors) = self
            .blocking(move |folder| {
                let (mut deleted, mut errors) = (Vec::new(), Vec::new());
                for object in objects {
                    match folder.delete(&input.bucket, &object.key) {
                        Ok(()) => deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() }),
                        Err(cause) => {
                            let error = disk(cause);
                            errors.push(Error {
                                code: Some(error.code().as_str().to_owned()),
                                message: error.message().map(str::to_owned),
                                key: Some(object.key),
                                ..Error::default()
                            });
                        }
                    }
                }
                Ok((deleted, errors))
            })
            .await?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then_some(deleted),
            errors: Some(errors).filter(|errors| !errors.is_empty()),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.need_bucket(&request.input.bucket).await?;
        self.blocking(move |folder| page::list(folder, request.input)).await.map(S3Response::new)
    }

    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = request.input.bucket;
        let location = format!("/{bucket}");
        self.blocking(move |folder| match folder.create_bucket(&bucket) {
            Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => Err(s3_error!(BucketAlreadyOwnedByYou)),
            other => other.map_err(disk),
        })
        .await?;
        Ok(S3Response::new(CreateBucketOutput { location: Some(location) }))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.need_bucket(&request.input.bucket).await?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_buckets(&self, _request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.blocking(|folder| folder.buckets().map_err(disk)).await?;
        let buckets = buckets
            .into_iter()
            .map(|(name, made)| Bucket { name: Some(name), creation_date: Some(made.into()), ..Bucket::default() })
            .collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..ListBucketsOutput::default() }))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.need_bucket(&request.input.bucket).await?;
        // By S3's convention us-east-1 has no name here.
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint: None::<BucketLocationConstraint> }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        need_key(&input.key)?;
        self.need_bucket(&input.bucket).await?;
        let metadata = Metadata {
            key: input.key.clone(),
            modified_ns: self.now_ns(),
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_disposition: input.content_disposition,
            content_language: input.content_language,
            cache_control: input.cache_control,
            user: input.metadata.unwrap_or_default().into_iter().collect(),
            ..Metadata::default()
        };
        // Too much of it is refused now, not after the upload.
        metadata.to_trailer().map_err(disk)?;
        let upload = Upload { bucket: input.bucket.clone(), metadata };
        let id = self.blocking(move |folder| multipart::create(folder, &upload)).await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let trailers = request.trailing_headers;
        let input = request.input;
        if !(1..=multipart::PART_NUMBER_MAX).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "part numbers go from 1 to {}", multipart::PART_NUMBER_MAX));
        }
        let (id, bucket, key) = (input.upload_id.clone(), input.bucket, input.key);
        let temporary = self
            .blocking(move |folder| {
                multipart::find(folder, &id, &bucket, &key)?;
                folder.temporary().map_err(disk)
            })
            .await?;
        let promise = Promise {
            length: input.content_length,
            content_md5: input.content_md5,
            checksum: Checksum {
                checksum_crc32: input.checksum_crc32,
                checksum_crc32c: input.checksum_crc32c,
                checksum_crc64nvme: input.checksum_crc64nvme,
                checksum_sha1: input.checksum_sha1,
                checksum_sha256: input.checksum_sha256,
                ..Checksum::default()
            },
            trailers,
        };
        let received = receive::receive(temporary, input.body, promise).await?;
        let checksum = received.checksum.clone();
        let now_ns = self.now_ns();
        let metadata = self
            .blocking(move |folder| {
                multipart::store_part(folder, &input.upload_id, input.part_number, received, now_ns)
            })
            .await?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(etag(&metadata)),
            checksum_sha256: checksum.checksum_sha256,
            checksum_sha1: checksum.checksum_sha1,
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let condition = writer_condition(input.if_match, input.if_none_match)?;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let (bucket, key, now_ns) = (input.bucket.clone(), input.key.clone(), self.now_ns());
        let metadata = self
            .blocking(move |folder| {
                let upload = multipart::find(folder, &input.upload_id, &bucket, &key)?;
                let (whole, mut metadata) = multipart::assemble(folder, &input.upload_id, upload, &named)?;
                metadata.modified_ns = now_ns;
                published(folder.publish(whole, &bucket, &metadata, &condition).map_err(disk)?)?;
                multipart::remove(folder, &input.upload_id)?;
                Ok(metadata)
            })
            .await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, percent_encoded(input.key.as_bytes()))),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&metadata)),
            checksum_sha256: Some(metadata.checksum_sha256.clone()),
            checksum_type: Some(checksum_type(&metadata)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        self.blocking(move |folder| {
            multipart::find(folder, &input.upload_id, &input.bucket, &input.key)?;
            multipart::remove(folder, &input.upload_id)
        })
        .await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let page = input.max_parts.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX);
        let behind = input.part_number_marker.unwrap_or(0);
        let (id, bucket, key) = (input.upload_id.clone(), input.bucket.clone(), input.key.clone());
        let mut stored = self
            .blocking(move |folder| {
                multipart::find(folder, &id, &bucket, &key)?;
                multipart::parts(folder, &id, behind, page as usize + 1)
            })
            .await?;
        let more = stored.len() > page as usize;
        stored.truncate(page as usize);
        let parts: Vec<Part> = stored
            .iter()
            .map(|part| Part {
                part_number: Some(part.number),
                size: Some(length(part.object.body_bytes)),
                e_tag: Some(etag(&part.object.metadata)),
                checksum_sha256: Some(part.object.metadata.checksum_sha256.clone()),
                last_modified: timestamp(part.object.metadata.modified_ns),
                ..Part::default()
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            is_truncated: Some(more),
            next_part_number_marker: stored.last().filter(|_| more).map(|part| part.number),
            parts: Some(parts),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(page),
            part_number_marker: input.part_number_marker,
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        self.need_bucket(&input.bucket).await?;
        let page = input.max_uploads.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX) as usize;
        let (bucket, prefix) = (input.bucket.clone(), input.prefix.clone().unwrap_or_default());
        let behind = (input.key_marker.unwrap_or_default(), input.upload_id_marker);
        let mut uploads = self
            .blocking(move |folder| {
                let mut uploads = multipart::all(folder, &bucket).map_err(disk)?;
                uploads.retain(|(id, upload)| {
                    let key = &upload.metadata.key;
                    let is_behind = match &behind.1 {
                        Some(marker) => (key, id) > (&behind.0, marker),
                        None => *key > behind.0,
                    };
                    key.starts_with(&prefix) && is_behind
                });
                Ok(uploads)
            })
            .await?;
        let more = uploads.len() > page;
        uploads.truncate(page);
        let last = uploads.last().filter(|_| more);
        Ok(S3Response::new(ListMultipartUploadsOutput {
            is_truncated: Some(more),
            next_key_marker: last.map(|(_, upload)| upload.metadata.key.clone()),
            next_upload_id_marker: last.map(|(id, _)| id.clone()),
            uploads: Some(
                uploads
                    .into_iter()
                    .map(|(id, upload)| MultipartUpload {
                        upload_id: Some(id),
                        initiated: timestamp(upload.metadata.modified_ns),
                        key: Some(upload.metadata.key),
                        ..MultipartUpload::default()
                    })
                    .collect(),
            ),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            ..ListMultipartUploadsOutput::default()
        }))
    }
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

pub(crate) fn checksum_type(metadata: &Metadata) -> ChecksumType {
    ChecksumType::from_static(if metadata.parts == 0 { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE })
}
