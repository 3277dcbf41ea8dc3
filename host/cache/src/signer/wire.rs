//! From wire types to values that are what they say: every text parsed, every bound checked. Start at [`upload`].

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use harmonia_core::limits::{
    DRV_BYTES_MAX, DRVS_PER_CALL_MAX, LISTING_BYTES_MAX, PATHS_PER_CALL_MAX, REFERENCES_MAX, SINGLE_PUT_BYTES_MAX,
    SMALL_OBJECT_BYTES_MAX,
};
use harmonia_core::signer_api::{DrvFile, LogBlob, PathInfo};
use harmonia_nix::{ContentAddress, Sha256Hash, StorePath};

use super::error::Refusal;

/// Sizes in the database are signed.
const NAR_BYTES_MAX: u64 = i64::MAX as u64;
/// Of a text that strangers wrote, this much is shown.
const SHOWN_MAX: usize = 120;

/// A path that somebody uploads, or wants to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upload {
    pub(super) path: StorePath,
    pub(super) nar_hash: Sha256Hash,
    pub(super) nar_size: u64,
    pub(super) object: Object,
    pub(super) references: BTreeSet<StorePath>,
    pub(super) deriver: Option<StorePath>,
    pub(super) ca: Option<ContentAddress>,
    pub(super) listing: Option<String>,
}

/// Hash and size that an object must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) hash: Sha256Hash,
    pub(super) size: u64,
}

/// A compressed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) object: Object,
    /// It came along, since it is small.
    pub(super) bytes: Option<Vec<u8>>,
}

/// A `.drv` file as sent.
#[derive(Debug)]
pub(super) struct SentDerivation {
    pub(super) path: StorePath,
    pub(super) text: Vec<u8>,
}

pub(super) fn upload(info: &PathInfo) -> Result<Upload, Refusal> {
    bound("references of one path", info.references.len() as u64, REFERENCES_MAX as u64)?;
    bound("bytes of a NAR", info.nar_size, NAR_BYTES_MAX)?;
    let listing = info.listing.as_ref().filter(|listing| listing.len() <= LISTING_BYTES_MAX);
    Ok(Upload {
        path: store_path("path", &info.path)?,
        nar_hash: sha256("nar_hash", &info.nar_hash)?,
        nar_size: info.nar_size,
        object: object(&info.file_hash, info.file_size)?,
        references: info.references.iter().map(|path| store_path("reference", path)).collect::<Result<_, _>>()?,
        deriver: info.deriver.as_deref().map(|path| store_path("deriver", path)).transpose()?,
        ca: info.ca.as_deref().map(|text| text.parse().map_err(|cause| malformed("ca", text, cause))).transpose()?,
        listing: listing.cloned(),
    })
}

pub(super) fn uploads(infos: &[PathInfo]) -> Result<Vec<Upload>, Refusal> {
    bound("paths in one call", infos.len() as u64, PATHS_PER_CALL_MAX as u64)?;
    let uploads = infos.iter().map(upload).collect::<Result<Vec<_>, _>>()?;
    distinct(uploads.iter().map(|upload| &upload.path))?;
    Ok(uploads)
}

pub(super) fn log(blob: &LogBlob) -> Result<Log, Refusal> {
    let object = object(&blob.file_hash, blob.file_size)?;
    let Some(text) = &blob.bytes_base64 else { return Ok(Log { object, bytes: None }) };
    bound("bytes of a log in base64", text.len() as u64, (SMALL_OBJECT_BYTES_MAX as u64).div_ceil(3) * 4)?;
    let bytes = BASE64.decode(text).map_err(|cause| malformed("bytes_base64", text, cause))?;
    bound("bytes of a log that comes along", bytes.len() as u64, SMALL_OBJECT_BYTES_MAX as u64)?;
    if Sha256Hash::of(&bytes) != object.hash || bytes.len() as u64 != object.size {
        let cause = "it is not what its hash and size say";
        return Err(malformed("bytes_base64", text, std::io::Error::other(cause)));
    }
    Ok(Log { object, bytes: Some(bytes) })
}

pub(super) fn derivations(files: Vec<DrvFile>) -> Result<Vec<SentDerivation>, Refusal> {
    bound("derivations in one call", files.len() as u64, DRVS_PER_CALL_MAX as u64)?;
    let decode = |file: DrvFile| {
        let path = store_path("path", &file.path)?;
        bound(
            "bytes of a derivation in base64",
            file.aterm_base64.len() as u64,
            (DRV_BYTES_MAX as u64).div_ceil(3) * 4,
        )?;
        let text =
            BASE64.decode(&file.aterm_base64).map_err(|cause| malformed("aterm_base64", &file.aterm_base64, cause))?;
        Ok(SentDerivation { path, text })
    };
    let derivations = files.into_iter().map(decode).collect::<Result<Vec<_>, Refusal>>()?;
    distinct(derivations.iter().map(|derivation| &derivation.path))?;
    Ok(derivations)
}

pub(super) fn distinct<'a>(paths: impl Iterator<Item = &'a StorePath>) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for path in paths {
        if !seen.insert(path) {
            return Err(Refusal::Twice(path.clone()));
        }
    }
    Ok(())
}

