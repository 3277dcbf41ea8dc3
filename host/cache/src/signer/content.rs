//! Reads an uploaded archive again, to know what it is instead of believing it. The memory of its candidates for references
//! and no more.

use std::collections::BTreeSet;

use async_compression::tokio::bufread::ZstdDecoder;
use futures_util::TryStreamExt;
use harmonia_nix::hash::Hasher;
use harmonia_nix::nar::{Decoder, Limits, NarError, Token};
use harmonia_nix::{ContentAddress, ContentAddressMethod, Hash, HashAlgorithm, ReferenceScanner, StorePath};
use tokio::io::{AsyncReadExt, BufReader};
use tokio_util::io::StreamReader;

use super::SignError;
use super::error::{NotUploaded, ObjectDifference, Refusal, listed_paths};
use super::wire::Upload;
use crate::{ObjectError, ObjectStore, keys};

const BUFFER_BYTES: usize = 128 << 10;

/// Why an archive is not what was declared.
#[derive(Debug, thiserror::Error)]
enum ArchiveError {
    #[error("it is no archive compressed with zstd")]
    Compression(#[source] std::io::Error),
    #[error("it is no canonical archive")]
    Nar(#[from] NarError),
    #[error("its file has the hash {found}, not {declared}")]
    FileHash { declared: String, found: String },
    #[error("its NAR has the hash {found}, not {declared}")]
    NarHash { declared: String, found: String },
    #[error("its NAR has more or fewer than the declared {declared} bytes")]
    NarSize { declared: u64 },
    #[error("it is not a single file that is not executable, which its content address requires")]
    NotAFile,
    #[error("nothing in it refers to {}, as its references say", listed_paths(.0))]
    NotReferred(Vec<StorePath>),
    #[error("it refers to {}, which its references leave out", listed_paths(.0))]
    Undeclared(Vec<StorePath>),
}

/// What the references of a path are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum References {
    /// They are part of what the path is computed from, or were looked at before: any are right.
    Bound,
    /// They are those of the declared ones and of these, without the path itself, that its archive names.
    Among(BTreeSet<StorePath>),
}

/// Checks NAR hash and size, the content address if there is one, and the references against the bytes in the store.
pub(super) async fn verify(store: &ObjectStore, upload: &Upload, references: References) -> Result<(), SignError> {
    let key = keys::nar(&upload.object.hash);
    let Some(body) = store.get(&key, None).await? else {
        return Err(SignError::NotUploaded(vec![NotUploaded { key, reason: ObjectDifference::Missing }]));
    };
    let mut file_hasher = Hasher::new(HashAlgorithm::Sha256);
    let chunks = body.into_stream().inspect_ok(|chunk| file_hasher.update(chunk)).map_err(std::io::Error::other);
    let reader = StreamReader::new(Box::pin(chunks));
    let mut reader = ZstdDecoder::new(BufReader::with_capacity(BUFFER_BYTES, reader));
    let mut reading = Reading::new(upload, references);
    let mut buffer = vec![0; BUFFER_BYTES];
    let archive = |cause: ArchiveError| Refusal::Archive { path: upload.path.clone(), cause: cause.into() };
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(reading_failed(error, |error| archive(ArchiveError::Compression(error)))),
        };
        reading.update(&buffer[..count]).map_err(archive)?;
    }
    // What follows the compressed archive belongs to the file.
    let mut rest = reader.into_inner();
    let copied = tokio::io::copy_buf(&mut rest, &mut tokio::io::sink()).await;
    copied.map_err(|error| reading_failed(error, |error| archive(ArchiveError::Compression(error))))?;
    drop(rest);
    let found = reading.finish().map_err(archive)?;
    let (declared, file_hash) = (Hash::from(upload.object.hash), file_hasher.finish());
    if declared != file_hash {
        return Err(
            archive(ArchiveError::FileHash { declared: declared.to_string(), found: file_hash.to_string() }).into()
        );
    }
    match (upload.ca, found) {
        (Some(expected), Some(found)) if expected.hash != found => {
            Err(Refusal::wrong_hash(&upload.path, expected, found).into())
        }
        _ => Ok(()),
    }
}

