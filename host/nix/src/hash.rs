//! Hashes as Nix uses them and every textual form of theirs. Start at [`Hash`]; NARs and files use [`Sha256Hash`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::Digest as _;

use crate::base32;
use crate::text_serde::serde_as_text;

const BYTES_MAX: usize = 64;
/// A SHA-512 in base16 with its prefix is the longest form there is.
const TEXT_BYTES_MAX: usize = 160;

/// The hash of a NAR, as in `NarHash:`. Nix admits SHA-256 only.
pub type NarHash = Sha256Hash;

/// Which hash function. MD5 and SHA-1 exist for old fixed-output derivations only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// 16 bytes, broken.
    Md5,
    /// 20 bytes, broken.
    Sha1,
    /// 32 bytes, what Nix uses for everything of its own.
    Sha256,
    /// 64 bytes.
    Sha512,
}

/// Why a text is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Not one of md5, sha1, sha256, sha512.
    #[error("unknown hash algorithm '{0}': expected md5, sha1, sha256 or sha512")]
    Algorithm(String),
    /// Neither the text nor the caller says which algorithm.
    #[error("the hash does not say its algorithm: write it as 'sha256:…' or 'sha256-…'")]
    NoAlgorithm,
    /// The text names another algorithm than the caller needs.
    #[error("expected a {expected} hash, found {found}")]
    WrongAlgorithm {
        /// What the caller needs.
        expected: HashAlgorithm,
        /// What the text says.
        found: HashAlgorithm,
    },
    /// Too many or too few characters for every form of this algorithm.
    #[error("{length} characters are no form of a {algorithm} hash")]
    Length {
        /// Which algorithm was expected.
        algorithm: HashAlgorithm,
        /// Length of the digits, in bytes.
        length: usize,
    },
    /// The right length for base16, but other characters.
    #[error("invalid base16 digit at offset {0}")]
    Base16(usize),
    /// The right length for base32, but not valid.
    #[error("invalid base32 in the hash")]
    Base32(#[source] base32::Base32Error),
    /// The right length for base64 (or an SRI hash), but not valid.
    #[error("invalid base64 in the hash")]
    Base64,
}

impl HashAlgorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// Size of a hash in bytes.
    pub const fn byte_count(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Nix's name of it: `md5`, `sha1`, `sha256`, `sha512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| HashError::Algorithm(shorten(text)))
    }
}

/// A hash of any of the four algorithms.
///
/// Printed as Nix prints it: `sha256:<base32>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algorithm: HashAlgorithm,
    /// Zero beyond the size of the algorithm.
    bytes: [u8; BYTES_MAX],
}

impl Hash {
    /// Hashes `data`.
    pub fn of(algorithm: HashAlgorithm, data: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    /// Wraps bytes that are a hash already; `None` when their number is not that of the algorithm.
    pub fn from_bytes(algorithm: HashAlgorithm, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != algorithm.byte_count() {
            return None;
        }
        let mut padded = [0; BYTES_MAX];
        padded[..bytes.len()].copy_from_slice(bytes);
        Some(Self { algorithm, bytes: padded })
    }

    /// Reads any form that Nix reads and that names its algorithm: `sha256:<base16, base32 or base64>` or SRI
    /// `sha256-<base64>`.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let (algorithm, digits, is_sri) = split(text)?;
        parse_digits(algorithm.ok_or(HashError::NoAlgorithm)?, digits, is_sri)
    }

    /// As [`Hash::parse`], but the text may leave out its algorithm, and if it has one it must be this one.
    pub fn parse_as(algorithm: HashAlgorithm, text: &str) -> Result<Self, HashError> {
        let (found, digits, is_sri) = split(text)?;
        match found {
            Some(found) if found != algorithm => Err(HashError::WrongAlgorithm { expected: algorithm, found }),
            _ => parse_digits(algorithm, digits, is_sri),
        }
    }

    /// Which algorithm.
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The hash itself, as long as its algorithm says.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.byte_count()]
    }

    /// Lower-case hexadecimal digits without prefix.
    pub fn to_base16(&self) -> String {
        to_base16(self.as_bytes())
    }

    /// Nix base32 without prefix.
    pub fn to_base32(&self) -> String {
        base32::encode(self.as_bytes())
    }

    /// Padded standard base64 without prefix.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// `sha256-<base64>`, as in flake.lock and in web pages.
    pub fn to_sri(&self) -> String {
        format!("{}-{}", self.algorithm, self.to_base64())
    }

    /// `sha256:<base16>`, the form from which store paths are computed.
    pub fn to_prefixed_base16(&self) -> String {
        format!("{}:{}", self.algorithm, self.to_base16())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.to_base32())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Self::parse(text)
    }
}

/// A SHA-256, the only hash that NARs, compressed files and derivations have.
///
/// Printed, and written by serde, as `sha256:<base32>`; read from any form of a SHA-256 with its prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hash([u8; 32]);

