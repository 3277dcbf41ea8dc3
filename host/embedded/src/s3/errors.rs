//! What a failed file operation is called in S3's language.

use std::io;

use s3s::{S3Error, S3ErrorCode, s3_error};

/// 507 of RFC 4918. Clients do not repeat it at once, as they do 503: only somebody who frees space can help.
const INSUFFICIENT_STORAGE: u16 = 507;

pub(crate) fn disk(cause: io::Error) -> S3Error {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            tracing::error!(error = %cause, "The disk of the object store is full");
            let mut error = S3Error::with_message(
                S3ErrorCode::Custom("InsufficientStorage".into()),
                "the disk of the object store is full: free space or move its folder",
            );
            if let Ok(status) = INSUFFICIENT_STORAGE.try_into() {
                error.set_status_code(status);
            }
            error.set_source(Box::new(cause));
            error
        }
        io::ErrorKind::InvalidFilename => s3_error!(cause, KeyTooLongError, "the key is too long for the file system"),
        io::ErrorKind::InvalidInput => s3_error!(cause, MetadataTooLarge, "at most 16 KiB of metadata"),
        _ => {
            tracing::error!(error = %cause, "A file operation of the object store failed");
            s3_error!(cause, InternalError, "the object store could not use its disk")
        }
    }
}