/// A store that broke off is not the uploader's fault; bytes that are no zstd are.
fn reading_failed(error: std::io::Error, refuse: impl FnOnce(std::io::Error) -> Refusal) -> SignError {
    match error.downcast::<ObjectError>() {
        Ok(error) => error.into(),
        Err(error) => refuse(error).into(),
    }
}

struct Reading<'a> {
    upload: &'a Upload,
    nar_hasher: Hasher,
    size: u64,
    decoder: Decoder,
    /// For a content address, with its method.
    content: Option<(ContentAddressMethod, Hasher)>,
    scanner: Option<ReferenceScanner>,
}

impl<'a> Reading<'a> {
    fn new(upload: &'a Upload, references: References) -> Self {
        let content = |address: ContentAddress| (address.method, Hasher::new(address.hash.algorithm()));
        Self {
            upload,
            nar_hasher: Hasher::new(HashAlgorithm::Sha256),
            size: 0,
            decoder: Decoder::new(Limits::of_size(upload.nar_size)),
            content: upload.ca.map(content),
            scanner: match references {
                References::Bound => None,
                References::Among(candidates) => Some(ReferenceScanner::new(&candidates | &upload.references)),
            },
        }
    }

    fn update(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        self.size += bytes.len() as u64;
        if self.size > self.upload.nar_size {
            return Err(ArchiveError::NarSize { declared: self.upload.nar_size });
        }
        self.nar_hasher.update(bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.update(bytes);
        }
        let is_single_file = match &mut self.content {
            Some((ContentAddressMethod::Recursive, hasher)) => {
                hasher.update(bytes);
                false
            }
            Some(_) => true,
            None => false,
        };
        while !bytes.is_empty() {
            if self.decoder.is_done() {
                let offset = self.decoder.offset();
                return Err(NarError::TrailingData { offset }.into());
            }
            let step = self.decoder.push(bytes)?;
            match step.token {
                Some(Token::Contents) if is_single_file => {
                    if let Some((_, hasher)) = &mut self.content {
                        hasher.update(&bytes[..step.consumed]);
                    }
                }
                Some(Token::Regular { executable: true, .. } | Token::Directory | Token::Symlink { .. })
                    if is_single_file =>
                {
                    return Err(ArchiveError::NotAFile);
                }
                _ => {}
            }
            bytes = &bytes[step.consumed..];
        }
        Ok(())
    }

    /// The hash that the content address speaks of.
    fn finish(self) -> Result<Option<Hash>, ArchiveError> {
        let declared = self.upload.nar_size;
        if self.size != declared {
            return Err(ArchiveError::NarSize { declared });
        }
        self.decoder.finish()?;
        let (declared, found) = (Hash::from(self.upload.nar_hash), self.nar_hasher.finish());
        if declared != found {
            return Err(ArchiveError::NarHash { declared: declared.to_string(), found: found.to_string() });
        }
        if let Some(scanner) = self.scanner {
            check_references(self.upload, &scanner.finish())?;
        }
        Ok(self.content.map(|(_, hasher)| hasher.finish()))
    }
}

/// A path in its own references changes no closure, so it does not matter here.
fn check_references(upload: &Upload, found: &BTreeSet<StorePath>) -> Result<(), ArchiveError> {
    let others = |paths: &BTreeSet<StorePath>, known: &BTreeSet<StorePath>| -> Vec<StorePath> {
        paths.difference(known).filter(|path| **path != upload.path).cloned().collect()
    };
    let undeclared = others(found, &upload.references);
    if !undeclared.is_empty() {
        return Err(ArchiveError::Undeclared(undeclared));
    }
    let declared = others(&upload.references, found);
    if declared.is_empty() { Ok(()) } else { Err(ArchiveError::NotReferred(declared)) }
}

#[cfg(test)]
mod tests {
    use harmonia_nix::Sha256Hash;
    use harmonia_nix::nar::NarWriter;

    use super::super::wire::Object;
    use super::*;

