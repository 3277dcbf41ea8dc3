//! What a binary cache says of a path, `<hash>.narinfo`, and what is signed of it. Start at [`NarInfo`].

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::content_address::{ContentAddress, ContentAddressError};
use crate::hash::{HashError, NarHash, Sha256Hash};
use crate::signature::{PublicKey, SecretKey, Signature, verify_any};
use crate::store_path::{StorePath, StorePathError};

/// Largest text, in bytes.
pub const TEXT_BYTES_MAX: usize = 4 << 20;
/// Most signatures.
pub const SIGNATURES_MAX: usize = 100;

/// A `.narinfo` file. Printed byte for byte as Nix prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path described.
    pub path: StorePath,
    /// Where the NAR lies, usually relative to the cache. Without line breaks.
    pub url: String,
    /// `none`, `xz`, `zstd`, … Without line breaks.
    pub compression: String,
    /// Hash of the file at `url`.
    pub file_hash: Option<Sha256Hash>,
    /// Size of the file at `url` in bytes.
    pub file_size: Option<u64>,
    /// Hash of the uncompressed NAR.
    pub nar_hash: NarHash,
    /// Size of the uncompressed NAR in bytes.
    pub nar_size: u64,
    /// What the path refers to, perhaps including itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built by.
    pub deriver: Option<StorePath>,
    /// How its content determines its path, if so.
    pub content_address: Option<ContentAddress>,
    /// Signatures over the fingerprint.
    pub signatures: Vec<Signature>,
}

/// Why a text is no narinfo. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("a narinfo has at most {TEXT_BYTES_MAX} bytes")]
    TooLarge,
    /// More than [`SIGNATURES_MAX`].
    #[error("a narinfo has at most {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// A line that is not `Name: value`.
    #[error("line {0} of the narinfo is not 'Name: value'")]
    Line(usize),
    /// A field that is needed is not there.
    #[error("the narinfo has no {0}")]
    Missing(&'static str),
    /// A field that must be there once is there twice.
    #[error("line {line} of the narinfo repeats {field}")]
    Repeated {
        /// Where.
        line: usize,
        /// Which field.
        field: &'static str,
    },
    /// The value of a field is not valid.
    #[error("line {line} of the narinfo has an invalid {field}")]
    Value {
        /// Where.
        line: usize,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        cause: NarInfoValueError,
    },
}

/// What is wrong with the value of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoValueError {
    /// Not a store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// Not a SHA-256.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// Not a content address.
    #[error(transparent)]
    ContentAddress(#[from] ContentAddressError),
    /// Not a number of bytes, or none where there must be some.
    #[error("expected a number of bytes")]
    Number,
    /// Nothing there.
    #[error("the value is empty")]
    Empty,
}

impl NarInfo {
    /// Reads a narinfo. The order of fields does not matter, unknown ones are passed over, and so are signatures
    /// that are not of our kind, since they could prove nothing.
    pub fn parse(text: &str) -> Result<Self, NarInfoError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NarInfoError::TooLarge);
        }
        let mut fields = Fields::default();
        for (index, line) in text.lines().enumerate() {
            fields.take(index + 1, line)?;
        }
        fields.finish()
    }

    /// The text that is signed, see [`fingerprint`].
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Signs, in place of an earlier signature of a key of this name.
    pub fn sign(&mut self, key: &SecretKey) {
        let signature = key.sign(self.fingerprint().as_bytes());
        self.signatures.retain(|earlier| earlier.key_name() != key.name());
        self.signatures.push(signature);
    }

    /// Whether any of the keys has signed what this narinfo says.
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        verify_any(keys, self.fingerprint().as_bytes(), &self.signatures)
    }
}

/// What is signed of a path: `1;<path>;<NAR hash in base32>;<NAR size in bytes>;<references, sorted>`.
pub fn fingerprint(path: &StorePath, nar_hash: &NarHash, nar_size: u64, references: &BTreeSet<StorePath>) -> String {
    let references: Vec<&str> = references.iter().map(StorePath::as_str).collect();
    format!("1;{path};{nar_hash};{nar_size};{}", references.join(","))
}

