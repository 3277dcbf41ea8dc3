//! One page of a listing, as `ListObjectsV2` asks for it and answers it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::dto::{CommonPrefix, EncodingType, ListObjectsV2Input, ListObjectsV2Output, Object};
use s3s::{S3Result, s3_error};

use super::backend::{PAGE_MAX, etag, length, timestamp};
use super::errors::disk;
use super::folder::Folder;
use super::list::{self, After, Found};
use crate::percent::percent_encoded;

pub(crate) fn list(folder: &Folder, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    if input.delimiter.as_deref().is_some_and(|delimiter| !matches!(delimiter, "" | "/")) {
        return Err(s3_error!(NotImplemented, "the only delimiter is the slash"));
    }
    let by_directory = input.delimiter.as_deref() == Some("/");
    let page = input.max_keys.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX);
    let after = match (&input.continuation_token, &input.start_after) {
        (Some(token), _) => read_token(token)?,
        (None, start_after) => After::Key(start_after.clone().unwrap_or_default().into_bytes()),
    };
    let url_encoded = input.encoding_type.as_ref().is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
    let text =
        |bytes: &[u8]| if url_encoded { percent_encoded(bytes) } else { String::from_utf8_lossy(bytes).into_owned() };

    let prefix = input.prefix.as_deref().unwrap_or_default().as_bytes();
    let limit = page as usize + 1;
    let mut lines = list::list(&folder.bucket(&input.bucket), prefix, after, by_directory, limit).map_err(disk)?;
    let more = page > 0 && lines.len() > page as usize;
    lines.truncate(page as usize);
    let (mut contents, mut common) = (Vec::new(), Vec::new());
    for line in &lines {
        match line {
            Found::CommonPrefix(prefix) => common.push(CommonPrefix { prefix: Some(text(prefix)) }),
            Found::Key(key) => {
                let opened = folder.open_object(&input.bucket, &String::from_utf8_lossy(key)).map_err(disk)?;
                // Deleted since the directory was read.
                let Some(object) = opened else { continue };
                contents.push(Object {
                    key: Some(text(key)),
                    size: Some(length(object.body_bytes)),
                    e_tag: Some(etag(&object.metadata)),
                    last_modified: timestamp(object.metadata.modified_ns),
                    ..Object::default()
                });
            }
        }
    }
    Ok(ListObjectsV2Output {
        key_count: i32::try_from(contents.len() + common.len()).ok(),
        next_continuation_token: lines.last().filter(|_| more).map(write_token),
        is_truncated: Some(more),
        contents: Some(contents),
        common_prefixes: Some(common),
        max_keys: Some(page),
        prefix: input.prefix.as_ref().map(|prefix| text(prefix.as_bytes())),
        start_after: input.start_after.as_ref().map(|after| text(after.as_bytes())),
        name: Some(input.bucket),
        delimiter: input.delimiter,
        continuation_token: input.continuation_token,
        encoding_type: input.encoding_type,
        ..ListObjectsV2Output::default()
    })
}

/// A continuation token: the last line of the page before, opaque to clients.
fn write_token(line: &Found) -> String {
    let (kind, bytes) = match line {
        Found::Key(key) => (b'k', key),
        Found::CommonPrefix(prefix) => (b'p', prefix),
    };
    STANDARD.encode([&[kind], bytes.as_slice()].concat())
}

fn read_token(token: &str) -> S3Result<After> {
    match STANDARD.decode(token).unwrap_or_default().split_first() {
        Some((b'k', key)) => Ok(After::Key(key.to_vec())),
        Some((b'p', prefix)) => Ok(After::Prefix(prefix.to_vec())),
        _ => Err(s3_error!(InvalidArgument, "the continuation token is not one of ours")),
    }
}
