//! Ed25519 keys and signatures in Nix's textual form, `<key name>:<base64>`. Start at [`SecretKey`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::text_serde::serde_as_text;

/// Longest name of a key, in bytes.
pub const KEY_NAME_BYTES_MAX: usize = 255;

/// Why a text is no key or signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No colon.
    #[error("expected '<key name>:<base64>'")]
    Form,
    /// Empty, longer than [`KEY_NAME_BYTES_MAX`], or with a byte that is no visible ASCII character.
    #[error("a key name has 1 to {KEY_NAME_BYTES_MAX} visible ASCII characters and no colon")]
    KeyName,
    /// What follows the colon is no base64, or of the wrong size.
    #[error("expected {0} bytes in padded base64 after the key name")]
    Base64(usize),
    /// The public half of a secret key is not the one that belongs to its seed.
    #[error("the two halves of the secret key do not belong together: the key is damaged")]
    HalvesDiffer,
    /// The bytes are no point of the curve.
    #[error("the public key is no valid Ed25519 key")]
    PublicKey,
}

/// A signature and the name of the key that made it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

/// What signatures are checked with; printed as in `trusted-public-keys`.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// What signatures are made with. It never appears in `Debug` output and is wiped from memory when dropped.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

impl Signature {
    /// Puts a signature together.
    pub fn new(key_name: &str, bytes: [u8; 64]) -> Result<Self, SignatureError> {
        check_key_name(key_name)?;
        Ok(Self { key_name: key_name.to_owned(), bytes })
    }

    /// Name of the key that made it.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The 64 bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

impl PublicKey {
    /// Name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether this key made `signature` over `message`. False as well when the names differ, as in Nix.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        // Strict, as libsodium is: keys of small order would verify anything.
        self.name == signature.key_name && self.key.verify_strict(message, &bytes).is_ok()
    }
}

/// Whether any of the keys made any of the signatures over `message`.
pub fn verify_any<'a>(keys: &[PublicKey], message: &[u8], signatures: impl IntoIterator<Item = &'a Signature>) -> bool {
    signatures.into_iter().any(|signature| keys.iter().any(|key| key.verify(message, signature)))
}

impl SecretKey {
    /// Makes a key of 32 random bytes, which the caller must take from a cryptographic generator.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, SignatureError> {
        check_key_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// Reads `<name>:<base64 of seed and public key>`, as `nix key generate-secret` writes it.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (name, bytes) = split::<64>(text)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| SignatureError::HalvesDiffer)?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// The text for the key file. Only for writing that file: never log or send it.
    pub fn to_secret_text(&self) -> String {
        format!("{}:{}", self.name, BASE64.encode(self.key.to_keypair_bytes()))
    }

    /// Name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The half that everybody may know.
    pub fn public_key(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs `message`, such as the fingerprint of a path. The same message always gets the same signature.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature { key_name: self.name.clone(), bytes: self.key.sign(message).to_bytes() }
    }
}

fn check_key_name(name: &str) -> Result<(), SignatureError> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if name.is_empty() || name.len() > KEY_NAME_BYTES_MAX || !name.bytes().all(is_allowed) {
        return Err(SignatureError::KeyName);
    }
    Ok(())
}

fn split<const SIZE: usize>(text: &str) -> Result<(&str, [u8; SIZE]), SignatureError> {
    let (name, digits) = text.split_once(':').ok_or(SignatureError::Form)?;
    check_key_name(name)?;
    let mut bytes = [0; SIZE];
    let is_length_right = digits.len() == SIZE.div_ceil(3) * 4;
    match is_length_right.then(|| BASE64.decode_slice(digits, &mut bytes)) {
        Some(Ok(size)) if size == SIZE => Ok((name, bytes)),
        _ => Err(SignatureError::Base64(SIZE)),
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (key_name, bytes) = split::<64>(text)?;
        Ok(Self { key_name: key_name.to_owned(), bytes })
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (name, bytes) = split::<32>(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| SignatureError::PublicKey)?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, BASE64.encode(self.bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.key.as_bytes()))
    }
}

serde_as_text!(Signature);
serde_as_text!(PublicKey);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, seed: u8) -> SecretKey {
        SecretKey::from_seed(name, &[seed; 32]).expect("valid name")
    }

    #[test]
    fn signs_and_verifies() {
        let secret = key("a-1", 1);
        let signature = secret.sign(b"message");
        let public: PublicKey = secret.public_key().to_string().parse().expect("own text");
        assert_eq!(signature.to_string().parse(), Ok(signature.clone()));
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"Message", &signature));
        assert!(!key("a-1", 2).public_key().verify(b"message", &signature));
        assert!(!key("a-2", 1).public_key().verify(b"message", &signature), "another name");
        let json = serde_json::to_string(&public).expect("serialises");
        assert_eq!(serde_json::from_str::<PublicKey>(&json).expect("parses"), public);
        let reread = SecretKey::parse(&secret.to_secret_text()).expect("own text");
        assert_eq!(reread.sign(b"message"), signature);

        let keys = [key("old-1", 3).public_key(), public];
        let others = [key("x-1", 4).sign(b"message"), signature];
        assert!(verify_any(&keys, b"message", &others));
        assert!(!verify_any(&keys[..1], b"message", &others));
        assert!(!verify_any(&keys, b"message", &others[..1]));
    }

    #[test]
    fn secret_is_not_in_debug() {
        let secret = key("a-1", 7);
        assert_eq!(format!("{secret:?}"), "SecretKey { name: \"a-1\", .. }");
    }

    #[test]
    fn refusals() {
        let secret = key("a-1", 1);
        let text = secret.to_secret_text();
        let parse = |text: &str| SecretKey::parse(text).map(|_| ());
        assert_eq!(parse("a-1"), Err(SignatureError::Form));
        assert_eq!(parse(&text.replace("a-1:", ":")), Err(SignatureError::KeyName));
        assert_eq!(parse(&text.replace("a-1:", "a 1:")), Err(SignatureError::KeyName));
        assert_eq!(parse(&text[..text.len() - 4]), Err(SignatureError::Base64(64)));
        assert_eq!(parse(&format!("{text}\n")), Err(SignatureError::Base64(64)));
        assert_eq!(parse(&text.replace("AQEB", "AQEC")), Err(SignatureError::HalvesDiffer));
        assert_eq!("a:AAAA".parse::<Signature>(), Err(SignatureError::Base64(64)));
        let no_point = format!("a:{}", BASE64.encode([2; 32]));
        assert_eq!(no_point.parse::<PublicKey>(), Err(SignatureError::PublicKey));
        // The neutral element verifies a signature of zeros over anything unless refused.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let weak: PublicKey = format!("a:{}", BASE64.encode(neutral)).parse().expect("on the curve");
        let mut zeros = [0; 64];
        zeros[0] = 1;
        assert!(!weak.verify(b"anything", &Signature::new("a", zeros).expect("valid name")));
    }
}