impl fmt::Display for NarInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}\nURL: {}\nCompression: {}", self.path, self.url, self.compression)?;
        if let Some(hash) = self.file_hash {
            writeln!(f, "FileHash: {hash}")?;
        }
        if let Some(size) = self.file_size {
            writeln!(f, "FileSize: {size}")?;
        }
        let references: Vec<&str> = self.references.iter().map(StorePath::base_name).collect();
        writeln!(f, "NarHash: {}\nNarSize: {}\nReferences: {}", self.nar_hash, self.nar_size, references.join(" "))?;
        if let Some(deriver) = &self.deriver {
            writeln!(f, "Deriver: {}", deriver.base_name())?;
        }
        for signature in &self.signatures {
            writeln!(f, "Sig: {signature}")?;
        }
        if let Some(address) = &self.content_address {
            writeln!(f, "CA: {address}")?;
        }
        Ok(())
    }
}

impl FromStr for NarInfo {
    type Err = NarInfoError;

    fn from_str(text: &str) -> Result<Self, NarInfoError> {
        Self::parse(text)
    }
}

enum Deriver {
    Unknown,
    Path(StorePath),
}

/// What was read so far.
#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<Sha256Hash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<Deriver>,
    content_address: Option<ContentAddress>,
    signatures: Vec<Signature>,
}

impl Fields {
    fn take(&mut self, line: usize, text: &str) -> Result<(), NarInfoError> {
        let (field, value) = text.split_once(':').ok_or(NarInfoError::Line(line))?;
        let value = match value.strip_prefix(' ') {
            Some(value) => value,
            None if value.is_empty() => value,
            None => return Err(NarInfoError::Line(line)),
        };
        match field {
            "StorePath" => once(&mut self.path, line, "StorePath", || Ok(StorePath::parse(value)?)),
            "URL" => once(&mut self.url, line, "URL", || some_text(value)),
            "Compression" => once(&mut self.compression, line, "Compression", || some_text(value)),
            "FileHash" => once(&mut self.file_hash, line, "FileHash", || Ok(value.parse()?)),
            "FileSize" => once(&mut self.file_size, line, "FileSize", || number(value)),
            "NarHash" => once(&mut self.nar_hash, line, "NarHash", || Ok(value.parse()?)),
            "NarSize" => once(&mut self.nar_size, line, "NarSize", || match number(value)? {
                0 => Err(NarInfoValueError::Number),
                size => Ok(size),
            }),
            "References" => once(&mut self.references, line, "References", || {
                let names = value.split(' ').filter(|name| !name.is_empty());
                Ok(names.map(StorePath::from_base_name).collect::<Result<_, _>>()?)
            }),
            "Deriver" => once(&mut self.deriver, line, "Deriver", || match value {
                // Old Hydras wrote this for want of one.
                "unknown-deriver" | "" => Ok(Deriver::Unknown),
                value => Ok(Deriver::Path(StorePath::from_base_name(value)?)),
            }),
            "CA" => once(&mut self.content_address, line, "CA", || Ok(value.parse()?)),
            "Sig" => {
                if let Ok(signature) = value.parse() {
                    if self.signatures.len() == SIGNATURES_MAX {
                        return Err(NarInfoError::TooManySignatures);
                    }
                    self.signatures.push(signature);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<NarInfo, NarInfoError> {
        Ok(NarInfo {
            path: self.path.ok_or(NarInfoError::Missing("StorePath"))?,
            url: self.url.ok_or(NarInfoError::Missing("URL"))?,
            // What Nix takes for granted: caches older than the field had nothing else.
            compression: self.compression.unwrap_or_else(|| "bzip2".to_owned()),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or(NarInfoError::Missing("NarHash"))?,
            nar_size: self.nar_size.ok_or(NarInfoError::Missing("NarSize"))?,
            references: self.references.unwrap_or_default(),
            deriver: match self.deriver {
                Some(Deriver::Path(path)) => Some(path),
                Some(Deriver::Unknown) | None => None,
            },
            content_address: self.content_address,
            signatures: self.signatures,
        })
    }
}

fn once<T>(
    slot: &mut Option<T>,
    line: usize,
    field: &'static str,
    read: impl FnOnce() -> Result<T, NarInfoValueError>,
) -> Result<(), NarInfoError> {
    if slot.is_some() {
        return Err(NarInfoError::Repeated { line, field });
    }
    *slot = Some(read().map_err(|cause| NarInfoError::Value { line, field, cause })?);
    Ok(())
}

fn some_text(value: &str) -> Result<String, NarInfoValueError> {
    if value.is_empty() { Err(NarInfoValueError::Empty) } else { Ok(value.to_owned()) }
}

fn number(value: &str) -> Result<u64, NarInfoValueError> {
    // The standard library would also take a plus sign.
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| is_number).ok_or(NarInfoValueError::Number)
}

#[cfg(test)]
mod tests;