fn object(hash: &str, size: u64) -> Result<Object, Refusal> {
    bound("bytes of one object", size, SINGLE_PUT_BYTES_MAX)?;
    Ok(Object { hash: sha256("file_hash", hash)?, size })
}

fn sha256(field: &'static str, text: &str) -> Result<Sha256Hash, Refusal> {
    text.parse().map_err(|cause| malformed(field, text, cause))
}

pub(super) fn store_path(field: &'static str, text: &str) -> Result<StorePath, Refusal> {
    StorePath::parse(text).map_err(|cause| malformed(field, text, cause))
}

fn malformed(field: &'static str, text: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Refusal {
    Refusal::Malformed { field, text: text.chars().take(SHOWN_MAX).collect(), cause: cause.into() }
}

pub(super) fn bound(what: &'static str, found: u64, max: u64) -> Result<(), Refusal> {
    if found <= max { Ok(()) } else { Err(Refusal::TooMuch { what, found, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> PathInfo {
        PathInfo {
            path: "/nix/store/00000000000000000000000000000000-a".to_owned(),
            nar_hash: Sha256Hash::of(b"nar").to_string(),
            nar_size: 120,
            file_hash: Sha256Hash::of(b"file").to_string(),
            file_size: 100,
            references: vec![],
            deriver: None,
            ca: None,
            listing: None,
        }
    }

    #[test]
    fn hostile_fields_are_named() {
        assert!(upload(&info()).is_ok());
        let refused = |change: &dyn Fn(&mut PathInfo)| {
            let mut info = info();
            change(&mut info);
            upload(&info).expect_err("refused").to_string()
        };
        for (change, words) in [
            (&(|i: &mut PathInfo| i.path = "/etc/passwd".into()) as &dyn Fn(&mut PathInfo), "path '/etc/passwd'"),
            (&|i| i.path.push_str("/bin/sh"), "path '"),
            (&|i| i.nar_hash = "sha1:abc".into(), "nar_hash 'sha1:abc'"),
            (&|i| i.file_hash = "x".repeat(100_000), "file_hash 'xxx"),
            (&|i| i.file_size = u64::MAX, "bytes of one object"),
            (&|i| i.nar_size = u64::MAX, "bytes of a NAR"),
            (&|i| i.references = vec!["../x".into()], "reference '../x'"),
            (&|i| i.references = vec![i.path.clone(); REFERENCES_MAX + 1], "references of one path"),
            (&|i| i.deriver = Some("x".into()), "deriver 'x'"),
            (&|i| i.ca = Some("fixed:r:sha256:zz".into()), "ca 'fixed"),
        ] {
            let message = refused(change);
            assert!(message.contains(words) && message.len() < 300, "{message}");
        }
    }

    #[test]
    fn a_listing_that_is_too_large_is_left_out() {
        let large = PathInfo { listing: Some("x".repeat(LISTING_BYTES_MAX + 1)), ..info() };
        assert_eq!(upload(&large).expect("accepted").listing, None);
    }

    #[test]
    fn a_log_that_comes_along_is_what_it_is_said_to_be() {
        let bytes = vec![7; 100];
        let blob = LogBlob {
            file_hash: Sha256Hash::of(&bytes).to_string(),
            file_size: 100,
            bytes_base64: Some(BASE64.encode(&bytes)),
        };
        assert_eq!(log(&blob).expect("sound").bytes, Some(bytes));
        let with = |text: String| log(&LogBlob { bytes_base64: Some(text), ..blob.clone() });
        assert!(matches!(with(BASE64.encode([8; 100])), Err(Refusal::Malformed { field: "bytes_base64", .. })));
        assert!(matches!(with("*".to_owned()), Err(Refusal::Malformed { field: "bytes_base64", .. })));
        assert!(matches!(with(BASE64.encode(vec![7; SMALL_OBJECT_BYTES_MAX + 9])), Err(Refusal::TooMuch { .. })));
        let other_size = LogBlob { file_size: 99, ..blob.clone() };
        assert!(matches!(log(&other_size), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn calls_are_bounded_and_name_a_path_once() {
        assert!(matches!(uploads(&[info(), info()]), Err(Refusal::Twice(_))));
        assert!(matches!(uploads(&vec![info(); PATHS_PER_CALL_MAX + 1]), Err(Refusal::TooMuch { .. })));
        let file = |path: &str, aterm_base64: &str| DrvFile { path: path.into(), aterm_base64: aterm_base64.into() };
        let path = "/nix/store/00000000000000000000000000000000-a.drv";
        assert!(matches!(derivations(vec![file(path, "*")]), Err(Refusal::Malformed { field: "aterm_base64", .. })));
        assert!(matches!(derivations(vec![file(path, ""), file(path, "")]), Err(Refusal::Twice(_))));
        let many = (0..=DRVS_PER_CALL_MAX).map(|_| file(path, "")).collect();
        assert!(matches!(derivations(many), Err(Refusal::TooMuch { .. })));
    }
}
