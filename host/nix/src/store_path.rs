//! Paths in the Nix store. Start at [`StorePath`]; how Nix computes them is in the makers below it
//! (`make_text`, `make_source`, `make_output`, `make_fixed_output`).

mod make;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::base32;
use crate::text_serde::serde_as_text;

pub use make::{MakeStorePathError, References, hash_part_elsewhere};
pub(crate) use make::{fixed_output_hash, output_path_name};

/// The only store directory that we handle. Hashes depend on it, so it is no setting.
pub const STORE_DIR: &str = "/nix/store";

/// Digits of the hash that a base name begins with.
pub const HASH_DIGITS: usize = 32;

/// Longest name (what follows the hash and its dash), in bytes.
pub const NAME_BYTES_MAX: usize = 211;

/// Offset of the base name in a full path.
const BASE_NAME_START: usize = STORE_DIR.len() + 1;
const NAME_START: usize = BASE_NAME_START + HASH_DIGITS + 1;

/// A path directly below the store directory, such as `/nix/store/<32 digits>-hello-1.0`.
///
/// Valid by construction, cheap to clone, ordered as its text (which is how Nix sorts references).
/// Printed, and written by serde, as the full path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

/// Why a text is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// A full path that does not begin with `/nix/store/`.
    #[error("'{0}' is not in {STORE_DIR}")]
    NotInStore(String),
    /// The base name does not begin with 32 base32 digits and a dash.
    #[error("'{0}' does not begin with {HASH_DIGITS} Nix base32 digits and a dash")]
    Hash(String),
    /// What follows the hash is no name.
    #[error("invalid name in store path")]
    Name(#[from] StorePathNameError),
}

/// Why a text cannot be the name in a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathNameError {
    /// There is none.
    #[error("the name is empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`].
    #[error("the name has {0} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// A byte that is none of `a-z A-Z 0-9 + - . _ ? =`.
    #[error("byte {byte:#04x} at offset {offset} of the name is not allowed (only a-z A-Z 0-9 + - . _ ? =)")]
    Byte {
        /// The byte found.
        byte: u8,
        /// Where it stands, in bytes from the start of the name.
        offset: usize,
    },
    /// `.`, `..`, or one of these followed by a dash.
    #[error("the name is or begins like a relative path ('.', '..', '.-' or '..-')")]
    Dots,
}

impl StorePath {
    /// Reads a full path, `/nix/store/<hash>-<name>`, without anything below it.
    pub fn parse(path: &str) -> Result<Self, StorePathError> {
        let base_name = path
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::NotInStore(shorten(path)))?;
        check_base_name(base_name)?;
        Ok(Self(path.into()))
    }

    /// Reads `<hash>-<name>`, as in the references of a narinfo.
    pub fn from_base_name(base_name: &str) -> Result<Self, StorePathError> {
        check_base_name(base_name)?;
        Ok(Self(format!("{STORE_DIR}/{base_name}").into()))
    }

    /// Puts a path together from 20 bytes of hash and a name.
    pub fn from_parts(hash: &[u8; 20], name: &str) -> Result<Self, StorePathNameError> {
        check_name(name)?;
        Ok(Self(format!("{STORE_DIR}/{}-{name}", base32::encode(hash)).into()))
    }

    /// The full path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0[BASE_NAME_START..]
    }

    /// The 32 digits by which a binary cache is asked.
    pub fn hash_part(&self) -> &str {
        &self.0[BASE_NAME_START..BASE_NAME_START + HASH_DIGITS]
    }

    /// What follows the hash and its dash.
    pub fn name(&self) -> &str {
        &self.0[NAME_START..]
    }

    /// Whether the name ends in `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.derivation_name().is_some()
    }

    /// The name without `.drv`; `None` when this is no derivation.
    pub fn derivation_name(&self) -> Option<&str> {
        self.name().strip_suffix(".drv").filter(|name| !name.is_empty())
    }
}

/// Whether `text` is the 32 digits that a base name begins with (as in `/<hash>.narinfo`).
pub fn is_hash_part(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(base32::is_digit)
}

/// Checks what may follow the hash.
///
/// These are the rules of Nix 2.8, and the ban on names that look like relative paths of later versions.
pub fn check_name(name: &str) -> Result<(), StorePathNameError> {
    if name.is_empty() {
        return Err(StorePathNameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(StorePathNameError::TooLong(name.len()));
    }
    if let Some((offset, byte)) = name.bytes().enumerate().find(|(_, byte)| !is_name_byte(*byte)) {
        return Err(StorePathNameError::Byte { byte, offset });
    }
    if matches!(name.split('-').next(), Some("." | "..")) {
        return Err(StorePathNameError::Dots);
    }
    Ok(())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)
}

fn check_base_name(base_name: &str) -> Result<(), StorePathError> {
    let hash = base_name.as_bytes().get(..HASH_DIGITS);
    let is_hash = hash.is_some_and(|digits| digits.iter().all(|digit| base32::is_digit(*digit)));
    if !is_hash || base_name.as_bytes().get(HASH_DIGITS) != Some(&b'-') {
        return Err(StorePathError::Hash(shorten(base_name)));
    }
    check_name(&base_name[HASH_DIGITS + 1..])?;
    Ok(())
}

/// Keeps what strangers wrote from filling our logs.
fn shorten(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX + NAME_START).collect()
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorePath({self})")
    }
}

impl AsRef<str> for StorePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for StorePath {
    fn as_ref(&self) -> &std::path::Path {
        std::path::Path::new(&*self.0)
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    /// As [`StorePath::parse`]: a full path.
    fn from_str(text: &str) -> Result<Self, StorePathError> {
        Self::parse(text)
    }
}

serde_as_text!(StorePath);

#[cfg(test)]
mod tests;
