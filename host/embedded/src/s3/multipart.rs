//! Uploads in parts: `uploads/ID/` holds `upload.json` and one file a part, in the layout of objects.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::dto::CompletedPart;
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::errors::disk;
use super::folder::Folder;
use super::object_file::{Metadata, OpenObject};
use super::receive::{Received, etag_of};

/// S3's bounds.
pub(crate) const PART_NUMBER_MAX: i32 = 10_000;
const PART_BYTES_MIN: u64 = 5 << 20;
const ID_BYTES: usize = 16;

/// What `upload.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) bucket: String,
    /// Of the object that is to be.
    pub(crate) metadata: Metadata,
}

/// One stored part.
#[derive(Debug)]
pub(crate) struct StoredPart {
    pub(crate) number: i32,
    pub(crate) object: OpenObject,
}

fn directory(folder: &Folder, id: &str) -> S3Result<PathBuf> {
    // Ids are ours; anything else never was an upload, and must not become a path.
    if id.len() == 2 * ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(folder.uploads().join(id))
    } else {
        Err(s3_error!(NoSuchUpload))
    }
}

pub(crate) fn create(folder: &Folder, upload: &Upload) -> S3Result<String> {
    let id = rand::random::<[u8; ID_BYTES]>().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let mut file = folder.temporary().map_err(disk)?;
    let text = serde_json::to_vec(upload).map_err(|cause| s3_error!(cause, InternalError))?;
    file.write_all(&text).map_err(disk)?;
    let path = directory(folder, &id)?;
    fs::create_dir(&path).map_err(disk)?;
    file.persist(path.join("upload.json")).map_err(|error| disk(error.error))?;
    Ok(id)
}

/// The upload of this id, if it is for this bucket and key.
pub(crate) fn find(folder: &Folder, id: &str, bucket: &str, key: &str) -> S3Result<Upload> {
    let path = directory(folder, id)?.join("upload.json");
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(s3_error!(NoSuchUpload)),
        Err(cause) => return Err(disk(cause)),
    };
    let upload: Upload = serde_json::from_slice(&text).map_err(|cause| s3_error!(cause, InternalError))?;
    if upload.bucket == bucket && upload.metadata.key == key { Ok(upload) } else { Err(s3_error!(NoSuchUpload)) }
}

/// All uploads of a bucket, in the order of key and id.
pub(crate) fn all(folder: &Folder, bucket: &str) -> io::Result<Vec<(String, Upload)>> {
    let mut uploads = Vec::new();
    for entry in fs::read_dir(folder.uploads())? {
        let entry = entry?;
        let Ok(text) = fs::read(entry.path().join("upload.json")) else { continue };
        if let (Ok(id), Ok(upload)) = (entry.file_name().into_string(), serde_json::from_slice::<Upload>(&text))
            && upload.bucket == bucket
        {
            uploads.push((id, upload));
        }
    }
    uploads.sort_by(|a, b| (&a.1.metadata.key, &a.0).cmp(&(&b.1.metadata.key, &b.0)));
    Ok(uploads)
}

pub(crate) fn store_part(
    folder: &Folder,
    id: &str,
    number: i32,
    received: Received,
    modified_ns: i64,
) -> S3Result<Metadata> {
    let metadata = Metadata {
        etag: received.etag(),
        checksum_sha256: STANDARD.encode(received.sha256),
        modified_ns,
        ..Metadata::default()
    };
    let mut file = received.file;
    file.write_all(&metadata.to_trailer().map_err(disk)?).map_err(disk)?;
    let target = directory(folder, id)?.join(format!("{number:05}"));
    match file.persist(target) {
        Ok(_) => Ok(metadata),
        // Aborted or completed in the meantime.
        Err(error) if error.error.kind() == io::ErrorKind::NotFound => Err(s3_error!(NoSuchUpload)),
        Err(error) => Err(disk(error.error)),
    }
}

/// Parts behind a number, at most `limit` of them.
pub(crate) fn parts(folder: &Folder, id: &str, behind: i32, limit: usize) -> S3Result<Vec<StoredPart>> {
    let path = directory(folder, id)?;
    let mut numbers: Vec<i32> = fs::read_dir(&path)
        .map_err(disk)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > behind)
        .collect();
    numbers.sort_unstable();
    numbers.truncate(limit);
    numbers.into_iter().map(|number| open_part(&path, number)).collect()
}

fn open_part(path: &Path, number: i32) -> S3Result<StoredPart> {
    match fs::File::open(path.join(format!("{number:05}"))).and_then(OpenObject::read) {
        Ok(object) => Ok(StoredPart { number, object }),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            Err(s3_error!(InvalidPart, "part {number} is not there"))
        }
        Err(cause) => Err(disk(cause)),
    }
}

/// Puts the named parts together into one temporary file and completes the object's metadata.
pub(crate) fn assemble(
    folder: &Folder,
    id: &str,
    upload: Upload,
    named: &[CompletedPart],
) -> S3Result<(NamedTempFile, Metadata)> {
    let path = directory(folder, id)?;
    let mut whole = folder.temporary().map_err(disk)?;
    let mut digest = Sha256::new();
    let numbers: Vec<i32> = named.iter().map(|part| part.part_number.unwrap_or_default()).collect();
    if !numbers.is_sorted_by(|earlier, later| earlier < later) {
        return Err(s3_error!(InvalidPartOrder));
    }
    for (index, (part, number)) in named.iter().zip(numbers).enumerate() {
        let mut stored = open_part(&path, number)?.object;
        let tag_fits = part.e_tag.as_ref().is_some_and(|tag| tag.value() == stored.metadata.etag);
        let checksum_fits = part.checksum_sha256.as_ref().is_none_or(|sum| *sum == stored.metadata.checksum_sha256);
        if !tag_fits || !checksum_fits {
            return Err(s3_error!(InvalidPart, "part {number} is another one than named"));
        }
        if index + 1 < named.len() && stored.body_bytes < PART_BYTES_MIN {
            return Err(s3_error!(EntityTooSmall, "all parts but the last have at least 5 MiB"));
        }
        stored.file.seek(SeekFrom::Start(0)).map_err(disk)?;
        let copied =
            io::copy(&mut io::Read::take(&mut stored.file, stored.body_bytes), whole.as_file_mut()).map_err(disk)?;
        if copied != stored.body_bytes {
            return Err(disk(io::ErrorKind::UnexpectedEof.into()));
        }
        digest.update(
            STANDARD.decode(&stored.metadata.checksum_sha256).map_err(|cause| s3_error!(cause, InternalError))?,
        );
    }
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "no part is named"));
    }
    let digest: [u8; 32] = digest.finalize().into();
    let mut metadata = upload.metadata;
    metadata.etag = etag_of(&digest, named.len());
    metadata.checksum_sha256 = format!("{}-{}", STANDARD.encode(digest), named.len());
    metadata.parts = u32::try_from(named.len()).unwrap_or(u32::MAX);
    Ok((whole, metadata))
}

/// Forgets an upload and its parts.
pub(crate) fn remove(folder: &Folder, id: &str) -> S3Result<()> {
    match fs::remove_dir_all(directory(folder, id)?) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(disk(cause)),
        _ => Ok(()),
    }
}