    fn file(content: &[u8], executable: bool) -> Vec<u8> {
        let mut writer = NarWriter::new(Vec::new()).expect("in memory");
        writer.regular(executable, content.len() as u64, content, &mut [0; 16], "a").expect("in memory");
        writer.into_inner()
    }

    fn upload(nar: &[u8], ca: Option<ContentAddress>) -> Upload {
        Upload {
            path: StorePath::parse("/nix/store/00000000000000000000000000000000-a").expect("valid"),
            nar_hash: Sha256Hash::of(nar),
            nar_size: nar.len() as u64,
            object: Object { hash: Sha256Hash::of(b""), size: 0 },
            references: BTreeSet::new(),
            deriver: None,
            ca,
            listing: None,
        }
    }

    fn read(upload: &Upload, nar: &[u8]) -> Result<Option<Hash>, ArchiveError> {
        let mut reading = Reading::new(upload, References::Bound);
        for piece in nar.chunks(7) {
            reading.update(piece)?;
        }
        reading.finish()
    }

    #[test]
    fn hashes_what_the_content_address_speaks_of() {
        let nar = file(b"hello", false);
        for algorithm in HashAlgorithm::ALL {
            let flat = Hash::of(algorithm, b"hello");
            let recursive = Hash::of(algorithm, &nar);
            for (address, expected) in [
                (ContentAddress::flat(flat), flat),
                (ContentAddress::text(flat), flat),
                (ContentAddress::recursive(flat), recursive),
            ] {
                assert_eq!(read(&upload(&nar, Some(address)), &nar).expect("sound"), Some(expected));
            }
        }
        assert_eq!(read(&upload(&nar, None), &nar).expect("sound"), None);
    }

    #[test]
    fn a_wrong_archive_is_found_out() {
        let nar = file(b"hello", false);
        let declared = upload(&nar, None);
        let other = file(b"hullo", false);
        assert!(matches!(read(&declared, &other), Err(ArchiveError::NarHash { .. })));
        assert!(matches!(read(&declared, &nar[..nar.len() - 8]), Err(ArchiveError::NarSize { .. })));
        let longer = [nar.as_slice(), b"12345678"].concat();
        assert!(matches!(read(&declared, &longer), Err(ArchiveError::NarSize { .. })));
        assert!(matches!(read(&upload(&longer, None), &longer), Err(ArchiveError::Nar(NarError::TrailingData { .. }))));
        let text = ContentAddress::text(Hash::of(HashAlgorithm::Sha256, b"hello"));
        let script = file(b"hello", true);
        assert!(matches!(read(&upload(&script, Some(text)), &script), Err(ArchiveError::NotAFile)));
        assert!(matches!(read(&upload(b"no archive", None), b"no archive"), Err(ArchiveError::Nar(_))));
    }

    #[test]
    fn references_are_held_against_the_bytes_whatever_is_read_at_once() {
        let path = |hash: u8| StorePath::from_parts(&[hash; 20], "x").expect("valid");
        let (named, other) = (path(1), path(2));
        let nar = file(format!("see {named}/bin").as_bytes(), false);
        let read = |declared: &[&StorePath], candidates: &[&StorePath]| {
            let of = |paths: &[&StorePath]| -> BTreeSet<StorePath> { paths.iter().copied().cloned().collect() };
            let upload = Upload { references: of(declared), ..upload(&nar, None) };
            let mut reading = Reading::new(&upload, References::Among(of(candidates)));
            nar.chunks(7).try_for_each(|piece| reading.update(piece)).expect("sound");
            reading.finish().map(drop)
        };
        assert!(read(&[&named], &[&named, &other]).is_ok());
        assert!(read(&[&named], &[]).is_ok(), "what is declared is looked for");
        assert!(read(&[], &[&other]).is_ok());
        assert!(matches!(read(&[], &[&named]), Err(ArchiveError::Undeclared(paths)) if paths == [named.clone()]));
        let more = read(&[&named, &other], &[&named]);
        assert!(matches!(more, Err(ArchiveError::NotReferred(paths)) if paths == [other.clone()]));
        let own = upload(&nar, None).path;
        assert!(read(&[&named, &own], &[&named, &own]).is_ok(), "itself");
    }
}