impl Sha256Hash {
    /// Hashes `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha256::digest(data).into())
    }

    /// Wraps bytes that are a SHA-256 already.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Lower-case hexadecimal digits without prefix.
    pub fn to_base16(&self) -> String {
        to_base16(&self.0)
    }

    /// Nix base32 (52 digits) without prefix.
    pub fn to_base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// Padded standard base64 without prefix, as in `x-amz-checksum-sha256`.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// `sha256-<base64>`.
    pub fn to_sri(&self) -> String {
        Hash::from(*self).to_sri()
    }
}

impl From<Sha256Hash> for Hash {
    fn from(hash: Sha256Hash) -> Self {
        let mut bytes = [0; BYTES_MAX];
        bytes[..32].copy_from_slice(&hash.0);
        Self { algorithm: HashAlgorithm::Sha256, bytes }
    }
}

impl TryFrom<Hash> for Sha256Hash {
    type Error = HashError;

    fn try_from(hash: Hash) -> Result<Self, HashError> {
        let expected = HashAlgorithm::Sha256;
        let wrong = HashError::WrongAlgorithm { expected, found: hash.algorithm };
        if hash.algorithm != expected {
            return Err(wrong);
        }
        hash.as_bytes().try_into().map(Self).map_err(|_| wrong)
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_base32())
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256Hash({self})")
    }
}

impl FromStr for Sha256Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Hash::parse(text)?.try_into()
    }
}

serde_as_text!(Hash);
serde_as_text!(Sha256Hash);

/// Hashes data that comes in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Has seen nothing yet.
    pub fn new(algorithm: HashAlgorithm) -> Self {
        Self(match algorithm {
            HashAlgorithm::Md5 => State::Md5(md5::Md5::new()),
            HashAlgorithm::Sha1 => State::Sha1(sha1::Sha1::new()),
            HashAlgorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            HashAlgorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Takes the next piece.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            State::Md5(state) => state.update(data),
            State::Sha1(state) => state.update(data),
            State::Sha256(state) => state.update(data),
            State::Sha512(state) => state.update(data),
        }
    }

    /// The hash of all pieces.
    pub fn finish(self) -> Hash {
        let mut bytes = [0; BYTES_MAX];
        let algorithm = match self.0 {
            State::Md5(state) => {
                bytes[..16].copy_from_slice(&state.finalize());
                HashAlgorithm::Md5
            }
            State::Sha1(state) => {
                bytes[..20].copy_from_slice(&state.finalize());
                HashAlgorithm::Sha1
            }
            State::Sha256(state) => {
                bytes[..32].copy_from_slice(&state.finalize());
                HashAlgorithm::Sha256
            }
            State::Sha512(state) => {
                bytes.copy_from_slice(&state.finalize());
                HashAlgorithm::Sha512
            }
        };
        Hash { algorithm, bytes }
    }
}

/// Folds a hash to 20 bytes by XOR, as the digits of store paths are made from a SHA-256.
pub fn compress_hash(hash: &[u8]) -> [u8; 20] {
    let mut folded = [0; 20];
    for (index, byte) in hash.iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    folded
}

fn to_base16(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// Takes the algorithm off the front; the flag says that it was followed by `-`, as in SRI.
fn split(text: &str) -> Result<(Option<HashAlgorithm>, &str, bool), HashError> {
    // Neither character is a digit of any base, so the first one ends the algorithm.
    match text.find([':', '-']) {
        None => Ok((None, text, false)),
        Some(end) => {
            let algorithm = text[..end].parse()?;
            Ok((Some(algorithm), &text[end + 1..], text.as_bytes()[end] == b'-'))
        }
    }
}

fn parse_digits(algorithm: HashAlgorithm, digits: &str, is_sri: bool) -> Result<Hash, HashError> {
    let count = algorithm.byte_count();
    let length = digits.len();
    let mut bytes = [0; BYTES_MAX];
    if length > TEXT_BYTES_MAX {
        return Err(HashError::Length { algorithm, length });
    }
    if !is_sri && length == count * 2 {
        from_base16(digits.as_bytes(), &mut bytes[..count])?;
    } else if !is_sri && length == base32::encoded_len(count) {
        base32::decode_into(digits.as_bytes(), &mut bytes[..count]).map_err(HashError::Base32)?;
    } else if length == count.div_ceil(3) * 4 {
        let decoded = BASE64.decode(digits).map_err(|_| HashError::Base64)?;
        return Hash::from_bytes(algorithm, &decoded).ok_or(HashError::Base64);
    } else {
        return Err(HashError::Length { algorithm, length });
    }
    Ok(Hash { algorithm, bytes })
}

fn from_base16(digits: &[u8], bytes: &mut [u8]) -> Result<(), HashError> {
    let value = |offset: usize| match digits[offset] {
        digit @ b'0'..=b'9' => Ok(digit - b'0'),
        digit @ b'a'..=b'f' => Ok(digit - b'a' + 10),
        digit @ b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(HashError::Base16(offset)),
    };
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = value(index * 2)? << 4 | value(index * 2 + 1)?;
    }
    Ok(())
}

/// Keeps what strangers wrote from filling our logs.
fn shorten(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests;
